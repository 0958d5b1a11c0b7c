"""The transport on grpcio's public API, `grpc.aio`.

It runs an event loop in a thread of its own. The services know nothing of that: they are
called in that thread, return at once and answer from any other.
"""

import asyncio
import logging
import math
import threading
import time
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import Any, NoReturn, Protocol

import grpc
import grpc.aio

from neurona_server.errors import (
    NeuronaError,
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
)
from neurona_server.rpc.security.access import UNRESTRICTED, Grant
from neurona_server.rpc.security.tokens import Access
from neurona_server.rpc.status import status_of
from neurona_server.rpc.transports.listener import ListenerOptions, bind
from neurona_server.telemetry.trace import CallTrace, CallTracer

log = logging.getLogger(__name__)

Context = grpc.aio.ServicerContext[bytes, bytes]


class Transport(Protocol):
    """What calls need of their transport."""

    def post(self, action: Callable[[], None]) -> None:
        """Has `action` called in the transport's thread; any thread may."""

    def defer(self, callback: Deferred) -> None:
        """As that of a `Call`."""


class AioCall(BaseCall):
    def __init__(
        self,
        transport: Transport,
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
        for callback in self._on_cancel:
            callback()
        self._on_cancel.clear()

    def _end(self, outcome: bytes | Exception) -> None:
        def resolve() -> None:
            # They hold the request, which holds us: that would wait for the collector of cycles.
            self._on_cancel.clear()
            if not self.outcome.done():
                self.outcome.set_result(outcome)

        self._transport.post(resolve)


class AioStreamCall(BaseCall):
    stream: Stream

    def __init__(
        self,
        transport: Transport,
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
        self.written = asyncio.Event()
        self.half_closed = False
        self.error: Exception | None = None
        self.defer = transport.defer
        self._transport = transport

    def header(self, key: str) -> str:
        return self._headers.get(key, "")

    def fail(self, error: Exception) -> None:
        self.error = error
        self.woken.set()

    def wake(self) -> None:
        self._transport.post(self.woken.set)

    def drain(self) -> None:
        self.stream.drain()
        self.woken.set()

    async def read(self, context: Context) -> None:
        try:
            while True:
                self.written.clear()
                if self.stream.congested:
                    await self.written.wait()
                    continue
                message: object = await context.read()
                if not isinstance(message, bytes):  # grpc.aio.EOF
                    self.half_closed = True
                    self.stream.half_close()
                    break
                self.stream.receive(message)
        except Exception as error:  # what a service raises ends its own call only
            self.error = error
        self.woken.set()


class ServingTransport(Protocol):
    """What methods need of their transport."""

    async def serve_unary(
        self, method: Unary, request: bytes, context: Context, grant: Grant, trace: CallTrace | None
    ) -> bytes: ...

    async def serve_stream(
        self, method: Streaming, context: Context, grant: Grant, trace: CallTrace | None
    ) -> None: ...


Begin = Callable[[Context], CallTrace | None]


class AioMethods(grpc.GenericRpcHandler):
    """What gRPC asks, at the start of a call, who serves it."""

    def __init__(
        self,
        transport: ServingTransport,
        methods: Methods,
        access: Access | None,
        refused: Callable[[Exception], None],
        tracer: CallTracer | None = None,
    ) -> None:
        self._transport = transport
        self._refused = refused
        self._methods = methods
        self._access = access
        self._tracer = tracer
        self._handlers = {
            path: self._handler(path, method, UNRESTRICTED) for path, method in methods.items()
        }

    def service(
        self, handler_call_details: grpc.HandlerCallDetails
    ) -> "grpc.RpcMethodHandler[bytes, bytes]":
        path = handler_call_details.method
        if path not in self._methods:
            return _refusal(UnsupportedError(f"there is no method {quoted(path)}"))
        if self._access is None:
            return self._handlers[path]
        method = self._methods[path]
        try:
            grant = self._access.grant(method.right, handler_call_details.invocation_metadata)
        except NeuronaError as error:
            self._refused(error)
            return _refusal(error)
        return self._handler(path, method, grant)

    def _handler(
        self, path: str, method: Unary | Streaming, grant: Grant
    ) -> "grpc.RpcMethodHandler[bytes, bytes]":
        tracer = None if method.right is None else self._tracer

        def begin(context: Context) -> CallTrace | None:
            if tracer is None:
                return None
            metadata = context.invocation_metadata() or ()
            return tracer.start_call(path, metadata) if tracer.should_sample(metadata) else None

        return _handler(self._transport, method, grant, begin)


def _refusal(error: NeuronaError) -> "grpc.RpcMethodHandler[bytes, bytes]":
    """Ends a call before its request has been read, unary or not."""

    async def refuse(_: Any, context: Context) -> None:
        await abort(context, error, BaseCall(context.invocation_metadata, None))

    return grpc.stream_stream_rpc_method_handler(refuse)


def _handler(
    transport: ServingTransport, method: Unary | Streaming, grant: Grant, begin: Begin
) -> "grpc.RpcMethodHandler[bytes, bytes]":
    # Without serializers, grpc hands the bytes through as they are.
    if isinstance(method, Unary):

        async def unary(request: bytes, context: Context) -> bytes:
            return await transport.serve_unary(method, request, context, grant, begin(context))

        return grpc.unary_unary_rpc_method_handler(unary)

    async def stream(_: Any, context: Context) -> None:
        await transport.serve_stream(method, context, grant, begin(context))

    return grpc.stream_stream_rpc_method_handler(stream)


def deadline_of(context: Context) -> float:
    """A point in time on the monotonic clock; inf if the caller set none."""
    remaining = context.time_remaining()
    return math.inf if remaining is None else time.monotonic() + remaining


async def abort(context: Context, error: Exception, caller: BaseCall) -> NoReturn:
    """Ends a call with the status of `error`."""
    status = status_of(error, caller)
    if caller.trace is not None:
        caller.trace.end(error)
    trailers = (*status.trailers, (REQUEST_ID, caller.request_id))
    await context.abort(status.code, status.message, trailers)


ACCEPTED = 0.05
"""Seconds in which a stopping transport still takes calls, to refuse them."""

QUIET_TURNS = 8
"""Turns of the loop without a new request after which all is read that was there to read:
`grpc.aio` takes one call at a time, and each takes it five turns or six."""

MOST_TURNS = 64
"""Turns after which what has gathered is run although more keeps coming."""

STOPPING = "the server is stopping; call again"
AGED = "the connection is as old as connections get; call again"


class AioListener:
    name = "aio"

    def __init__(self, methods: Methods, options: ListenerOptions) -> None:
        self._methods = methods
        self._options = options
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(
            target=self._loop.run_forever, name="transport", daemon=True
        )
        self._server: grpc.aio.Server | None = None
        self._stopping = False
        self._streams: set[AioStreamCall] = set()
        # Answers from other threads, and whether the loop already knows that there are some:
        # waking it costs a system call, so a batch's answers share one.
        self._posted: deque[Callable[[], None]] = deque()
        self._woken = False
        self._turns = self._quiet_turns = 0
        self._deferred: dict[Deferred, None] = {}  # a set that keeps its order

    def start(self, address: str) -> int:
        """Listens; the port, which the system chose if `address` ended in ":0".

        Raises ConfigError when the address cannot be had.
        """
        self._thread.start()
        return asyncio.run_coroutine_threadsafe(self._start(address), self._loop).result()

    def stop(self, timeout: float) -> None:
        """Accepts no more calls, waits `timeout` seconds for those under way, cancels the rest.

        A second call does nothing.
        """
        if self._loop.is_closed():
            return
        asyncio.run_coroutine_threadsafe(self._stop(timeout), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def post(self, action: Callable[[], None]) -> None:
        """Has `action` called in the loop. Any thread; does nothing once the transport is
        closed."""
        if threading.get_ident() == self._thread.ident:
            action()
            return
        self._posted.append(action)
        if not self._woken:
            self._woken = True
            try:
                self._loop.call_soon_threadsafe(self._run_posted)
            except RuntimeError:  # the loop is closed: there is nobody left to answer
                self._posted.clear()

    def defer(self, callback: Deferred) -> None:
        if not self._deferred:
            self._turns = 0
            self._loop.call_soon(self._run_deferred)
        self._deferred[callback] = None
        self._quiet_turns = 0

    def _run_deferred(self) -> None:
        self._turns += 1
        self._quiet_turns += 1
        if self._quiet_turns < QUIET_TURNS and self._turns < MOST_TURNS:
            self._loop.call_soon(self._run_deferred)
            return
        deferred, self._deferred = self._deferred, {}
        for callback in deferred:
            try:
                if callback():
                    self.defer(callback)
            except Exception:  # one model's fault is not the others'
                log.exception("a deferred call failed")

    def _run_posted(self) -> None:
        self._woken = False  # before the last look, so that what comes after it wakes us again
        while self._posted:
            self._posted.popleft()()

    async def _start(self, address: str) -> int:
        options = self._options
        self._server = server = grpc.aio.server(options=options.arguments())
        methods = AioMethods(self, self._methods, options.access, options.on_reject, options.tracer)
        server.add_generic_rpc_handlers((methods,))
        if options.certificates is None:
            port = bind(server.add_insecure_port, address)
        else:
            credentials = options.certificates.credentials()
            port = bind(partial(server.add_secure_port, server_credentials=credentials), address)
        await self._server.start()
        return port

    async def _stop(self, timeout: float) -> None:
        self._stopping = True
        for stream_call in list(self._streams):
            stream_call.drain()
        if self._server is not None:
            # Calls that gRPC has accepted but not yet given to us would be CANCELLED, which
            # clients do not try again: they are told UNAVAILABLE first.
            await asyncio.sleep(min(timeout, ACCEPTED))
            await self._server.stop(max(0.0, timeout - ACCEPTED))

    async def serve_unary(
        self, method: Unary, request: bytes, context: Context, grant: Grant, trace: CallTrace | None
    ) -> bytes:
        call = AioCall(self, request, deadline_of(context), grant, context, trace)
        if self._stopping:
            await abort(context, UnavailableError(STOPPING), call)
        try:
            try:
                method.start(call)
            except Exception as error:  # a service's bug must end its call, not the transport
                call.fail(error)
            outcome = await call.outcome
        except asyncio.CancelledError:
            call.cancel()
            if trace is not None:
                trace.end(cancellation_error(call.deadline))
            raise
        if not isinstance(outcome, bytes):
            await abort(context, outcome, call)
        if len(outcome) > self._options.max_message_bytes:
            await abort(
                context, response_too_large(len(outcome), self._options.max_message_bytes), call
            )
        if trace is not None:
            trace.end()
        return outcome

    async def serve_stream(
        self, method: Streaming, context: Context, grant: Grant, trace: CallTrace | None
    ) -> None:
        call = AioStreamCall(self, deadline_of(context), grant, context, trace)
        if self._stopping:
            await abort(context, UnavailableError(STOPPING), call)
        call.stream = stream = method.start(call)
        self._streams.add(call)
        age = self._options.max_stream_age
        aged = self._loop.call_later(age, call.drain) if math.isfinite(age) else None
        reader = asyncio.create_task(call.read(context))
        try:
            while call.error is None:
                call.woken.clear()
                if (message := stream.take_message()) is not None:
                    await context.write(message)
                    call.written.set()
                elif stream.finished:
                    break
                else:
                    await call.woken.wait()
            if call.error is None and not call.half_closed:
                call.error = UnavailableError(STOPPING if self._stopping else AGED)
            if call.error is not None:
                await abort(context, call.error, call)
            if trace is not None:
                trace.end()
        finally:
            reader.cancel()
            if aged is not None:
                aged.cancel()
            self._streams.discard(call)
            stream.cancel()
            if trace is not None:
                trace.end(cancellation_error(call.deadline))
