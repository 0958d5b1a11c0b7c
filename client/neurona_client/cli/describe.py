"""neurona describe: a model's inputs, outputs and what it records about itself."""

import argparse
from typing import TYPE_CHECKING

from neurona_client.cli.arguments import add_request_arguments, add_version_arguments, make_client
from neurona_client.cli.json_output import print_json
from neurona_client.cli.terminal import BOLD, coloured, printable

if TYPE_CHECKING:
    from neurona_client.descriptions import ModelDescription, TensorSpec
    from neurona_protos.prediction_pb2 import RunCost, SequenceServing

NAME = "describe"
SUMMARY = "show the inputs, outputs, labels and figures of a model"
DESCRIPTION = "Shows inputs and outputs of a model, its measured quality, and how it is batched."
EXAMPLES = """\
examples:
  neurona describe lenet5
  neurona describe lenet5 --label canary
  neurona describe lenet5 --json | jq .metadata.figures
"""

MAX_SHOWN_LABELS = 20  # --json prints all


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the subcommand."""
    parser.add_argument("model", metavar="MODEL")
    add_version_arguments(parser)
    parser.add_argument("--json", action="store_true", help="print everything as JSON")
    add_request_arguments(parser)


def run(options: argparse.Namespace) -> int:
    """Run the subcommand and return the exit status."""
    with make_client(options) as client:
        model = client.describe(options.model, version=options.version, label=options.label)
    if options.json:
        from google.protobuf.json_format import MessageToDict

        message = MessageToDict(model.message, preserving_proto_field_name=True)
        print_json(message, indent=2)
        return 0
    title = f"{model.name}, version {model.version}: {model.task}"
    print(coloured(printable(title), BOLD))
    if model.description:
        print(printable(model.description))
    for name, text in _properties(model):
        print(f"  {name:<10} {printable(text)}")
    return 0


def _properties(model: "ModelDescription") -> list[tuple[str, str]]:
    """Return name and text of each line."""
    lines = [("input", tensor_line(spec)) for spec in model.inputs]
    lines += [("output", tensor_line(spec)) for spec in model.outputs]
    if model.labels:
        hidden = len(model.labels) - MAX_SHOWN_LABELS
        text = ", ".join(model.labels[:MAX_SHOWN_LABELS])
        text += f", and {hidden} more" if hidden > 0 else ""
        lines.append((f"{len(model.labels)} labels", text))
    lines += [
        ("value", f"{value.name} {f'({value.unit})' if value.unit else ''}")
        for value in model.values
    ]
    batching = model.message.batching
    if model.batched:
        lines.append(("batches", f"up to {batching.limit_rows or batching.max_rows} rows"))
    else:
        lines.append(("batches", "no: requests run one by one"))
    if batching.latency_objective_seconds:
        text = f"{batching.latency_objective_seconds * 1e3:.3g} ms from arrival to answer"
        lines.append(("objective", text))
    lines += [("run", _cost_line(cost)) for cost in batching.costs]
    if model.message.HasField("sequences"):
        lines += _sequence_lines(model.message.sequences)
    lines += [("figure", f"{name} {value:.6g}") for name, value in sorted(model.figures.items())]
    lines += [("made", f"{name}: {text}") for name, text in sorted(model.provenance.items())]
    return lines


def _cost_line(cost: "RunCost") -> str:
    """Return what a batch of a size costs: its run, and all of it where that is known."""
    line = f"{cost.rows} row{'s' if cost.rows > 1 else ''} in {cost.seconds * 1e3:.3g} ms"
    cycles = {quantile.level: quantile.cycle_seconds * 1e3 for quantile in cost.quantiles}
    if (median := cycles.get(0.5)) is not None:
        line += f"; all of a batch in {median:.3g} ms"
    if (slow := cycles.get(0.99)) is not None:
        line += f", 99 % within {slow:.3g} ms"
    return line


def _sequence_lines(serving: "SequenceServing") -> list[tuple[str, str]]:
    """Return how sequences of different lengths are served, and whether there are sessions."""
    method = (
        "of equal length share a run",
        "of different lengths share a run",
        f"of different lengths share runs of {serving.chunk_steps} steps",
    )[min(serving.method, 2)]
    because = f": {serving.reason}" if serving.reason else ""
    state = f"state of {serving.state_bytes} bytes a row, {serving.open_sessions} open"
    if not serving.state_bytes:
        state = f"none: {serving.stateless_reason or 'no state'}"
    return [("sequences", method + because), ("sessions", state)]


def tensor_line(spec: "TensorSpec") -> str:
    """Return a tensor in a line: name, dtype, shape, meaning and unit."""
    axes = dict(enumerate(spec.axes))
    sizes = [
        axes.get(number) or "?" if size < 0 else str(size) for number, size in enumerate(spec.shape)
    ]
    shape = "of any shape" if spec.any_shape else f"[{', '.join(sizes)}]"
    text = f"{spec.name}: {spec.dtype} {shape}"
    text += " (optional)" if spec.optional else ""
    words = [word for word in (spec.description, spec.unit) if word]
    return text + (f", {'; '.join(words)}" if words else "")
