"""Takes a request from its message to a model and its outputs back, for every protocol.

A protocol resolves the model, parses its messages and writes its responses.
"""

import time
from collections.abc import Callable, Hashable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple, Protocol

from neurona_protos.tensors import TensorError
from neurona_server.batching.batch import RowSlice
from neurona_server.batching.batcher import Defer
from neurona_server.batching.policy import Priority, QueueTimeout
from neurona_server.batching.request import Inputs, Outputs, Request
from neurona_server.errors import (
    DeadlineExceededError,
    InvalidArgumentError,
    ModelFailedError,
    NeuronaError,
    UnavailableError,
)
from neurona_server.models.encoded_images import explain_strings
from neurona_server.models.model import Model
from neurona_server.models.signature import TensorType
from neurona_server.rpc.call import RequestIdentity, cancellation_error, log_fields_of
from neurona_server.rpc.image_requests import EncodedRequest, ImageRequest, find_encoded
from neurona_server.rpc.limits import Limits
from neurona_server.rpc.worker_pool import WorkerPool
from neurona_server.telemetry.metrics import Metrics
from neurona_server.telemetry.trace import CallTrace

LARGE_REQUEST, LARGE_RESPONSE = 1 << 20, 64 << 10
"""Bytes of a request, or expected ones of its response, from which on the response is not written
in the transport's thread: writing the classes of a row takes a microsecond for every 20 bytes."""

MAX_RETRIES = 3
"""How often a model is resolved again that another version replaces at that moment."""


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
    def arrived(self) -> float:
        """See `Call.arrived`; 0.0 if it has waited for something else."""

    @property
    def defer(self) -> Defer | None:
        """See `Call.defer`; None outside of the transport's thread."""

    def reply(self, response: bytes) -> None: ...

    def fail(self, error: Exception) -> None: ...

    def on_cancel(self, callback: Callable[[], None]) -> None:
        """Set the `callback` to call when the response is no longer needed."""


class ResponseWriter(Protocol):
    """Writes the response to a request. Is cached with a model, to which it does not refer."""

    def __call__(self, outputs: Outputs) -> bytes: ...

    def expected_bytes(self, rows: int) -> int:
        """Return the expected size of a response of `rows`."""

    def ranked_classes(self, answer: int) -> int:
        """Return how many of the best classes of each row it reads of the model's answer.

        0 if it reads all values; `answer` is the index of that output.
        """


class StepOwner(Protocol):
    """The session that a request is a step of."""

    def check_rows(self, input_types: Mapping[str, TensorType]) -> None:
        """Check the rows of a step, whose inputs fit the model. Raises InvalidArgumentError."""

    def check_inputs(self, inputs: Inputs) -> None:
        """Check the values of a step. Raises InvalidArgumentError and QueueFullError."""

    def new_step(self, *arguments: Any) -> "Submission":
        """Make the request of the arguments of `Submission`."""


class ParsedRequest(NamedTuple):
    """The content of a message that has been parsed.

    `decode` is called once the types of the inputs are found to match the signature. Neither it nor
    `response_writer` may keep the message afterwards.
    """

    input_types: Mapping[str, TensorType]
    decode: Callable[..., Inputs]
    """Takes, as its only argument, the names of inputs that are to be arrays of bytes."""
    response_writer: ResponseWriter
    deadline: float
    priority: Priority
    nbytes: int
    """Bytes of the message."""
    limits: Limits = Limits()
    is_slow: Callable[[], bool] = lambda: False
    """Returns whether `decode` takes too long for the transport's thread, or raises
    InvalidArgumentError. Called before `decode`, for types that match the signature."""
    explain: Callable[[InvalidArgumentError], InvalidArgumentError] = lambda error: error
    """Returns the error of input types that do not match the signature in the protocol's words."""
    queue_timeout: QueueTimeout | None = None
    """The limit of its wait in the queue, None for the model's."""
    writes_to_device: bool = False
    """Whether `response_writer` copies to a device, which may wait for what else that does."""
    session: StepOwner | None = None
    """The session that it is a step of, None if it is none."""


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

    is_shadowed = True
    """Whether a shadow version gets a copy of it."""

    __slots__ = ("model", "responder", "response_writer", "started", "workers")

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
        workers: WorkerPool | None = None,
    ) -> None:
        """Make the request.

        With `workers`, one of them writes the response if the model runs on the transport's thread.
        """
        super().__init__(inputs, rows, group, deadline, priority, nbytes)
        self.workers = workers
        self.model = model
        self.responder = responder
        self.response_writer = response_writer
        self.started = started

    @property
    def trace(self) -> CallTrace | None:
        return self.responder.trace

    @property
    def ranked_classes(self) -> int:
        model = self.model
        # A shadow version is compared by the values.
        return 0 if model.on_answer else self.response_writer.ranked_classes(model.answer)

    @property
    def log_fields(self) -> Mapping[str, str | int]:
        return {**self.model.log_fields, **log_fields_of(self.responder)}

    def write_response(self, outputs: Outputs) -> bytes:
        """Return the response. Raises NeuronaError."""
        return self.response_writer(outputs)

    def finish(self, outputs: Outputs | None, error: NeuronaError | None) -> None:
        """Write and deliver the response, or the error, and record the request in the metrics."""
        workers = self.workers
        if workers is not None and outputs is not None and self.model.batcher.runs_in_this_thread():
            workers.submit(partial(self._finish, outputs, error))
        else:
            self._finish(outputs, error)

    def _finish(self, outputs: Outputs | None, error: NeuronaError | None) -> None:
        model = self.model
        response = None
        if outputs is not None:
            try:
                response = self.write_response(outputs)
            except NeuronaError as raised:
                error = raised
            except Exception as bug:  # the caller must get an error, not wait in vain
                model.batcher.failure_log.record(
                    "a response could not be written", bug, self.log_fields
                )
                error = ModelFailedError()
        seconds = time.monotonic() - self.started
        if error is None:
            model.metrics.record_request("ok", seconds)
        else:
            model.metrics.record_error(error, seconds)
        if (trace := self.responder.trace) is not None:
            run_rows = outputs.batch.run_rows if isinstance(outputs, RowSlice) else self.rows
            trace.record_outcome(self, model.name, model.version, error, run_rows)
            if error is None and trace.trace_id:
                model.metrics.record_exemplar(seconds, trace.trace_id)
        if response is None:
            self.responder.fail(error or ModelFailedError())
        else:
            self.responder.reply(response)
        if outputs is not None and (on_answer := model.on_answer) is not None and self.is_shadowed:
            on_answer(self, outputs)


class DeviceSubmission(Submission):
    """One whose response is written to a device: its workers do that, wherever the model runs.

    A copy may wait for what else the device does, or never return; other requests go on.
    """

    __slots__ = ()

    def finish(self, outputs: Outputs | None, error: NeuronaError | None) -> None:
        if self.workers is None or outputs is None:
            super().finish(outputs, error)
        else:
            self.workers.submit(partial(self._finish, outputs, error))


def submit(
    metrics: Metrics,
    resolve: Callable[[], Model],
    read: Callable[[Model], ParsedRequest],
    responder: Responder,
    workers: WorkerPool,
    max_retries: int = MAX_RETRIES,
) -> AcceptedRequest | None:
    """Resolve the model, read and check the request, and submit it to the model.

    The responder gets the response or the error, exactly once: a NeuronaError that `resolve`,
    `read`, `decode` or `response_writer` raises, too. A model that another version replaces
    between its resolution and the submission is resolved again, at most `max_retries` times.
    A request whose decoding is slow is decoded and submitted by one of the `workers`.

    Returns:
        None if the request was invalid. One that a worker decodes may prove to be invalid later.
    """
    started = time.monotonic()
    model = None
    try:
        model = resolve()
        parsed = read(model)
        types, encoded = parsed.input_types, None
        try:
            rows = model.signature.check(types)
        except InvalidArgumentError as mismatch:
            # Only here, so that requests of arrays pay nothing for images.
            if not parsed.session:
                encoded = find_encoded(model.images, types, model.signature)
            if encoded is None:
                raise explain_strings(types, model.signature, parsed.explain(mismatch)) from None
        if encoded is not None:
            types = encoded.types
            rows = model.signature.check(types)
        parsed.limits.check_rows(rows)
        if parsed.session is not None:
            parsed.session.check_rows(types)
        group = model.signature.group(types)
        accepted = AcceptedRequest(model, rows, group, parsed.response_writer, parsed.priority)
        retry = partial(submit, metrics, resolve, read, responder, workers, max_retries - 1)
        prepared = _DecodableRequest(
            accepted, parsed, responder, workers, started, resolve if max_retries else None, retry
        )
        if encoded is not None:
            prepared.decode_images(encoded)
            return accepted
        if parsed.is_slow():
            cancellations: list[None] = []  # which hold nothing of the message
            responder.on_cancel(partial(cancellations.append, None))
            workers.submit(partial(prepared.decode_in_worker, cancellations), parsed.nbytes)
            return accepted
        inputs = prepared.decode()
    except (TensorError, NeuronaError) as raised:
        _reject(metrics, model, raised, responder, started)
        return None
    prepared.send(inputs, responder.defer)
    return accepted


class _DecodableRequest:
    """A request that fits the signature of its model, and how to submit it."""

    def __init__(
        self,
        accepted: AcceptedRequest,
        parsed: ParsedRequest,
        responder: Responder,
        workers: WorkerPool,
        started: float,
        resolve: Callable[[], Model] | None,
        retry: Callable[[], object],
    ) -> None:
        self._accepted = accepted
        self._parsed = parsed
        self._responder = responder
        self._workers = workers
        self._started = started
        self._resolve = resolve
        self._retry = retry

    def decode(self) -> Inputs:
        """Return the inputs. Raises TensorError and InvalidArgumentError."""
        inputs = self._parsed.decode()
        if (session := self._parsed.session) is not None:
            session.check_inputs(inputs)
        return inputs

    def decode_in_worker(self, cancellations: Sequence[None]) -> None:
        """Decode and submit the request; `cancellations` are not empty once the caller has left."""
        responder = self._responder
        try:
            if cancellations:
                raise cancellation_error(responder.deadline)
            if self._parsed.deadline <= time.monotonic():
                raise DeadlineExceededError("deadline exceeded before the request was decoded")
            inputs = self.decode()
        except Exception as raised:  # the caller must get an error, not wait in vain
            _fail(self._accepted.model, _public_error(raised), responder, self._started)
            return
        submission = self.send(inputs, None)
        if cancellations:  # meanwhile, and maybe before the submission could learn it
            cancel(submission)

    def decode_images(self, encoded: EncodedRequest) -> None:
        """Decode the images in threads of their own, and submit the request then.

        Raises:
            InvalidArgumentError: The rows would be too large.
            QueueFullError: Too much is being decoded.
        """
        accepted, parsed, responder = self._accepted, self._parsed, self._responder
        model, max_bytes = accepted.model, accepted.model.batcher.policy.max_queue_bytes
        encoded.check_size(max_bytes)
        cancellations: list[None] = []  # which hold nothing of the message

        def deliver(inputs: Inputs) -> None:
            types = {
                name: (dtype, inputs[name].shape) for name, (dtype, _) in encoded.types.items()
            }
            model.signature.check(types)
            nbytes = max(parsed.nbytes, sum(array.nbytes for array in inputs.values()))
            self._accepted = accepted._replace(group=model.signature.group(types))
            self._parsed = parsed._replace(nbytes=nbytes)
            submission = self.send(inputs, None)
            if cancellations:  # meanwhile, and maybe before the submission could learn it
                cancel(submission)

        job = ImageRequest(
            encoded,
            parsed.decode,
            parsed.nbytes,
            parsed.deadline,
            max_bytes,
            self._workers.images,
            cancellations,
            deliver,
            lambda error: _fail(model, error, responder, self._started),
        )
        responder.on_cancel(partial(cancellations.append, None))
        self._workers.images.submit(job)

    def send(self, inputs: Inputs, defer: Defer | None) -> Submission:
        """Submit the request with its inputs."""
        accepted, parsed = self._accepted, self._parsed
        new_submission: Callable[..., Submission] = Submission
        if parsed.session is not None:
            new_submission = parsed.session.new_step
        elif parsed.writes_to_device:
            new_submission = DeviceSubmission
        submission = new_submission(
            accepted.model,
            self._responder,
            accepted.response_writer,
            self._started,
            inputs,
            accepted.rows,
            accepted.group,
            parsed.deadline,
            accepted.priority,
            parsed.nbytes,
            self._workers
            if parsed.writes_to_device or is_large(parsed.nbytes, accepted.expected_bytes)
            else None,
        )
        submission.queue_timeout = parsed.queue_timeout
        send(submission, defer, self._resolve, self._retry)
        return submission


def _reject(
    metrics: Metrics,
    model: Model | None,
    raised: TensorError | NeuronaError,
    responder: Responder,
    started: float,
) -> None:
    """End a request that is invalid, or whose model was not found if it is None.

    It is a function since a variable of who has caught the error would be a cycle: the error has
    its frame, which refers to the model.
    """
    error = InvalidArgumentError(str(raised)) if isinstance(raised, TensorError) else raised
    if model is None:
        metrics.unresolved[error.outcome].inc()
        metrics.record_rejection(error)
        responder.fail(error)
    else:
        _fail(model, error, responder, started)


def _public_error(raised: Exception) -> Exception:
    """Return the error that a caller gets for what decoding has raised."""
    return InvalidArgumentError(str(raised)) if isinstance(raised, TensorError) else raised


def _fail(model: Model, error: Exception, responder: Responder, started: float) -> None:
    """End a request with an error that was found before its submission."""
    seconds = time.monotonic() - started
    if isinstance(error, NeuronaError):
        model.metrics.record_error(error, seconds)
    else:
        model.metrics.record_request(NeuronaError.outcome, seconds)
    responder.fail(error)


def is_large(nbytes: int, expected_bytes: int) -> bool:
    """Return whether the response to a request of `nbytes` may take long to write."""
    return nbytes >= LARGE_REQUEST or expected_bytes >= LARGE_RESPONSE


def send(
    submission: Submission,
    defer: Defer | None,
    resolve: Callable[[], Model] | None,
    retry: Callable[[], object],
) -> None:
    """Submit a request to its model's batcher.

    `defer` is the responder's, None outside of the transport's thread.

    If `resolve` shows that another version has replaced the model, the request is withdrawn, and
    `retry` submits another one in its place.
    """
    responder, model = submission.responder, submission.model
    submission.arrival_lag = submission.started - (responder.arrived or submission.started)
    responder.on_cancel(partial(cancel, submission))
    try:
        model.batcher.submit(submission, defer)
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
