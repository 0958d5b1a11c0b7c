"""Requests like ones that were found good before: sent on their way without being read again."""

import time
import weakref
from collections.abc import Callable, Hashable, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from google.protobuf.message import Message

from neurona_protos.prediction_pb2 import DataType
from neurona_protos.tensors import NUMPY_DTYPES
from neurona_protos.wire_format import find_fields
from neurona_server.batching.policy import Priority
from neurona_server.errors import NeuronaError
from neurona_server.models.model import Model
from neurona_server.rpc.submission import (
    AcceptedRequest,
    Responder,
    ResponseWriter,
    Submission,
    send,
)

MOST_SHAPES = 1024
MOST_ALIKE = 16
"""Of equally long messages: each that comes is held against all of them."""

MOST_BYTES = 8 << 10
"""Of a message besides its data: that is what is kept of it."""

MOST_CREDIT = 256
"""Messages that are learned although none was like one before: those of a caller whose messages
all differ cost no more than these."""


class MessageTemplate:
    """All of a message but its data. Equal only to itself."""

    __slots__ = ("_head", "_middles", "_tail", "size", "spans", "which")

    def __init__(self, message: bytes, spans: Sequence[tuple[int, int]]) -> None:
        self.spans = tuple(spans)
        """Where the data stand, each from its first byte to before its last."""

        self.size = len(message)
        self.which: tuple[Any, ...] = ()
        """Which model is asked for, in the words of whoever reads it."""

        self._head = message[: spans[0][0]]
        self._tail = message[spans[-1][1] :]
        between = zip([stop for _, stop in spans], [start for start, _ in spans[1:]], strict=False)
        self._middles = [(start, stop, message[start:stop]) for start, stop in between]

    def fits(self, message: bytes) -> bool:
        """For a message of the right length."""
        if not (message.startswith(self._head) and message.endswith(self._tail)):
            return False
        if not self._middles:  # most have one tensor
            return True
        return all(message[start:stop] == same for start, stop, same in self._middles)


class TemplateCache:
    """Of one kind of message, whose tensors' data stand in the fields that `path` leads to.

    Used by the transport's thread alone.
    """

    def __init__(self, parse: Callable[[bytes], Message], path: tuple[int, ...]) -> None:
        self._parse = parse
        self._path = path
        self._shapes: dict[int, list[MessageTemplate]] = {}  # by the length of their messages
        self._count = 0
        self._credit = MOST_CREDIT

    def lookup(self, message: bytes) -> MessageTemplate | None:
        for shape in self._shapes.get(len(message), ()):
            if shape.fits(message):
                if self._credit < MOST_CREDIT:
                    self._credit += 1
                return shape
        return None

    def remember(
        self, message: bytes, parsed: Message, data: Sequence[bytes]
    ) -> MessageTemplate | None:
        """Of a message that was found good: `data` of its tensors, in order, none of them empty.

        None if that is not worth it, or if more than the data depends on the bytes where they
        seem to stand.
        """
        if self._credit <= 0 or not data:
            return None
        if len(message) - sum([len(each) for each in data]) > MOST_BYTES:
            return None
        self._credit -= 1
        spans = list(find_fields(message, self._path))
        if [message[start:stop] for start, stop in spans] != list(data):
            return None
        if not self._proves(message, parsed, spans):
            return None
        if self._count >= MOST_SHAPES:
            self._shapes.clear()
            self._count = 0
        shape = MessageTemplate(message, spans)
        alike = self._shapes.setdefault(len(message), [])
        if len(alike) < MOST_ALIKE:
            self._count += 1
        else:
            del alike[0]
        alike.append(shape)
        return shape

    def _proves(self, message: bytes, parsed: Message, spans: Sequence[tuple[int, int]]) -> bool:
        """With other bytes in the places of the data, the message says the same of all else."""
        other = bytearray(message)
        for start, stop in spans:
            other[start:stop] = bytes([byte ^ 0xFF for byte in message[start:stop]])
        written = bytearray(self._parse(bytes(other)).SerializeToString(deterministic=True))
        original = parsed.SerializeToString(deterministic=True)
        places = list(find_fields(bytes(written), self._path))
        if len(places) != len(spans) or len(written) != len(original):
            return False
        for (start, stop), (from_, to) in zip(places, spans, strict=True):
            if bytes(written[start:stop]) != bytes(other[from_:to]):
                return False
            written[start:stop] = message[from_:to]
        return bytes(written) == original


class InputSample(NamedTuple):
    """One input of a request that was read: its data as they came."""

    name: str
    dtype: DataType
    shape: tuple[int, ...]
    data: bytes


class PreparedRequest(NamedTuple):
    """What holds for all requests of a shape at one model."""

    inputs: Sequence[tuple[str, np.dtype[Any], tuple[int, ...]]]
    rows: int
    group: Hashable
    answer: ResponseWriter
    priority: Priority


class FastPath:
    """Of one kind of message. `resolve` finds the model by what `learn` was told of it."""

    def __init__(
        self,
        parse: Callable[[bytes], Message],
        path: tuple[int, ...],
        resolve: Callable[..., Model],
    ) -> None:
        self._known = TemplateCache(parse, path)
        self._resolve = resolve
        # By the id of the model: cheaper than a WeakKeyDictionary, and freed with the model too,
        # as nothing in a PreparedRequest refers to that.
        self._prepared: dict[int, dict[MessageTemplate, PreparedRequest]] = {}

    def send(
        self,
        message: bytes,
        responder: Responder,
        again: Callable[[], object],
        suits: Callable[[Model], bool] | None = None,
        adapt: Callable[[ResponseWriter], ResponseWriter] | None = None,
    ) -> int | None:
        """How many bytes its answer will have, as far as one can tell; None if it has to be read:
        nothing like it is known, its model is not there, is another version now, or does not
        suit. `again` reads it when its model leaves meanwhile. `adapt` makes of the answer to
        all like it the one to this message.
        """
        shape = self._known.lookup(message)
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
            responder,
            facts.answer if adapt is None else adapt(facts.answer),
            started,
            inputs,
            facts.rows,
            facts.group,
            responder.deadline,
            facts.priority,
            len(message),
        )
        send(submission, partial(self._resolve, *shape.which), again)
        return facts.answer.expected_bytes(facts.rows)

    def lookup(self, message: bytes) -> MessageTemplate | None:
        """What is known of messages like this one."""
        return self._known.lookup(message)

    def facts(self, shape: MessageTemplate) -> tuple[Model, PreparedRequest] | None:
        """Who answers such a message, and how; None if that is not known."""
        try:
            model = self._resolve(*shape.which)
        except NeuronaError:
            return None
        facts = self._facts(model).get(shape)
        return None if facts is None else (model, facts)

    def remember(
        self,
        message: bytes,
        parsed: Message,
        which: tuple[Any, ...],
        inputs: Sequence[InputSample],
        sent: AcceptedRequest,
    ) -> None:
        """What the next message of this shape need not be asked. Does nothing for one whose
        arrays do not lie in it as they are in memory, and for one with an optional input: it
        shares a run with no other, however alike they are."""
        if len(inputs) > len(sent.model.signature.inputs):
            return
        dtypes = [NUMPY_DTYPES[one.dtype] for one in inputs]
        if any(dtype.kind in "Ob" for dtype in dtypes) or not all(one.data for one in inputs):
            return
        shape = self._known.lookup(message)
        if shape is None:
            shape = self._known.remember(message, parsed, [one.data for one in inputs])
            if shape is None:
                return
            shape.which = which
        described = [
            (one.name, dtype, one.shape) for one, dtype in zip(inputs, dtypes, strict=True)
        ]
        every = self._facts(sent.model)
        if len(every) >= MOST_SHAPES:  # most of them of shapes that are known no more
            every.clear()
        every[shape] = PreparedRequest(described, sent.rows, sent.group, sent.answer, sent.priority)

    def _facts(self, model: Model) -> dict[MessageTemplate, PreparedRequest]:
        facts = self._prepared.get(id(model))
        if facts is None:
            facts = self._prepared[id(model)] = {}
            weakref.finalize(model, self._prepared.pop, id(model)).atexit = False
        return facts
