"""neurona models: the list of models. It is alone, as each subcommand is."""

import argparse
from dataclasses import asdict

from neurona_client.cli.arguments import add_request_arguments, make_client
from neurona_client.cli.json_output import print_json
from neurona_client.cli.terminal import RED, YELLOW, coloured, printable, table, terminal_width
from neurona_client.descriptions import ServedVersion

NAME = "models"
SUMMARY = "list models and versions with their states"
DESCRIPTION = "Lists models, their versions, where these run, and why a version failed."
EXAMPLES = """\
examples:
  neurona models
  neurona models --json | jq -r '.[] | select(.ready) | .name'
"""

HEADER = ("MODEL", "VERSION", "STATE", "TASK", "SHARE", "LABELS", "RUNS ON")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the subcommand."""
    parser.add_argument("--json", action="store_true", help="print JSON")
    add_request_arguments(parser)


def run(options: argparse.Namespace) -> int:
    """Run the subcommand and return the exit status."""
    with make_client(options) as client:
        models = client.models()
    if options.json:
        print_json([asdict(model) | {"ready": model.ready} for model in models], indent=2)
        return 0
    versions = [(model, version) for model in models for version in model.versions]
    rows = [
        (
            model.name,
            str(version.version or ""),
            version.state,
            model.task,
            "shadow" if version.shadow else f"{version.share:g}%" if version.share else "",
            " ".join(version.labels),
            _runs_on(version),
        )
        for model, version in versions
    ]
    header, *lines = table(HEADER, rows, right_aligned=(1, 4), width=terminal_width())
    print(header)
    for line, (model, version) in zip(lines, versions, strict=True):
        colour = RED if version.state == "failed" else YELLOW
        print(line if version.state == "ready" else coloured(line, colour))
        for reason in (version.reason, version.degraded):
            if reason:
                number = f" {version.version}" if version.version else ""
                print(f"  {printable(model.name)}{number}: {printable(reason)}")
    return 0


def _runs_on(version: ServedVersion) -> str:
    """Return the provider and the GPUs, as "CUDA 0,1"."""
    numbers = [label.partition(":")[2] for label in version.devices]
    provider = version.provider.removesuffix("ExecutionProvider")
    return f"{provider} {','.join(filter(None, numbers))}".rstrip()
