"""Requests like ones that were found good before: sent on their way without being read again."""

import time
from collections.abc import Callable, Hashable, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from google.protobuf.message import Message

from neurona_protos.prediction_pb2 import DataType
from neurona_protos.tensors import NUMPY_DTYPES
from neurona_server.batching.policy import Priority
from neurona_server.errors import NeuronaError
from neurona_server.models.model import Model
from neurona_server.rpc.known import MOST_SHAPES, Known, Shape
from neurona_server.rpc.submission import Answer, Receiver, Sent, Submission, send


class Sample(NamedTuple):
    """One input of a request that was read: its data as they came."""

    name: str
    dtype: DataType
    shape: tuple[int, ...]
    data: bytes


class Facts(NamedTuple):
    """What holds for all requests of a shape at one model."""

    inputs: Sequence[tuple[str, np.dtype[Any], tuple[int, ...]]]
    rows: int
    group: Hashable
    answer: Answer
    priority: Priority


class Repeats:
    """Of one kind of message. `resolve` finds the model by what `learn` was told of it."""

    def __init__(
        self,
        parse: Callable[[bytes], Message],
        path: tuple[int, ...],
        resolve: Callable[..., Model],
    ) -> None:
        self._known = Known(parse, path)
        self._resolve = resolve

    def send(
        self,
        message: bytes,
        receiver: Receiver,
        again: Callable[[], object],
        suits: Callable[[Model], bool] | None = None,
        adapt: Callable[[Answer], Answer] | None = None,
    ) -> int | None:
        """How many bytes its answer will have, as far as one can tell; None if it has to be read:
        nothing like it is known, its model is not there, is another version now, or does not
        suit. `again` reads it when its model leaves meanwhile. `adapt` makes of the answer to
        all like it the one to this message.
        """
        shape = self._known.find(message)
        if shape is None:
            return None
        started = time.monotonic()
        found = self.facts(shape)
        if found is None or (suits is not None and not suits(found[0])):
            return None
        model, facts = found
        inputs = {}
        for (name, dtype, sizes), (start, stop) in zip(facts.inputs, shape.spans, strict=True):
            count = (stop - start) // dtype.itemsize
            inputs[name] = np.frombuffer(message, dtype, count, start).reshape(sizes)
        submission = Submission(
            model,
            receiver,
            facts.answer if adapt is None else adapt(facts.answer),
            started,
            inputs,
            facts.rows,
            facts.group,
            receiver.deadline,
            facts.priority,
            len(message),
        )
        send(submission, partial(self._resolve, *shape.which), again)
        return facts.answer.expected(facts.rows)

    def find(self, message: bytes) -> Shape | None:
        """What is known of messages like this one."""
        return self._known.find(message)

    def facts(self, shape: Shape) -> tuple[Model, Facts] | None:
        """Who answers such a message, and how; None if that is not known."""
        try:
            model = self._resolve(*shape.which)
        except NeuronaError:
            return None
        facts = self._facts(model).get(shape)
        return None if facts is None else (model, facts)

    def learn(
        self,
        message: bytes,
        parsed: Message,
        which: tuple[Any, ...],
        inputs: Sequence[Sample],
        sent: Sent,
    ) -> None:
        """What the next message of this shape need not be asked. Does nothing for one whose
        arrays do not lie in it as they are in memory, and for one with an optional input: it
        shares a run with no other, however alike they are."""
        if len(inputs) > len(sent.model.signature.inputs):
            return
        dtypes = [NUMPY_DTYPES[one.dtype] for one in inputs]
        if any(dtype.kind in "Ob" for dtype in dtypes) or not all(one.data for one in inputs):
            return
        shape = self._known.find(message)
        if shape is None:
            shape = self._known.learn(message, parsed, [one.data for one in inputs])
            if shape is None:
                return
            shape.which = which
        described = [
            (one.name, dtype, one.shape) for one, dtype in zip(inputs, dtypes, strict=True)
        ]
        every = self._facts(sent.model)
        if len(every) >= MOST_SHAPES:  # most of them of shapes that are known no more
            every.clear()
        every[shape] = Facts(described, sent.rows, sent.group, sent.answer, sent.priority)

    def _facts(self, model: Model) -> dict[Shape, Facts]:
        facts: dict[Shape, Facts] | None = model.notes.get(self)
        if facts is None:
            facts = model.notes[self] = {}
        return facts
