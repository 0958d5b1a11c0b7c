"""A version that gets copies of requests: its answers are compared and thrown away."""

import logging
import random
from typing import TYPE_CHECKING

import numpy as np

from neurona_protos.prediction_pb2 import Task
from neurona_server.batching.batch import Part
from neurona_server.batching.policy import Priority
from neurona_server.batching.request import Array, Outputs, Request
from neurona_server.errors import NeuronaError

if TYPE_CHECKING:
    from neurona_server.models.model import Model

log = logging.getLogger(__name__)

TOLERANCE = 1e-3
"""Of the largest value: so much apart, numbers still count as equal."""


class Shadow:
    """Copies of what `of` answers go to `to`: after the answer, with the lowest priority, and
    never more than fit into its queue. So a caller neither sees it nor waits for it."""

    def __init__(self, of: "Model", to: "Model", percent: float) -> None:
        self.to = to
        self.percent = percent
        self._of = of
        self._share = percent / 100
        self._fits = _inputs(of) == _inputs(to)
        if not self._fits:
            log.warning("%s cannot shadow %s: it takes other inputs", to, of, extra=to.log_fields)

    def send(self, request: Request, outputs: Outputs) -> None:
        """Never waits, raises nothing."""
        if random.random() >= self._share:  # noqa: S311  nobody gains by foreseeing it
            return
        if not self._fits:
            self._count("incompatible")
            return
        kept = _own(outputs)

        def done(copy: Request, shadowed: Outputs | None, error: NeuronaError | None) -> None:
            self.to.copies.discard(copy)
            if shadowed is None:
                self._count("refused" if error and error.outcome == "rejected" else "failed")
            else:
                self._count(self._compare(kept, shadowed))

        described = {
            spec.name: (spec.dtype, request.inputs[spec.name].shape)
            for spec in self.to.signature.inputs
        }
        inputs = {name: request.inputs[name] for name in described}
        group = self.to.signature.group(described)
        # The answer waits with it, and may be much larger than what was asked.
        size = request.nbytes + sum([array.nbytes for array in kept])
        copy = Request(inputs, request.rows, group, done, priority=Priority.LOW, nbytes=size)
        self.to.copies.add(copy)
        try:
            self.to.batcher.submit(copy)
        except NeuronaError as error:
            copy.fail(error)

    def _compare(self, outputs: Outputs, shadowed: Outputs) -> str:
        mine = _by_name(self._of, outputs)
        other = _by_name(self.to, shadowed)
        if mine.keys() == other.keys() and all(_close(mine[name], other[name]) for name in mine):
            return "equal"
        mine_best, other_best = _best(self._of, outputs), _best(self.to, shadowed)
        return "same_class" if mine_best and mine_best == other_best else "different"

    def _count(self, outcome: str) -> None:
        self.to.metrics.shadowed(outcome)


def _own(outputs: Outputs) -> Outputs:
    """Copied, if they are part of a batch's: those would all be kept as long as they wait."""
    if not isinstance(outputs, Part):
        return outputs
    return [
        own if len(own) == len(whole) else own.copy()
        for own, whole in zip(outputs, outputs.batch.outputs, strict=True)
    ]


def _inputs(model: "Model") -> set[tuple[object, ...]]:
    """Without what free sizes are called: another export may have other names for them."""
    return {
        (
            spec.name,
            spec.dtype,
            tuple(size if isinstance(size, int) else None for size in spec.shape),
        )
        for spec in model.signature.inputs
    }


def _best(model: "Model", outputs: Outputs) -> list[str]:
    """Of a classification, the best class of each row."""
    if model.metadata.task != Task.TASK_CLASSIFICATION:
        return []
    labels = model.metadata.labels
    best = np.argmax(outputs[model.answer], axis=1).tolist()
    return [labels[index] if index < len(labels) else str(index) for index in best]


def _by_name(model: "Model", outputs: Outputs) -> dict[str, Array]:
    return dict(zip([spec.name for spec in model.signature.outputs], outputs, strict=True))


def _close(mine: Array, other: Array) -> bool:
    if mine.shape != other.shape or mine.dtype.kind != other.dtype.kind:
        return False
    if mine.dtype.kind != "f":
        return bool(np.array_equal(mine, other))
    largest = float(np.nanmax(np.abs(mine), initial=0.0))
    return bool(np.allclose(mine, other, TOLERANCE, TOLERANCE * largest, equal_nan=True))
