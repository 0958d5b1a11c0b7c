"""Takes a request from its message to a model and its outputs back, for every protocol.

A protocol resolves the model, parses its messages and writes its responses.
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
    """Delivers the response to one request: a call, or one request of a stream.

    Exactly one of `reply` and `fail` is called, from any thread.
    """

    @property
    def trace(self) -> CallTrace | None:
        """The trace of the request, None if it is not traced."""

    @property
    def deadline(self) -> float:
        """The deadline in seconds of the monotonic clock, inf if the caller set none."""

    @property
    def defer(self) -> Defer:
        """See `Call.defer`."""

    def reply(self, response: bytes) -> None: ...

    def fail(self, error: Exception) -> None: ...

    def on_cancel(self, callback: Callable[[], None]) -> None:
        """Set the `callback` to call when the response is no longer needed."""


class ResponseWriter(Protocol):
    """Writes the response to a request. Is cached with a model, to which it does not refer."""

    def __call__(self, outputs: Outputs) -> bytes: ...

    def expected_bytes(self, rows: int) -> int:
        """Return the expected size of a response of `rows`."""


class ParsedRequest(NamedTuple):
    """The content of a message that has been parsed.

    `decode` is called once the types of the inputs are found to match the signature. Neither it nor
    `response_writer` may keep the message afterwards.
    """

    input_types: Mapping[str, TensorType]
    decode: Callable[[], Inputs]
    response_writer: ResponseWriter
    deadline: float
    priority: Priority
    nbytes: int
    """Bytes of the message."""
    limits: Limits = Limits()


class AcceptedRequest(NamedTuple):
    """The result of reading and checking a valid request."""

    model: Model
    rows: int
    group: Hashable
    response_writer: ResponseWriter
    priority: Priority

    @property
    def expected_bytes(self) -> int:
        """The expected size of its response."""
        return self.response_writer.expected_bytes(self.rows)


class Submission(Request):
    """A request with its model, its caller and the writer of its response."""

    __slots__ = ("model", "responder", "response_writer", "started")

    def __init__(
        self,
        model: Model,
        responder: Responder,
        response_writer: ResponseWriter,
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
        self.response_writer = response_writer
        self.started = started

    @property
    def trace(self) -> CallTrace | None:
        return self.responder.trace

    @property
    def log_fields(self) -> Mapping[str, str | int]:
        return {**self.model.log_fields, **log_fields_of(self.responder)}

    def finish(self, outputs: Outputs | None, error: NeuronaError | None) -> None:
        """Write and deliver the response, or the error, and record the request in the metrics."""
        model = self.model
        response = None
        if outputs is not None:
            try:
                response = self.response_writer(outputs)
            except NeuronaError as raised:
                error = raised
            except Exception as bug:  # the caller must get an error, not wait in vain
                model.batcher.failure_log.record(
                    "a response could not be written", bug, self.log_fields
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


def submit(
    metrics: Metrics,
    resolve: Callable[[], Model],
    read: Callable[[Model], ParsedRequest],
    responder: Responder,
    max_retries: int = 3,
) -> AcceptedRequest | None:
    """Resolve the model, read and check the request, and submit it to the model.

    The responder gets the response or the error, exactly once: a NeuronaError that `resolve`,
    `read`, `decode` or `response_writer` raises, too. A model that another version replaces
    between its resolution and the submission is resolved again, at most `max_retries` times.

    Returns:
        None if the request was invalid.
    """
    started = time.monotonic()
    model = None
    try:
        model = resolve()
        parsed = read(model)
        rows = model.signature.check(parsed.input_types)
        parsed.limits.check_rows(rows)
        inputs = parsed.decode()
    except (TensorError, NeuronaError) as raised:
        error = InvalidArgumentError(str(raised)) if isinstance(raised, TensorError) else raised
        if model is None:
            metrics.unresolved[error.outcome].inc()
            metrics.record_rejection(error)
        else:
            model.metrics.record_request(error.outcome, time.monotonic() - started)
        responder.fail(error)
        return None
    group = model.signature.group(parsed.input_types)
    submission = Submission(
        model,
        responder,
        parsed.response_writer,
        started,
        inputs,
        rows,
        group,
        parsed.deadline,
        parsed.priority,
        parsed.nbytes,
    )

    def retry() -> None:
        submit(metrics, resolve, read, responder, max_retries - 1)

    send(submission, resolve if max_retries else None, retry)
    return AcceptedRequest(model, rows, group, parsed.response_writer, parsed.priority)


def send(
    submission: Submission, resolve: Callable[[], Model] | None, retry: Callable[[], object]
) -> None:
    """Submit a request to its model's batcher.

    If `resolve` shows that another version has replaced the model, the request is withdrawn, and
    `retry` submits another one in its place.
    """
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
            retry()


def cancel(request: Request) -> None:
    """Cancel a request whose caller has cancelled or disconnected, or whose deadline has passed."""
    request.cancel(cancellation_error(request.deadline))


def _is_replaced(resolve: Callable[[], Model], model: Model) -> bool:
    """Return whether another version has replaced the model since it was resolved."""
    try:
        return resolve() is not model
    except NeuronaError:
        return False
