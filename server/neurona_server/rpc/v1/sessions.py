"""Session: a sequence that is sent as it comes, whose state lives as long as its stream.

Messages wait in the stream until the one before has its response. The server ends a session with a
last message that has the state: so its caller can go on from there on another replica.
"""

import time
from collections.abc import Callable, Hashable, Sequence
from functools import partial
from typing import NamedTuple
from weakref import WeakKeyDictionary

from neurona_protos.prediction_pb2 import (
    SessionRequest,
    SessionResponse,
    SessionStart,
)
from neurona_protos.tensors import TensorError
from neurona_server.batching.policy import Priority
from neurona_server.batching.request import ExclusiveGroup
from neurona_server.errors import (
    InvalidArgumentError,
    NeuronaError,
    UnavailableError,
)
from neurona_server.models.lifecycle.registry import Registry
from neurona_server.models.model import Model
from neurona_server.rpc.call import (
    ANY_MESSAGE_BYTES,
    Methods,
    StreamCall,
    Streaming,
)
from neurona_server.rpc.flow_control import StreamWindow
from neurona_server.rpc.limits import Limits
from neurona_server.rpc.security.access import Right, visible_models
from neurona_server.rpc.sessions import SequenceSession, SessionStore, state_codec
from neurona_server.rpc.submission import ParsedRequest, is_large, send, submit
from neurona_server.rpc.v1.prediction import (
    COPIED_DTYPES,
    PRIORITIES,
    decode_inputs,
    input_types,
    is_slow,
)
from neurona_server.rpc.v1.responses import PredictResponseWriter, ResponseEncoder
from neurona_server.rpc.v1.session_messages import (
    FRAME_BYTES,
    SessionResponseWriter,
    frame_error,
    frame_response,
    parse_session_message,
)
from neurona_server.rpc.worker_pool import WorkerPool
from neurona_server.telemetry.metrics import Metrics

MAX_WAITING = 64
"""Messages of a session that are read before they have their turn."""

MAX_WAITING_BYTES = 1 << 20
"""Bytes of such messages; the next one is read all the same if it is the only one."""

MAX_UNREAD = 256
"""Responses that the client has not read, beyond which no further steps run."""

MAX_STEP_KINDS = 256
"""Kinds of steps of a model that are remembered."""

MAX_TURNS = 16
"""Messages without a run, such as invalid ones, that are answered before others are served."""

CLOSING = (
    "the connection is being closed: the server stops, or it has the age of max_connection_age_s"
)
"""The reason of a session's end when its transport drains the stream."""

StepTypes = tuple[tuple[str, int, tuple[int, ...]], ...]
"""Name, dtype and shape of each input of a step."""


class StepKind(NamedTuple):
    """What is known of steps with equal types, which need not be checked again."""

    rows: int
    group: Hashable


class Sessions:
    """Serves Session."""

    def __init__(
        self,
        registry: Registry,
        metrics: Metrics,
        store: SessionStore,
        limits: Limits | None = None,
        workers: WorkerPool | None = None,
    ) -> None:
        self.metrics = metrics
        self.limits = limits or Limits()
        self.workers = workers or WorkerPool()
        self._registry = registry
        self._store = store
        self._encoders: WeakKeyDictionary[Model, ResponseEncoder] = WeakKeyDictionary()
        self._step_kinds: WeakKeyDictionary[Model, dict[StepTypes, StepKind]] = WeakKeyDictionary()

    def methods(self) -> Methods:
        path = "/neurona.v1.Prediction/Session"
        return {path: Streaming(partial(SessionStream, self), Right.PREDICT, ANY_MESSAGE_BYTES)}

    def open(
        self, start: SessionStart, call: StreamCall, on_end: Callable[[str], None]
    ) -> tuple[SequenceSession, PredictResponseWriter, Priority]:
        """Begin a session: return it, and how its steps are answered and queued.

        Raises:
            NeuronaError: What the caller asks for cannot be had; see `SessionStore.open`.
        """
        registry = visible_models(self._registry, call.grant)
        resolve = partial(registry.resolve, start.model, start.version, start.label)
        try:
            if (priority := PRIORITIES.get(start.priority)) is None:
                raise InvalidArgumentError(f"priority is {start.priority} (expected 0, 1 or 2)")
            session = self._store.open(
                resolve, owner=call.grant.name, on_end=on_end, state=start.state
            )
        except NeuronaError as error:
            self.metrics.unresolved[error.outcome].inc()
            self.metrics.record_rejection(error)
            raise
        encoder = self._encoders.get(session.model)
        if encoder is None:
            encoder = self._encoders[session.model] = ResponseEncoder(session.model)
        writer = PredictResponseWriter(encoder, start.top_k or 1, start.raw_outputs)
        return session, writer, priority

    def step_kinds(self, model: Model) -> "dict[StepTypes, StepKind]":
        """Return the kinds of steps that a model has accepted, by the types of their inputs."""
        kinds = self._step_kinds.get(model)
        if kinds is None:
            kinds = self._step_kinds[model] = {}
        return kinds


class _Message(NamedTuple):
    """A message that has been received."""

    request: SessionRequest
    data: Sequence[memoryview]
    nbytes: int
    number: int
    """Of the stream's messages, from 1."""


class SessionStream:
    """A `Stream`. Responses come from any thread; the rest runs in the transport's."""

    def __init__(self, service: Sessions, call: StreamCall) -> None:
        """Start the stream, which the metrics count until the transport calls `cancel`."""
        service.metrics.open_streams.inc()
        self.call = call
        self.service = service
        self.cancel_step: Callable[[], None] | None = None
        """Cancels the step in flight."""

        self.cancelled = False
        self._session: SequenceSession | None = None
        self._writer: PredictResponseWriter
        self._priority: Priority
        self._window = StreamWindow()
        self._waiting: list[_Message] = []  # an empty deque takes ten times the memory
        self._waiting_bytes = 0
        self._is_running = False  # a step is in flight
        self._completed: bytes | None = None  # its response
        self._ready: list[bytes] = []
        self._messages = 0
        self._half_closed = self._draining = False
        self._end_reason = ""
        self._has_ended = False  # the last message is taken

    def receive(self, message: bytes) -> None:
        if self._end_reason or self._draining:
            return  # it has no response, so its caller sends it elsewhere
        request, data = parse_session_message(message, self.service.limits)
        if self._session is None:
            self._begin(request)
        self._messages += 1
        self._waiting.append(_Message(request, data, len(message), self._messages))
        self._waiting_bytes += len(message)
        self._run_waiting()

    def half_close(self) -> None:
        self._half_closed = True

    def take_message(self) -> bytes | None:
        self._collect_response()
        if not self._is_running:
            self._run_waiting()
        if self._ready:
            message = self._ready.pop(0)
            self._window.release(len(message))
            return message
        if self._half_closed and self._is_idle:  # its caller has ended it, and has all responses
            return None
        if self._draining and self._is_idle and self._session:
            self._end_reason = self._end_reason or CLOSING
        if self._end_reason and not self._is_running:
            return self._take_last_message()
        return None

    @property
    def congested(self) -> bool:
        return bool(
            self._window.full
            or len(self._waiting) >= MAX_WAITING
            or self._waiting_bytes >= MAX_WAITING_BYTES
            or len(self._ready) >= MAX_UNREAD
        )

    @property
    def buffered_bytes(self) -> int:
        return self._window.bytes + self._waiting_bytes

    @property
    def finished(self) -> bool:
        if self._has_ended:
            return True
        return self._is_idle and (self._half_closed or (self._draining and self._session is None))

    def drain(self) -> None:
        self._draining = True

    def cancel(self) -> None:
        self.service.metrics.open_streams.dec()
        self._waiting.clear()
        self.cancelled = True  # before what follows: a step that begins later is cancelled at once
        if self._session is not None:
            self._session.close()
            self._session = None  # stream and call refer to each other, and would keep its model
        if (cancel := self.cancel_step) is not None:
            cancel()

    def end(self, reason: str) -> None:
        """Send the last message, since the server has ended the session. Thread-safe."""
        self._end_reason = reason
        self.call.wake()

    def respond(self, response: bytes) -> None:
        """Send the response to the step in flight. Thread-safe."""
        self.cancel_step = None
        self._completed = response
        self.call.wake()

    @property
    def _is_idle(self) -> bool:
        return not (self._is_running or self._waiting or self._ready)

    def _begin(self, request: SessionRequest) -> None:
        """Begin the session. Raises NeuronaError, which ends the call."""
        if not request.HasField("start"):
            raise InvalidArgumentError(
                "session not begun: the first message has no start (expected one with the model)"
            )
        self._session, self._writer, self._priority = self.service.open(
            request.start, self.call, self.end
        )

    def _collect_response(self) -> None:
        if (response := self._completed) is not None:
            self._completed = None
            self._is_running = False
            self._window.reserve(len(response))
            self._ready.append(response)

    def _answer(self, response: bytes) -> None:
        """Answer a message that needs no run."""
        self._window.reserve(len(response))
        self._ready.append(response)
        self.call.wake()

    def _run_waiting(self) -> None:
        """Run the next message's step; answer those that need no run."""
        turns = 0
        while self._waiting and not self._is_running and not self._is_full and not self._end_reason:
            if turns == MAX_TURNS:
                self.call.wake()  # the transport has others to serve: it will call `take_message`
                return
            turns += 1
            message = self._waiting.pop(0)
            self._waiting_bytes -= message.nbytes
            self._run(message)
            self._collect_response()

    @property
    def _is_full(self) -> bool:
        return self._window.full or len(self._ready) >= MAX_UNREAD

    def _run(self, message: _Message) -> None:
        session = self._session
        assert session is not None  # noqa: S101  for the type checker: it has begun
        request = message.request
        if message.number > 1 and request.HasField("start"):
            error = InvalidArgumentError(
                "session begun twice: a later message has a start (expected it in the first one "
                "only)"
            )
            self._answer(frame_error(request.id, error, session.steps))
        elif not request.inputs:
            state = session.export_state() if request.return_state else b""
            self._answer(frame_response(request.id, None, state, session.steps))
        else:
            session.claim()
            self._is_running = True
            self._submit(session, message)

    def _submit(self, session: SequenceSession, message: _Message) -> None:
        service, request, model = self.service, message.request, session.model
        responder = SessionResponder(self, session, request, message.number)
        kinds = service.step_kinds(model)
        types = tuple([(one.name, one.dtype, tuple(one.shape)) for one in request.inputs])
        kind = kinds.get(types)
        if kind is not None and session.rows == kind.rows and not message.data:
            started = time.monotonic()
            try:
                inputs = decode_inputs(request, ())
                session.check_inputs(inputs)
            except (TensorError, InvalidArgumentError):
                pass  # what follows says so, and counts it
            else:
                writer = self._response_writer(session, request)
                options = (self.call.deadline, self._priority, message.nbytes)
                step = session.new_step(model, responder, writer, started, inputs, *kind, *options)
                send(step, responder.defer, None, _never_again)
                return
        read = partial(self._read, session, message)
        accepted = submit(
            service.metrics, lambda: model, read, responder, service.workers, max_retries=0
        )
        if (
            accepted is not None
            and len(kinds) < MAX_STEP_KINDS
            and model.signature.batched
            and COPIED_DTYPES.isdisjoint([one.dtype for one in request.inputs])
            and not isinstance(accepted.group, ExclusiveGroup)  # which is of one request
            and not is_large(message.nbytes, accepted.expected_bytes)
        ):
            kinds[types] = StepKind(accepted.rows, accepted.group)

    def _response_writer(
        self, session: SequenceSession, request: SessionRequest
    ) -> SessionResponseWriter:
        return SessionResponseWriter(
            self._writer,
            self.service.limits.max_message_bytes - FRAME_BYTES,
            state_codec(session.model) if request.return_state else None,
        )

    def _read(self, session: SequenceSession, message: _Message, _: Model) -> ParsedRequest:
        limits, request = self.service.limits, message.request
        limits.check(request)
        return ParsedRequest(
            input_types(request),
            partial(decode_inputs, request, message.data),
            self._response_writer(session, request),
            self.call.deadline,
            self._priority,
            message.nbytes,
            limits,
            partial(is_slow, request, message.nbytes, limits),
            session=session,
        )

    def _take_last_message(self) -> bytes | None:
        """Return the message that ends the session and, once it is taken, end the call."""
        session = self._session
        if session is None or self._has_ended:
            self.call.fail(UnavailableError(self._end_reason))
            return None
        self._has_ended = True
        self._waiting.clear()
        session.close()
        return SessionResponse(
            state=session.export_state(), steps=session.steps, ending=self._end_reason
        ).SerializeToString()


class SessionResponder:
    """The `Responder` of a step."""

    arrived = 0.0  # it may have waited for the steps before it

    __slots__ = (
        "_request_id",
        "_return_state",
        "_session",
        "_stream",
        "deadline",
        "defer",
        "trace",
    )

    def __init__(
        self, stream: SessionStream, session: SequenceSession, request: SessionRequest, number: int
    ) -> None:
        self.deadline = stream.call.deadline
        self.defer = stream.call.defer
        trace = stream.call.trace
        self.trace = None if trace is None else trace.start_request(number)
        self._stream = stream
        self._session = session
        self._request_id = request.id
        self._return_state = request.return_state

    @property
    def request_id(self) -> str:
        """The stream's request id, and the caller's id of the message."""
        return f"{self._stream.call.request_id}#{self._request_id}"

    @property
    def trace_id(self) -> str:
        return self._stream.call.trace_id

    def on_cancel(self, callback: Callable[[], None]) -> None:
        self._stream.cancel_step = callback
        if self._stream.cancelled:
            callback()

    def reply(self, response: bytes) -> None:
        session = self._session
        state = session.export_state() if self._return_state else b""
        self._respond(frame_response(self._request_id, response, state, session.steps))
        if self.trace is not None:
            self.trace.end()

    def fail(self, error: Exception) -> None:
        self._respond(frame_error(self._request_id, error, self._session.steps, self))
        if self.trace is not None:
            self.trace.end(error)

    def _respond(self, message: bytes) -> None:
        self._session.release()
        self._stream.respond(message)


def _never_again() -> None:
    """Do nothing in place of a step whose version is replaced: its session stays on that."""
