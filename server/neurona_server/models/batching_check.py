"""Checks whether the requests of a model can be batched, from its settings or a test run.

Rows can share a run if axis 0 of every tensor is free and the outputs of a row do not depend on the
other rows. The second condition is tested with synthetic rows, run together and in slices.
"""

import logging
from collections.abc import Callable, Sequence

import numpy as np

from neurona_server.batching.request import Array, Inputs, Outputs
from neurona_server.errors import LoadError
from neurona_server.models.repository.settings import ModelSettings
from neurona_server.models.signature import TensorSpec
from neurona_server.models.synthetic_inputs import FREE_SIZES, has_free_rows, make_inputs

log = logging.getLogger(__name__)

BATCH = "batch"
"""Name in the settings of an axis 0 along which requests may be joined."""

SLICES = ((0, 1), (1, 3), (3, 8))
"""Enough rows to detect a dependency two steps back, and to be unsorted for certain."""

TOLERANCE = 1e-3
"""Relative to the largest value: a GPU rounds differently at another batch size."""

Run = Callable[[Inputs], Outputs]


def decide_batching(
    model: str,
    inputs: Sequence[TensorSpec],
    outputs: Sequence[TensorSpec],
    settings: ModelSettings,
    run: Run,
) -> bool:
    """Return whether requests may share runs, from the settings or else from a test run.

    Raises:
        LoadError: The settings contradict each other or the model's shapes.
    """
    specs = [*inputs, *outputs]
    setting = _batched_setting(specs, settings)
    if setting is False:
        return False
    if setting:
        for spec in specs:
            if not has_free_rows(spec):
                raise LoadError(
                    f"its settings say that it is batched, but {spec.name!r} is {spec} "
                    "(expected an axis 0 of free size)"
                )
    independent = rows_are_independent(inputs, outputs, run)
    if setting and not independent:
        log.warning(
            "%s: batching enabled by its settings, but outputs of synthetic inputs depend on "
            "other rows of the batch",
            model,
        )
    elif not independent and all(map(has_free_rows, specs)):
        log.info("%s: batching disabled: outputs depend on other rows of the batch", model)
    return independent or bool(setting)


def rows_are_independent(
    inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec], run: Run
) -> bool:
    """Return whether rows have the same outputs whether they run together or in slices."""
    if not inputs or not all(has_free_rows(spec) for spec in [*inputs, *outputs]):
        return False
    for size in FREE_SIZES:
        try:
            arrays = make_inputs(inputs, SLICES[-1][1], size)
            sliced = [
                run({name: array[start:stop] for name, array in arrays.items()})
                for start, stop in SLICES
            ]
        except Exception as error:  # the model does not support this size, perhaps another one
            log.debug("cannot run with free axes of %d: %s", size, error)
        else:
            return _equal_together(arrays, sliced, run)
    return False


def _batched_setting(specs: Sequence[TensorSpec], settings: ModelSettings) -> bool | None:
    """Return the key `batched`, else what the names of the first axes imply, else None."""
    first = [spec.axes[0] for spec in specs if spec.axes]
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
    return True if specs and first == [BATCH] * len(specs) else None


def _equal_together(inputs: Inputs, sliced: Sequence[Outputs], run: Run) -> bool:
    try:
        together = run(inputs)
    except Exception as error:
        log.debug("slices of a batch run, the whole batch does not: %s", error)
        return False
    rows = [(stop - start,) for start, stop in SLICES]
    for output, *parts in zip(together, *sliced, strict=True):
        if [part.shape[:1] for part in parts] != rows:
            return False
        if len({part.shape[1:] for part in parts}) > 1:
            return False
        if not _is_equal(output, np.concatenate(parts)):
            return False
    return True


def _is_equal(together: Array, sliced: Array) -> bool:
    if together.shape != sliced.shape:
        return False
    if together.dtype.kind != "f":
        return bool(np.array_equal(together, sliced))
    if not (np.isfinite(together).all() and np.isfinite(sliced).all()):
        return False  # values that are not numbers prove nothing
    scale = float(np.abs(sliced).max(initial=0.0))
    return bool(np.allclose(together, sliced, rtol=TOLERANCE, atol=TOLERANCE * scale))
