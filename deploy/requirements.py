"""Prints what extras of pyproject.toml need, one requirement a line, the project itself left out.

    python deploy/requirements.py server-cpu,tracing > requirements.txt

So an image can have its dependencies in a layer of their own, which a change of source leaves as it
is.
"""

import re
import sys
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

OWN = re.compile(r"neurona\[(.+)\]")
"""An extra that takes in others."""


def requirements(project: dict[str, Any], extras: Sequence[str]) -> list[str]:
    """Those of the project and of these extras, sorted. Raises ValueError for one it has not."""
    offered = project["optional-dependencies"]
    found = set(project["dependencies"])
    waiting = list(extras)
    while waiting:
        extra = waiting.pop()
        if extra not in offered:
            raise ValueError(f"pyproject.toml has no extra {extra!r}; it has {sorted(offered)}")
        for requirement in offered[extra]:
            if own := OWN.fullmatch(requirement):
                waiting += own[1].split(",")
            else:
                found.add(requirement)
    return sorted(found)


def main() -> int:
    extras = [extra for argument in sys.argv[1:] for extra in argument.split(",") if extra]
    project = tomllib.loads(Path("pyproject.toml").read_text(encoding="utf-8"))["project"]
    try:
        print(*requirements(project, extras), sep="\n")
    except ValueError as error:
        print(f"requirements.py: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
