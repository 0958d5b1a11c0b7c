"""neurona doctor: what stands between this machine and a server, a GPU included.

The checks are the server's (neurona_server.doctor), run as a program of their own: the client works
without the server.
"""

import argparse
import importlib.util
import subprocess
import sys

from neurona_client.cli.arguments import FAILED, CommandError
from neurona_client.cli.json_output import print_json

NAME = "doctor"
SUMMARY = "report what stands between this machine and a server, a GPU included"
DESCRIPTION = (
    "Looks at Python, packages, ONNX Runtime, NVIDIA's driver, CUDA, cuDNN, GPUs, CPUs, memory, "
    "open files, the cache folder and the ports of this machine; calls no server. Exits with 1 if "
    "something keeps neurona-serve from running."
)
EXAMPLES = """\
examples:
  neurona doctor
  neurona doctor --config /etc/neurona/neurona.toml     with the ports and the cache set there
  neurona doctor --json | jq -r '.findings[] | select(.mark == "fault") | .text'
"""

SERVER = "neurona_server"
INSTALL = "pip install 'neurona[server]', or 'neurona[serving]' and an ONNX Runtime"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the subcommand."""
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument(
        "--config",
        metavar="FILE",
        help="the server's file of options (default: neurona.toml in the current folder, if any)",
    )


def run(options: argparse.Namespace) -> int:
    """Run the subcommand and return the exit status."""
    if importlib.util.find_spec(SERVER) is None:
        return _report_missing_server(as_json=options.json)
    command = [sys.executable, "-P", "-m", f"{SERVER}.doctor"]
    command += ["--json"] * options.json
    command += ["--config", options.config] if options.config else []
    status = subprocess.run(command, check=False).returncode  # noqa: S603  our own program
    if status < 0:
        raise CommandError(f"the checks were ended by signal {-status}", FAILED)
    return status


def _report_missing_server(*, as_json: bool) -> int:
    text = "the server is not installed"
    if as_json:
        finding = {"subject": "packages", "mark": "fault", "text": text, "advice": INSTALL}
        print_json({"faults": 1, "findings": [finding]}, indent=2)
    else:
        print(f"fault  packages: {text}\n       -> {INSTALL}")
    return FAILED
