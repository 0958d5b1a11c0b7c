"""Checks whether the requests of a model can be batched, from its settings or test runs.

Rows can share a run if axis 0 of every input is free, every output has as many rows as the inputs,
and the outputs of a row do not depend on the other rows. The declared shapes of outputs are no
evidence: many exporters write sizes there that only their example had. So synthetic rows are run,
each among others, among copies of itself, and beside a row of much larger values.
"""

import logging
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from neurona_protos.prediction_pb2 import DataType
from neurona_server.batching.request import Array, Inputs, Outputs
from neurona_server.errors import LoadError
from neurona_server.models.repository.settings import ModelSettings
from neurona_server.models.signature import TensorSpec
from neurona_server.models.synthetic_inputs import FREE_SIZES, has_free_rows, make_inputs

log = logging.getLogger(__name__)

BATCH = "batch"
"""Name in the settings of an axis 0 along which requests may be joined."""

ROWS = 4
"""Enough to detect a dependency on any of the three rows before."""

SMALLER_BATCHES = ((0, 1), (1, 4))

TOLERANCE = 1e-4
"""Relative to the largest value of a column: kernels may round the last rows of a batch in another
way than the first ones, and those of a GPU round differently in each run."""

SIZE_TOLERANCE = 0.02
"""Relative to the largest value of a column, at another batch size: other kernels are used there,
which sum in another order, and a quantised value may be rounded to the next one."""

MIN_SIMILAR = 0.75
"""Part of the values that must be within SIZE_TOLERANCE; of each column at least one."""

SMALL_SCALE, LARGE_SCALE = 2.0**-6, 2.0**8
"""Factors of the values of two rows, for models that compare all rows with a bound: whether
any pixel is above 1, say. As powers of 2 they change no rounding."""

Run = Callable[[Inputs], Outputs]


class BatchingEvidence(NamedTuple):
    """What test runs have shown."""

    independent: bool
    reason: str = ""
    """Why requests are not batched; empty if a model was not or could not be run."""
    wrong_shape: bool = False
    """Whether an output has another number of rows than the inputs: it cannot be split."""


def decide_batching(
    model: str,
    inputs: Sequence[TensorSpec],
    outputs: Sequence[TensorSpec],
    settings: ModelSettings,
    run: Run,
) -> bool:
    """Return whether requests may share runs, from the settings or else from test runs.

    Raises:
        LoadError: The settings contradict each other or the model.
    """
    setting = _batched_setting(inputs, outputs, settings)
    if setting is False:
        return False
    if setting:
        for spec in inputs:
            if not has_free_rows(spec):
                raise LoadError(
                    f"its settings say that it is batched, but {spec.name!r} is {spec} "
                    "(expected an axis 0 of free size)"
                )
    evidence = check_rows(inputs, outputs, run)
    if setting and evidence.wrong_shape:
        raise LoadError(f"its settings say that it is batched, but {evidence.reason}")
    if setting and not evidence.independent:
        problem = f", but {evidence.reason}" if evidence.reason else " without a test run"
        log.warning("%s: batching enabled by its settings%s", model, problem)
    elif evidence.reason:
        log.info("%s: batching disabled: %s", model, evidence.reason)
    return evidence.independent or bool(setting)


def check_rows(
    inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec], run: Run
) -> BatchingEvidence:
    """Return whether rows have the same outputs whatever rows are beside them."""
    if not inputs or not all(has_free_rows(spec) and not spec.any_shape for spec in inputs):
        return BatchingEvidence(False)
    for positive in (False, True):
        for size in FREE_SIZES:
            try:
                arrays = _make_rows(inputs, size, positive=positive)
                together = run(arrays)
                smaller = [
                    run({name: array[start:stop] for name, array in arrays.items()})
                    for start, stop in SMALLER_BATCHES
                ]
                copies = [
                    run({name: np.repeat(a[row : row + 1], ROWS, 0) for name, a in arrays.items()})
                    for row in range(ROWS)
                ]
            except Exception as error:  # the model does not support this size, perhaps another one
                log.debug("cannot run with free axes of %d: %s", size, error)
                continue
            values = [
                [_as_numbers(array, spec) for array, spec in zip(arrays, outputs, strict=True)]
                for arrays in (together, *smaller, *copies)
            ]
            if not (reason := _find_nothing_finite(values[0], outputs)):
                evidence = _compare(outputs, values[0], values[1:3], values[3:])
                if evidence.independent:
                    return _compare_scales(inputs, outputs, arrays, values[0], run)
                if evidence.wrong_shape:
                    return evidence
                random = _find_random(outputs, values[0], arrays, run)
                return evidence._replace(reason=random or evidence.reason)
            break  # the logarithm of a negative number, say: try positive ones
        else:
            return BatchingEvidence(False)
    return BatchingEvidence(False, reason)


def _batched_setting(
    inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec], settings: ModelSettings
) -> bool | None:
    """Return the key `batched`, else what the names of the first axes imply, else None."""
    axes = [spec.axes for spec in inputs]
    axes += [settings.outputs[spec.name].axes for spec in outputs if spec.name in settings.outputs]
    first = [names[0] for names in axes if names]
    others = [name for name in first if name not in ("", BATCH)]
    if settings.batched is not None:
        if settings.batched and others:
            raise LoadError(
                f"its settings say that it is batched, and call an axis 0 {others[0]!r} "
                f"(expected {BATCH!r})"
            )
        return settings.batched
    if others:
        return False
    count = len(inputs) + len(outputs)
    return True if count and first == [BATCH] * count else None


def _make_rows(inputs: Sequence[TensorSpec], size: int, *, positive: bool) -> Inputs:
    """Return inputs of ROWS rows, of which each differs from the next in every input."""
    arrays = make_inputs(inputs, ROWS, size, positive=positive)
    for spec in inputs:
        array = arrays[spec.name]
        if array.dtype.kind == "O":
            array[1::2] = np.where(array[0::2] == "0", "1", "0")
        elif array.dtype.kind != "f" and spec.dtype != DataType.DATA_TYPE_BFLOAT16:
            array[1::2] = array[0::2] == 0
    return arrays


def _compare_scales(
    inputs: Sequence[TensorSpec],
    outputs: Sequence[TensorSpec],
    arrays: Inputs,
    together: Sequence[Array],
    run: Run,
) -> BatchingEvidence:
    """Return whether rows are independent of much larger and smaller ones beside them.

    Row 1 gets small values, 0 if they are integers, and row 3 large ones. Rows 0 and 2 must have
    the outputs that they had before, and row 1 those that it has among copies of itself.
    """
    scaled = {name: array.copy() for name, array in arrays.items()}
    for spec in inputs:
        array = scaled[spec.name]
        if array.dtype.kind == "f":
            array[1] *= SMALL_SCALE
            array[3] *= LARGE_SCALE
        elif array.dtype.kind != "O":
            array[1] = 0
    try:
        mixed = run(scaled)
        copies = run({name: np.repeat(array[1:2], ROWS, 0) for name, array in scaled.items()})
    except Exception as error:  # the model does not support these values
        log.debug("cannot run rows of different scales: %s", error)
        return BatchingEvidence(True)
    for before, *after, spec in zip(together, mixed, copies, outputs, strict=True):
        whole, small = (_as_numbers(array, spec) for array in after)
        if (
            whole.shape != before.shape
            or not _is_equal(whole[::2], before[::2])
            or not _is_equal(small, np.repeat(whole[1:2], ROWS, axis=0))
        ):
            return BatchingEvidence(False, _dependence(spec))
    return BatchingEvidence(True)


def _dependence(spec: TensorSpec) -> str:
    return f"outputs of synthetic inputs depend on other rows of the batch: {spec.name!r}"


def _as_numbers(array: Any, spec: TensorSpec) -> Array:
    values: Array = np.asarray(array)
    if spec.dtype == DataType.DATA_TYPE_BFLOAT16:
        values = (values.astype(np.uint32) << 16).view(np.float32)
    return values


def _find_nothing_finite(values: Sequence[Array], outputs: Sequence[TensorSpec]) -> str:
    for array, spec in zip(values, outputs, strict=True):
        if array.dtype.kind == "f" and array.size and not np.isfinite(array).any():
            return f"output {spec.name!r} of synthetic inputs has no finite value"
    return ""


def _find_random(
    outputs: Sequence[TensorSpec], together: Sequence[Array], inputs: Inputs, run: Run
) -> str:
    """Return which output is another one when the same inputs run again, or ""."""
    try:
        again = run(inputs)
    except Exception:  # it could be run before
        return "the same inputs cannot be run again"
    for first, second, spec in zip(together, again, outputs, strict=True):
        if not _is_equal(first, _as_numbers(second, spec)):
            return (
                f"output {spec.name!r} of the same inputs differs from run to run, so that it does "
                "not show whether rows depend on each other"
            )
    return ""


def _compare(
    outputs: Sequence[TensorSpec],
    together: Sequence[Array],
    smaller: Sequence[Sequence[Array]],
    copies: Sequence[Sequence[Array]],
) -> BatchingEvidence:
    for index, spec in enumerate(outputs):
        whole = together[index]
        parts = [part[index] for part in smaller]
        rows = [stop - start for start, stop in SMALLER_BATCHES]
        for array, count in zip([whole, *parts], [ROWS, *rows], strict=True):
            if array.shape[:1] != (count,):
                reason = (
                    f"output {spec.name!r} has shape {[*array.shape]} for {count} rows of inputs "
                    "(expected as many rows)"
                )
                return BatchingEvidence(False, reason, wrong_shape=True)
        repeated = [copy[index] for copy in copies]
        if len({array.shape[1:] for array in [whole, *parts, *repeated]}) > 1:
            return BatchingEvidence(False, f"the shape of output {spec.name!r} depends on values")
        among_copies = all(
            _is_equal(array, np.repeat(whole[row : row + 1], ROWS, axis=0))
            for row, array in enumerate(repeated)
        )
        if not among_copies or not _is_similar(parts, whole):
            return BatchingEvidence(False, _dependence(spec))
    return BatchingEvidence(True)


def _is_equal(first: Array, second: Array) -> bool:
    """Return whether values of one batch size are equal; infinities and NaN must be, too."""
    if first.shape != second.shape:
        return False
    if first.dtype.kind != "f":
        return bool(np.array_equal(first, second))
    return bool(_is_close(first, second, TOLERANCE).all())


def _is_similar(parts: Sequence[Array], whole: Array) -> bool:
    """Return whether most values of the SMALLER_BATCHES are those of all rows but for rounding.

    Rounding does not change a column in every row, other than the number of rows does.
    """
    if not whole.size:
        return True
    start, stop = SMALLER_BATCHES[-1]
    larger = whole[start:stop]
    if whole.dtype.kind != "f":
        similar = np.asarray(parts[-1] == larger)
        changed = np.asarray(np.concatenate(parts) != whole)
    else:
        similar = _is_close(parts[-1], larger, SIZE_TOLERANCE)
        highest = np.abs(whole, where=np.isfinite(whole), out=np.zeros_like(whole)).max()
        allowed = SIZE_TOLERANCE * highest
        changed = ~_is_close(np.concatenate(parts), whole, SIZE_TOLERANCE, allowed)
    return bool(np.mean(similar) >= MIN_SIMILAR) and not changed.all(axis=0).any()


def _is_close(first: Array, second: Array, tolerance: float, more: float = 0) -> Array:
    precision = 8 * float(np.finfo(first.dtype).eps)
    first, second = first.astype(np.float64), second.astype(np.float64)
    finite = np.where(np.isfinite(second), np.abs(second), 0)
    columns = finite.max(axis=0, keepdims=True, initial=0)
    allowed = tolerance * columns + precision * finite.max(initial=0) + more
    with np.errstate(invalid="ignore"):
        close = np.abs(first - second) <= allowed
    same = (first == second) | (np.isnan(first) & np.isnan(second))
    return np.asarray(close | same)
