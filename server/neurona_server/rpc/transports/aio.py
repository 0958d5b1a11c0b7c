"""The transport on grpcio's public API, `grpc.aio`.

It runs an event loop in a thread of its own. Services are called in that thread, return immediately
and may respond from any other thread.

It is one file, of more than 500 lines, because listener and calls share the library's contexts and
the rules of its event loop, and are read together.
"""

import asyncio
import logging
import math
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Any, NoReturn

import grpc
import grpc.aio

from neurona_server.batching.batcher import Deferred
from neurona_server.errors import (
    BuffersFullError,
    InvalidArgumentError,
    NeuronaError,
    UnavailableError,
    UnsupportedError,
    forget_frames,
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
    too_large_error,
)
from neurona_server.rpc.security.access import UNRESTRICTED, Grant
from neurona_server.rpc.status import status_of
from neurona_server.rpc.transports.aio_server import RestartingServer
from neurona_server.rpc.transports.buffer_budget import COPIES, LARGE, StreamCharge
from neurona_server.rpc.transports.listener import (
    AGED,
    MAX_COMPRESSED_BYTES,
    STOPPING,
    STOPPING_ACCEPT_TIME,
    ListenerOptions,
)
from neurona_server.telemetry.trace import CallTrace

log = logging.getLogger(__name__)

QUIET_TURNS = 8
"""Turns of the loop without a new request after which all ready requests count as read: `grpc.aio`
accepts one call at a time, and each takes it five or six turns."""

MAX_TURNS = 64
"""Turns after which deferred work runs although further requests arrive."""

LOOP_TIMEOUT = 1.0
"""Seconds that the event loop has to respond, in addition to the time for the calls in flight."""

Context = grpc.aio.ServicerContext[bytes, bytes]


class AioListener:
    """Listens, and serves calls in an event loop."""

    name = "aio"

    def __init__(self, methods: Methods, options: ListenerOptions) -> None:
        self._options = options
        self.on_reject = options.on_reject
        self.budget = options.make_budget()
        self.guard = options.make_guard(self.budget)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(
            target=self._loop.run_forever, name="transport", daemon=True
        )
        self._server = RestartingServer(_MethodLookup(self, methods, options), options)
        self._stopping = False
        self._streams: set[AioStreamCall] = set()
        # Actions of other threads, and whether the loop has been woken for them: waking it costs
        # a system call, so the responses of a batch share one.
        self._posted: deque[Callable[[], None]] = deque()
        self._wake_scheduled = False
        self._turns = self._quiet_turns = 0
        self._ping_answered = True
        self._deferred: dict[Deferred, None] = {}  # an ordered set

    def start(self, address: str) -> int:
        """Listen; return the port, which the system chose if `address` ends in ":0".

        Raises:
            ConfigError: The address is not available.
        """
        self._thread.start()
        return asyncio.run_coroutine_threadsafe(self._start(address), self._loop).result()

    def stop(self, timeout: float) -> bool:
        """See `Listener.stop`."""
        if self._loop.is_closed():
            return True
        self.guard.stop()
        stopped = asyncio.run_coroutine_threadsafe(self._stop(timeout), self._loop)
        try:
            stopped.result(timeout + LOOP_TIMEOUT)
        except TimeoutError:
            log.warning("the event loop has not responded for %g s", timeout + LOOP_TIMEOUT)
            return False
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(LOOP_TIMEOUT)
        if self._thread.is_alive():
            return False
        self._loop.close()
        return True

    def has_turned(self) -> bool:
        """See `Listener.has_turned`: each question is a ping, which the next one finds answered."""
        answered, self._ping_answered = self._ping_answered, False
        try:
            self._loop.call_soon_threadsafe(self._answer_ping)
        except RuntimeError:  # the loop is closed
            return False
        return answered

    def post(self, action: Callable[[], None]) -> None:
        """Call `action` in the loop. From any thread; does nothing once the loop is closed."""
        if threading.get_ident() == self._thread.ident:
            action()
            return
        self._posted.append(action)
        if not self._wake_scheduled:
            self._wake_scheduled = True
            try:
                self._loop.call_soon_threadsafe(self._run_posted)
            except RuntimeError:  # the loop is closed: all calls have ended
                self._posted.clear()

    def defer(self, callback: Deferred) -> None:
        """See `Call.defer`."""
        if not self._deferred:
            self._turns = 0
            self._loop.call_soon(self._run_deferred)
        self._deferred[callback] = None
        self._quiet_turns = 0

    def reject(self, error: NeuronaError) -> NoReturn:
        """Count a message that is rejected, and raise its error."""
        self._options.on_reject(error)
        raise error

    async def receive_request(self, method: Unary, context: Context) -> bytes:
        """Receive the request message of a unary call."""
        reception = AioReception(self, context)
        receiving = self.budget.receiving
        receiving[reception] = method.max_message_bytes
        try:
            message: object = await context.read()
        except asyncio.CancelledError:
            if reception.error is None:
                raise
            await _abort(context, reception.error, reception.call)
        finally:
            receiving.pop(reception, None)
        if not isinstance(message, bytes):  # grpc.aio.EOF
            error = InvalidArgumentError("the call has no request message")
            await _abort(context, error, reception.call)
        if len(message) > self.budget.record_above:
            self.budget.record(reception.peer, len(message))
        return message

    async def serve_unary(
        self, method: Unary, request: bytes, context: Context, grant: Grant, trace: CallTrace | None
    ) -> bytes:
        """Serve a unary call; return its response message."""
        call = AioCall(self, request, _deadline_of(context), grant, context, trace)
        if self._stopping:
            await _abort(context, UnavailableError(STOPPING), call)
        if len(request) > method.max_message_bytes:
            error = too_large_error(request, method)
            self._options.on_reject(error)
            await _abort(context, error, call)
        if len(request) > LARGE:
            await self._hold(len(request), context, call)
        try:
            try:
                method.start(call)
            except Exception as error:  # a bug of a service must end its call, not the transport
                call.fail(error)
            outcome = await call.outcome
        except asyncio.CancelledError:
            call.cancel()
            if trace is not None:
                trace.end(cancellation_error(call.deadline))
            raise
        if not isinstance(outcome, bytes):
            await _abort(context, outcome, call)
        if len(outcome) > self._options.max_message_bytes:
            too_large = response_too_large(len(outcome), self._options.max_message_bytes)
            await _abort(context, too_large, call)
        if len(outcome) > LARGE:
            await self._hold(COPIES * len(outcome), context, call)
        if trace is not None:
            trace.end()
        if len(outcome) > MAX_COMPRESSED_BYTES:
            context.disable_next_message_compression()
        return outcome

    async def _hold(self, size: int, context: Context, call: "AioCall") -> None:
        """Charge bytes of a large message until the call has ended; end it if they do not fit."""
        budget, peer = self.budget, context.peer()
        try:
            budget.charge(peer, size)
        except BuffersFullError as error:
            self._options.on_reject(error)
            await _abort(context, error, call)
        context.add_done_callback(lambda _: budget.release(peer, size))  # type: ignore[arg-type]

    async def serve_stream(
        self, method: Streaming, context: Context, grant: Grant, trace: CallTrace | None
    ) -> None:
        """Serve a streaming call."""
        call = AioStreamCall(self, _deadline_of(context), grant, context, trace)
        if self._stopping:
            await _abort(context, UnavailableError(STOPPING), call)
        call.stream = stream = method.start(call)
        self._streams.add(call)
        age = self._options.max_stream_age
        drain_timer = self._loop.call_later(age, call.drain) if math.isfinite(age) else None
        reader = asyncio.create_task(call.read_messages(context, method))
        try:
            while call.error is None:
                call.woken.clear()
                if (message := stream.take_message()) is not None:
                    if len(message) > MAX_COMPRESSED_BYTES:
                        context.disable_next_message_compression()
                    await context.write(message)
                    call.charge.update(stream.buffered_bytes, call)
                    call.message_written.set()
                elif stream.finished:
                    break
                else:
                    await call.woken.wait()
            if call.error is None and not call.half_closed:
                call.error = UnavailableError(STOPPING if self._stopping else AGED)
            if call.error is not None:
                await _abort(context, call.error, call)
            if trace is not None:
                trace.end()
        finally:
            reader.cancel()
            if drain_timer is not None:
                drain_timer.cancel()
            self._streams.discard(call)
            call.charge.clear()
            stream.cancel()
            if trace is not None:
                trace.end(cancellation_error(call.deadline))

    async def _start(self, address: str) -> int:
        ports = await self._server.start(address)
        self.guard.start(ports)
        return ports[0]

    async def _stop(self, timeout: float) -> None:
        self._stopping = True
        for stream_call in list(self._streams):
            stream_call.drain()
        # gRPC would end calls that it has accepted and not yet handed over with CANCELLED, which
        # clients do not retry: they get UNAVAILABLE first.
        await asyncio.sleep(min(timeout, STOPPING_ACCEPT_TIME))
        await self._server.stop(max(0.0, timeout - STOPPING_ACCEPT_TIME))

    def _answer_ping(self) -> None:
        self._ping_answered = True

    def _run_posted(self) -> None:
        self._wake_scheduled = False  # before the actions are taken, so that later ones wake again
        while self._posted:
            self._posted.popleft()()

    def _run_deferred(self) -> None:
        self._turns += 1
        self._quiet_turns += 1
        if self._quiet_turns < QUIET_TURNS and self._turns < MAX_TURNS:
            self._loop.call_soon(self._run_deferred)
            return
        deferred, self._deferred = self._deferred, {}
        for callback in deferred:
            try:
                if callback():
                    self.defer(callback)
            except Exception:  # an error of one model must not affect the others
                log.exception("uncaught exception in a deferred callback")


class AioCall(BaseCall):
    """A unary call (`rpc.call.Call`); `outcome` becomes its response or its error."""

    def __init__(
        self,
        transport: AioListener,
        request: bytes,
        deadline: float,
        grant: Grant,
        context: Context,
        trace: CallTrace | None,
    ) -> None:
        super().__init__(context.invocation_metadata, trace)
        self.request = request
        self.deadline = deadline
        self.grant = grant
        self.outcome: asyncio.Future[bytes | Exception] = asyncio.get_running_loop().create_future()
        self._transport = transport
        self._on_cancel: list[Callable[[], None]] = []
        self.defer = transport.defer

    def reply(self, response: bytes) -> None:
        self._end(response)

    def fail(self, error: Exception) -> None:
        self._end(error)

    def on_cancel(self, callback: Callable[[], None]) -> None:
        self._on_cancel.append(callback)

    def cancel(self) -> None:
        """Call the callbacks of `on_cancel`, because the caller has cancelled or disconnected."""
        for callback in self._on_cancel:
            callback()
        self._on_cancel.clear()

    def _end(self, outcome: bytes | Exception) -> None:
        def resolve() -> None:
            # The callbacks hold the request, which holds this call: a cycle.
            self._on_cancel.clear()
            if not self.outcome.done():
                self.outcome.set_result(outcome)

        self._transport.post(resolve)


class AioReception:
    """A unary call whose request is being received (`buffer_budget.Reception`)."""

    messages_received = 0
    is_stream = False

    def __init__(self, transport: AioListener, context: Context) -> None:
        self.error: Exception | None = None
        self._transport = transport
        self._context = context
        self._task = asyncio.current_task()

    @property
    def peer(self) -> str:
        return self._context.peer()

    @property
    def call(self) -> BaseCall:
        """The identity of the call."""
        return BaseCall(self._context.invocation_metadata, None)

    def abort(self, error: Exception) -> None:
        if self in self._transport.budget.receiving and self._task is not None:
            self.error = error
            self._task.cancel()

    def post(self, action: Callable[[], None]) -> None:
        self._transport.post(action)


class AioStreamCall(BaseCall):
    """A streaming call (`rpc.call.StreamCall`)."""

    is_stream = True
    stream: Stream

    def __init__(
        self,
        transport: AioListener,
        deadline: float,
        grant: Grant,
        context: Context,
        trace: CallTrace | None,
    ) -> None:
        metadata = context.invocation_metadata() or ()
        super().__init__(metadata, trace)
        self.deadline = deadline
        self.grant = grant
        self._headers = {key: value for key, value in metadata if isinstance(value, str)}
        self.woken = asyncio.Event()
        self.message_written = asyncio.Event()
        self.half_closed = False
        self.error: Exception | None = None
        self.messages_received = 0
        self.defer = transport.defer
        self._context = context
        self.charge = StreamCharge(transport.budget)
        self._transport = transport

    def header(self, key: str) -> str:
        return self._headers.get(key, "")

    def fail(self, error: Exception) -> None:
        self.error = error
        self.woken.set()

    def wake(self) -> None:
        self._transport.post(self.woken.set)

    @property
    def peer(self) -> str:
        """See `Reception.peer`."""
        return self._context.peer()

    def abort(self, error: Exception) -> None:
        """See `Reception.abort`."""
        if self in self._transport.budget.receiving:
            self.fail(error)

    def post(self, action: Callable[[], None]) -> None:
        """See `Reception.post`."""
        self._transport.post(action)

    def drain(self) -> None:
        """End the call once the received requests are answered."""
        self.stream.drain()
        self.woken.set()

    async def read_messages(self, context: Context, method: Streaming) -> None:
        """Hand the caller's messages to the stream until the caller half-closes."""
        budget = self._transport.budget
        try:
            while True:
                self.message_written.clear()
                stream = self.stream
                if stream.congested or not self.charge.can_read(stream.buffered_bytes, self):
                    await self.message_written.wait()
                    continue
                budget.receiving[self] = method.max_message_bytes
                try:
                    message: object = await context.read()
                finally:
                    budget.receiving.pop(self, None)
                self.messages_received += 1
                self.arrived = time.monotonic()
                if not isinstance(message, bytes):  # grpc.aio.EOF
                    self.half_closed = True
                    self.stream.half_close()
                    break
                if len(message) > method.max_message_bytes:
                    self._transport.reject(too_large_error(message, method))
                if len(message) > budget.record_above:
                    self.charge.receive(len(message), self)
                stream.receive(message)
                self.charge.update(stream.buffered_bytes, self, required=False)
        except BuffersFullError as error:
            self._transport.on_reject(error)
            self.error = error
        except Exception as error:  # an exception of a service ends its own call only
            self.error = error
        self.woken.set()


class _MethodLookup(grpc.GenericRpcHandler):
    """Finds the handler of a call by its path, and checks the caller's rights."""

    def __init__(self, transport: AioListener, methods: Methods, options: ListenerOptions) -> None:
        self._transport = transport
        self._methods = methods
        self._on_reject = options.on_reject
        self._access = options.access
        self._tracer = options.tracer
        self._handlers = {
            path: self._handler(path, method, UNRESTRICTED) for path, method in methods.items()
        }

    def service(
        self, handler_call_details: grpc.HandlerCallDetails
    ) -> "grpc.RpcMethodHandler[bytes, bytes]":
        path = handler_call_details.method
        if path not in self._methods:
            return _rejection(UnsupportedError(f"unknown method {quoted(path)}"))
        if self._access is None:
            return self._handlers[path]
        method = self._methods[path]
        try:
            grant = self._access.grant(method.right, handler_call_details.invocation_metadata)
        except NeuronaError as error:
            self._on_reject(error)
            return _rejection(error)
        return self._handler(path, method, grant)

    def _handler(
        self, path: str, method: Unary | Streaming, grant: Grant
    ) -> "grpc.RpcMethodHandler[bytes, bytes]":
        transport = self._transport
        tracer = None if method.right is None else self._tracer

        def start_trace(context: Context) -> CallTrace | None:
            if tracer is None:
                return None
            metadata = context.invocation_metadata() or ()
            return tracer.start_call(path, metadata) if tracer.should_sample(metadata) else None

        # Without serializers grpc passes the bytes through.
        if isinstance(method, Unary):
            # As if requests were streamed: only so a call is known before its message is received.
            async def unary(_: Any, context: Context) -> bytes:
                request = await transport.receive_request(method, context)
                trace = start_trace(context)
                return await transport.serve_unary(method, request, context, grant, trace)

            return grpc.stream_unary_rpc_method_handler(unary)

        async def stream(_: Any, context: Context) -> None:
            await transport.serve_stream(method, context, grant, start_trace(context))

        return grpc.stream_stream_rpc_method_handler(stream)


def _rejection(error: NeuronaError) -> "grpc.RpcMethodHandler[bytes, bytes]":
    """Return a handler that ends any call, unary or not, before its request is read."""

    async def reject(_: Any, context: Context) -> None:
        await _abort(context, error, BaseCall(context.invocation_metadata, None))

    return grpc.stream_stream_rpc_method_handler(reject)


async def _abort(context: Context, error: Exception, call: BaseCall) -> NoReturn:
    """End a call with the status of `error`."""
    status = status_of(error, call)
    if call.trace is not None:
        call.trace.end(error)
    forget_frames(error)
    trailers = (*status.trailers, (REQUEST_ID, call.request_id))
    await context.abort(status.code, status.message, trailers)


def _deadline_of(context: Context) -> float:
    """Return the deadline in seconds of the monotonic clock, inf if the caller set none."""
    remaining = context.time_remaining()
    return math.inf if remaining is None else time.monotonic() + remaining
