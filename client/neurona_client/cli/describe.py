"""neurona describe: what a model takes, gives, and says about itself."""

import argparse
import json
from typing import TYPE_CHECKING

from neurona_client.cli import arguments
from neurona_client.cli.terminal import BOLD, coloured, plain

if TYPE_CHECKING:
    from neurona_client.descriptions import Description, TensorSpec

NAME = "describe"
SUMMARY = "show a model's inputs, outputs, labels and figures"
DESCRIPTION = "Shows what a model takes and gives, how well it did, and how it is batched."
EXAMPLES = """\
examples:
  neurona describe lenet5
  neurona describe lenet5 --label canary
  neurona describe lenet5 --json | jq .metadata.figures
"""

SHOWN = 20  # labels; --json has them all


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="MODEL")
    arguments.add_which(parser)
    parser.add_argument("--json", action="store_true", help="all of it, for programs")
    arguments.add_request_arguments(parser)


def run(options: argparse.Namespace) -> int:
    with arguments.client(options) as client:
        found = client.describe(options.model, version=options.version, label=options.label)
    if options.json:
        from google.protobuf.json_format import MessageToDict

        said = MessageToDict(found.message, preserving_proto_field_name=True)
        print(json.dumps(said, indent=2, ensure_ascii=False))
        return 0
    title = f"{found.name}, version {found.version}: {found.task}"
    print(coloured(plain(title), BOLD))
    if found.description:
        print(plain(found.description))
    for name, text in _lines(found):
        print(f"  {name:<10} {plain(text)}")
    return 0


def _lines(found: "Description") -> list[tuple[str, str]]:
    lines = [("input", shown(one)) for one in found.inputs]
    lines += [("output", shown(one)) for one in found.outputs]
    if found.labels:
        more = len(found.labels) - SHOWN
        text = ", ".join(found.labels[:SHOWN]) + (f", and {more} more" if more > 0 else "")
        lines.append((f"{len(found.labels)} labels", text))
    lines += [
        ("value", f"{one.name} {f'({one.unit})' if one.unit else ''}") for one in found.values
    ]
    batching = found.message.batching
    if found.batched:
        lines.append(("batches", f"up to {batching.limit_rows or batching.max_rows} rows"))
    else:
        lines.append(("batches", "no: requests run one by one"))
    lines += [
        ("run", f"{one.rows} row{'s' if one.rows > 1 else ''} in {one.seconds * 1e3:.3g} ms")
        for one in batching.costs
    ]
    lines += [("figure", f"{name} {value:.6g}") for name, value in sorted(found.figures.items())]
    lines += [("made", f"{name}: {text}") for name, text in sorted(found.provenance.items())]
    return lines


def shown(one: "TensorSpec") -> str:
    """A tensor in a line: name, dtype, shape, what it means."""
    sizes = [
        axis or "?" if size < 0 else str(size)
        for size, axis in zip(one.shape, one.axes or [""] * len(one.shape), strict=True)
    ]
    text = f"{one.name}: {one.dtype} [{', '.join(sizes)}]"
    text += " (optional)" if one.optional else ""
    words = [word for word in (one.description, one.unit) if word]
    return text + (f", {'; '.join(words)}" if words else "")
