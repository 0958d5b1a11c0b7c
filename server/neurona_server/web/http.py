"""The part of HTTP/1.1 (RFC 9112) that the metrics port needs: a request's head, and a response.

Each connection carries one request: metrics are read every few seconds, and connections that stay
open would have to be bounded too.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from http import HTTPStatus
from urllib.parse import parse_qs

PLAIN_TEXT = "text/plain; charset=utf-8"

MAX_QUERY_FIELDS = 100

_CONTROLS = re.compile(r"[\x00-\x08\x0a-\x1f\x7f]")
"""Characters that no line may contain: a proxy before us could split lines differently."""

_REQUEST_LINE = re.compile(r"([A-Za-z]+) (?:http://([^/?#]+))?(/[^ ]*) HTTP/1\.[0-9]")
"""A target with a scheme and host is for proxies, but must be accepted (section 3.2.2)."""


@dataclass(frozen=True)
class HttpRequest:
    """The head of a request."""

    method: str
    path: str
    query: Mapping[str, list[str]]
    headers: Mapping[str, str]
    """By name in lower case; several with the same name are joined by commas."""

    host: str = ""
    """The requested host, with its port if there is one; "" if the request names none."""

    @property
    def has_body(self) -> bool:
        return "content-length" in self.headers or "transfer-encoding" in self.headers


@dataclass(frozen=True)
class HttpResponse:
    """A response with its whole content."""

    status: HTTPStatus
    content: bytes
    content_type: str = PLAIN_TEXT
    headers: Mapping[str, str] = field(default_factory=dict)


def parse_request(head: bytes) -> HttpRequest:
    """Parse the head of a request.

    Raises:
        ValueError: It is not a valid head of an HTTP/1.1 request.
    """
    lines = head.decode("latin-1").removeprefix("\r\n").split("\r\n")
    match = _REQUEST_LINE.fullmatch(lines[0])
    if match is None or any(map(_CONTROLS.search, lines)):
        raise ValueError("invalid request line")
    method, authority, target = match.groups()
    path, _, query = target.partition("#")[0].partition("?")
    headers: dict[str, str] = {}
    for line in lines[1:]:
        if not line:
            continue
        name, colon, value = line.partition(":")
        if not colon or name != name.strip():
            raise ValueError("invalid header")
        name = name.lower()
        if name == "host" and name in headers:
            raise ValueError("several hosts")
        headers[name] = ",".join(filter(None, [headers.get(name), value.strip()]))
    fields = parse_qs(query, max_num_fields=MAX_QUERY_FIELDS)
    # That of the target takes precedence (section 3.2.2).
    return HttpRequest(method, path, fields, headers, authority or headers.get("host", ""))


def encode_head(response: HttpResponse) -> bytes:
    """Encode the head of a response, which its content follows."""
    headers = {
        "Content-Type": response.content_type,
        "Content-Length": str(len(response.content)),
        "Cache-Control": "no-store",
        "X-Content-Type-Options": "nosniff",
        "Connection": "close",
        **response.headers,
    }
    lines = [f"HTTP/1.1 {response.status.value} {response.status.phrase}"]
    lines += [f"{name}: {value}" for name, value in headers.items()]
    return "\r\n".join([*lines, "", ""]).encode("latin-1")


def error_response(status: HTTPStatus, text: str, **headers: str) -> HttpResponse:
    """Make a response with a line of plain text."""
    return HttpResponse(status, f"{text}\n".encode(), headers=headers)


def prefers_openmetrics(accept: str) -> bool:
    """Return whether a header Accept prefers OpenMetrics to plain text."""
    return 0.0 < _quality(accept, "application/openmetrics-text") >= _quality(accept, "text/plain")


def accepts_gzip(accept_encoding: str) -> bool:
    """Return whether a header Accept-Encoding accepts gzip, by name or as `*`."""
    names = [part.partition(";")[0].strip().lower() for part in accept_encoding.split(",")]
    return _quality(accept_encoding, "gzip" if "gzip" in names else "*") > 0.0


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
