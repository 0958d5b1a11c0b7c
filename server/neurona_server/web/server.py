"""The HTTP server of the metrics port, with bounds on its connections.

It runs an event loop in a thread of its own, not that of the gRPC transport: it must neither wait
for the transport nor slow it down. When everything is busy, operators need this port most.
"""

import asyncio
import contextlib
import logging
import socket
import threading
from collections.abc import Callable, Coroutine, Iterable
from functools import partial
from http import HTTPStatus

from prometheus_client import CollectorRegistry

from neurona_server.errors import ConfigError, quoted
from neurona_server.web.acceptor import Acceptor, DescriptorReserve
from neurona_server.web.allowed_hosts import AllowedHosts
from neurona_server.web.endpoints import (
    HEALTH_PATH,
    Endpoints,
    FilteredCollector,
    SelectSamples,
)
from neurona_server.web.http import (
    HttpRequest,
    HttpResponse,
    encode_head,
    error_response,
    parse_request,
)

log = logging.getLogger(__name__)

MAX_HEAD_BYTES = 16 << 10
"""Bytes of a request line and its headers."""

MAX_CONNECTIONS = 64
"""One more closes another one, as soon as that had its time (the next three constants), and waits
in the kernel until then."""

HEAD_SECONDS, ANSWER_SECONDS, SEND_SECONDS = 0.25, 5.0, 1.0
"""Time in a crowd for a request to arrive, for its response to be made, and to be sent."""

HEAD_TIMEOUT = 5.0
"""Seconds for a request to arrive."""

RESPONSE_TIMEOUT = 30.0
"""Seconds for a response to be rendered, and again to be sent."""

CLOSING_TURNS = 10
"""Turns of the event loop in which a connection that was just accepted is cancelled and closed."""

PART_BYTES = 1 << 16
"""Bytes of a response that are copied for one connection at a time."""

LINGER_SECONDS, LINGER_BYTES = 1.0, 1 << 20
"""Bounds for discarding a request's body: closing a connection with unread data would reset it,
and the response would be lost."""

HandleConnection = Callable[
    [asyncio.StreamReader, asyncio.StreamWriter], Coroutine[None, None, None]
]


class MetricsServer:
    """Serves metrics, health and the status page from its construction until `close`."""

    def __init__(
        self,
        address: str,
        registry: CollectorRegistry,
        state: Callable[[], str],
        select_samples: SelectSamples | None = None,
        *,
        hosts: Iterable[str] = (),
    ) -> None:
        """Start serving.

        Args:
            address: HOST:PORT; port 0 is any free port.
            registry: The metrics.
            state: See Endpoints.
            select_samples: See Endpoints. Without it, all samples are collected and then filtered.
            hosts: Names to answer for besides those that AllowedHosts always allows.

        Raises:
            ConfigError: The address is in use, or not of this machine.
        """
        host, _, port = address.rpartition(":")
        host = host.strip("[]")
        try:
            self._socket = _open_socket(host, int(port))
        except OSError as error:
            raise ConfigError(f"cannot serve metrics on {host}:{port}: {error.strerror}") from error
        except UnicodeError as error:  # the resolver takes no empty, long or strange labels
            raise ConfigError(f"cannot serve metrics on {host}:{port}: no host name") from error
        self._hosts = AllowedHosts(host, hosts)
        self.port: int = self._socket.getsockname()[1]
        self._reserve = DescriptorReserve()
        select_samples = select_samples or partial(FilteredCollector, registry)
        self._endpoints = Endpoints(registry, state, select_samples, self._reserve)
        self._closing = asyncio.Event()
        # Each connection with the time from which it may be closed for another one.
        self._connections: dict[asyncio.Task[None], float] = {}
        self._connecting: set[asyncio.Task[object]] = set()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, name="metrics port", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop serving. A second call does nothing."""
        if self._thread.is_alive():
            with contextlib.suppress(RuntimeError):  # the loop has just ended
                self._loop.call_soon_threadsafe(self._closing.set)
            self._thread.join()

    def _run(self) -> None:
        with contextlib.closing(self._loop):
            self._loop.run_until_complete(self._serve())

    async def _serve(self) -> None:
        acceptor = Acceptor(
            self._socket, self._reserve, self._connect, self._has_room, self._end_overdue
        )
        acceptor.start()
        await self._closing.wait()
        acceptor.stop()
        for _ in range(CLOSING_TURNS):
            for task in list(self._connections):
                task.cancel()
            await asyncio.sleep(0)
        self._socket.close()
        self._reserve.close()

    def _connect(self, connection: socket.socket) -> None:
        """Serve a connection that was just accepted."""
        reader = asyncio.StreamReader(MAX_HEAD_BYTES, self._loop)
        protocol = _ConnectionProtocol(reader, self._handle_connection, self._reserve)
        task = self._loop.create_task(
            self._loop.connect_accepted_socket(lambda: protocol, connection)
        )
        self._connecting.add(task)
        task.add_done_callback(self._connecting.discard)

    def _has_room(self) -> bool:
        """Return whether one more connection may be accepted, and close another for it."""
        count = len(self._connecting) + len(self._connections)
        return count < MAX_CONNECTIONS or self._end_overdue()

    def _end_overdue(self) -> bool:
        """Close the connection that had its time first; return False if none had."""
        task = min(self._connections, key=self._connections.__getitem__, default=None)
        if task is None or self._connections[task] > self._loop.time():
            return False
        del self._connections[task]
        task.cancel()
        return True

    def _allow(self, seconds: float) -> None:
        """Give the current connection some time in which no other one may replace it."""
        task = asyncio.current_task()
        if task in self._connections:
            self._connections[task] = self._loop.time() + seconds

    async def _handle_connection(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        task = asyncio.current_task()
        assert task is not None  # noqa: S101  for the type checker
        self._connections[task] = self._loop.time() + HEAD_SECONDS
        try:
            await self._handle_request(reader, writer)
        except asyncio.CancelledError:
            return  # to make room for another connection, or the server is closed
        except (OSError, TimeoutError, asyncio.IncompleteReadError):
            return  # the caller has disconnected, or is too slow
        finally:
            self._connections.pop(task, None)
            writer.transport.abort()  # the response was flushed before

    async def _answer(self, request: HttpRequest) -> HttpResponse:
        # Load balancers ask for the health under the name of their site. It tells a web page no
        # more than the rejection would: that a server is here.
        if request.path == HEALTH_PATH or self._hosts.allows(request.host):
            return await self._endpoints.answer(request)
        text = (
            f"unknown host {quoted(request.host)} (expected an IP address, a name without dots or "
            "a name of the server's option metrics_hosts)"
        )
        return error_response(HTTPStatus.MISDIRECTED_REQUEST, text)

    async def _handle_request(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        try:
            async with asyncio.timeout(HEAD_TIMEOUT):
                head = await reader.readuntil(b"\r\n\r\n")
            self._allow(ANSWER_SECONDS)
            request = parse_request(head)
        except asyncio.LimitOverrunError:
            text = f"request head too large (expected at most {MAX_HEAD_BYTES} bytes)"
            response = error_response(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, text)
            request = None
        except ValueError:
            text = "malformed request (expected HTTP/1.1)"
            response = error_response(HTTPStatus.BAD_REQUEST, text)
            request = None
        rest = self._loop.create_task(_discard(reader))
        try:
            if request is not None:
                response = await self._answer_unless_left(request, rest)
            head_only = request is not None and request.method == "HEAD"
            self._allow(SEND_SECONDS)
            await _send_response(writer, response, head_only=head_only)
            if request is None or request.has_body:
                await asyncio.wait({rest}, timeout=LINGER_SECONDS)
        finally:
            rest.cancel()

    async def _answer_unless_left(
        self, request: HttpRequest, rest: asyncio.Task[None]
    ) -> HttpResponse:
        """Answer a request, unless its caller closes its side before, which ends `rest`.

        Nothing is rendered for callers that have given up.
        """
        answering = self._loop.create_task(self._answer(request))
        try:
            async with asyncio.timeout(RESPONSE_TIMEOUT):
                await asyncio.wait({answering, rest}, return_when=asyncio.FIRST_COMPLETED)
            if not answering.done():
                raise ConnectionError("the caller has left")
            return answering.result()
        finally:
            answering.cancel()


class _ConnectionProtocol(asyncio.StreamReaderProtocol):
    """A connection that takes a spare descriptor again once it has closed its own."""

    def __init__(
        self, reader: asyncio.StreamReader, handle: HandleConnection, reserve: DescriptorReserve
    ) -> None:
        super().__init__(reader, handle)
        self._reserve = reserve

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        # The socket is closed right after this.
        asyncio.get_running_loop().call_soon(self._reserve.refill)


async def _send_response(
    writer: asyncio.StreamWriter, response: HttpResponse, *, head_only: bool
) -> None:
    """Send a response in parts: many slow readers share the content, which is not copied."""
    writer.transport.set_write_buffer_limits(0)  # drain waits until the kernel has everything
    content = memoryview(b"" if head_only else response.content)
    async with asyncio.timeout(RESPONSE_TIMEOUT):
        writer.write(encode_head(response) + bytes(content[:PART_BYTES]))
        await writer.drain()
        for start in range(PART_BYTES, len(content), PART_BYTES):
            writer.write(content[start : start + PART_BYTES])
            await writer.drain()
    writer.write_eof()


async def _discard(reader: asyncio.StreamReader) -> None:
    """Discard a request's body; return when the caller has closed its side.

    Beyond LINGER_BYTES nothing is read any more, and this does not return.
    """
    remaining = LINGER_BYTES
    while remaining > 0:
        part = await reader.read(1 << 16)
        if not part:
            return
        remaining -= len(part)
    await asyncio.Event().wait()


def _open_socket(host: str, port: int) -> socket.socket:
    resolved = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    family, _, _, _, address = resolved[0]
    return socket.create_server(address[:2], family=family, backlog=128)
