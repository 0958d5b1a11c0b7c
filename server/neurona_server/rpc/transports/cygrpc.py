"""The transport on grpcio's own completion queue, which `grpc.server` itself is built on.

One thread takes events from the queue and calls the services; when nothing more is ready it
runs what was deferred, so that a batch is all that has arrived meanwhile. There is no hand-over
between threads and no event loop in between, which is what `grpc.aio` spends its time on. The
queue is no public API: `transports` tries this transport before it is used.
"""

import logging
import math
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from typing import Any, Protocol

from grpc._cython import cygrpc  # type: ignore[attr-defined]

from neurona_server.errors import (
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
from neurona_server.models.model import Deferred
from neurona_server.rpc.call import (
    REQUEST_ID,
    BaseCall,
    Methods,
    Stream,
    Streaming,
    Unary,
    cancellation_error,
    log_fields_of,
)
from neurona_server.rpc.security.access import UNRESTRICTED, Grant
from neurona_server.rpc.status import status_of
from neurona_server.rpc.transports.listener import ListenerOptions, bind
from neurona_server.telemetry.trace import CallTrace

log = logging.getLogger(__name__)

STOPPING = "the server is stopping; call again"

REFUSED_BY_GRPC = TooLargeError("a message that gRPC has refused")
"""For the metrics alone: the caller has gRPC's own words."""

NO_FLAGS = 0
OK = cygrpc.StatusCode.ok

Event = Any  # of cygrpc, which has no types
RawCall = Any


class Transport(Protocol):
    """What calls need of their transport."""

    thread: int
    max_message_bytes: int

    def begin(self, call: RawCall, operations: Sequence[Any], tag: Callable[[Event], None]) -> None:
        """Gives operations to gRPC; any thread may. Does nothing once the transport is shut."""

    def defer(self, callback: Deferred) -> None:
        """As that of a `Call`."""

    def on_reject(self, error: Exception) -> None:
        """Has it counted that gRPC or the transport has refused a call."""

    def done(self, event: Event) -> None:
        """The tag of a call's last event. In the transport's thread."""

    def watch(self, call: "CygrpcCall") -> None:
        """Has the caller's going noticed, if the call is open when all that is ready is read."""


class CygrpcCall(BaseCall):
    __slots__ = (
        "_close",
        "_deadline",
        "_on_cancel",
        "_open",
        "_raw",
        "_start",
        "_transport",
        "defer",
        "grant",
        "request",
    )

    def __init__(
        self,
        transport: Transport,
        event: Event,
        grant: Grant,
        start: Callable[["CygrpcCall"], None],
        trace: CallTrace | None = None,
    ) -> None:
        self._metadata = event.invocation_metadata
        self.trace = trace
        self.request = b""
        self.grant = grant
        self.defer = transport.defer
        self._transport = transport
        self._raw = event.call
        self._deadline = event.call_details.deadline
        self._start = start
        self._on_cancel: list[Callable[[], None]] = []
        # Of several threads, the one that pops an element does what it stands for: it ends the
        # call, it asks gRPC to say when the caller is gone. list.pop is atomic.
        self._open = [True]
        self._close = [True]
        operations = (cygrpc.ReceiveMessageOperation(NO_FLAGS),)
        transport.begin(self._raw, operations, self._received)

    @property
    def deadline(self) -> float:
        return deadline_of(self._deadline)

    def reply(self, response: bytes) -> None:
        if type(response) is not bytes:  # gRPC would refuse it once the call counts as ended
            self.fail(TypeError(f"a service replied with {type(response)}; expected bytes"))
            return
        if len(response) > self._transport.max_message_bytes:
            self.fail(response_too_large(len(response), self._transport.max_message_bytes))
            return
        if not self._ends():
            return
        # They hold the request, which holds us: that would wait for the collector of cycles.
        self._on_cancel.clear()
        self._send(
            cygrpc.SendInitialMetadataOperation(None, NO_FLAGS),
            cygrpc.SendMessageOperation(response, NO_FLAGS),
            cygrpc.SendStatusFromServerOperation((), OK, b"", NO_FLAGS),
        )
        if self.trace is not None:
            self.trace.end()

    def fail(self, error: Exception) -> None:
        if self._ends():
            self._on_cancel.clear()
            status = status_operation(error, self)
            self._send(cygrpc.SendInitialMetadataOperation(None, NO_FLAGS), status)
            if self.trace is not None:
                self.trace.end(error)

    def on_cancel(self, callback: Callable[[], None]) -> None:
        self._on_cancel.append(callback)

    def watch(self) -> None:
        """Most calls have ended before there is a need to: then it is part of their last batch."""
        if self._open and self._claims_close():
            operations = (cygrpc.ReceiveCloseOnServerOperation(NO_FLAGS),)
            self._transport.begin(self._raw, operations, self._closed)

    def _received(self, event: Event) -> None:
        message = event.batch_operations[0].message()
        if message is None:  # the caller is gone, or it was too late or too large for gRPC
            if not event.success:  # too large, or not to be decompressed: gRPC has said so
                self._transport.on_reject(REFUSED_BY_GRPC)
            if self.deadline <= time.monotonic():
                self.fail(DeadlineExceededError("the deadline passed before the request was there"))
            else:
                self.fail(InvalidArgumentError("the call has no request"))
            return
        self.request = message
        self._transport.watch(self)
        try:
            self._start(self)
        except Exception as error:  # a service's bug must end its call, not the transport
            self.fail(error)

    def _closed(self, event: Event) -> None:
        if event.batch_operations[0].cancelled() and self._ends():
            self._transport.done(event)
            for callback in self._on_cancel:
                callback()
            self._on_cancel.clear()
            if self.trace is not None:
                self.trace.end(cancellation_error(self.deadline))

    def _send(self, *operations: Any) -> None:
        if self._claims_close():
            operations += (cygrpc.ReceiveCloseOnServerOperation(NO_FLAGS),)
        self._transport.begin(self._raw, operations, self._transport.done)

    def _ends(self) -> bool:
        try:
            return self._open.pop()
        except IndexError:
            return False

    def _claims_close(self) -> bool:
        try:
            return self._close.pop()
        except IndexError:
            return False


def refuse(event: Event, error: Exception, trace: CallTrace | None = None) -> None:
    """Ends a call before its request has been read."""
    status = status_operation(error, BaseCall(event.invocation_metadata, trace))
    event.call.start_server_batch(
        (
            cygrpc.SendInitialMetadataOperation(None, NO_FLAGS),
            status,
            cygrpc.ReceiveCloseOnServerOperation(NO_FLAGS),
        ),
        ignore,
    )
    if trace is not None:
        trace.end(error)


def status_operation(error: Exception, caller: BaseCall) -> Any:
    status = status_of(error, caller)
    trailers = (*status.trailers, (REQUEST_ID, caller.request_id))
    return cygrpc.SendStatusFromServerOperation(
        trailers, status.number, status.message.encode(), NO_FLAGS
    )


def ignore(_: Event) -> None:
    """The tag of a batch that nobody waits for."""


def deadline_of(wall: float) -> float:
    """gRPC's deadline, by the wall clock, on the monotonic one; inf if the caller set none."""
    remaining = wall - time.time()
    return math.inf if remaining > 1e9 else time.monotonic() + remaining


AGED = "the connection is as old as connections get; call again"


class StreamTransport(Transport, Protocol):
    def awaken(self, call: "CygrpcStreamCall") -> None:
        """Has it written what it has, when all that is ready is read. In the transport's thread."""

    def forget(self, call: "CygrpcStreamCall") -> None:
        """It has ended."""


class CygrpcStreamCall(BaseCall):
    """All but `wake` is called in the transport's thread."""

    def __init__(
        self,
        transport: StreamTransport,
        event: Event,
        grant: Grant,
        method: Streaming,
        trace: CallTrace | None = None,
    ) -> None:
        super().__init__(event.invocation_metadata, trace)
        self.grant = grant
        self.defer = transport.defer
        self.deadline = deadline_of(event.call_details.deadline)
        self._headers = {k: v for k, v in event.invocation_metadata if isinstance(v, str)}
        self._transport = transport
        self._raw: RawCall = event.call
        self._ended = self._reading = self._writing = False
        self._half_closed = self._begun = self._woken = False
        self._error: Exception | None = None
        self._reason = AGED
        self.stream: Stream = method.start(self)
        operations = (cygrpc.ReceiveCloseOnServerOperation(NO_FLAGS),)
        transport.begin(self._raw, operations, self._closed)
        self._read()
        transport.awaken(self)

    @property
    def ended(self) -> bool:
        return self._ended

    def wake(self) -> None:
        if threading.get_ident() == self._transport.thread:
            self._transport.awaken(self)
        elif not self._woken:
            self._woken = True  # one event is enough, however many answers there are
            self._transport.begin(self._raw, (), self._wake)

    def header(self, key: str) -> str:
        return str(self._headers.get(key, ""))

    def fail(self, error: Exception) -> None:
        self._error = error
        self._transport.awaken(self)

    def drain(self, *, stopping: bool = False) -> None:
        if not self._ended:
            if stopping:
                self._reason = STOPPING
            try:
                self.stream.drain()
            except Exception as error:
                self._error = error
            self._transport.awaken(self)

    def drain_for_stop(self) -> None:
        """From any thread."""
        self._transport.begin(self._raw, (), lambda _: self.drain(stopping=True))

    def write(self) -> None:
        """What it has to write, if nothing is being written."""
        if self._ended or self._writing:
            return
        message, finished = None, False
        try:
            if self._error is None:
                message = self.stream.take_message()
                finished = message is None and self.stream.finished
        except Exception as error:  # a service's bug must end its call, not the transport
            self._error = error
            message = None
        if message is not None:
            self._writing = True
            self._send(cygrpc.SendMessageOperation(message, NO_FLAGS), tag=self._written)
        elif self._error is not None:
            self._fail(self._error)
        elif finished:
            if self._half_closed:
                status = cygrpc.SendStatusFromServerOperation((), OK, b"", NO_FLAGS)
                self._send(status, tag=ignore)
                self._leave(None)
            else:
                self._fail(UnavailableError(self._reason))

    def _read(self) -> None:
        if self._ended or self._reading or self._half_closed or self._error:
            return
        try:
            if self.stream.congested:  # `_written` reads on
                return
        except Exception as error:
            self._error = error
            return
        self._reading = True
        operations = (cygrpc.ReceiveMessageOperation(NO_FLAGS),)
        self._transport.begin(self._raw, operations, self._received)

    def _received(self, event: Event) -> None:
        self._reading = False
        if self._ended:
            return
        message = event.batch_operations[0].message()
        try:
            if message is None:
                if not event.success:
                    self._transport.on_reject(REFUSED_BY_GRPC)
                self._half_closed = True
                self.stream.half_close()
            else:
                self.stream.receive(message)
        except Exception as error:  # what a service raises ends its own call only
            self._error = error
        self._read()
        self._transport.awaken(self)

    def _written(self, _: Event) -> None:
        self._writing = False
        self._read()
        self._transport.awaken(self)

    def _wake(self, _: Event) -> None:
        self._woken = False  # before the last look, so that what comes after it wakes us again
        self._transport.awaken(self)

    def _closed(self, event: Event) -> None:
        if not self._ended and event.batch_operations[0].cancelled():
            self._leave(cancellation_error(self.deadline))

    def _fail(self, error: Exception) -> None:
        self._send(status_operation(error, self), tag=ignore)
        self._leave(error)

    def _leave(self, error: Exception | None) -> None:
        self._ended = True
        self._transport.forget(self)
        try:
            self.stream.cancel()
        except Exception:
            log.exception("a stream could not be cancelled", extra=log_fields_of(self))
        if self.trace is not None:
            self.trace.end(error)

    def _send(self, operation: Any, tag: Callable[[Event], None]) -> None:
        operations: tuple[Any, ...] = (operation,)
        if not self._begun:
            self._begun = True
            operations = (cygrpc.SendInitialMetadataOperation(None, NO_FLAGS), operation)
        self._transport.begin(self._raw, operations, tag)


ACCEPTED = 0.05
"""Seconds in which a stopping transport still takes calls, to refuse them."""

ASKED = 256
"""Calls that gRPC may hand over at a time: what exceeds it waits inside gRPC for the next."""

MOST_EVENTS = 512
"""Events after which what has gathered is run although more keeps coming."""

MOST_CALLS = 100_000
"""Unary calls under way, of all connections: what exceeds them is refused."""

RETRY_AFTER = 1.0  # seconds

CANCELLATION = 1.0
"""Seconds that calls have to end after they were cancelled."""

_NOW = 0.0
_TIMEOUT = cygrpc.CompletionType.queue_timeout
_SHUTDOWN = cygrpc.CompletionType.queue_shutdown


class CygrpcServer:
    name = "cygrpc"

    def __init__(self, methods: Methods, options: ListenerOptions) -> None:
        self.max_message_bytes = options.max_message_bytes
        self.on_reject = options.on_reject
        self.thread = 0
        self._methods = {path.encode(): method for path, method in methods.items()}
        self._options = options
        self._tracer = options.tracer
        self._queue = cygrpc.CompletionQueue()
        self._server = cygrpc.Server(tuple(options.arguments()), False)
        self._server.register_completion_queue(self._queue)
        self._thread = threading.Thread(target=self._serve, name="transport", daemon=True)
        self._stopping = self._stopped = self._shut = False
        self._beginning: list[None] = []  # an element for each thread that is in `begin`
        self._idle = threading.Event()
        self._calls = 0  # unary ones; the transport's thread alone counts them
        # Each with the time at which it is to be drained: the oldest comes first.
        self._streams: dict[CygrpcStreamCall, float] = {}
        # Sets that keep their order, of what is to be done when all that is ready is read.
        self._deferred: dict[Deferred, None] = {}
        self._fresh: list[CygrpcCall] = []
        self._awake: dict[CygrpcStreamCall, None] = {}

    def start(self, address: str) -> int:
        """Listens; the port, which the system chose if `address` ended in ":0".

        Raises ConfigError when the address cannot be had.
        """
        certificates = self._options.certificates
        secret = getattr(certificates.credentials(), "_credentials") if certificates else None  # noqa: B009
        port = bind(partial(self._add_port, secret), address)
        self._server.start()
        for _ in range(ASKED):
            self._server.request_call(self._queue, self._queue, self._accept)
        self._thread.start()
        return port

    def stop(self, timeout: float) -> None:
        """Accepts no more calls, waits `timeout` seconds for those under way, cancels the rest.

        A second call does nothing.
        """
        if self._stopped or self._thread.ident is None:
            return
        self._stopped = self._stopping = True
        end = time.monotonic() + timeout
        self._drain_streams()
        # Calls that gRPC has accepted but not yet given to us would be CANCELLED, which
        # clients do not try again: they are told UNAVAILABLE first.
        time.sleep(min(timeout, ACCEPTED))
        self._drain_streams()  # one may have been on its way in
        self._server.shutdown(self._queue, lambda _: self._idle.set())
        if not self._idle.wait(max(0.0, end - time.monotonic())):
            self._server.cancel_all_calls()
            if not self._idle.wait(CANCELLATION):
                log.warning("calls are left that do not end")
                return
        self._shut = True  # before the look, so that who comes after it begins nothing
        while self._beginning:
            time.sleep(0.001)
        self._server.destroy()
        self._queue.shutdown()
        self._thread.join()

    def _drain_streams(self) -> None:
        for stream in list(self._streams):
            stream.drain_for_stop()

    def begin(self, call: RawCall, operations: Sequence[Any], tag: Callable[[Event], None]) -> None:
        # gRPC ends the process of who begins something at a queue that is shut down, and an
        # answer may come after its call was cancelled. A lock would have threads wait for others.
        self._beginning.append(None)
        try:
            if not self._shut:
                call.start_server_batch(operations, tag)
        finally:
            self._beginning.pop()

    def defer(self, callback: Deferred) -> None:
        self._deferred[callback] = None

    def done(self, _: Event) -> None:
        self._calls -= 1

    def watch(self, call: CygrpcCall) -> None:
        self._fresh.append(call)

    def awaken(self, call: CygrpcStreamCall) -> None:
        self._awake[call] = None

    def forget(self, call: CygrpcStreamCall) -> None:
        self._streams.pop(call, None)

    def _add_port(self, secret: Any, address: str) -> int:
        port = self._server.add_http2_port(address.encode(), *([secret] if secret else []))
        if not port:
            raise RuntimeError("it cannot be had")
        return int(port)

    def _serve(self) -> None:
        self.thread = threading.get_ident()
        poll = self._queue.poll
        while True:
            event = poll(self._next_age())
            count = 0
            while event.completion_type != _TIMEOUT:
                if event.completion_type == _SHUTDOWN:
                    return
                try:
                    event.tag(event)
                except Exception:  # one call's fault is not the others'
                    log.exception("an event could not be handled")
                # An event that is kept keeps its call, and a stopping server waits for that.
                event = None
                count += 1
                if count >= MOST_EVENTS:
                    break
                event = poll(_NOW)
            event = None
            self._finish()

    def _finish(self) -> None:
        """All is read that was ready: what has gathered is run, and what is answered is sent."""
        unfinished: dict[Deferred, None] = {}
        while self._deferred:
            deferred, self._deferred = self._deferred, {}
            for callback in deferred:
                try:
                    if callback():
                        unfinished[callback] = None
                except Exception:  # one model's fault is not the others'
                    log.exception("a deferred call failed")
        self._deferred = unfinished
        fresh, self._fresh = self._fresh, []
        awake, self._awake = self._awake, {}
        for step in (*[call.watch for call in fresh], *[stream.write for stream in awake]):
            try:
                step()
            except Exception:  # one call's fault is not the others'
                log.exception("a call could not be served")
        now = time.monotonic()
        while (aged := next(iter(self._streams), None)) and self._streams[aged] <= now:
            # To the end of the line: it is told once, and goes when it is done.
            del self._streams[aged]
            self._streams[aged] = math.inf
            aged.drain()

    def _next_age(self) -> float | None:
        """By the wall clock, as gRPC wants it."""
        if self._awake or self._deferred:
            return _NOW
        age = next(iter(self._streams.values()), math.inf)
        return None if age == math.inf else time.time() + max(0.0, age - time.monotonic())

    def _accept(self, event: Event) -> None:
        if not event.success:  # the server is shut down
            return
        with suppress(ValueError):  # it is shutting down: this one is the last, and refused
            self._server.request_call(self._queue, self._queue, self._accept)
        method = self._methods.get(event.call_details.method)
        try:
            if self._stopping:
                raise UnavailableError(STOPPING)
            if self._calls >= MOST_CALLS:
                raise QueueFullError(f"{MOST_CALLS} calls are under way", RETRY_AFTER)
            if method is None:
                raise UnsupportedError(f"there is no method {_name(event.call_details.method)}")
            access = self._options.access
            grant = (
                access.grant(method.right, event.invocation_metadata) if access else UNRESTRICTED
            )
        except NeuronaError as error:
            self.on_reject(error)
            refuse(event, error)
            return
        trace = None
        if self._tracer is not None and method.right is not None:
            metadata = event.invocation_metadata
            if self._tracer.should_sample(metadata):
                trace = self._tracer.start_call(event.call_details.method.decode(), metadata)
        if isinstance(method, Unary):
            CygrpcCall(self, event, grant, method.start, trace)
            self._calls += 1
            return
        try:
            stream = CygrpcStreamCall(self, event, grant, method, trace)
        except Exception as error:  # a service's bug must end its call, not the transport
            refuse(event, error, trace)
            return
        if not stream.ended:
            self._streams[stream] = time.monotonic() + self._options.max_stream_age


def _name(path: bytes) -> str:
    return quoted(path.decode(errors="replace"))
