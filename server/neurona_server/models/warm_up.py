"""The first runs of a model: they make it quick, and show what a run costs."""

import logging
import time
from collections.abc import Callable, Sequence

from neurona_server.batching.batcher import Batcher
from neurona_server.batching.request import Inputs, Outputs
from neurona_server.models.samples import FREE_SIZES, make_inputs
from neurona_server.models.signature import TensorSpec

log = logging.getLogger(__name__)


def warm_up(
    inputs: Sequence[TensorSpec], run: Callable[[Inputs], Outputs], batcher: Batcher
) -> bool:
    """Runs each batch size and has the batcher learn what it costs.

    False when made-up inputs do not suit the model: it learns from its first requests then.
    """
    for size in FREE_SIZES:

        def time_run(rows: int, size: int = size) -> float:
            made = make_inputs(inputs, rows, size)
            started = time.perf_counter()
            run(made)
            return time.perf_counter() - started

        try:
            one = make_inputs(inputs, 1, size)
            group = tuple([array.shape[1:] for array in one.values()])
            batcher.curve.measure(time_run, group)
            batcher.padding.measure(time_run, batcher.curve.seconds)
        except Exception as error:  # this size does not suit the model; another one may
            log.debug("cannot warm up with free axes of %d: %s", size, error)
        else:
            batcher.tune()
            return True
    return False
