"""The port itself: connections, and what bounds them.

A loop of asyncio in a thread of its own. It is not the transport's, whose callers it must neither
wait for nor disturb: when all is busy, operators need this port most.
"""

import asyncio
import contextlib
import logging
import socket
import threading
from collections.abc import Callable
from functools import partial
from http import HTTPStatus

from prometheus_client import CollectorRegistry

from neurona_server.errors import ConfigError
from neurona_server.web.endpoints import Choose, Endpoints, FilteredCollector
from neurona_server.web.http import Response, encode, error, parse

log = logging.getLogger(__name__)

MAX_HEAD = 16 << 10
"""Bytes of a request line and its headers."""

MAX_CONNECTIONS = 64
"""One more, and the oldest that has not sent its request yet makes room."""

HEAD_SECONDS = 5.0
"""For a request to arrive in."""

ANSWER_SECONDS = 30.0
"""For a page to be written and read in."""

LAST_TURNS = 10
"""Of the loop, in which a connection that has just come is known, ended and closed."""

LINGER_SECONDS, LINGER_BYTES = 1.0, 1 << 20
"""For a body that nobody wants: a connection that is closed on one takes the answer with it."""


class MetricsServer:
    def __init__(
        self,
        address: str,
        registry: CollectorRegistry,
        state: Callable[[], str],
        choose: Choose | None = None,
    ) -> None:
        """Listens at once. `state` and `choose` as those of `Endpoints`; without the latter all is
        collected and most of it thrown away. Raises ConfigError when the address is taken."""
        host, _, port = address.rpartition(":")
        host = host.strip("[]")
        try:
            self._socket = _listen(host, int(port))
        except OSError as raised:
            raise ConfigError(
                f"cannot serve metrics on {host}:{port}: {raised.strerror}"
            ) from raised
        self.port: int = self._socket.getsockname()[1]
        self._paths = Endpoints(registry, state, choose or partial(FilteredCollector, registry))
        self._end = asyncio.Event()
        # Those that wait for a request, the oldest first, and all of them.
        self._silent: dict[asyncio.Task[None], None] = {}
        self._all: dict[asyncio.Task[None], None] = {}
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, name="metrics port", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Answers nobody any more. A second call does nothing."""
        if self._thread.is_alive():
            with contextlib.suppress(RuntimeError):  # it ends by itself
                self._loop.call_soon_threadsafe(self._end.set)
            self._thread.join()

    def _run(self) -> None:
        with contextlib.closing(self._loop):
            self._loop.run_until_complete(self._listen())

    async def _listen(self) -> None:
        server = await asyncio.start_server(self._connected, sock=self._socket, limit=MAX_HEAD)
        await self._end.wait()
        # A server that is closed forgets connections that it has just accepted, and they stay
        # open: it accepts no more at first.
        self._loop.remove_reader(self._socket)
        for _ in range(LAST_TURNS):
            for task in list(self._all):
                task.cancel()
            await asyncio.sleep(0)
        server.close()
        await asyncio.sleep(0)

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None  # noqa: S101  for the type checker
        if len(self._all) >= MAX_CONNECTIONS:
            oldest = next(iter(self._silent or self._all))
            self._silent.pop(oldest, None)
            oldest.cancel()
        self._silent[task] = self._all[task] = None
        try:
            await self._serve(task, reader, writer)
        except asyncio.CancelledError:
            return  # another one needs the room, or the port is closed
        except (OSError, TimeoutError, asyncio.IncompleteReadError):
            return  # the caller is gone, or too slow
        finally:
            self._silent.pop(task, None)
            del self._all[task]
            writer.transport.abort()  # what is sent is sent by now

    async def _serve(
        self,
        task: asyncio.Task[None],
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
    ) -> None:
        head_only, has_body = False, True
        try:
            async with asyncio.timeout(HEAD_SECONDS):
                head = await reader.readuntil(b"\r\n\r\n")
            self._silent.pop(task, None)
            request = parse(head)
        except asyncio.LimitOverrunError:
            text = f"expected at most {MAX_HEAD} bytes"
            response = error(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, text)
        except ValueError:
            response = error(HTTPStatus.BAD_REQUEST, "expected a request of HTTP/1.1")
        else:
            head_only, has_body = request.method == "HEAD", request.has_body
            async with asyncio.timeout(ANSWER_SECONDS):
                response = await self._paths.answer(request)
        await _send(writer, response, head_only=head_only)
        if has_body:
            await _discard(reader)


async def _send(writer: asyncio.StreamWriter, response: Response, *, head_only: bool) -> None:
    writer.transport.set_write_buffer_limits(0)  # drained is what the system has
    async with asyncio.timeout(ANSWER_SECONDS):
        writer.write(encode(response, head_only=head_only))
        await writer.drain()
    writer.write_eof()


async def _discard(reader: asyncio.StreamReader) -> None:
    left = LINGER_BYTES
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(LINGER_SECONDS):
            while left > 0 and (part := await reader.read(1 << 16)):
                left -= len(part)


def _listen(host: str, port: int) -> socket.socket:
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    family, _, _, _, place = found[0]
    return socket.create_server(place[:2], family=family, backlog=128)
