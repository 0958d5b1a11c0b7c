"""neurona models: what is served."""

import argparse
import json
from dataclasses import asdict
from typing import TYPE_CHECKING

from neurona_client.cli import arguments
from neurona_client.cli.terminal import GREEN, RED, YELLOW, coloured, plain, table, width

if TYPE_CHECKING:
    from neurona_client.descriptions import ServedVersion

NAME = "models"
SUMMARY = "list what is served, and in which state"
DESCRIPTION = "Lists models, their versions, where they run, and what a person should look at."
EXAMPLES = """\
examples:
  neurona models
  neurona models --json | jq -r '.[] | select(.ready) | .name'
"""

HEADER = ("MODEL", "VERSION", "STATE", "TASK", "SHARE", "LABELS", "RUNS ON")
COLOURS = {"ready": GREEN, "failed": RED}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="for programs")
    arguments.add_request_arguments(parser)


def run(options: argparse.Namespace) -> int:
    with arguments.client(options) as client:
        found = client.models()
    if options.json:
        print(json.dumps([asdict(one) | {"ready": one.ready} for one in found], indent=2))
        return 0
    rows = [
        (
            model.name,
            str(one.version),
            one.state,
            model.task,
            "shadow" if one.shadow else f"{one.share:g}%" if one.share else "",
            " ".join(one.labels),
            one.provider.removesuffix("ExecutionProvider"),
        )
        for model in found
        for one in model.versions
    ]
    states = [(model.name, one) for model in found for one in model.versions]
    lines = table(HEADER, rows, right=(1, 4), room=width())
    print(lines[0])
    for line, (name, one) in zip(lines[1:], states, strict=True):
        print(coloured(line, COLOURS.get(one.state, YELLOW)) if one.state != "ready" else line)
        for reason in _reasons(one):
            print(f"  {plain(name)} {one.version}: {plain(reason)}")
    return 0


def _reasons(one: "ServedVersion") -> list[str]:
    return [reason for reason in (one.reason, one.degraded) if reason]
