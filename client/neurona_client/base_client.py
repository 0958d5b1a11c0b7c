"""The part of a client that does no I/O and that `Client` and `AsyncClient` share.

Each kind of call is an operation, which a driver in `calls` runs.
"""

import threading
from collections.abc import Iterable
from typing import TypeVar

from google.protobuf.message import DecodeError, Message

from neurona_client.calls.backpressure import CapacityLimiter
from neurona_client.calls.hedging import HedgeBudget, Hedging, deliver_to_waiters
from neurona_client.calls.retry import Sender, with_retries
from neurona_client.calls.session import SessionCall
from neurona_client.calls.session_protocol import SessionProtocol
from neurona_client.calls.steps import (
    Call,
    Deadline,
    Operation,
    Pause,
    Step,
    UnaryCall,
    WaitForCapacity,
)
from neurona_client.descriptions import (
    ModelDescription,
    ServedModel,
    description_from_response,
    models_from_response,
)
from neurona_client.errors import (
    DeadlineExceededError,
    InvalidInputError,
    NeuronaError,
    NotFoundError,
    PermissionDeniedError,
    ServerError,
    UnavailableError,
)
from neurona_client.inputs import (
    Inputs,
    PreparedTensors,
    prepare_steps,
    prepare_undescribed_inputs,
)
from neurona_client.options import ClientOptions
from neurona_client.request_templates import (
    EncodedRequest,
    RequestOptions,
    RequestTemplate,
    TemplateCache,
    is_unicode,
)
from neurona_client.results import Result
from neurona_client.transport.endpoint import (
    CONNECTION_CLOSED,
    Endpoint,
    auth_metadata,
    parse_health_status,
)
from neurona_client.transport.endpoint_pool import EndpointPool
from neurona_client.transport.grpc_calls import Metadata
from neurona_client.transport.stream import Deliver, ScheduleWrite, Stream, StreamedCall
from neurona_client.transport.trace_context import trace_context
from neurona_protos.prediction_pb2 import (
    DescribeModelRequest,
    DescribeModelResponse,
    ListModelsResponse,
)
from neurona_protos.wire_format import length_delimited

M = TypeVar("M", bound=Message)
R = TypeVar("R", bound=Result)

PREDICT = "/neurona.v1.Prediction/Predict"
CLASSIFY = "/neurona.v1.Prediction/Classify"
REGRESS = "/neurona.v1.Prediction/Regress"
_LIST = "/neurona.v1.Models/List"
_DESCRIBE = "/neurona.v1.Models/Describe"
_HEALTH_CHECK = "/grpc.health.v1.Health/Check"

MAX_STREAMED_BYTES = 64 << 10
"""A larger request is a call of its own: in a shared message it would delay the others."""

_TASK_OF_METHOD = {CLASSIFY: "classification", REGRESS: "regression"}
_HEALTH_STATUSES = {0: "UNKNOWN", 1: "SERVING", 2: "NOT_SERVING", 3: "SERVICE_UNKNOWN"}
_READY_POLL_SECONDS = 0.1


class BaseClient:
    """The state and the operations of one client."""

    def __init__(
        self, options: ClientOptions, deliver: Deliver, schedule_write: ScheduleWrite
    ) -> None:
        """Open the channels to the servers.

        Args:
            options: of the client.
            deliver: delivers the outcomes of a stream.
            schedule_write: has a stream written when callers have submitted their requests.

        Raises:
            OSError: a file of `options.tls` cannot be read.
            RuntimeError: eventlet has replaced the threads of this process.
        """
        self.options = options
        self.pool = EndpointPool(options)
        self.capacity = CapacityLimiter(options.max_pending_bytes, options.max_pending_requests)
        self.templates = TemplateCache()
        hedging = options.retries.hedge_after is not None
        self.hedge_budget = HedgeBudget(options.retries) if hedging else None
        self._metadata = auth_metadata(options)
        self._deliver = deliver_to_waiters(deliver) if hedging else deliver
        self._schedule_write = schedule_write
        self._lock = threading.Lock()

    def close(self) -> None:
        """End all calls with ClosedError and close the channels."""
        if self.pool.closed_reason:  # perhaps a child's copy, whose streams belong to its parent
            return
        for endpoint in self.pool.endpoints:
            if endpoint.stream is not None:
                endpoint.stream.close()
        self.pool.close()

    def deadline(self, timeout: float | None) -> Deadline:
        """Return the deadline of a call that starts now; None: the client's own timeout."""
        return Deadline(self.options.timeout if timeout is None else timeout)

    # Predictions

    def predict(
        self,
        result_type: type[R],
        path: str,
        options: RequestOptions,
        inputs: Inputs,
        deadline: Deadline,
        request_id: str | None,
        first_error: NeuronaError | None = None,
    ) -> Operation[R]:
        """Send a prediction.

        The model is described before the first one, and again when the description seems outdated.

        Args:
            result_type: class of the result.
            path: PREDICT, CLASSIFY or REGRESS.
            options: model, version, label and so on.
            inputs: of the caller.
            deadline: of the operation.
            request_id: what the server's log calls the request.
            first_error: why the attempt on `fast_path` failed.
        """
        is_fresh = False
        while True:
            template = self.templates.get(options)
            if template is None:
                template, is_fresh = (yield from self._create_template(options, deadline)), True
            try:
                request, response = yield from self._send_with_capacity(
                    path, template, inputs, deadline, request_id, first_error
                )
            except (InvalidInputError, NotFoundError):
                if is_fresh:
                    raise
                first_error = None
                self.templates.invalidate(options)
                continue
            return self.to_result(result_type, template, request, response)

    def fast_path(
        self, options: tuple[object, ...], inputs: object, request_id: str | None
    ) -> tuple[RequestTemplate, EncodedRequest, Stream] | None:
        """Prepare a request that needs no operation.

        Returns:
            The request, with its capacity reserved, and the stream to submit it to; None: it takes
            an operation.
        """
        template = self.templates.templates.get(options)
        may_hedge = self.hedge_budget is not None and len(self.pool.endpoints) > 1
        if template is None or request_id is not None or may_hedge or not self.options.coalesce:
            return None
        if self.pool.closed_reason or trace_context():
            return None
        request = template.encode_known_shape(inputs)
        if request is None or len(request.message) > MAX_STREAMED_BYTES:
            return None
        endpoint, size = self.pool.pick(), len(request.message)
        if endpoint is None or not (endpoint.accepts_streams and self.capacity.try_acquire(size)):
            return None
        try:
            return template, request, self._stream_to(endpoint)
        except BaseException as error:
            self.capacity.release(size)
            if isinstance(error, UnavailableError):  # the operation tries another server
                return None
            raise

    def to_result(
        self,
        result_type: type[R],
        template: RequestTemplate,
        request: EncodedRequest,
        response: bytes,
    ) -> R:
        """Wrap a response, and drop the template if the response is from a new version."""
        if self.templates.is_from_new_version(template, response):
            self.templates.invalidate(template.options)
        return result_type(response, is_sample=request.is_sample)

    def _create_template(
        self, options: RequestOptions, deadline: Deadline
    ) -> Operation[RequestTemplate]:
        options.validate()
        try:
            description = yield from self._describe(options, deadline)
        except PermissionDeniedError:
            return self.templates.add(options, None)
        return self.templates.add(options, description)

    def _send_with_capacity(
        self,
        path: str,
        template: RequestTemplate,
        inputs: Inputs,
        deadline: Deadline,
        request_id: str | None,
        first_error: NeuronaError | None,
    ) -> Operation[tuple[EncodedRequest, bytes]]:
        """Send a request when there is capacity for it."""
        request = template.encode(inputs)
        size = len(request.message)
        if not self.capacity.try_acquire(size):
            del request  # a waiting call keeps no encoded copy of its inputs
            wait = WaitForCapacity(self.capacity, size, deadline.remaining())
            yield from _perform(wait, deadline)
            request = template.encode(inputs)
        try:
            response = yield from self._send(
                path, template, request.message, deadline, request_id, first_error
            )
        finally:
            self.capacity.release(size)
        return request, response

    def _send(
        self,
        path: str,
        template: RequestTemplate,
        message: bytes,
        deadline: Deadline,
        request_id: str | None,
        first_error: NeuronaError | None,
    ) -> Call:
        """Send a request on a shared stream where that is possible, else as a unary call."""
        metadata = (*trace_context(), *_request_id_metadata(request_id))
        may_share_stream = (
            self.options.coalesce
            and not metadata  # the metadata of a stream belong to all its requests
            and len(message) <= MAX_STREAMED_BYTES
            and (path == PREDICT or template.task == _TASK_OF_METHOD[path])
        )

        def make_step(endpoint: Endpoint, timeout: float | None) -> Step:
            if may_share_stream and endpoint.accepts_streams:
                return StreamedCall(self._stream_to(endpoint), message, timeout)
            return UnaryCall(endpoint, path, message, timeout, self._metadata + metadata)

        retries, sender = self.options.retries, self._sender()
        return (
            yield from with_retries(self.pool, retries, deadline, make_step, first_error, sender)
        )

    def _stream_to(self, endpoint: Endpoint) -> Stream:
        """Return the open stream to a server, or open one."""
        stream: Stream | None = endpoint.stream
        if stream is None or stream.failure is not None:
            with self._lock:
                stream = endpoint.stream
                if stream is None or stream.failure is not None:
                    try:
                        stream = Stream(
                            endpoint, self._metadata, self._deliver, self._schedule_write
                        )
                    except ValueError as error:  # what gRPC raises after the channel was closed
                        raise UnavailableError(CONNECTION_CLOSED) from error
                    endpoint.stream = stream
        return stream

    # Sessions

    def session(self, options: RequestOptions, state: bytes, request_id: str | None) -> SessionCall:
        """Create a session, which begins with its first steps.

        Args:
            options: model, version, label and so on.
            state: to go on from; empty for the start of a sequence.
            request_id: what the server's log calls its streams.

        Raises:
            InvalidInputError: an option is outside its range.
        """
        options.validate()
        metadata = self._metadata + _request_id_metadata(request_id)
        protocol = SessionProtocol(options, state)
        return SessionCall(protocol, self.pool, self.capacity, self.options, metadata)

    def prepare_steps(
        self, options: RequestOptions, inputs: Inputs, deadline: Deadline
    ) -> Operation[tuple[PreparedTensors, bool]]:
        """Convert the inputs of a session's next message to tensors; see `inputs.prepare_steps`."""
        is_fresh = False
        while True:
            template = self.templates.get(options)
            if template is None:
                template, is_fresh = (yield from self._create_template(options, deadline)), True
            if template.description is None:
                return prepare_undescribed_inputs(inputs), False
            try:
                return prepare_steps(template.description, inputs)
            except InvalidInputError:
                if is_fresh:
                    raise
                self.templates.invalidate(options)

    # Models and health

    def models(self, timeout: float | None) -> Operation[list[ServedModel]]:
        """List the models."""
        response = yield from self._unary_call(_LIST, b"", self.deadline(timeout))
        return models_from_response(_parse(ListModelsResponse, response))

    def describe(
        self, model: str, version: int | None, label: str | None, timeout: float | None
    ) -> Operation[ModelDescription]:
        """Describe a model."""
        options = RequestOptions(model, version, label, 1, False, "normal")
        options.validate()
        return (yield from self._describe(options, self.deadline(timeout)))

    def health(self, service: str, timeout: float | None) -> Operation[str]:
        """Ask for the health of the server, a service or a model."""
        return (yield from self._check_health(service, self.deadline(timeout)))

    def wait_until_ready(self, models: Iterable[str], timeout: float | None) -> Operation[None]:
        """Wait until the server is SERVING, and each of `models`."""
        deadline = Deadline(timeout)  # not the client's own timeout: loading takes longer
        models = (models,) if isinstance(models, str) else models
        for service in ("", *models):
            status = ""
            while status != "SERVING":
                try:
                    deadline.remaining()  # raises if it has passed
                    status = yield from self._check_health(service, deadline)
                except UnavailableError:
                    status = "unreachable"
                except DeadlineExceededError:
                    subject = f"model {service!r}" if service else "server"
                    if self.pool.pick() is None:
                        status = f"unreachable: {self.pool.connect_error}"
                    raise DeadlineExceededError(
                        f"{subject} at {self.pool.address} not ready within {timeout:g} s: "
                        f"{status or 'unreachable'}"
                    ) from None
                if status != "SERVING":
                    yield Pause(_READY_POLL_SECONDS)

    def _describe(self, options: RequestOptions, deadline: Deadline) -> Operation[ModelDescription]:
        request = DescribeModelRequest(model=options.model)
        if options.version is not None:
            request.version = options.version
        elif options.label is not None:
            request.label = options.label
        response = yield from self._unary_call(_DESCRIBE, request.SerializeToString(), deadline)
        return description_from_response(_parse(DescribeModelResponse, response))

    def _check_health(self, service: str, deadline: Deadline) -> Operation[str]:
        if not is_unicode(service):
            raise InvalidInputError(f"service is {service!r} (expected Unicode text)")
        request = length_delimited(1, service.encode()) if service else b""
        try:
            response = yield from self._unary_call(_HEALTH_CHECK, request, deadline)
        except NotFoundError:
            return "SERVICE_UNKNOWN"
        return _HEALTH_STATUSES.get(parse_health_status(response), "UNKNOWN")

    def _unary_call(self, path: str, message: bytes, deadline: Deadline) -> Call:
        def make_step(endpoint: Endpoint, timeout: float | None) -> Step:
            return UnaryCall(endpoint, path, message, timeout, self._metadata)

        retries, sender = self.options.retries, self._sender()
        return (yield from with_retries(self.pool, retries, deadline, make_step, send=sender))

    def _sender(self) -> Sender | None:
        """Return what sends the attempts of one operation; None: no hedging."""
        if self.hedge_budget is None:
            return None
        return Hedging(self.options.retries, self.hedge_budget).send


def _request_id_metadata(request_id: str | None) -> Metadata:
    if request_id is None:
        return ()
    if not (request_id.isascii() and request_id.isprintable()):
        raise InvalidInputError("invalid request_id (expected printable ASCII)")
    return (("x-request-id", request_id),)


def _parse(message_type: type[M], message: bytes) -> M:
    try:
        return message_type.FromString(message)
    except DecodeError as error:
        name = message_type.DESCRIPTOR.full_name
        raise ServerError(f"response is not a {name}: {error}") from error


def _perform(step: Step, deadline: Deadline) -> Call:
    try:
        return (yield step)
    except DeadlineExceededError:
        raise deadline.exceeded_error() from None
