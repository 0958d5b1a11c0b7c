"""What the axes of a model's tensors are, where its settings say so; and whether axis 0 is the
batch axis."""

import logging
from collections.abc import Callable, Sequence

import numpy as np

from neurona_server.batching.request import Array, Inputs, Outputs
from neurona_server.errors import LoadError
from neurona_server.models.repository.settings import ModelSettings
from neurona_server.models.signature import TensorSpec
from neurona_server.models.synthetic_inputs import FREE_SIZES, has_free_rows, make_inputs

log = logging.getLogger(__name__)

Run = Callable[[Inputs], Outputs]

CUTS = ((0, 1), (1, 3), (3, 8))
"""Enough rows to show what looks two steps back, and to be unordered for certain."""

TOLERANCE = 1e-3
"""Of the largest value: a GPU rounds differently at another batch size."""


def rows_are_independent(
    inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec], run: Run
) -> bool:
    if not inputs or not all(has_free_rows(spec) for spec in [*inputs, *outputs]):
        return False
    for size in FREE_SIZES:
        try:
            made = make_inputs(inputs, CUTS[-1][1], size)
            apart = [
                run({name: array[start:stop] for name, array in made.items()})
                for start, stop in CUTS
            ]
        except Exception as error:  # this size does not suit the model; another one may
            log.debug("cannot run with free axes of %d: %s", size, error)
        else:
            return _equal_together(made, apart, run)
    return False


def _equal_together(made: Inputs, apart: Sequence[Outputs], run: Run) -> bool:
    try:
        together = run(made)
    except Exception as error:
        log.debug("a few rows run, all of them do not: %s", error)
        return False
    for output, *cuts in zip(together, *apart, strict=True):
        rows = [stop - start for start, stop in CUTS]
        if [cut.shape[:1] for cut in cuts] != [(count,) for count in rows]:
            return False
        if len({cut.shape[1:] for cut in cuts}) > 1 or not _equal(output, np.concatenate(cuts)):
            return False
    return True


def _equal(together: Array, apart: Array) -> bool:
    if together.shape != apart.shape:
        return False
    if together.dtype.kind != "f":
        return bool(np.array_equal(together, apart))
    if not (np.isfinite(together).all() and np.isfinite(apart).all()):
        return False  # nothing is proved by values that equal nothing
    scale = float(np.abs(apart).max(initial=0.0))
    return bool(np.allclose(together, apart, rtol=TOLERANCE, atol=TOLERANCE * scale))


BATCH = "batch"
"""What axis 0 is called if requests may be joined along it."""


def decide_batching(
    model: str,
    inputs: Sequence[TensorSpec],
    outputs: Sequence[TensorSpec],
    settings: ModelSettings,
    run: Run,
) -> bool:
    """Whether requests to it share runs: as its settings say, else found out by running it.

    Raises LoadError when they say what its shapes do not allow.
    """
    specs = [*inputs, *outputs]
    said = _said(specs, settings)
    if said is False:
        return False
    if said:
        for spec in specs:
            if not has_free_rows(spec):
                raise LoadError(
                    f"its settings say that it is batched, but {spec.name!r} is {spec}; "
                    "expected an axis 0 of free size"
                )
    proved = rows_are_independent(inputs, outputs, run)
    if said and not proved:
        log.warning(
            "%s: its settings say that it is batched, which is believed; made-up rows that were "
            "run together did not give what they gave apart",
            model,
        )
    elif not proved and all(map(has_free_rows, specs)):
        log.info("%s: its rows change each other, so requests run one by one", model)
    return proved or bool(said)


def _said(specs: Sequence[TensorSpec], settings: ModelSettings) -> bool | None:
    """By the key itself, else by the names of the first axes; None where neither tells."""
    first = [spec.axes[0] for spec in specs if spec.axes]
    others = [name for name in first if name not in ("", BATCH)]
    if settings.batched is not None:
        if settings.batched and others:
            raise LoadError(
                f"its settings say that it is batched, and call an axis 0 {others[0]!r}; "
                f"expected {BATCH!r}"
            )
        return settings.batched
    if others:
        return False
    return True if specs and first == [BATCH] * len(specs) else None
