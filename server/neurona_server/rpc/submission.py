"""The way of a caller's request to a model and of the answer back, the same for every protocol.

A protocol says which model is asked for, how its message reads and how its answer is written.
"""

import time
from collections.abc import Callable, Hashable, Mapping
from functools import partial
from typing import NamedTuple, Protocol

from neurona_protos.tensors import TensorError
from neurona_server.batching.batcher import Defer
from neurona_server.batching.policy import Priority
from neurona_server.batching.request import Inputs, Outputs, Request
from neurona_server.errors import (
    InvalidArgumentError,
    ModelFailedError,
    NeuronaError,
    UnavailableError,
)
from neurona_server.models.model import Model
from neurona_server.models.signature import TensorType
from neurona_server.rpc.call import RequestIdentity, cancellation_error, log_fields_of
from neurona_server.rpc.limits import Limits
from neurona_server.telemetry.metrics import Metrics
from neurona_server.telemetry.trace import CallTrace


class Responder(RequestIdentity, Protocol):
    """Who asked: a call, or one place in a stream. Exactly one of `reply` and `fail` is called,
    from any thread."""

    @property
    def trace(self) -> CallTrace | None:
        """As that of a `Call`."""

    @property
    def deadline(self) -> float: ...

    @property
    def defer(self) -> Defer:
        """As that of a `Call`."""

    def reply(self, response: bytes) -> None: ...

    def fail(self, error: Exception) -> None: ...

    def on_cancel(self, callback: Callable[[], None]) -> None:
        """Has `callback` called when nobody waits for the answer any more."""


class ResponseWriter(Protocol):
    """How the answers to requests of a kind are written."""

    def __call__(self, outputs: Outputs) -> bytes: ...

    def expected_bytes(self, rows: int) -> int:
        """Bytes of an answer of so many rows, as far as one can tell."""


class ParsedRequest(NamedTuple):
    """What a message asks of a model. `decode` is called once the described inputs are found
    to fit; `answer` writes what the caller gets. Neither may hold the message for longer."""

    described: Mapping[str, TensorType]
    decode: Callable[[], Inputs]
    answer: ResponseWriter
    deadline: float
    priority: Priority
    nbytes: int
    """Bytes of the message."""
    limits: Limits = Limits()


class Submission(Request):
    """A request that knows its model, its caller and how its answer is written."""

    __slots__ = ("answer", "model", "responder", "started")

    def __init__(
        self,
        model: Model,
        responder: Responder,
        answer: ResponseWriter,
        started: float,
        inputs: Inputs,
        rows: int,
        group: Hashable,
        deadline: float,
        priority: Priority,
        nbytes: int,
    ) -> None:
        super().__init__(inputs, rows, group, deadline, priority, nbytes)
        self.model = model
        self.responder = responder
        self.answer = answer
        self.started = started

    @property
    def trace(self) -> CallTrace | None:
        return self.responder.trace

    @property
    def log_fields(self) -> Mapping[str, str | int]:
        return {**self.model.log_fields, **log_fields_of(self.responder)}

    def finish(self, outputs: Outputs | None, error: NeuronaError | None) -> None:
        model = self.model
        response = None
        if outputs is not None:
            try:
                response = self.answer(outputs)
            except NeuronaError as raised:
                error = raised
            except Exception as fault:
                # Whatever is wrong with one answer, its caller hears of it.
                model.batcher.failure_log.record(
                    "an answer cannot be written", fault, self.log_fields
                )
                error = ModelFailedError()
        seconds = time.monotonic() - self.started
        model.metrics.record_request("ok" if error is None else error.outcome, seconds)
        if (trace := self.responder.trace) is not None:
            trace.record_outcome(self, model.name, model.version, error)
            if error is None:
                model.metrics.record_exemplar(seconds, trace.trace_id)
        if response is None:
            self.responder.fail(error or ModelFailedError())
        else:
            self.responder.reply(response)
        if outputs is not None and (on_answer := model.on_answer) is not None:
            on_answer(self, outputs)


class AcceptedRequest(NamedTuple):
    """What was found out about a request that is good."""

    model: Model
    rows: int
    group: Hashable
    answer: ResponseWriter
    priority: Priority

    @property
    def expected_bytes(self) -> int:
        """Bytes of its answer, as far as one can tell."""
        return self.answer.expected_bytes(self.rows)


def submit(
    metrics: Metrics,
    resolve: Callable[[], Model],
    read: Callable[[Model], ParsedRequest],
    responder: Responder,
    swaps: int = 3,
) -> AcceptedRequest | None:
    """Sends a request on its way; the receiver gets its answer or its error, exactly once.

    A model that another version replaces between its resolving and the submission is resolved
    anew, `swaps` times at the most. What `resolve`, `read`, `decode` and `answer` raise of
    NeuronaErrors is what the receiver gets. None if the request was not found good.
    """
    started = time.monotonic()
    model = None
    try:
        model = resolve()
        asked = read(model)
        rows = model.signature.check(asked.described)
        asked.limits.check_rows(rows)
        inputs = asked.decode()
    except (TensorError, NeuronaError) as raised:
        error = InvalidArgumentError(str(raised)) if isinstance(raised, TensorError) else raised
        if model is None:
            metrics.unresolved[error.outcome].inc()
            metrics.record_rejection(error)
        else:
            model.metrics.record_request(error.outcome, time.monotonic() - started)
        responder.fail(error)
        return None
    group = model.signature.group(asked.described)
    submission = Submission(
        model,
        responder,
        asked.answer,
        started,
        inputs,
        rows,
        group,
        asked.deadline,
        asked.priority,
        asked.nbytes,
    )

    def again() -> None:
        submit(metrics, resolve, read, responder, swaps - 1)

    send(submission, resolve if swaps else None, again)
    return AcceptedRequest(model, rows, group, asked.answer, asked.priority)


def send(
    submission: Submission, resolve: Callable[[], Model] | None, again: Callable[[], object]
) -> None:
    """Has its model take it. Where another version has replaced that one, which `resolve` tells,
    it is withdrawn, and `again` sends another in its place."""
    responder, model = submission.responder, submission.model
    responder.on_cancel(partial(cancel, submission))
    try:
        model.batcher.submit(submission, responder.defer)
    except NeuronaError as error:
        replaced = (
            isinstance(error, UnavailableError)
            and resolve is not None
            and _is_replaced(resolve, model)
        )
        if not replaced:
            submission.fail(error)
        elif submission.withdraw():
            again()


def _is_replaced(resolve: Callable[[], Model], model: Model) -> bool:
    """Whether another version has taken its place since it was resolved."""
    try:
        return resolve() is not model
    except NeuronaError:
        return False


def cancel(request: Request) -> None:
    """Ends a request whose caller is gone, or whose deadline made it go."""
    request.cancel(cancellation_error(request.deadline))
