"""The door on grpcio's public API, `grpc.aio`.

It runs an event loop in a thread of its own. The services know nothing of that: they are
called in that thread, return at once and answer from any other.
"""

import asyncio
import logging
import math
import threading
from collections import deque
from collections.abc import Callable
from functools import partial

import grpc
import grpc.aio

from neurona_server.errors import StoppingError, too_large
from neurona_server.models.model import Deferred
from neurona_server.rpc.aio_calls import AioCall, AioStreamCall, Context
from neurona_server.rpc.aio_methods import AioMethods, abort, deadline_of
from neurona_server.rpc.call import Methods, Streaming, Unary
from neurona_server.rpc.caller import CallTrace, gone
from neurona_server.rpc.listening import ListenerOptions, bind
from neurona_server.rpc.rights import Grant

log = logging.getLogger(__name__)

ACCEPTED = 0.05
"""Seconds in which a stopping door still takes calls, to refuse them."""

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
        self._thread = threading.Thread(target=self._loop.run_forever, name="door", daemon=True)
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
        """Has `action` called in the loop. Any thread; does nothing once the door is closed."""
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
        methods = AioMethods(self, self._methods, options.access, options.refused, options.tracer)
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
            await abort(context, StoppingError(STOPPING), call)
        try:
            try:
                method.start(call)
            except Exception as error:  # a service's bug must end its call, not the door
                call.fail(error)
            outcome = await call.outcome
        except asyncio.CancelledError:
            call.cancel()
            if trace is not None:
                trace.end(gone(call.deadline))
            raise
        if not isinstance(outcome, bytes):
            await abort(context, outcome, call)
        if len(outcome) > self._options.max_message_bytes:
            await abort(context, too_large(len(outcome), self._options.max_message_bytes), call)
        if trace is not None:
            trace.end()
        return outcome

    async def serve_stream(
        self, method: Streaming, context: Context, grant: Grant, trace: CallTrace | None
    ) -> None:
        call = AioStreamCall(self, deadline_of(context), grant, context, trace)
        if self._stopping:
            await abort(context, StoppingError(STOPPING), call)
        call.stream = stream = method.start(call)
        self._streams.add(call)
        age = self._options.max_stream_age
        aged = self._loop.call_later(age, call.drain) if math.isfinite(age) else None
        reader = asyncio.create_task(call.read(context))
        try:
            while call.error is None:
                call.woken.clear()
                if (message := stream.take()) is not None:
                    await context.write(message)
                    call.written.set()
                elif stream.finished:
                    break
                else:
                    await call.woken.wait()
            if call.error is None and not call.half_closed:
                call.error = StoppingError(STOPPING if self._stopping else AGED)
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
                trace.end(gone(call.deadline))
