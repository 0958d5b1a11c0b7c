"""The HTTP server of the metrics port, with bounds on its connections.

It runs an event loop in a thread of its own, not that of the gRPC transport: it must neither wait
for the transport nor slow it down. When everything is busy, operators need this port most.
"""

import asyncio
import contextlib
import logging
import socket
import threading
from collections.abc import Callable, Iterable
from functools import partial
from http import HTTPStatus

from prometheus_client import CollectorRegistry

from neurona_server.errors import ConfigError, quoted
from neurona_server.web.allowed_hosts import AllowedHosts
from neurona_server.web.endpoints import Endpoints, FilteredCollector, SelectSamples
from neurona_server.web.http import (
    HttpRequest,
    HttpResponse,
    encode_response,
    error_response,
    parse_request,
)

log = logging.getLogger(__name__)

MAX_HEAD_BYTES = 16 << 10
"""Bytes of a request line and its headers."""

MAX_CONNECTIONS = 64
"""One more closes the oldest connection that has not sent its request yet."""

HEAD_TIMEOUT = 5.0
"""Seconds for a request to arrive."""

RESPONSE_TIMEOUT = 30.0
"""Seconds for a response to be rendered, and again to be sent."""

CLOSING_TURNS = 10
"""Turns of the event loop in which a connection that was just accepted is cancelled and closed."""

LINGER_SECONDS, LINGER_BYTES = 1.0, 1 << 20
"""Bounds for discarding a request's body: closing a connection with unread data would reset it,
and the response would be lost."""


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
        self._endpoints = Endpoints(
            registry, state, select_samples or partial(FilteredCollector, registry)
        )
        self._closing = asyncio.Event()
        # Connections, the oldest first: those without a complete request, and all of them.
        self._waiting: dict[asyncio.Task[None], None] = {}
        self._connections: dict[asyncio.Task[None], None] = {}
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
        server = await asyncio.start_server(
            self._handle_connection, sock=self._socket, limit=MAX_HEAD_BYTES
        )
        await self._closing.wait()
        # Closing a server drops connections that it has just accepted without closing them:
        # first it stops accepting.
        self._loop.remove_reader(self._socket)
        for _ in range(CLOSING_TURNS):
            for task in list(self._connections):
                task.cancel()
            await asyncio.sleep(0)
        server.close()
        await asyncio.sleep(0)

    async def _handle_connection(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        task = asyncio.current_task()
        assert task is not None  # noqa: S101  for the type checker
        if len(self._connections) >= MAX_CONNECTIONS:
            oldest = next(iter(self._waiting or self._connections))
            self._waiting.pop(oldest, None)
            oldest.cancel()
        self._waiting[task] = self._connections[task] = None
        try:
            await self._handle_request(task, reader, writer)
        except asyncio.CancelledError:
            return  # to make room for another connection, or the server is closed
        except (OSError, TimeoutError, asyncio.IncompleteReadError):
            return  # the caller has disconnected, or is too slow
        finally:
            self._waiting.pop(task, None)
            del self._connections[task]
            writer.transport.abort()  # the response was flushed before

    async def _answer(self, request: HttpRequest) -> HttpResponse:
        if self._hosts.allows(request.host):
            return await self._endpoints.answer(request)
        text = (
            f"unknown host {quoted(request.host)} (expected an IP address, a name without dots or "
            "a name of the server's option metrics_hosts)"
        )
        return error_response(HTTPStatus.MISDIRECTED_REQUEST, text)

    async def _handle_request(
        self,
        task: asyncio.Task[None],
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
    ) -> None:
        head_only, has_body = False, True
        try:
            async with asyncio.timeout(HEAD_TIMEOUT):
                head = await reader.readuntil(b"\r\n\r\n")
            self._waiting.pop(task, None)
            request = parse_request(head)
        except asyncio.LimitOverrunError:
            text = f"request head too large (expected at most {MAX_HEAD_BYTES} bytes)"
            response = error_response(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, text)
        except ValueError:
            text = "malformed request (expected HTTP/1.1)"
            response = error_response(HTTPStatus.BAD_REQUEST, text)
        else:
            head_only, has_body = request.method == "HEAD", request.has_body
            async with asyncio.timeout(RESPONSE_TIMEOUT):
                response = await self._answer(request)
        await _send_response(writer, response, head_only=head_only)
        if has_body:
            await _discard_body(reader)


async def _send_response(
    writer: asyncio.StreamWriter, response: HttpResponse, *, head_only: bool
) -> None:
    writer.transport.set_write_buffer_limits(0)  # drain waits until the kernel has everything
    async with asyncio.timeout(RESPONSE_TIMEOUT):
        writer.write(encode_response(response, head_only=head_only))
        await writer.drain()
    writer.write_eof()


async def _discard_body(reader: asyncio.StreamReader) -> None:
    remaining = LINGER_BYTES
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(LINGER_SECONDS):
            while remaining > 0 and (part := await reader.read(1 << 16)):
                remaining -= len(part)


def _open_socket(host: str, port: int) -> socket.socket:
    resolved = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    family, _, _, _, address = resolved[0]
    return socket.create_server(address[:2], family=family, backlog=128)
