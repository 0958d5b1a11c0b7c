"""The door on grpcio's own completion queue, which `grpc.server` itself is built on.

One thread takes events from the queue and calls the services; when nothing more is ready it
runs what was deferred, so that a batch is all that has arrived meanwhile. There is no hand-over
between threads and no event loop in between, which is what `grpc.aio` spends its time on. The
queue is no public API: `doors` tries this door before it is used.
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

from neurona_server.errors import (
    NeuronaError,
    QueueFullError,
    StoppingError,
    UnsupportedError,
    quoted,
)
from neurona_server.models.model import Deferred
from neurona_server.rpc.call import Methods, Unary
from neurona_server.rpc.core_calls import STOPPING, CoreCall, Event, RawCall, refuse
from neurona_server.rpc.core_streams import CoreStreamCall
from neurona_server.rpc.listening import ListenerOptions, bind
from neurona_server.rpc.rights import EVERYTHING

log = logging.getLogger(__name__)

ACCEPTED = 0.05
"""Seconds in which a stopping door still takes calls, to refuse them."""

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


class CoreListener:
    name = "core"

    def __init__(self, methods: Methods, options: ListenerOptions) -> None:
        self.max_message_bytes = options.max_message_bytes
        self.refused = options.refused
        self.thread = 0
        self._methods = {path.encode(): method for path, method in methods.items()}
        self._options = options
        self._tracer = options.tracer
        self._queue = cygrpc.CompletionQueue()
        self._server = cygrpc.Server(tuple(options.arguments()), False)
        self._server.register_completion_queue(self._queue)
        self._thread = threading.Thread(target=self._serve, name="door", daemon=True)
        self._stopping = self._stopped = self._shut = False
        self._beginning: list[None] = []  # an element for each thread that is in `begin`
        self._idle = threading.Event()
        self._calls = 0  # unary ones; the door's thread alone counts them
        # Each with the time at which it is to be drained: the oldest comes first.
        self._streams: dict[CoreStreamCall, float] = {}
        # Sets that keep their order, of what is to be done when all that is ready is read.
        self._deferred: dict[Deferred, None] = {}
        self._fresh: list[CoreCall] = []
        self._awake: dict[CoreStreamCall, None] = {}

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

    def watch(self, call: CoreCall) -> None:
        self._fresh.append(call)

    def awaken(self, call: CoreStreamCall) -> None:
        self._awake[call] = None

    def forget(self, call: CoreStreamCall) -> None:
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
                raise StoppingError(STOPPING)
            if self._calls >= MOST_CALLS:
                raise QueueFullError(f"{MOST_CALLS} calls are under way", RETRY_AFTER)
            if method is None:
                raise UnsupportedError(f"there is no method {_name(event.call_details.method)}")
            access = self._options.access
            grant = access.grant(method.right, event.invocation_metadata) if access else EVERYTHING
        except NeuronaError as error:
            self.refused(error)
            refuse(event, error)
            return
        trace = None
        if self._tracer is not None and method.right is not None:
            metadata = event.invocation_metadata
            if self._tracer.samples(metadata):
                trace = self._tracer.call(event.call_details.method.decode(), metadata)
        if isinstance(method, Unary):
            CoreCall(self, event, grant, method.start, trace)
            self._calls += 1
            return
        try:
            stream = CoreStreamCall(self, event, grant, method, trace)
        except Exception as error:  # a service's bug must end its call, not the door
            refuse(event, error, trace)
            return
        if not stream.ended:
            self._streams[stream] = time.monotonic() + self._options.max_stream_age


def _name(path: bytes) -> str:
    return quoted(path.decode(errors="replace"))
