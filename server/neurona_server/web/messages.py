"""Requests and responses of the HTTP server, and what their headers negotiate.

The parser of requests is that of httptools; `connection` makes a request of what it reads.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from http import HTTPStatus
from typing import NamedTuple, Protocol
from urllib.parse import parse_qs, unquote_to_bytes

PLAIN_TEXT = "text/plain; charset=utf-8"

MAX_QUERY_FIELDS = 100

HeaderFields = Sequence[tuple[str, str]]
"""Headers in their order: pairs of a name in lower case and a value."""


class BodyReader(Protocol):
    """Reads the body of one request."""

    async def read(self, limit: int) -> bytes:
        """Return the whole body, once all of it has arrived.

        Raises:
            TooLargeError: It has more than `limit` bytes. What was received is dropped.
        """


class RequestTarget(NamedTuple):
    """The parts of a request's target."""

    path: str
    """As it was sent."""
    query: str
    authority: str
    """HOST:PORT of an absolute target, else ""."""


class HttpRequest:
    """A request whose head has arrived. Only the server's thread may use it."""

    def __init__(
        self,
        method: str,
        target: RequestTarget,
        fields: HeaderFields,
        peer: str,
        body: BodyReader | None = None,
    ) -> None:
        self.method = method
        self.raw_path = target.path
        """The path as it was sent, with escaped characters."""
        self.path = decode_segment(target.path)
        self.fields = fields
        self.peer = peer
        """The caller's address and port, as "127.0.0.1:40000"."""
        self._target = target
        self._body = body
        self.on_disconnect: Callable[[], None] | None = None
        """Called if the caller leaves before the response is complete; its handler is cancelled."""
        self.on_end: Callable[[], None] | None = None
        """Called once the response is sent, or not needed any more."""

    @cached_property
    def headers(self) -> Mapping[str, str]:
        """The headers by name in lower case; several with the same name are joined by commas."""
        headers: dict[str, str] = {}
        for name, value in self.fields:
            headers[name] = f"{headers[name]},{value}" if name in headers else value
        return headers

    @property
    def host(self) -> str:
        """The requested host, with its port if there is one; "" if the request names none."""
        return self._target.authority or self.headers.get("host", "")

    @cached_property
    def query(self) -> Mapping[str, list[str]]:
        """The fields of the query.

        Raises:
            ValueError: There are more than MAX_QUERY_FIELDS.
        """
        query = self._target.query
        return parse_qs(query, max_num_fields=MAX_QUERY_FIELDS) if query else {}

    @property
    def content_length(self) -> int | None:
        """The announced bytes of the body; None if it is sent in chunks of any number."""
        if "transfer-encoding" in self.headers:
            return None
        return int(self.headers.get("content-length", "0") or "0")

    async def body(self, limit: int) -> bytes:
        """Return the whole body, once all of it has arrived.

        Raises:
            TooLargeError: It has more than `limit` bytes.
        """
        return b"" if self._body is None else await self._body.read(limit)


@dataclass(frozen=True)
class HttpResponse:
    """A response with its whole content."""

    status: HTTPStatus
    content: bytes = b""
    content_type: str = PLAIN_TEXT
    headers: Mapping[str, str] = field(default_factory=dict)


def decode_segment(raw: str) -> str:
    """Decode a path or a segment of one. Bytes that are not UTF-8 are replaced."""
    return unquote_to_bytes(raw).decode(errors="replace") if "%" in raw else raw


def error_response(status: HTTPStatus, text: str, **headers: str) -> HttpResponse:
    """Make a response with a line of plain text."""
    return HttpResponse(status, f"{text}\n".encode(), headers=headers)


def encode_headers(response: HttpResponse) -> list[tuple[bytes, bytes]]:
    """Return the headers of a response, the ones that every response has included."""
    headers = {
        "Content-Type": response.content_type,
        "Content-Length": str(len(response.content)),
        "Cache-Control": "no-store",
        "X-Content-Type-Options": "nosniff",
        **response.headers,
    }
    return [(name.encode("latin-1"), value.encode("latin-1")) for name, value in headers.items()]


def prefers_openmetrics(accept: str) -> bool:
    """Return whether a header Accept prefers OpenMetrics to plain text."""
    return 0.0 < _quality(accept, "application/openmetrics-text") >= _quality(accept, "text/plain")


def accepts_encoding(accept_encoding: str, encoding: str) -> bool:
    """Return whether a header Accept-Encoding accepts an encoding, by name or as `*`."""
    names = [part.partition(";")[0].strip().lower() for part in accept_encoding.split(",")]
    return _quality(accept_encoding, encoding if encoding in names else "*") > 0.0


def _quality(header: str, *names: str) -> float:
    """Return the highest quality value of any of `names`, 0.0 (not accepted) to 1.0.

    Parameters other than q are ignored. A value that cannot be parsed counts as 0.0.
    """
    best = 0.0
    for part in header.split(","):
        name, *parameters = [piece.strip().lower() for piece in part.split(";")]
        if name in names:
            values = [one[2:] for one in parameters if one.startswith("q=")]
            best = max(best, _parse_quality(values[0]) if values else 1.0)
    return best


def _parse_quality(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        return 0.0
    return value if 0.0 <= value <= 1.0 else 0.0
