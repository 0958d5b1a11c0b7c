"""The requests of one message of a stream: those that are alike are bundled."""

import time
from collections.abc import Callable, Hashable, Mapping, Sequence
from functools import partial
from typing import Protocol, cast

import numpy as np

from neurona_server.batching.batch import RowSlice
from neurona_server.batching.batcher import Defer
from neurona_server.batching.policy import Priority
from neurona_server.batching.request import Inputs, Outputs, Request
from neurona_server.errors import ModelFailedError, NeuronaError
from neurona_server.models.model import Model
from neurona_server.rpc.call import RequestIdentity, log_fields_of
from neurona_server.rpc.fast_path import FastPath, MessageTemplate, PreparedRequest
from neurona_server.rpc.submission import Responder, cancel
from neurona_server.rpc.v1.responses import PredictResponseWriter
from neurona_server.rpc.v1.streaming import Places, StreamResponder


class CoalescedResponder(RequestIdentity, Protocol):
    """Who asked, in order. Exactly one of `reply`, `fail` and `halves` is called, from any
    thread."""

    @property
    def deadline(self) -> float: ...

    @property
    def defer(self) -> Defer:
        """As that of a `Call`."""

    def reply(self, answers: Sequence[bytes | NeuronaError]) -> None: ...

    def fail(self, error: Exception) -> None: ...

    def halves(self, middle: int) -> tuple["CoalescedResponder", "CoalescedResponder"]:
        """Two that take its place: the first so many, and the others."""

    def on_cancel(self, callback: Callable[[], None]) -> None:
        """Has `callback` called when nobody waits for the answers any more."""


class CoalescedRequest(Request):
    """`count` requests that have `each` rows, asked by `receivers`."""

    __slots__ = ("answer", "count", "each", "model", "receivers", "started")

    def __init__(
        self,
        model: Model,
        receivers: CoalescedResponder,
        answer: PredictResponseWriter,
        started: float,
        inputs: Inputs,
        count: int,
        each: int,
        group: Hashable,
        priority: Priority,
        nbytes: int,
    ) -> None:
        super().__init__(inputs, count * each, group, receivers.deadline, priority, nbytes)
        self.model = model
        self.receivers = receivers
        self.answer = answer
        self.started = started
        self.count = count
        self.each = each
        receivers.on_cancel(partial(cancel, self))

    @property
    def log_fields(self) -> Mapping[str, str | int]:
        return {**self.model.log_fields, **log_fields_of(self.receivers)}

    def finish(self, outputs: Outputs | None, error: NeuronaError | None) -> None:
        answers: Sequence[bytes | NeuronaError]
        if outputs is None:
            error = error or ModelFailedError()
            self._count_outcomes([error] * self.count)
            self.receivers.fail(error)
            return
        part = cast(RowSlice, outputs)  # its model is batched, and it is too small to be split
        try:
            answers = self.answer.each(part, self.each)
        except Exception:  # whatever is wrong with one answer, the others are written
            answers = [
                self._answer(RowSlice(part.batch, start, self.each))
                for start in range(part.start, part.stop, self.each)
            ]
        self._count_outcomes(answers)
        self.receivers.reply(answers)

    def _answer(self, outputs: Outputs) -> bytes | NeuronaError:
        try:
            return self.answer(outputs)
        except NeuronaError as error:
            return error
        except Exception as fault:
            self.model.batcher.failure_log.record(
                "an answer cannot be written", fault, self.log_fields
            )
            return ModelFailedError()

    def _count_outcomes(self, answers: Sequence[bytes | NeuronaError]) -> None:
        ended, seconds = self.model.metrics.record_request, time.monotonic() - self.started
        for answer in answers:
            ended("ok" if isinstance(answer, bytes) else answer.outcome, seconds)

    def halve(self) -> Sequence[Request]:
        if self.count == 1 or not self.withdraw():
            return ()
        middle = self.count // 2
        first, second = self.receivers.halves(middle)
        return [self._part(first, 0, middle), self._part(second, middle, self.count)]

    def _part(self, receivers: CoalescedResponder, start: int, stop: int) -> "CoalescedRequest":
        rows = slice(start * self.each, stop * self.each)
        inputs = {name: array[rows] for name, array in self.inputs.items()}
        count = stop - start
        nbytes = self.nbytes * count // self.count
        return CoalescedRequest(
            *(self.model, receivers, self.answer, self.started, inputs, count, self.each),
            *(self.group, self.priority, nbytes),
        )


SMALL = 16 << 10
"""Bytes of a request up to which it is bundled: its data are copied once more for it."""

PARTS = 2
"""Bundles that fill a batch: larger ones would leave more of it empty."""

Begin = Callable[[bytes, Responder], int]
"""Sends one request on its way; how many bytes its answer will have."""


class Host(Protocol):
    """The stream."""

    def place(self, number: int) -> StreamResponder:
        """For the answer to the request that the caller gave this number."""

    def places(self, numbers: Sequence[int], expected: int) -> Places:
        """For several, each answer of about so many bytes, which are reserved."""

    def reserve(self, expected: int) -> None:
        """An answer of about so many bytes will come."""


class _Group:
    """Requests of one shape that gather to become a bundle."""

    def __init__(
        self,
        shape: MessageTemplate,
        model: Model,
        facts: PreparedRequest,
        answer: PredictResponseWriter,
    ) -> None:
        self.shape = shape
        self.model = model
        self.facts = facts
        self.answer = answer
        self.expected_bytes = answer.expected_bytes(facts.rows)
        self.most = model.batcher.queue.max_batch_rows // PARTS // facts.rows
        self.numbers: list[int] = []
        self.messages: list[bytes] = []

    def bundle(self, places: CoalescedResponder) -> CoalescedRequest:
        facts, messages = self.facts, self.messages
        count = len(messages)
        inputs = {}
        for (name, dtype, sizes), (start, stop) in zip(facts.inputs, self.shape.spans, strict=True):
            data = b"".join([message[start:stop] for message in messages])
            inputs[name] = np.frombuffer(data, dtype).reshape(count * sizes[0], *sizes[1:])
        return CoalescedRequest(
            *(self.model, places, self.answer, time.monotonic(), inputs, count, facts.rows),
            *(facts.group, facts.priority, count * len(messages[0])),
        )


class Coalescer:
    """Of one message. Without `alike`, each request goes by itself.

    All that is in a bundle is for one model: where shares of a model's requests go to several
    versions, they are drawn by bundle.
    """

    def __init__(self, alike: FastPath | None, begin: Begin, host: Host) -> None:
        self._alike = alike
        self._begin = begin
        self._host = host
        self._groups: dict[MessageTemplate, _Group | None] = {}
        self._last: _Group | None = None  # the next one is mostly like it

    def add(self, number: int, message: bytes) -> None:
        group = self._last
        if group is None or len(message) != group.shape.size or not group.shape.matches(message):
            group = self._last = self._group(message)
        if group is None:
            self._alone(self._host.place(number), message)
            return
        self._host.reserve(group.expected_bytes)
        group.numbers.append(number)
        group.messages.append(message)
        if len(group.numbers) >= group.most:
            del self._groups[group.shape]
            self._last = None
            self._send(group)

    def end(self) -> None:
        """No more of the message are to be begun now."""
        for group in self._groups.values():
            if group is not None:
                self._send(group)
        self._groups.clear()
        self._last = None

    def _group(self, message: bytes) -> _Group | None:
        if self._alike is None or len(message) > SMALL:
            return None
        shape = self._alike.lookup(message)
        if shape is None:
            return None
        if shape not in self._groups:
            self._groups[shape] = _open(self._alike, shape)
        return self._groups[shape]

    def _alone(self, place: StreamResponder, message: bytes) -> None:
        place.expect(self._begin(message, place))

    def _send(self, group: _Group) -> None:
        places = self._host.places(group.numbers, group.expected_bytes)
        if len(group.numbers) > 1:
            bundle = group.bundle(places)
            try:
                group.model.batcher.submit(bundle, places.defer)
            except NeuronaError:  # there may be room, or time, for some of them
                if not bundle.withdraw():
                    return
            else:
                return
        for place, message in zip(places.single(), group.messages, strict=True):
            self._alone(place, message)


def _open(alike: FastPath, shape: MessageTemplate) -> _Group | None:
    """None where requests do not share runs, or are to be looked at one by one."""
    found = alike.lookup_prepared(shape)
    if found is None:
        return None
    model, facts = found
    answer = facts.response_writer
    if (
        not isinstance(answer, PredictResponseWriter)
        or not model.signature.batched
        or not facts.rows
    ):
        return None
    if model.on_answer is not None:  # its copies are counted one by one
        return None
    group = _Group(shape, model, facts, answer)
    return group if group.most > 1 else None
