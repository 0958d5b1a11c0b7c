"""One connection of the HTTP server: uvicorn's protocol on httptools, with bounds.

uvicorn reads requests, keeps connections alive, queues pipelined requests and writes responses. Its
only bound is that of the time between two requests. What is here are the others: bytes and seconds
for a head, a rate for a body and for a response, requests in the pipeline, and what is discarded of
a request that was answered before it had arrived: closing a socket with unread data would reset the
connection, and the response would be lost.
"""

import asyncio
import re
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial
from http import HTTPStatus
from typing import Any, Protocol

import httptools
from uvicorn.config import Config
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle
from uvicorn.server import ServerState

from neurona_server.errors import TooLargeError
from neurona_server.web.messages import (
    HeaderFields,
    HttpRequest,
    HttpResponse,
    RequestTarget,
    encode_headers,
    error_response,
)

PART_BYTES = 1 << 16
"""Bytes of a response that are copied for one connection at a time."""

UNREAD_BODY_BYTES = 1 << 16
"""Bytes of a body that are received before its handler asks for it."""

SMALL_CHUNK_BYTES = 4 << 10
"""Parts of a body that are smaller than this are joined as they arrive."""

LINGER_SECONDS, LINGER_BYTES = 1.0, 1 << 20
"""Bounds for discarding what arrives after the last response."""

_TARGET = re.compile(r"(?:https?://([^/?#]+))?(/[^?#]*)?(?:\?([^#]*))?(?:#.*)?", re.DOTALL)
"""A target with a scheme and host is for proxies, but must be accepted (RFC 9112, 3.2.2)."""

_CONTROLS = re.compile(r"[\x00-\x08\x0a-\x1f\x7f]")
"""Characters that no header may contain: a proxy before us could split lines differently."""


@dataclass
class HttpLimits:
    """The bounds of a server's connections. Times are in seconds."""

    max_connections: int = 64
    """One more closes another one, as soon as that had its time (`crowd_...`), and waits in the
    kernel until then."""
    max_head_bytes: int = 16 << 10
    """Bytes of a request line and its headers."""
    max_pipelined: int = 8
    """Requests that wait for the response to an earlier one of their connection."""
    head_timeout: float = 5.0
    """Time for a head to arrive, and for the handshake of TLS."""
    body_grace: float = 10.0
    """Time for a body to arrive, and for a response to be read, besides that of `min_rate`."""
    min_rate: float = 64 << 10
    """Bytes per second that a caller has to send or read on average."""
    response_timeout: float = 30.0
    """Time for a response to be made."""
    idle_timeout: float = 75.0
    """Time between two requests; 0: one request per connection."""
    crowd_head_seconds: float = 0.25
    """Time in a crowd for a head to arrive; afterwards the connection makes room for others."""
    crowd_answer_seconds: float = 5.0
    """Time in a crowd for a body to arrive and for a response to be made."""
    crowd_send_seconds: float = 1.0
    """Time in a crowd for a response to be read."""


Application = Callable[[HttpRequest], Awaitable[HttpResponse]]
"""Answers a request. It raises nothing, and is cancelled if the caller leaves."""


class ConnectionOwner(Protocol):
    """The server of a connection."""

    config: Config
    state: ServerState
    limits: HttpLimits
    application: Application
    closes_connections: bool
    """Whether every response is the last one of its connection."""

    def add(self, connection: "Connection") -> None:
        """Count a connection that is served now."""

    def remove(self, connection: "Connection") -> None:
        """Remove a connection that has ended."""


class _Body:
    """The body of a request, as far as it has arrived."""

    cycle: RequestResponseCycle

    def __init__(self) -> None:
        self.parts: list[bytes | bytearray] = []
        self.size = 0
        self.announced_size: int | None = 0
        self.limit: int | None = None  # None: no handler has asked for it
        self.is_complete = False

    def append(self, data: bytes) -> None:
        """Add data. Small chunks are joined: as objects of Python they take 20 times the memory."""
        if self.parts and len(data) < SMALL_CHUNK_BYTES:
            last = self.parts[-1]
            if isinstance(last, bytearray) and len(last) < PART_BYTES:
                last += data
            else:
                self.parts.append(bytearray(data))
        else:
            self.parts.append(data)

    async def read(self, limit: int) -> bytes:
        """See `BodyReader`."""
        self.limit = limit
        if max(self.size, self.announced_size or 0) <= limit:
            # This sends 100 Continue if the caller waits for that, and resumes reading.
            message = await self.cycle.receive()
            if message["type"] == "http.disconnect":
                raise asyncio.CancelledError
        if (size := max(self.size, self.announced_size or 0)) > limit:
            self.parts.clear()
            at_least = "" if self.announced_size else "at least "
            raise TooLargeError(f"the body has {at_least}{size} bytes (expected at most {limit})")
        parts = self.parts
        content = parts[0] if len(parts) == 1 and isinstance(parts[0], bytes) else b"".join(parts)
        self.parts.clear()
        return content


class Connection(HttpToolsProtocol):
    """A connection, from the moment it was accepted."""

    def __init__(self, server: "ConnectionOwner") -> None:
        super().__init__(server.config, server.state, {})
        self.access_log = False
        self.overdue_at = self.ends_at = 0.0
        """The times from which it makes room for another connection, and at which it ends."""
        self.closes = False
        """Whether the last response was written."""
        self._server = server
        self._limits = server.limits
        self._peer = ""
        self._raw: asyncio.Transport
        self._receiving: _Body | None = None  # of the request whose head was the last to arrive
        self._refuses = False  # whether further data are discarded
        self._discarded_bytes = 0
        self._head_bytes = self._field_bytes = 0
        self._is_draining = False
        self._leaves_at = 0.0  # while it drains: the time at which it is closed if it is idle
        self._has_requested = False
        self._active: tuple[asyncio.Task[Any], HttpRequest] | None = None
        self._begin_head()

    # What uvicorn's protocol does, with bounds:

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        self._raw = transport
        # So drain waits until the kernel has everything. With 0, that of TLS would wait for ever.
        transport.set_write_buffer_limits(high=1, low=0)
        super().connection_made(_Transport(transport, self))  # type: ignore[arg-type]
        address = transport.get_extra_info("peername")
        self._peer = f"{address[0]}:{address[1]}" if isinstance(address, tuple) else ""
        self._server.add(self)

    def connection_lost(self, exc: Exception | None) -> None:
        self.closes = True
        self._server.remove(self)
        super().connection_lost(exc)
        self.pipeline.clear()
        self._cancel()

    def data_received(self, data: bytes) -> None:
        if self.closes or self._refuses:
            self._discard(len(data))
            return
        self._unset_keepalive_if_required()
        if self._receiving is None:
            self._head_bytes += len(data)
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            self._end()  # the request is answered as one that had not asked for another protocol
        except httptools.HttpParserError as error:
            too_large = isinstance(error.__context__, _HeadTooLargeError)
            self._end(_head_too_large(self._limits) if too_large else _MALFORMED)
        else:
            if self._receiving is None and self._head_bytes > self._limits.max_head_bytes:
                self._end(_head_too_large(self._limits))

    def on_message_begin(self) -> None:
        if self._is_draining or len(self.pipeline) >= self._limits.max_pipelined:
            raise _UnexpectedRequestError
        super().on_message_begin()
        self._has_requested = True
        self._field_bytes = 0
        if self._is_idle:
            self._begin_head()

    def on_url(self, url: bytes) -> None:
        super().on_url(url)
        self._field_bytes += len(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        self._field_bytes += len(name) + len(value)
        if self._receiving is not None:  # it follows the body, and nothing needs it
            if self._field_bytes > self._limits.max_head_bytes:
                raise _HeadTooLargeError
            return
        super().on_header(name, value)

    def on_headers_complete(self) -> None:
        if self._field_bytes > self._limits.max_head_bytes:
            raise _HeadTooLargeError
        if self.parser.get_http_version() not in ("1.0", "1.1"):
            raise ValueError("unknown version")
        body = _Body()
        request = HttpRequest(
            self.parser.get_method().decode("ascii"),
            _parse_target(self.url.decode("latin-1")),
            _decode_fields(self.headers),
            self._peer,
            body,
        )
        body.announced_size = request.content_length
        was_idle = self._is_idle
        self.url = b"/"  # it has been read
        self.app = partial(self._answer, request, body)
        super().on_headers_complete()
        if not was_idle and len(self.pipeline) < self._limits.max_pipelined:
            # It would be read later. But only who reads learns that the caller has left.
            self.flow.resume_reading()
        body.cycle = self.cycle
        if not self._limits.idle_timeout or self._server.closes_connections:
            self.cycle.keep_alive = False
        self._receiving = body
        if was_idle:
            now = self.loop.time()
            limits = self._limits
            self._set_times(now + limits.crowd_answer_seconds, now + limits.body_grace)

    def on_body(self, body: bytes) -> None:
        receiving = self._receiving
        if receiving is None or self.cycle.response_complete:
            self._discard(len(body))
            return
        receiving.size += len(body)
        if receiving.limit is not None and receiving.size > receiving.limit:
            receiving.parts.clear()
            self.cycle.message_event.set()
            self.flow.pause_reading()
            return
        receiving.append(body)
        seconds = len(body) / self._limits.min_rate
        self._set_times(self.overdue_at + seconds, self.ends_at + seconds)
        if receiving.limit is None and receiving.size > UNREAD_BODY_BYTES:
            self.flow.pause_reading()

    def on_message_complete(self) -> None:
        super().on_message_complete()
        if self._receiving is not None:
            self._receiving.is_complete = True
            self._receiving = None
        self._head_bytes = 0
        if not self.pipeline and not self.cycle.response_complete:
            self._begin_answer()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._unset_keepalive_if_required()  # `ends_at` bounds the time between two requests
        if self.closes:
            return
        if self._is_idle:
            now = self.loop.time()
            self._set_times(now, now + self._limits.idle_timeout)
        else:
            self._begin_answer()  # to the next one in the pipeline

    def resume_writing(self) -> None:
        super().resume_writing()
        if self.closes:
            self._begin_linger()

    # What the server uses:

    def abort(self) -> None:
        """End the connection at once."""
        self.closes = True
        self._raw.abort()

    def drain(self) -> None:
        """End the connection once the requests that have arrived are answered."""
        if not self._has_requested:  # its request may be in the kernel, and has a moment to arrive
            self.ends_at = min(self.ends_at, self.overdue_at)
        elif self._is_idle:  # the next one may be on its way, too
            now = self.loop.time()
            self._leaves_at = self._leaves_at or now + self._limits.crowd_head_seconds
            if now >= self._leaves_at:
                self.close()
        else:
            self._is_draining = True
            self.cycle.keep_alive = False

    def close(self) -> None:
        """Close the connection after what was written; discard what the caller still sends."""
        if self.closes:
            return
        self.closes = True
        if self._refuses:
            if self._raw.can_write_eof():
                self._raw.write_eof()
            self.flow.resume_reading()
            if not self._raw.get_write_buffer_size():
                self._begin_linger()
        else:
            self._raw.close()

    @property
    def _is_idle(self) -> bool:
        return self.cycle is None or self.cycle.response_complete

    async def _answer(
        self, request: HttpRequest, body: _Body, _scope: Any, _receive: Any, send: Any
    ) -> None:
        """Answer a request: the application that uvicorn calls, as a task."""
        cycle, task = body.cycle, asyncio.current_task()
        assert task is not None  # noqa: S101  for the type checker
        self._active = task, request
        try:
            if not cycle.disconnected:
                response = await self._server.application(request)
                await self._send(request, response, body, send)
        except asyncio.CancelledError:
            pass  # the caller has left
        finally:
            self._active = None
            if request.on_end is not None:
                request.on_end()
            if not cycle.response_complete:
                cycle.disconnected = True
                self.close()

    async def _send(
        self, request: HttpRequest, response: HttpResponse, body: _Body, send: Any
    ) -> None:
        content = memoryview(response.content)
        headers = encode_headers(response)
        if not body.is_complete:
            self._refuses = True
            headers.append((b"connection", b"close"))
        now = self.loop.time()
        limits = self._limits
        seconds = limits.body_grace + len(content) / limits.min_rate
        self._set_times(now + limits.crowd_send_seconds, now + seconds)
        start = {"type": "http.response.start", "status": response.status, "headers": headers}
        if request.method != "HEAD":  # else nothing follows
            self.transport.hold_next()  # type: ignore[attr-defined]
        await send(start)
        for position in range(0, max(1, len(content)), PART_BYTES):
            part = content[position : position + PART_BYTES]
            more = position + PART_BYTES < len(content)
            await send({"type": "http.response.body", "body": part, "more_body": more})

    def _end(self, error: HttpResponse | None = None) -> None:
        """Accept no further request; answer what was received with an `error`, if it was wrong."""
        self._refuses = True
        receiving, self._receiving = self._receiving, None
        if receiving is not None:  # its body is wrong
            receiving.cycle.disconnected = True
            receiving.cycle.message_event.set()
            if receiving.cycle.response_started or self.pipeline:
                return  # `_answer` closes the connection
            self._cancel()
        elif not self._is_idle:
            self.cycle.keep_alive = False
            return
        if error is not None:
            headers = encode_headers(error)
            lines = [b"HTTP/1.1 %d %s" % (error.status, error.status.phrase.encode())]
            lines += [b"%s: %s" % field for field in headers]
            self._raw.write(b"\r\n".join([*lines, b"connection: close", b"", error.content]))
        self.close()

    def _cancel(self) -> None:
        """Cancel the task that answers a request, because its caller has left."""
        if self._active is None:
            return
        task, request = self._active
        if (on_disconnect := request.on_disconnect) is not None:
            on_disconnect()
        task.cancel()

    def _discard(self, size: int) -> None:
        self._discarded_bytes += size
        if self._discarded_bytes > LINGER_BYTES:
            self.flow.pause_reading()

    def _begin_head(self) -> None:
        now, limits = self.loop.time(), self._limits
        self._set_times(now + limits.crowd_head_seconds, now + limits.head_timeout)

    def _begin_answer(self) -> None:
        now, limits = self.loop.time(), self._limits
        self._set_times(now + limits.crowd_answer_seconds, now + limits.response_timeout)

    def _begin_linger(self) -> None:
        now = self.loop.time()
        self._set_times(now + LINGER_SECONDS, now + LINGER_SECONDS)

    def _set_times(self, overdue_at: float, ends_at: float) -> None:
        self.overdue_at, self.ends_at = overdue_at, ends_at


class _Transport:
    """What uvicorn writes to: the head of a response with its first part, and no early close."""

    def __init__(self, raw: asyncio.Transport, connection: Connection) -> None:
        self.get_extra_info = raw.get_extra_info
        self.pause_reading = raw.pause_reading
        self.resume_reading = raw.resume_reading
        self.close = connection.close
        self._raw = raw
        self._connection = connection
        self._holds_next = False
        self._held = b""

    def hold_next(self) -> None:
        """Write the next data together with those after them: a system call less."""
        self._holds_next = True

    def write(self, data: bytes | memoryview) -> None:
        if self._holds_next:
            self._holds_next = False
            self._held = bytes(data)
        elif self._held:
            held, self._held = self._held, b""
            self._raw.write(held + data)
        else:
            self._raw.write(data)

    def is_closing(self) -> bool:
        return self._connection.closes or self._raw.is_closing()


class _HeadTooLargeError(Exception):
    """A request line and its headers are too large."""


class _UnexpectedRequestError(Exception):
    """The connection accepts no further request."""


_MALFORMED = error_response(HTTPStatus.BAD_REQUEST, "malformed request (expected HTTP/1.1)")


def _head_too_large(limits: HttpLimits) -> HttpResponse:
    text = f"request head too large (expected at most {limits.max_head_bytes} bytes)"
    return error_response(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, text)


def _parse_target(target: str) -> RequestTarget:
    match = _TARGET.fullmatch(target)
    if match is None or not (match[1] or match[2]):
        raise ValueError("invalid target")
    return RequestTarget(match[2] or "/", match[3] or "", match[1] or "")


def _decode_fields(headers: list[tuple[bytes, bytes]]) -> HeaderFields:
    """Return the headers; raise ValueError if one is invalid."""
    fields = [
        (name.decode("latin-1"), value.decode("latin-1").strip(" \t")) for name, value in headers
    ]
    if sum(name == "host" for name, _ in fields) > 1:
        raise ValueError("several hosts")
    if any(_CONTROLS.search(value) for _, value in fields):
        raise ValueError("control character")
    if any(name == "transfer-encoding" and value.lower() != "chunked" for name, value in fields):
        raise ValueError("unknown transfer coding")
    return fields
