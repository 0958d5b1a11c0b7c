"""The transport on grpcio's own completion queue, on which `grpc.server` itself is built.

One thread takes events from the queue and calls the services. When no further event is ready it
runs what services have deferred, so that a batch holds all requests that have arrived meanwhile.
There are no hand-overs between threads and no event loop, on which `grpc.aio` spends its time. The
completion queue is not a public API: `auto` tests this transport before it is used.

It is one file, of more than 500 lines, because server and calls share the library's operations,
events and rules of ownership, and are read together.
"""

import logging
import math
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from typing import Any

from grpc._cython import cygrpc  # type: ignore[attr-defined]

from neurona_server.batching.batcher import Deferred
from neurona_server.errors import (
    BuffersFullError,
    DeadlineExceededError,
    InvalidArgumentError,
    NeuronaError,
    QueueFullError,
    TooLargeError,
    UnavailableError,
    UnsupportedError,
    quoted,
    response_too_large,
)
from neurona_server.rpc.call import (
    REQUEST_ID,
    BaseCall,
    Methods,
    Stream,
    Streaming,
    Unary,
    cancellation_error,
    log_fields_of,
    too_large_error,
)
from neurona_server.rpc.security.access import UNRESTRICTED, Grant
from neurona_server.rpc.status import status_of
from neurona_server.rpc.transports.buffer_budget import COPIES, LARGE, StreamCharge
from neurona_server.rpc.transports.listener import (
    AGED,
    MAX_COMPRESSED_BYTES,
    STOPPING,
    STOPPING_ACCEPT_TIME,
    ListenerOptions,
    bind,
)
from neurona_server.rpc.transports.read_progress import SAMPLING
from neurona_server.telemetry.trace import CallTrace

log = logging.getLogger(__name__)

REQUESTED_CALLS = 256
"""Calls that gRPC may hand over at once; others wait inside gRPC until one is accepted."""

MAX_REQUESTED_CALLS = 2048
"""The same while calls wait for long, so that it is seen for how long: reading so many takes longer
than any should wait. Each call costs more then, as the processor's caches do not hold so many."""

MAX_CALLS = 100_000
"""Unary calls in flight, of all connections; further ones are rejected."""

RETRY_AFTER = 1.0
"""Seconds after which a call that exceeds MAX_CALLS may be retried."""

MAX_EVENTS = 2048
"""Events after which deferred work runs although further events are ready. A request has four, so
these take as long as a batch of a short model that runs in this thread, several times. Beyond the
capacity what is left unread would wait, and refusals with it."""

BLOCKED_SECONDS = 50e-6
"""A poll that takes longer has waited: no event was ready before."""

LAG_SECONDS = 0.005
"""A shorter wait in the queue of events refuses no call."""

MAX_LAG_SECONDS = 0.1
"""Seconds for which what `Unary.max_lag` returned is used."""

MARKED_CALLS = 32
"""Calls between two marks in the queue of events, which show how long events wait there."""

CANCELLATION_TIMEOUT = 1.0
"""Seconds that calls have to end after they were cancelled."""

REJECTED_BY_GRPC = TooLargeError("message rejected by gRPC")
"""For the metrics only: gRPC has sent the caller a status of its own."""

Event = Any  # of cygrpc, which has no types
RawCall = Any

_NO_FLAGS = 0
_NO_COMPRESSION = 2  # GRPC_WRITE_NO_COMPRESS
_OK = cygrpc.StatusCode.ok
_NOW = 0.0
_TIMEOUT = cygrpc.CompletionType.queue_timeout
_SHUTDOWN = cygrpc.CompletionType.queue_shutdown


class CygrpcServer:
    """Listens, and serves calls in a thread of its own."""

    name = "cygrpc"

    def __init__(self, methods: Methods, options: ListenerOptions) -> None:
        self.max_message_bytes = options.max_message_bytes
        self.on_reject = options.on_reject
        self.thread_id = 0
        self._methods = {path.encode(): method for path, method in methods.items()}
        self._options = options
        self._tracer = options.tracer
        self.budget = options.make_budget()
        self.receiving = self.budget.receiving
        self.guard = options.make_guard(self.budget)
        self._queue = cygrpc.CompletionQueue()
        self._server = cygrpc.Server(tuple(options.arguments()), False)
        self._server.register_completion_queue(self._queue)
        self._thread = threading.Thread(target=self._serve, name="transport", daemon=True)
        self._stopping = self._stop_called = self._queue_closed = False
        self._starting: list[None] = []  # an element for each thread that is in `start_batch`
        self._idle = threading.Event()
        # For `has_turned`: whether the thread waits for events, how often it has stopped to, and
        # that number at the last question.
        self._waiting = False
        self._turns = self._last_turns = 0
        self.progress = options.progress
        self._calls_to_mark = MARKED_CALLS
        self._requested_calls = REQUESTED_CALLS
        # What the last mark has waited, 0.0 once all ready events were handled.
        self._queue_seconds = 0.0
        self._max_lags: dict[Callable[[], float], tuple[float, float]] = {}
        # Since a measured turn began.
        self.requests_read = self.messages_read = 0
        self._open_calls = 0  # unary ones; only the transport's thread counts them
        # Each stream with the time at which it is drained: the oldest comes first.
        self._streams: dict[CygrpcStreamCall, float] = {}
        # What is done once all ready events are handled. The dicts are ordered sets.
        self._deferred: dict[Deferred, None] = {}
        self._unwatched: list[CygrpcCall] = []
        self._older_unwatched: list[CygrpcCall] = []
        self._writers: dict[CygrpcStreamCall, None] = {}

    def start(self, address: str) -> int:
        """Listen; return the port, which the system chose if `address` ends in ":0".

        Raises:
            ConfigError: The address is not available.
        """
        ports = bind(self._add_port, address)
        self._server.start()
        for _ in range(REQUESTED_CALLS):
            self._server.request_call(self._queue, self._queue, self._accept)
        self._thread.start()
        self.guard.start(ports)
        return ports[0]

    def stop(self, timeout: float) -> bool:
        """See `Listener.stop`."""
        if self._stop_called or self._thread.ident is None:
            return True
        self._stop_called = self._stopping = True
        end = time.monotonic() + timeout
        self._drain_streams()
        # gRPC would end calls that it has accepted and not yet handed over with CANCELLED, which
        # clients do not retry: they get UNAVAILABLE first.
        time.sleep(min(timeout, STOPPING_ACCEPT_TIME))
        self._drain_streams()  # those accepted meanwhile
        self.guard.stop()  # it holds calls, which would not end
        self._server.shutdown(self._queue, lambda _: self._idle.set())
        if not self._idle.wait(max(0.0, end - time.monotonic())):
            self._server.cancel_all_calls()
            if not self._idle.wait(CANCELLATION_TIMEOUT):
                log.warning(
                    "some calls have not ended %s s after their cancellation", CANCELLATION_TIMEOUT
                )
                return False
        self._queue_closed = True  # set first, so that no thread starts operations after it
        while self._starting:
            time.sleep(0.001)
        self._server.destroy()
        self._queue.shutdown()
        self._thread.join(CANCELLATION_TIMEOUT)
        return not self._thread.is_alive()

    def has_turned(self) -> bool:
        """See `Listener.has_turned`."""
        before, self._last_turns = self._last_turns, self._turns
        return self._thread.is_alive() and (self._waiting or self._turns != before)

    def start_batch(
        self, call: RawCall, operations: Sequence[Any], tag: Callable[[Event], None]
    ) -> None:
        """Start operations of a call; `tag` is called with their event, in the transport's thread.

        Any thread may start operations. Once the completion queue is closed this does nothing.
        """
        # gRPC aborts the process if operations are started on a closed queue, and a response may
        # come after its call was cancelled. With a lock, threads would wait for each other.
        self._starting.append(None)
        try:
            if not self._queue_closed:
                call.start_server_batch(operations, tag)
        finally:
            self._starting.pop()

    # What calls use in the transport's thread:

    def defer(self, callback: Deferred) -> None:
        """See `Call.defer`."""
        self._deferred[callback] = None

    def watch_close(self, call: "CygrpcCall") -> None:
        """Have gRPC report when the caller of `call` disconnects.

        That is requested only if the call is still open once all ready events are handled and,
        while models run in this thread, after one more such round: beyond the capacity most calls
        end by then, and the report of each costs an event.
        """
        self._unwatched.append(call)

    def schedule_write(self, call: "CygrpcStreamCall") -> None:
        """Make `call` write its messages once all ready events are handled."""
        self._writers[call] = None

    def count_ended(self, _: Event) -> None:
        """Count a unary call as ended: the tag of its last event."""
        self._open_calls -= 1

    def remove_stream(self, call: "CygrpcStreamCall") -> None:
        """Remove a stream that has ended."""
        self._streams.pop(call, None)

    def _add_port(self, address: str) -> int:
        certificates = self._options.certificates
        secret = [getattr(certificates.credentials(), "_credentials")] if certificates else []  # noqa: B009
        port = self._server.add_http2_port(address.encode(), *secret)
        if not port:
            raise RuntimeError("it is in use, or cannot be listened on")
        return int(port)

    def _drain_streams(self) -> None:
        for stream in list(self._streams):
            stream.drain_for_stop()

    def _serve(self) -> None:
        self.thread_id = threading.get_ident()
        poll, clock, progress = self._queue.poll, time.monotonic, self.progress
        progress.read_until = clock()
        while True:
            self._waiting = True
            asked = clock()
            event = poll(self._poll_until())
            if (now := clock()) - asked > BLOCKED_SECONDS:
                progress.read_until = now
            self._waiting = False
            self._turns += 1
            measured = not self._turns % SAMPLING
            if measured:
                started, self.requests_read, self.messages_read = time.thread_time(), 0, 0
            count = 0
            while event.completion_type != _TIMEOUT:
                if event.completion_type == _SHUTDOWN:
                    return
                try:
                    event.tag(event)
                except Exception:  # the fault of one call must not end the others
                    log.exception("uncaught exception while a gRPC event was handled")
                # An event keeps its call alive, and a stopping server waits for that.
                event = None
                count += 1
                if count >= MAX_EVENTS:
                    break
                event = poll(_NOW)
            else:
                progress.read_until = clock()
                self._queue_seconds = 0.0
            event = None
            if measured and not self.messages_read:  # those of streams have many requests
                progress.record_turn(time.thread_time() - started, self.requests_read)
            self._run_deferred()

    def _poll_until(self) -> float | None:
        """Return the time until which to wait for events, on the wall clock as gRPC expects."""
        if self._writers or self._deferred:
            return _NOW
        drain_at = next(iter(self._streams.values()), math.inf)
        if drain_at == math.inf:
            return None
        return time.time() + max(0.0, drain_at - time.monotonic())

    def _run_deferred(self) -> None:
        """Run what was deferred until no event is ready: batches, writes, drains."""
        unfinished: dict[Deferred, None] = {}
        while self._deferred:
            deferred, self._deferred = self._deferred, {}
            for callback in deferred:
                try:
                    if callback():
                        unfinished[callback] = None
                except Exception:  # the fault of one model must not end the others
                    log.exception("uncaught exception in a deferred callback")
        self._deferred = unfinished
        unwatched, self._unwatched = self._unwatched, []
        if unfinished:  # there is another round at once
            unwatched, self._older_unwatched = self._older_unwatched, unwatched
        elif self._older_unwatched:
            unwatched, self._older_unwatched = [*self._older_unwatched, *unwatched], []
        writers, self._writers = self._writers, {}
        steps = (*[call.receive_close for call in unwatched], *[call.write for call in writers])
        for step in steps:
            try:
                step()
            except Exception:  # the fault of one call must not end the others
                log.exception("uncaught exception while a call was continued")
        now = time.monotonic()
        while (oldest := next(iter(self._streams), None)) and self._streams[oldest] <= now:
            # Moved to the end, so that it is drained once.
            del self._streams[oldest]
            self._streams[oldest] = math.inf
            oldest.drain()

    def _accept(self, event: Event) -> None:
        if not event.success:  # the server is shut down
            return
        is_late = self._queue_seconds > LAG_SECONDS
        self._request_calls(MAX_REQUESTED_CALLS if is_late else REQUESTED_CALLS)
        self._calls_to_mark -= 1
        if not self._calls_to_mark:
            self._mark(event.call)
        method = self._methods.get(event.call_details.method)
        try:
            if self._stopping:
                raise UnavailableError(STOPPING)
            if self._open_calls >= MAX_CALLS:
                raise QueueFullError(f"{MAX_CALLS} calls are in flight", RETRY_AFTER)
            if method is None:
                path = event.call_details.method.decode(errors="replace")
                raise UnsupportedError(f"unknown method {quoted(path)}")
            if is_late and isinstance(method, Unary):
                self._check_lag(method)
            access = self._options.access
            grant = (
                access.grant(method.right, event.invocation_metadata) if access else UNRESTRICTED
            )
        except NeuronaError as error:
            self.on_reject(error)
            _reject(event, error)
            return
        trace = None
        if self._tracer is not None and method.right is not None:
            metadata = event.invocation_metadata
            if self._tracer.should_sample(metadata):
                trace = self._tracer.start_call(event.call_details.method.decode(), metadata)
        if isinstance(method, Unary):
            call = CygrpcCall(self, event, grant, method, trace)
            self._open_calls += 1
            self.receiving[call] = method.max_message_bytes
            return
        try:
            stream = CygrpcStreamCall(self, event, grant, method, trace)
        except Exception as error:  # a bug of a service must end its call, not the transport
            _reject(event, error, trace)
            return
        if not stream.ended:
            self._streams[stream] = time.monotonic() + self._options.max_stream_age

    def _request_calls(self, limit: int) -> None:
        """Request up to two calls in place of one that was accepted, so that there are `limit`."""
        self._requested_calls -= 1
        for _ in range(min(2, limit - self._requested_calls)):
            with suppress(ValueError):  # the server is shutting down: this call is the last one
                self._server.request_call(self._queue, self._queue, self._accept)
            self._requested_calls += 1

    def _check_lag(self, method: Unary) -> None:
        """Refuse a call that has waited for too long. Raises QueueFullError."""
        now = time.monotonic()
        limit, until = self._max_lags.get(method.max_lag, (0.0, 0.0))
        if now >= until:
            limit = method.max_lag()
            self._max_lags[method.max_lag] = limit, now + MAX_LAG_SECONDS
        # Both what was measured of older events and what is certain of this one.
        lag = min(now - self.progress.read_until, self._queue_seconds)
        if lag > limit:
            raise QueueFullError(
                f"server busy: requests wait {lag * 1000:.0f} ms until they are read (expected at "
                f"most {limit * 1000:.0f} ms)",
                lag,
            )

    def _mark(self, call: RawCall) -> None:
        """Put a mark behind the events that are ready: what comes after it is younger than that."""
        self._calls_to_mark = MARKED_CALLS
        self.start_batch(call, (), partial(self._on_mark, time.monotonic()))

    def _on_mark(self, marked: float, _: Event) -> None:
        self._queue_seconds = time.monotonic() - marked
        self.progress.read_until = max(self.progress.read_until, marked)


class ReceivingCall(BaseCall):
    """What calls of both kinds are to the guard of connections (`Reception`)."""

    __slots__ = ("_raw", "_transport")

    _raw: RawCall
    _transport: CygrpcServer
    messages_received: int
    is_stream: bool

    @property
    def peer(self) -> str:
        """See `Reception.peer`."""
        return str(self._raw.peer().decode())

    def abort(self, error: Exception) -> None:
        """See `Reception.abort`."""
        if self in self._transport.receiving:
            self.fail(error)

    def post(self, action: Callable[[], None]) -> None:
        """See `Reception.post`."""
        self._transport.start_batch(self._raw, (), lambda _: action())

    def fail(self, error: Exception) -> None:
        """See `Call.fail`."""
        raise NotImplementedError


class CygrpcCall(ReceivingCall):
    """A unary call (`rpc.call.Call`)."""

    messages_received = 0
    is_stream = False

    __slots__ = (
        "_accepted",
        "_deadline",
        "_held",
        "_method",
        "_on_cancel",
        "_open",
        "_unwatched",
        "defer",
        "grant",
        "request",
    )

    def __init__(
        self,
        transport: CygrpcServer,
        event: Event,
        grant: Grant,
        method: Unary,
        trace: CallTrace | None = None,
    ) -> None:
        self._metadata = event.invocation_metadata
        self.trace = trace
        self._request_id = ""
        self.request = b""
        self.grant = grant
        self.defer = transport.defer
        self._held = 0
        self._transport = transport
        self._raw = event.call
        self.arrived = transport.progress.read_until
        self._accepted = time.monotonic()
        self._deadline = event.call_details.deadline
        self._method = method
        self._on_cancel: list[Callable[[], None]] = []
        # Of several threads, the one that pops the element acts: it ends the call, or it asks
        # gRPC to report a disconnected caller. list.pop is atomic.
        self._open = [True]
        self._unwatched = [True]
        operations = (cygrpc.ReceiveMessageOperation(_NO_FLAGS),)
        transport.start_batch(self._raw, operations, self._on_request)

    @property
    def deadline(self) -> float:
        return _to_monotonic(self._deadline)

    def reply(self, response: bytes) -> None:
        if type(response) is not bytes:  # gRPC would raise once the call counts as ended
            self.fail(TypeError(f"a service replied with {type(response)} (expected bytes)"))
            return
        if len(response) > self._transport.max_message_bytes:
            self.fail(response_too_large(len(response), self._transport.max_message_bytes))
            return
        # Before anything is charged: `_on_close` releases only what was charged until then.
        if not self._claim_end():
            return
        # The callbacks hold the request, which holds this call: a cycle.
        self._on_cancel.clear()
        if len(response) > LARGE and (error := self._hold(COPIES * len(response))) is not None:
            self._send_error(error)
            return
        self._send(
            cygrpc.SendInitialMetadataOperation(None, _NO_FLAGS),
            _message_operation(response),
            cygrpc.SendStatusFromServerOperation((), _OK, b"", _NO_FLAGS),
        )
        if self.trace is not None:
            self.trace.end()

    def fail(self, error: Exception) -> None:
        if self._claim_end():
            self._on_cancel.clear()
            self._send_error(error)

    def on_cancel(self, callback: Callable[[], None]) -> None:
        self._on_cancel.append(callback)

    def receive_close(self) -> None:
        """Ask gRPC to report that the caller has disconnected.

        Most calls end before; then this operation is part of their last ones.
        """
        if self._open and self._claim_close():
            operations = (cygrpc.ReceiveCloseOnServerOperation(_NO_FLAGS),)
            self._transport.start_batch(self._raw, operations, self._on_close)

    def _on_request(self, event: Event) -> None:
        transport = self._transport
        transport.receiving.pop(self, None)
        if not self._open:  # `abort` has ended it
            return
        message = event.batch_operations[0].message()
        if message is None:  # the caller has disconnected, or gRPC rejected the message
            if not event.success:  # too large or not decodable: gRPC has sent a status
                self._transport.on_reject(REJECTED_BY_GRPC)
            if self.deadline <= time.monotonic():
                self.fail(DeadlineExceededError("deadline exceeded before the request arrived"))
            else:
                self.fail(InvalidArgumentError("the call has no request message"))
            return
        method = self._method
        if len(message) > method.max_message_bytes:
            self._reject_size(message)
            return
        if len(message) > transport.budget.record_above:
            transport.budget.record(self.peer, len(message))
            if len(message) > LARGE and (error := self._hold(len(message))) is not None:
                self.fail(error)
                return
        # Since it was accepted the call has waited for its message, which is not counted.
        if (late := transport.progress.read_until - self._accepted) > 0.0:
            self.arrived += late
        self.request = message
        transport.requests_read += 1
        transport.watch_close(self)
        try:
            method.start(self)
        except Exception as bug:  # a bug of a service must end its call, not the transport
            self.fail(bug)

    def _reject_size(self, message: bytes) -> None:
        error = too_large_error(message, self._method)
        self._transport.on_reject(error)
        self.fail(error)

    def _on_close(self, event: Event) -> None:
        if event.batch_operations[0].cancelled() and self._claim_end():
            self._count_ended(event)
            for callback in self._on_cancel:
                callback()
            self._on_cancel.clear()
            if self.trace is not None:
                self.trace.end(cancellation_error(self.deadline))

    def _send(self, *operations: Any) -> None:
        if self._claim_close():
            operations += (cygrpc.ReceiveCloseOnServerOperation(_NO_FLAGS),)
        tag = self._count_ended if self._held else self._transport.count_ended
        self._transport.start_batch(self._raw, operations, tag)

    def _send_error(self, error: Exception) -> None:
        status = _status_operation(error, self)
        self._send(cygrpc.SendInitialMetadataOperation(None, _NO_FLAGS), status)
        if self.trace is not None:
            self.trace.end(error)

    def _hold(self, size: int) -> BuffersFullError | None:
        """Charge bytes of a large message until the call has ended; return why they do not fit."""
        budget = self._transport.budget
        try:
            budget.charge(self.peer, size)
        except BuffersFullError as error:
            self._transport.on_reject(error)
            return error
        self._held += size
        return None

    def _count_ended(self, event: Event) -> None:
        self._transport.count_ended(event)
        if self._held:
            self._transport.budget.release(self.peer, self._held)
            self._held = 0

    def _claim_end(self) -> bool:
        """Return True to one caller only, which ends the call."""
        try:
            return self._open.pop()
        except IndexError:
            return False

    def _claim_close(self) -> bool:
        """Return True to one caller only, which asks gRPC to report a disconnected caller."""
        try:
            return self._unwatched.pop()
        except IndexError:
            return False


class CygrpcStreamCall(ReceivingCall):
    """A streaming call (`rpc.call.StreamCall`).

    All but `wake`, `post` and `drain_for_stop` runs in the transport's thread.
    """

    is_stream = True

    def __init__(
        self,
        transport: CygrpcServer,
        event: Event,
        grant: Grant,
        method: Streaming,
        trace: CallTrace | None = None,
    ) -> None:
        super().__init__(event.invocation_metadata, trace)
        self.grant = grant
        self.defer = transport.defer
        self.deadline = _to_monotonic(event.call_details.deadline)
        self.ended = False
        self.messages_received = 0
        self._charge = StreamCharge(transport.budget)
        self._headers = {k: v for k, v in event.invocation_metadata if isinstance(v, str)}
        self._method = method
        self._transport = transport
        self._raw = event.call
        self._reading = self._writing = False
        self._half_closed = self._metadata_sent = self._wake_started = False
        self._error: Exception | None = None
        self._drain_reason = AGED
        self.stream: Stream = method.start(self)
        operations = (cygrpc.ReceiveCloseOnServerOperation(_NO_FLAGS),)
        transport.start_batch(self._raw, operations, self._on_close)
        self._read()
        transport.schedule_write(self)

    def wake(self) -> None:
        if threading.get_ident() == self._transport.thread_id:
            self._transport.schedule_write(self)
        elif not self._wake_started:
            self._wake_started = True  # one event is enough, however many responses there are
            self._transport.start_batch(self._raw, (), self._on_wake)

    def header(self, key: str) -> str:
        return str(self._headers.get(key, ""))

    def fail(self, error: Exception) -> None:
        self._error = error
        self._transport.schedule_write(self)

    def drain(self, *, stopping: bool = False) -> None:
        """End the call once the received requests are answered."""
        if not self.ended:
            if stopping:
                self._drain_reason = STOPPING
            try:
                self.stream.drain()
            except Exception as error:
                self._error = error
            self._transport.schedule_write(self)

    def drain_for_stop(self) -> None:
        """Drain the stream because the server is stopping. From any thread."""
        self._transport.start_batch(self._raw, (), lambda _: self.drain(stopping=True))

    def write(self) -> None:
        """Write the next message or the status, unless a message is being written."""
        if self.ended or self._writing:
            return
        message, finished = None, False
        try:
            if self._error is None:
                message = self.stream.take_message()
                finished = message is None and self.stream.finished
        except Exception as error:  # a bug of a service must end its call, not the transport
            self._error = error
            message = None
        if message is not None:
            self._writing = True
            self._send(_message_operation(message), tag=self._on_written)
        elif self._error is not None:
            self._end_with(self._error)
        elif finished:
            if self._half_closed:
                status = cygrpc.SendStatusFromServerOperation((), _OK, b"", _NO_FLAGS)
                self._send(status, tag=_ignore)
                self._close(None)
            else:
                self._end_with(UnavailableError(self._drain_reason))

    def _read(self) -> None:
        if self.ended or self._reading or self._half_closed or self._error:
            return
        try:
            stream = self.stream
            # `_on_written` reads again.
            if stream.congested or not self._charge.can_read(stream.buffered_bytes, self):
                return
        except Exception as error:
            self._error = error
            return
        self._reading = True
        transport = self._transport
        transport.receiving[self] = self._method.max_message_bytes
        operations = (cygrpc.ReceiveMessageOperation(_NO_FLAGS),)
        transport.start_batch(self._raw, operations, self._on_message)

    def _on_message(self, event: Event) -> None:
        self._reading = False
        self._transport.receiving.pop(self, None)
        if self.ended:
            return
        message = event.batch_operations[0].message()
        self.messages_received += 1
        self._transport.messages_read += 1
        self.arrived = self._transport.progress.read_until
        try:
            if message is None:
                if not event.success:
                    self._transport.on_reject(REJECTED_BY_GRPC)
                self._half_closed = True
                self.stream.half_close()
            elif len(message) > self._method.max_message_bytes:
                self._error = too_large_error(message, self._method)
                self._transport.on_reject(self._error)
            else:
                if len(message) > self._transport.budget.record_above:
                    self._charge.receive(len(message), self)
                self.stream.receive(message)
                self._charge.update(self.stream.buffered_bytes, self, required=False)
        except BuffersFullError as error:
            self._transport.on_reject(error)
            self._error = error
        except Exception as error:  # an exception of a service ends its own call only
            self._error = error
        self._read()
        self._transport.schedule_write(self)

    def _on_written(self, _: Event) -> None:
        self._writing = False
        if not self.ended:
            self._charge.update(self.stream.buffered_bytes, self)
        self._read()
        self._transport.schedule_write(self)

    def _on_wake(self, _: Event) -> None:
        self._wake_started = False  # before the messages are taken, so that later ones wake again
        self._transport.schedule_write(self)

    def _on_close(self, event: Event) -> None:
        if not self.ended and event.batch_operations[0].cancelled():
            self._close(cancellation_error(self.deadline))

    def _end_with(self, error: Exception) -> None:
        self._send(_status_operation(error, self), tag=_ignore)
        self._close(error)

    def _close(self, error: Exception | None) -> None:
        self.ended = True
        self._transport.remove_stream(self)
        self._charge.clear()
        try:
            self.stream.cancel()
        except Exception:
            log.exception(
                "uncaught exception while a stream was cancelled", extra=log_fields_of(self)
            )
        if self.trace is not None:
            self.trace.end(error)
        self._error = None  # it may have a frame that refers to this call: a cycle

    def _send(self, operation: Any, tag: Callable[[Event], None]) -> None:
        operations: tuple[Any, ...] = (operation,)
        if not self._metadata_sent:
            self._metadata_sent = True
            operations = (cygrpc.SendInitialMetadataOperation(None, _NO_FLAGS), operation)
        self._transport.start_batch(self._raw, operations, tag)


def _reject(event: Event, error: Exception, trace: CallTrace | None = None) -> None:
    """End a call before its request is read."""
    status = _status_operation(error, BaseCall(event.invocation_metadata, trace))
    event.call.start_server_batch(
        (
            cygrpc.SendInitialMetadataOperation(None, _NO_FLAGS),
            status,
            cygrpc.ReceiveCloseOnServerOperation(_NO_FLAGS),
        ),
        _ignore,
    )
    if trace is not None:
        trace.end(error)


def _status_operation(error: Exception, call: BaseCall) -> Any:
    """Return the operation that ends `call` with the status of `error`."""
    status = status_of(error, call)
    trailers = (*status.trailers, (REQUEST_ID, call.request_id))
    return cygrpc.SendStatusFromServerOperation(
        trailers, status.number, status.message.encode(), _NO_FLAGS
    )


def _message_operation(message: bytes) -> Any:
    flags = _NO_FLAGS if len(message) <= MAX_COMPRESSED_BYTES else _NO_COMPRESSION
    return cygrpc.SendMessageOperation(message, flags)


def _ignore(_: Event) -> None:
    """Do nothing, as the tag of operations whose completion does not matter."""


def _to_monotonic(deadline: float) -> float:
    """Convert gRPC's deadline, of the wall clock, to the monotonic clock; inf if there is none."""
    remaining = deadline - time.time()
    return math.inf if remaining > 1e9 else time.monotonic() + remaining
