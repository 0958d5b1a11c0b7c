"""What a check of the doctor returns, and how checks run: none can stop the others.

Those that load libraries of others run in a process of their own, because a library that does not
fit may crash it or never return.
"""

import enum
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass

CHILD_SECONDS = 120.0
"""Time for the checks of a child process: starting CUDA on many GPUs takes a while."""

MAX_TEXT = 400
"""Characters of a failure's text that are shown."""


class Mark(enum.StrEnum):
    """What a finding means for the server."""

    OK = "ok"
    NOTE = "note"
    """The server runs, but less well than it could, or without a GPU."""
    FAULT = "fault"
    """The server does not run."""


@dataclass(frozen=True)
class Finding:
    """One line of the report."""

    subject: str
    mark: Mark
    text: str
    advice: str = ""
    """What to do about it."""


Check = Callable[[], Iterable[Finding]]
"""Looks at one thing; may raise anything."""


def run_checks(checks: Iterable[tuple[str, Check]]) -> Iterator[Finding]:
    """Yield the findings of checks, each with the subject that is reported if it fails itself."""
    for subject, check in checks:
        try:
            yield from check()
        except Exception as error:
            reason = f"{type(error).__name__}: {error}".strip()
            yield Finding(subject, Mark.NOTE, f"cannot be checked: {shorten(reason)}")


def run_in_child(
    subject: str, command: list[str], seconds: float = CHILD_SECONDS
) -> Iterator[Finding]:
    """Yield the findings that a process writes, as `write_findings` does, until it ends.

    Args:
        subject: What is reported if the process crashes or does not end.
        command: The process.
        seconds: Its time limit.
    """
    try:
        done = subprocess.run(  # noqa: S603  our own command
            command, check=False, capture_output=True, timeout=seconds, stdin=subprocess.DEVNULL
        )
        output, errors, status = done.stdout, done.stderr, done.returncode
    except subprocess.TimeoutExpired as error:
        output, errors, status = error.stdout or b"", error.stderr or b"", None
    yield from _read_findings(output)
    if status == 0:
        return
    last = shorten(errors.decode(errors="replace").strip().rpartition("\n")[2])
    detail = f": {last}" if last else ""
    if status is None:
        text = f"the check did not end within {seconds:g} s{detail}"
    elif status < 0:
        text = f"the check was ended by signal {-status}{detail}"
    else:
        text = f"the check ended with status {status}{detail}"
    advice = "a library crashes or hangs here, and would in the server: reinstall it"
    yield Finding(subject, Mark.FAULT, text, advice)


def write_findings(findings: Iterable[Finding]) -> None:
    """Write findings to standard output, a line each, for `run_in_child` to read.

    What libraries print meanwhile goes to standard error.
    """
    with os.fdopen(os.dup(1), "w", encoding="ascii") as output:
        os.dup2(2, 1)
        for finding in findings:
            print(json.dumps(asdict(finding)), file=output, flush=True)


def print_findings(findings: Iterable[Finding], *, as_json: bool) -> int:
    """Print findings as they come, and what they mean; return the exit status.

    Args:
        findings: The findings.
        as_json: Print one JSON document instead, at the end.

    Returns:
        1 if one is a fault, else 0.
    """
    faults, documents = 0, []
    for finding in findings:
        faults += finding.mark is Mark.FAULT
        if as_json:
            documents.append(asdict(finding))
        else:
            print(_line(finding), flush=True)
    if as_json:
        print(json.dumps({"faults": faults, "findings": documents}, indent=2), flush=True)
    elif faults:
        print(f"\n{faults} fault{'s' * (faults > 1)} keep{'s' * (faults == 1)} it from running")
    else:
        print("\nno fault: neurona-serve can run here")
    return 1 if faults else 0


def shorten(text: str) -> str:
    """Return a text of others as one line that is not too long."""
    return " ".join(text.split())[:MAX_TEXT]


def _line(finding: Finding) -> str:
    mark = f"{finding.mark:<6}"
    colour = {Mark.NOTE: 33, Mark.FAULT: 31}.get(finding.mark)
    if colour and sys.stdout.isatty() and not os.environ.get("NO_COLOR"):
        mark = f"\x1b[{colour}m{mark}\x1b[0m"
    line = f"{mark} {_printable(finding.subject)}: {_printable(finding.text)}"
    return f"{line}\n{'':7}-> {_printable(finding.advice)}" if finding.advice else line


def _printable(text: str) -> str:
    return "".join(one if one.isprintable() else ascii(one)[1:-1] for one in text)


def _read_findings(output: bytes) -> Iterator[Finding]:
    for line in output.splitlines():
        try:
            values = json.loads(line)
            yield Finding(**values | {"mark": Mark(values["mark"])})
        except (KeyError, TypeError, ValueError):  # cut off where the process ended
            continue
