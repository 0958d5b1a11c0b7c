"""Whether the rows of several requests may share a run, found out by running the model.

A free axis 0 need not be a batch axis. It may be time, or candidates that are ranked against
each other, and then rows of two requests joined along it would change each other's answers.
Names in the graph do not tell. So a model is batched only when rows that run together give
what they give when they are cut into several runs.
"""

import logging
from collections.abc import Callable, Sequence

import numpy as np

from neurona_server.batching.request import Array, Inputs, Outputs
from neurona_server.models.samples import FREE_SIZES, has_free_rows, make_inputs
from neurona_server.models.signature import TensorSpec

log = logging.getLogger(__name__)

Run = Callable[[Inputs], Outputs]

CUTS = ((0, 1), (1, 3), (3, 8))
"""Enough rows to show what looks two steps back, and to be unordered for certain."""

TOLERANCE = 1e-3
"""Of the largest value: a GPU rounds differently at another batch size."""


def can_batch(inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec], run: Run) -> bool:
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
