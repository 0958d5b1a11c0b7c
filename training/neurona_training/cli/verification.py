"""The subcommand `neurona-train verify`: an ONNX file against a torch program or reference outputs.

    neurona-train verify model.onnx --against module.pt2
    neurona-train verify model.onnx --against reference.npz --rtol 1e-3

It prints a line for each check, and the verdict with the likely cause of a difference.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from neurona_training.cli.arguments import CommandParser

VERIFY = "verify"
_EPILOG = """\
examples:
  neurona-train verify model.onnx --against module.pt2
  neurona-train verify model.onnx --against reference.npz --rtol 1e-3
  neurona-train verify model.onnx --against module.pt2 --fixed time

module.pt2 is of torch.export.save(torch.export.export(module.eval(), example,
dynamic_shapes=...), "module.pt2"); reference.npz of numpy.savez, with inputs and outputs by the
names that the file has. The exit status is 0 if all outputs are equal to rounding, otherwise 1.
"""


@dataclass(frozen=True)
class VerifyModel:
    """The parsed subcommand; see `reference_check.verify`."""

    model: Path
    against: Path
    rtol: float | None
    atol: float | None
    fixed: tuple[str, ...]


def parse_verify(argv: Sequence[str]) -> VerifyModel:
    """Parses what follows `verify`.

    Exits with status 2 and one line on stderr if it is wrong.
    """
    options = make_verify_parser().parse_args(argv)
    return VerifyModel(
        options.model, options.against, options.rtol, options.atol, tuple(options.fixed)
    )


def make_verify_parser() -> CommandParser:
    """The parser of the subcommand."""
    parser = CommandParser(
        prog=f"neurona-train {VERIFY}",
        usage=f"neurona-train {VERIFY} MODEL.onnx --against FILE [OPTION...]",
        description="Runs an ONNX file, by whatever exporter, on ONNX Runtime at several batch\n"
        "sizes and lengths, and compares its outputs with those of a reference.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("model", type=Path, metavar="MODEL.onnx", help="what is verified")
    parser.add_argument(
        "--against",
        type=Path,
        required=True,
        metavar="FILE",
        help="a .pt2 of torch.export.save, or an .npz of inputs and outputs by name",
    )
    parser.add_argument(
        "--rtol",
        type=_tolerance,
        metavar="R",
        help="largest difference as a fraction of the output (default: 1e-4)",
    )
    parser.add_argument(
        "--atol",
        type=_tolerance,
        metavar="A",
        help="the same in the output's unit (default: 1e-5 of the largest output)",
    )
    parser.add_argument(
        "--fixed",
        action="append",
        default=[],
        metavar="AXIS",
        help="an axis that need not be of any size: time, or x.1; can be repeated",
    )
    return parser


def run_verify(command: VerifyModel) -> tuple[list[str], int]:
    """Verifies the file.

    Returns:
        The lines to be printed, and the exit status: 1 if outputs differ.

    Raises:
        TrainingError: see `reference_check.verify`.
    """
    from neurona_training.export.reference_check import verify

    outcome = verify(
        command.model,
        command.against,
        rtol=command.rtol,
        atol=command.atol,
        fixed=command.fixed,
    )
    return list(outcome.lines()), 0 if outcome.passed else 1


def _tolerance(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = -1.0
    if not 0 <= number < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 0")
    return number
