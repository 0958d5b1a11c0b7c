"""An ONNX graph, run on ONNX Runtime and compared with any reference, case by case."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnxruntime
import torch

from neurona_training.errors import ExportError
from neurona_training.export.check_inputs import CheckCase
from neurona_training.export.tensor_comparison import (
    Array,
    Difference,
    Tolerance,
    are_numbers,
    distances,
    find_difference,
    largest_distance,
)

_PERTURBATIONS = 4
_PERTURBATION = 5e-7  # of each input, relative: a few roundings of float32
_PERTURBATION_FACTOR = 10.0  # allowed, of what the reference itself changes by them

Reference = Callable[[Mapping[str, Array]], Sequence[Array]]  # raises what it raises


class GraphError(ExportError):
    """ONNX Runtime cannot load a graph, or cannot run it with some inputs."""


@dataclass(frozen=True)
class CheckResult:
    """One case's outcome.

    Args:
        case: what was compared.
        largest: the largest difference of all outputs.
        fault: what is wrong, with the output; empty if nothing is.
        undecided: how many numbers differ only where rounding decides, as among equal scores.
    """

    case: CheckCase
    largest: float
    fault: str = ""
    undecided: int = 0


class RunnableGraph:
    """A graph on ONNX Runtime's CPU provider.

    Args:
        model: the file's bytes, or its path, where weights lie beside it.
    """

    def __init__(self, model: bytes | str) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        options.log_severity_level = 4  # errors are raised as exceptions
        self._quietly = onnxruntime.RunOptions()
        self._quietly.log_severity_level = 4
        try:
            self.session = onnxruntime.InferenceSession(
                model, options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:  # onnxruntime's exceptions have no common class of their own
            raise GraphError(f"ONNX Runtime cannot load the graph: {one_line(error)}") from error
        self.inputs = [one.name for one in self.session.get_inputs()]
        self.outputs = [one.name for one in self.session.get_outputs()]

    def run(self, arrays: Mapping[str, Array]) -> list[Array]:
        """Runs it.

        Raises:
            GraphError: ONNX Runtime refuses these inputs.
        """
        try:
            outputs = self.session.run(None, dict(arrays), self._quietly)
            return [np.asarray(one) for one in outputs]
        except Exception as error:  # see above
            raise GraphError(f"ONNX Runtime gives no output: {one_line(error)}") from error


def one_line(error: BaseException) -> str:
    """The text of an error on one line of bounded length."""
    return " ".join(str(error).split())[:500] or type(error).__name__


def check_case(
    graph: RunnableGraph,
    case: CheckCase,
    expected: Mapping[str, Array],
    tolerance: Tolerance,
    reference: Reference | None = None,
    *,
    same_types: bool = True,
) -> CheckResult:
    """Compares the outputs for one case.

    Args:
        graph: what is verified.
        case: the inputs.
        expected: by output, those that are compared.
        tolerance: for floating-point numbers.
        reference: gives the expected outputs, in the order of `expected`; asked again, with
            inputs changed by roundings, where an output differs.
        same_types: whether outputs have to have the expected types.
    """
    try:
        outputs = dict(zip(graph.outputs, graph.run(case.arrays), strict=True))
    except GraphError as error:
        return CheckResult(case, float("nan"), str(error))
    largest, undecided = 0.0, 0
    extras: Sequence[Array | float] | None = None
    for at, (name, wanted) in enumerate(expected.items()):
        actual = outputs[name]
        difference = find_difference(name, actual, wanted, tolerance, same_type=same_types)
        if difference and reference and actual.shape == wanted.shape:
            if extras is None:
                extras = _rounding_effects(reference, case.arrays, len(expected))
            wider = find_difference(
                name, actual, wanted, tolerance, extra=extras[at], same_type=same_types
            )
            if wider is None:
                undecided += _count_beyond(actual, wanted, tolerance)
                continue
            difference = wider
        if difference:
            return CheckResult(case, difference.largest, _describe_fault(difference), undecided)
        largest = max(largest, largest_distance(actual, wanted))
    return CheckResult(case, largest, "", undecided)


def _describe_fault(difference: Difference) -> str:
    separator = "" if difference.message.startswith("[") else " "
    return f"output {difference.output!r}{separator}{difference.message}"


def _count_beyond(actual: Array, expected: Array, tolerance: Tolerance) -> int:
    allowed = tolerance.allowed(expected) if expected.dtype.kind == "f" else 0
    return int((~(distances(actual, expected) <= allowed)).sum())


def _rounding_effects(
    reference: Reference, arrays: Mapping[str, Array], outputs: int
) -> list[Array | float]:
    """By output, how far its numbers move where inputs change by a few roundings.

    Where a number jumps, as the index of the larger of two equal scores, rounding decides it,
    and two right programs may differ. Other inputs than floating-point ones do not change.
    """
    generator = np.random.default_rng(0)
    effects: list[Array | float] = [0.0] * outputs
    try:
        unchanged = reference(arrays)
        for _ in range(_PERTURBATIONS):
            moved_outputs = reference({name: _round(arrays[name], generator) for name in arrays})
            for at, (output, before) in enumerate(zip(moved_outputs, unchanged, strict=True)):
                if output.shape == before.shape and are_numbers(output, before):
                    moved = distances(output, before)
                    moved = np.where(np.isnan(moved), 0.0, moved) * _PERTURBATION_FACTOR
                    effects[at] = np.maximum(effects[at], moved)
    except Exception:
        return [0.0] * outputs
    return effects


def _round(array: Array, generator: np.random.Generator) -> Array:
    if array.dtype.kind != "f":
        return array
    factors = 1 + generator.uniform(-_PERTURBATION, _PERTURBATION, array.shape)
    changed: Array = (array * factors).astype(array.dtype)
    return changed
