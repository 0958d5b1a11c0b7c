"""The HTTP server: listening sockets, connections and an event loop in a thread of its own.

It serves any `Application`. The bounds of each connection are in `connection`; here are those of
all together: their number, and which one gives way to another.
"""

import asyncio
import contextlib
import errno
import logging
import os
import socket
import ssl
import threading
from collections import deque
from collections.abc import Callable

import uvicorn
from uvicorn.server import ServerState

from neurona_server.errors import ConfigError
from neurona_server.web.acceptor import Acceptor, DescriptorReserve
from neurona_server.web.connection import Application, Connection, HttpLimits

log = logging.getLogger(__name__)

SWEEP_SECONDS = 0.05
"""Time between two searches for connections whose time has ended."""

BACKLOG = 1024
"""Connections that wait in the kernel."""

CLOSING_SECONDS = 1.0
"""Time for connections to end once they were aborted."""

DeferredCallback = Callable[[], bool | None]


class HttpServer:
    """Listens from its construction, and serves from `start` until `stop`."""

    def __init__(
        self,
        subject: str,
        address: str,
        application: Application,
        limits: HttpLimits,
        *,
        reuse_port: bool = False,
        advice: str = "",
        make_tls_context: Callable[[], ssl.SSLContext] | None = None,
    ) -> None:
        """Listen, without accepting connections.

        Args:
            subject: What is served, for errors and the name of the thread, as "metrics".
            address: HOST:PORT; port 0 is any free port.
            application: Answers each request.
            limits: The bounds; changes apply to later requests.
            reuse_port: Let several processes listen on the same port and share its connections.
            advice: What to do if the address is not available, for the error.
            make_tls_context: Returns the context for a new connection; None: without TLS.

        Raises:
            ConfigError: The address is in use, or not of this machine.
        """
        self.limits = limits
        self.application = application
        self.closes_connections = False
        """Whether every response is the last one of its connection."""
        self.config = uvicorn.Config(
            _unused_application,
            http=Connection,
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            proxy_headers=False,
            server_header=False,
            date_header=False,
            interface="asgi3",
        )
        self.config.load()
        self.state = ServerState()
        self._subject = subject
        self._sockets = _open_sockets(subject, address, advice, reuse_port=reuse_port)
        self.port: int = self._sockets[0].getsockname()[1]
        self.reserve = DescriptorReserve()
        self._make_tls_context = make_tls_context
        self._connections: set[Connection] = set()
        self._handshakes: dict[Connection, asyncio.Task[None]] = {}
        """Connections that are not served yet, with what makes them ready."""
        self.loop = asyncio.new_event_loop()
        self._draining = asyncio.Event()
        self._drain_seconds = 0.0
        # Actions of other threads, and whether the loop has been woken for them: waking it costs
        # a system call, so the responses of a batch share one.
        self._posted: deque[Callable[[], None]] = deque()
        self._wake_scheduled = False
        self._deferred: dict[DeferredCallback, None] = {}  # an ordered set
        self._ping_answered = True
        self._thread = threading.Thread(target=self._run, name=f"{subject} port", daemon=True)

    @property
    def connection_count(self) -> int:
        """The number of open connections."""
        return len(self._connections) + len(self._handshakes)

    def start(self) -> None:
        """Accept connections."""
        self._thread.start()

    def stop(self, timeout: float = 0.0) -> bool:
        """Accept no more connections, and wait `timeout` seconds for requests in flight.

        A second call does nothing.

        Returns:
            False if requests were in flight after that time, or the thread still runs.
        """
        if self._thread.ident is None:
            for one in self._sockets:
                one.close()
            self.reserve.close()
            self.loop.close()
            return True
        if not self._thread.is_alive():
            return True
        self._drain_seconds = timeout
        with contextlib.suppress(RuntimeError):  # the loop has just ended
            self.loop.call_soon_threadsafe(self._draining.set)
        self._thread.join(timeout + 2 * CLOSING_SECONDS)
        return not self._thread.is_alive()

    def has_turned(self) -> bool:
        """Return whether the thread has turned since the last call; for one caller only."""
        answered, self._ping_answered = self._ping_answered, False
        try:
            self.loop.call_soon_threadsafe(self._answer_ping)
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
                self.loop.call_soon_threadsafe(self._run_posted)
            except RuntimeError:  # the loop is closed: all requests have ended
                self._posted.clear()

    def defer(self, callback: DeferredCallback) -> None:
        """Call `callback` once all data that have arrived are read, again while it returns True.

        However often it is deferred until then, it is called once. Only the server's thread may
        defer.
        """
        if not self._deferred:
            # A request is read in one turn of the loop, and its task runs in the next one.
            self.loop.call_soon(self._run_deferred)
        self._deferred[callback] = None

    # What connections use:

    def add(self, connection: Connection) -> None:
        """Count a connection that is served now."""
        self._handshakes.pop(connection, None)
        self._connections.add(connection)

    def remove(self, connection: Connection) -> None:
        """Remove a connection that has ended."""
        self._connections.discard(connection)
        # The socket is closed right after this.
        self.loop.call_soon(self.reserve.refill)

    def _run(self) -> None:
        with contextlib.closing(self.loop):
            self.loop.run_until_complete(self._serve())

    async def _serve(self) -> None:
        acceptors = [
            Acceptor(
                one, self.reserve, self._connect, self._has_room, self._end_overdue, self._subject
            )
            for one in self._sockets
        ]
        for acceptor in acceptors:
            acceptor.start()
        self._sweeping = self.loop.create_task(self._sweep())  # kept: it might be collected
        await self._draining.wait()
        self.closes_connections = True
        for acceptor in acceptors:
            acceptor.finish()
        for one in self._sockets:
            one.close()
        end = self.loop.time() + self._drain_seconds
        while self.connection_count and self.loop.time() < end:
            for connection in list(self._connections):
                connection.drain()
            await asyncio.sleep(SWEEP_SECONDS / 5)
        end = self.loop.time() + CLOSING_SECONDS
        while (self.connection_count or self.state.tasks) and self.loop.time() < end:
            for connection in list(self._connections):
                connection.abort()
            for task in list(self._handshakes.values()):
                task.cancel()
            await asyncio.sleep(0)
        # What handlers have started and left behind.
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks, timeout=CLOSING_SECONDS)
        self.reserve.close()

    def _connect(self, accepted: socket.socket) -> None:
        """Serve a connection that was just accepted."""
        connection = Connection(self)
        task = self.loop.create_task(self._shake_hands(accepted, connection))
        self._handshakes[connection] = task
        # One that is cancelled before it has begun closes nothing itself.
        task.add_done_callback(lambda done: accepted.close() if done.cancelled() else None)

    async def _shake_hands(self, accepted: socket.socket, connection: Connection) -> None:
        try:
            if self._make_tls_context is None:
                await self.loop.connect_accepted_socket(lambda: connection, accepted)
            else:
                await self.loop.connect_accepted_socket(
                    lambda: connection,
                    accepted,
                    ssl=self._make_tls_context(),
                    ssl_handshake_timeout=self.limits.head_timeout,
                    ssl_shutdown_timeout=CLOSING_SECONDS,
                )
        except (OSError, ValueError, asyncio.CancelledError):
            accepted.close()  # the handshake has failed, took too long or makes room for others
        finally:
            self._handshakes.pop(connection, None)
            self.loop.call_soon(self.reserve.refill)

    def _has_room(self) -> bool:
        """Return whether one more connection may be accepted, and close another for it."""
        return self.connection_count < self.limits.max_connections or self._end_overdue()

    def _end_overdue(self) -> bool:
        """Close the connection that had its time first; return False if none had."""
        candidates = [*self._connections, *self._handshakes]
        connection = min(candidates, key=_overdue_at, default=None)
        if connection is None or connection.overdue_at > self.loop.time():
            return False
        if (handshake := self._handshakes.pop(connection, None)) is not None:
            handshake.cancel()
        else:
            self._connections.discard(connection)
            connection.abort()
        return True

    async def _sweep(self) -> None:
        """End connections whose time has ended."""
        while True:
            await asyncio.sleep(SWEEP_SECONDS)
            now = self.loop.time()
            for connection in [one for one in self._connections if one.ends_at <= now]:
                connection.abort()

    def _answer_ping(self) -> None:
        self._ping_answered = True

    def _run_posted(self) -> None:
        self._wake_scheduled = False  # before the actions are taken, so that later ones wake again
        while self._posted:
            self._posted.popleft()()

    def _run_deferred(self) -> None:
        deferred, self._deferred = self._deferred, {}
        for callback in deferred:
            try:
                if callback():
                    self.defer(callback)
            except Exception:  # an error of one model must not affect the others
                log.exception("uncaught exception in a deferred callback")


def _overdue_at(connection: Connection) -> float:
    return connection.overdue_at


async def _unused_application(_scope: object, _receive: object, _send: object) -> None:
    """Stand in for the application that uvicorn requires: each connection has its own."""


def _open_sockets(
    subject: str, address: str, advice: str, *, reuse_port: bool
) -> list[socket.socket]:
    """Listen on every address that the host resolves to; raise ConfigError if there is none."""
    host, _, port_text = address.rpartition(":")
    port = int(port_text)
    sockets: list[socket.socket] = []
    failure: OSError | None = None
    try:
        resolved = socket.getaddrinfo(
            host.strip("[]"), port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )
    except OSError as error:
        raise ConfigError(f"cannot serve {subject} on {address}: {error.strerror}") from error
    except UnicodeError as error:  # the resolver takes no empty, long or strange labels
        raise ConfigError(f"cannot serve {subject} on {address}: no host name") from error
    for family, _, _, _, resolved_address in dict.fromkeys(resolved):
        try:
            one = socket.create_server(
                (resolved_address[0], port, *resolved_address[2:]),
                family=family,
                backlog=BACKLOG,
                reuse_port=reuse_port,
            )
        except OSError as error:  # a name may resolve to addresses this machine does not have
            failure = error
        else:
            sockets.append(one)
            port = one.getsockname()[1]
    in_use = failure is not None and failure.errno in (errno.EADDRINUSE, errno.EACCES)
    if failure is not None and (in_use or not sockets):
        for one in sockets:
            one.close()
        # The function adds the address to the system's text.
        reason = os.strerror(failure.errno) if failure.errno else failure.strerror
        raise ConfigError(f"cannot serve {subject} on {address}: {reason}{advice}") from failure
    return sockets
