"""python -m neurona_server.doctor: reports what stands between this machine and a server.

`neurona doctor` runs it. The exit status is 1 if something keeps the server from running.
"""

import argparse
import sys
from collections.abc import Iterator, Sequence

from neurona_server.doctor.findings import (
    Finding,
    print_findings,
    run_checks,
    run_in_child,
    write_findings,
)
from neurona_server.doctor.machine_checks import machine_checks
from neurona_server.doctor.package_checks import package_checks
from neurona_server.doctor.runtime_checks import runtime_checks, transport_checks
from neurona_server.doctor.settings import read_settings

GROUPS = {"runtime": runtime_checks, "transport": transport_checks}
"""Checks that run in a process of their own, by its argument."""

SUBJECTS = {"runtime": "ONNX Runtime", "transport": "gRPC transport"}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command.

    Args:
        arguments: Without the program's name; None: those of this process.

    Returns:
        Its exit status.
    """
    parser = argparse.ArgumentParser(
        prog="neurona doctor",
        description="Reports what stands between this machine and a server, a GPU included. The "
        "exit status is 1 if something keeps neurona-serve from running.",
        allow_abbrev=False,
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--config", metavar="FILE", help="file of options, as of neurona-serve")
    parser.add_argument("--group", choices=GROUPS, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    config = ["--config", options.config] if options.config else []
    if options.group:
        settings, _ = read_settings(config)
        write_findings(run_checks(GROUPS[options.group](settings)))
        return 0
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="backslashreplace")
    return print_findings(_diagnose(config), as_json=options.json)


def _diagnose(config: Sequence[str]) -> Iterator[Finding]:
    yield from run_checks(package_checks())
    settings, finding = read_settings(config)
    yield finding
    for group, subject in SUBJECTS.items():
        command = [sys.executable, "-m", "neurona_server.doctor", "--group", group, *config]
        yield from run_in_child(subject, command)
    yield from run_checks(machine_checks(settings))


if __name__ == "__main__":
    sys.exit(main())
