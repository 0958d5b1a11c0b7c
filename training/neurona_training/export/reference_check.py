"""An ONNX file from anywhere, verified against a torch program or reference outputs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import onnx
import torch
from google.protobuf.message import DecodeError

from neurona_training.errors import DataError, OptionError
from neurona_training.export.fault_diagnosis import diagnose
from neurona_training.export.graph_check import (
    CheckResult,
    GraphError,
    RunnableGraph,
    check_case,
    one_line,
)
from neurona_training.export.references import ExpectedCase, OutputReference, open_reference
from neurona_training.export.tensor_comparison import Array, Tolerance, find_difference


@dataclass(frozen=True)
class Verification:
    """The outcome of `verify`.

    Args:
        results: of all cases that were compared.
        skipped: by case, why the reference itself has no output there.
        notes: what the reference cannot say.
        cause: of the first difference, where it is of a known kind; otherwise empty.
    """

    results: tuple[CheckResult, ...]
    skipped: Mapping[str, str]
    notes: tuple[str, ...]
    cause: str

    @property
    def passed(self) -> bool:
        """Whether all outputs are equal to rounding."""
        return not any(result.fault for result in self.results)

    @property
    def largest_difference(self) -> float:
        """Of the cases that are equal."""
        return max((one.largest for one in self.results if not one.fault), default=0.0)

    def lines(self) -> Iterator[str]:
        """Yields a line for each check, then the verdict."""
        for result in self.results:
            undecided = (
                f", {result.undecided} numbers differ where rounding decides"
                if result.undecided
                else ""
            )
            if result.fault:
                yield f"{result.case}: different: {result.fault}"
            else:
                yield f"{result.case}: equal, largest difference {result.largest:.2g}{undecided}"
        for case, reason in self.skipped.items():
            yield f"{case}: not compared, the reference refuses it: {reason[:200]}"
        for note in self.notes:
            yield f"note: {note}"
        failed = [result for result in self.results if result.fault]
        if failed:
            yield f"different in {len(failed)} of {len(self.results)} checks"
            yield f"likely cause: {self.cause or 'none of the known kinds'}"
        else:
            yield (
                f"equal in {len(self.results)} checks, largest difference "
                f"{self.largest_difference:.2g}"
            )


def verify(
    path: str | Path,
    against: str | Path | torch.export.ExportedProgram | Mapping[str, Array],
    *,
    rtol: float | None = None,
    atol: float | None = None,
    fixed: Sequence[str] = (),
) -> Verification:
    """Verifies an ONNX file against a torch program or reference outputs.

    Args:
        path: the ONNX file, by whatever exporter.
        against: a .pt2 file of torch.export.save, which is run at the batch sizes and lengths
            that its dynamic shapes allow; or an .npz file with arrays by the names of inputs and
            outputs, whose rows are compared in several batches. Or what such a file holds.
        rtol: the largest difference as a fraction of the output; by default 1e-4.
        atol: the same in the output's unit; by default 1e-5 of the largest output.
        fixed: axes that need not be of any size, by the file's names ("time") or by input and
            index ("x.1").

    Returns:
        The outcome of each check, and the likely cause of a difference.

    Raises:
        DataError: a file cannot be read.
        ExportError: the inputs and outputs of both are not the same, or ONNX Runtime cannot load
            the file for another reason than a known fault.
        OptionError: an unknown axis, or a negative tolerance.
    """
    for name, value in (("rtol", rtol), ("atol", atol)):
        if value is not None and not value >= 0:
            raise OptionError(f"{name} {value!r} (expected 0 or more)")
    default = Tolerance()
    tolerance = Tolerance(
        default.relative if rtol is None else rtol,
        default.of_largest if atol is None else 0.0,
        atol or 0.0,
    )
    model = _read_model(Path(path))
    reference = open_reference(against, model)
    for axis in fixed:
        if axis not in reference.free_axes:
            raise OptionError(
                f"unknown axis {axis!r} (available: {', '.join(reference.free_axes) or 'none'})"
            )
    return _Check(Path(path), model, reference, tolerance).run(fixed)


class _Check:
    """One verification of a file."""

    def __init__(
        self, path: Path, model: onnx.ModelProto, reference: OutputReference, tolerance: Tolerance
    ) -> None:
        self._path = path
        self._model = model
        self._reference = reference
        self._tolerance = tolerance
        self._results: list[CheckResult] = []
        self._skipped: dict[str, str] = {}

    def run(self, fixed: Sequence[str]) -> Verification:
        """Compares all cases."""
        notes = list(self._reference.notes)
        first_failed: tuple[CheckResult, ExpectedCase] | None = None
        graph: RunnableGraph | None = None
        for expected in self._reference.cases(fixed):
            if expected.refused:
                self._skipped[str(expected.case)] = expected.refused
                continue
            if graph is None:
                try:
                    graph = RunnableGraph(str(self._path))
                except GraphError as error:
                    result = CheckResult(expected.case, float("nan"), str(error))
                    self._results.append(result)
                    first_failed = result, expected
                    break
            result = self._check(graph, expected, is_first=not self._results)
            self._results.append(result)
            if result.fault and first_failed is None:
                first_failed = result, expected
        if not self._results:
            raise DataError("no case to compare: the reference refuses all of its own inputs")
        cause = self._diagnose(*first_failed) if first_failed else ""
        return Verification(tuple(self._results), self._skipped, tuple(notes), cause)

    def _check(
        self, graph: RunnableGraph, expected: ExpectedCase, *, is_first: bool
    ) -> CheckResult:
        if is_first:
            try:
                again = [graph.run(expected.case.arrays) for _ in range(2)]
            except GraphError as error:
                return CheckResult(expected.case, float("nan"), str(error))
            for name, one, other in zip(graph.outputs, *again, strict=True):
                if difference := find_difference(name, one, other, self._tolerance):
                    fault = f"output {name!r} differs between two runs with the same input"
                    return CheckResult(expected.case, difference.largest, fault)
        outputs = list(expected.outputs)

        def asked_again(arrays: Mapping[str, Array]) -> Sequence[Array]:
            reference_outputs = self._reference.run(arrays)
            if reference_outputs is not None:
                return reference_outputs
            # Arrays have no program; the graph itself says where rounding decides.
            by_name = dict(zip(graph.outputs, graph.run(arrays), strict=True))
            return [by_name[name] for name in outputs]

        return check_case(
            graph,
            expected.case,
            expected.outputs,
            self._tolerance,
            asked_again,
            same_types=self._reference.same_types,
        )

    def _diagnose(self, failed: CheckResult, expected: ExpectedCase) -> str:
        def passes(changed: onnx.ModelProto) -> bool:
            try:
                graph = RunnableGraph(changed.SerializeToString())
            except GraphError:
                return False
            return not check_case(
                graph,
                expected.case,
                expected.outputs,
                self._tolerance,
                same_types=self._reference.same_types,
            ).fault

        frozen = self._frozen_axes(failed)
        return diagnose(self._model, failed, expected.outputs, passes, frozen)

    def _frozen_axes(self, failed: CheckResult) -> list[str]:
        """Which axes fail at other sizes, where the example's own size passes."""
        own = self._results[0]
        if own.fault:
            return []
        frozen = [
            f"axis {axis!r} is frozen at {own.case.sizes[axis]} and fails at {size}"
            for axis, size in failed.case.sizes.items()
            if own.case.sizes.get(axis, size) != size
        ]
        return frozen or [
            f"the file takes {before} in axis {at} of input {name!r} and not {size}"
            for name, array in failed.case.arrays.items()
            for at, (before, size) in enumerate(
                zip(own.case.arrays[name].shape, array.shape, strict=False)
            )
            if before != size
        ]


def _read_model(path: Path) -> onnx.ModelProto:
    try:
        model = onnx.load(path)
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror or one_line(error)}") from error
    except (DecodeError, ValueError, onnx.checker.ValidationError) as error:
        raise DataError(f"cannot read {path}: no ONNX file: {one_line(error)}") from error
    if not model.graph.output:
        raise DataError(f"cannot read {path}: no ONNX file (expected a graph with an output)")
    return model
