"""Prints the requirements of extras and dependency groups of pyproject.toml, one per line.

    python deploy/requirements.py server,tracing > requirements.txt

The project itself is left out.

It stands alone because the Dockerfile copies it: with these requirements an image has its
dependencies in a layer of their own, which a change of the source does not rebuild.
"""

import re
import sys
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

SELF_REFERENCE = re.compile(r"neurona\[(.+)\]")
"""A requirement that includes other extras of this project."""


def requirements(pyproject: dict[str, Any], extras: Sequence[str]) -> list[str]:
    """Returns the requirements of the project and of these extras and groups, sorted.

    Raises:
        ValueError: An extra is unknown.
    """
    project = pyproject["project"]
    available = project["optional-dependencies"] | pyproject["dependency-groups"]
    result = set(project["dependencies"])
    pending = list(extras)
    while pending:
        extra = pending.pop()
        if extra not in available:
            raise ValueError(f"unknown extra {extra!r} (expected one of {sorted(available)})")
        for requirement in available[extra]:
            if reference := SELF_REFERENCE.fullmatch(requirement):
                pending += reference[1].split(",")
            else:
                result.add(requirement)
    return sorted(result)


def main() -> int:
    extras = [extra for argument in sys.argv[1:] for extra in argument.split(",") if extra]
    pyproject = tomllib.loads(Path("pyproject.toml").read_text(encoding="utf-8"))
    try:
        print(*requirements(pyproject, extras), sep="\n")
    except ValueError as error:
        print(f"requirements.py: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
