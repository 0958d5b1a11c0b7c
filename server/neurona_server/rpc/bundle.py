"""Alike requests of one stream that travel as one: queued, joined and answered together.

Most of what a small request costs is Python that is run once for each: here, once for many.
"""

import time
from collections.abc import Callable, Hashable, Mapping, Sequence
from functools import partial
from typing import Protocol

from neurona_server.batching.batch import Part
from neurona_server.batching.policy import Priority
from neurona_server.batching.request import Inputs, Outputs, Request
from neurona_server.errors import ModelFailedError, NeuronaError
from neurona_server.models.model import Defer, Model
from neurona_server.rpc.answers import PredictAnswer
from neurona_server.rpc.caller import Known, fields_of
from neurona_server.rpc.submission import cancel


class Receivers(Known, Protocol):
    """Who asked, in order. Exactly one of `reply`, `fail` and `halves` is called, from any
    thread."""

    @property
    def deadline(self) -> float: ...

    @property
    def defer(self) -> Defer:
        """As that of a `Call`."""

    def reply(self, answers: Sequence[bytes | NeuronaError]) -> None: ...

    def fail(self, error: Exception) -> None: ...

    def halves(self, middle: int) -> tuple["Receivers", "Receivers"]:
        """Two that take its place: the first so many, and the others."""

    def on_cancel(self, callback: Callable[[], None]) -> None:
        """Has `callback` called when nobody waits for the answers any more."""


class Bundle(Request):
    """`count` requests that have `each` rows, asked by `receivers`."""

    __slots__ = ("answer", "count", "each", "model", "receivers", "started")

    def __init__(
        self,
        model: Model,
        receivers: Receivers,
        answer: PredictAnswer,
        started: float,
        inputs: Inputs,
        count: int,
        each: int,
        group: Hashable,
        priority: Priority,
        nbytes: int,
    ) -> None:
        super().__init__(inputs, count * each, group, _finish, receivers.deadline, priority, nbytes)
        self.model = model
        self.receivers = receivers
        self.answer = answer
        self.started = started
        self.count = count
        self.each = each
        receivers.on_cancel(partial(cancel, self))

    @property
    def log_fields(self) -> Mapping[str, str | int]:
        return {**self.model.log_fields, **fields_of(self.receivers)}

    def divide(self) -> Sequence[Request]:
        if self.count == 1 or not self.withdraw():
            return ()
        middle = self.count // 2
        first, second = self.receivers.halves(middle)
        return [self._part(first, 0, middle), self._part(second, middle, self.count)]

    def _part(self, receivers: Receivers, start: int, stop: int) -> "Bundle":
        rows = slice(start * self.each, stop * self.each)
        inputs = {name: array[rows] for name, array in self.inputs.items()}
        count = stop - start
        nbytes = self.nbytes * count // self.count
        return Bundle(
            *(self.model, receivers, self.answer, self.started, inputs, count, self.each),
            *(self.group, self.priority, nbytes),
        )


def _finish(request: Request, outputs: Outputs | None, error: NeuronaError | None) -> None:
    assert isinstance(request, Bundle)  # noqa: S101  for the type checker
    if outputs is None:
        error = error or ModelFailedError()
        _count(request, [error] * request.count)
        request.receivers.fail(error)
        return
    assert isinstance(outputs, Part)  # noqa: S101  for the type checker: the model is batched
    answers: Sequence[bytes | NeuronaError]
    try:
        answers = request.answer.each(outputs, request.each)
    except Exception:  # whatever is wrong with one answer, the others are written
        answers = [_answer(request, part) for part in _parts(outputs, request.each)]
    _count(request, answers)
    request.receivers.reply(answers)


def _parts(part: Part, rows: int) -> list[Part]:
    return [Part(part.batch, start, rows) for start in range(part.start, part.stop, rows)]


def _answer(request: Bundle, part: Part) -> bytes | NeuronaError:
    try:
        return request.answer(part)
    except NeuronaError as error:
        return error
    except Exception as fault:
        request.model.batcher.failures.tell(
            "an answer cannot be written", fault, request.log_fields
        )
        return ModelFailedError()


def _count(request: Bundle, answers: Sequence[bytes | NeuronaError]) -> None:
    ended, seconds = request.model.metrics.ended, time.monotonic() - request.started
    for answer in answers:
        ended("ok" if isinstance(answer, bytes) else answer.outcome, seconds)
