"""HTTP/1.1 as far as this port needs it (RFC 9112): a request's head, a whole response.

One request on each connection: who reads metrics comes every few seconds, and a connection that
is kept would be one more thing to bound.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from http import HTTPStatus
from urllib.parse import parse_qs, urlsplit

TEXT = "text/plain; charset=utf-8"


@dataclass(frozen=True)
class Request:
    method: str
    path: str
    query: Mapping[str, list[str]]
    headers: Mapping[str, str]
    """By name in lower case; of several with a name, joined by commas."""

    @property
    def has_body(self) -> bool:
        return "content-length" in self.headers or "transfer-encoding" in self.headers


@dataclass(frozen=True)
class Response:
    status: HTTPStatus
    content: bytes
    kind: str = TEXT
    headers: Mapping[str, str] = field(default_factory=dict)


def parse(head: bytes) -> Request:
    """Raises ValueError when it is no head of a request."""
    lines = head.decode("latin-1").split("\r\n")
    method, target, version = lines[0].split(" ")
    if not version.startswith("HTTP/1.") or not method.isalpha():
        raise ValueError("not HTTP/1.1")
    if not target.startswith("/"):
        raise ValueError("not a path")
    parts = urlsplit(target)
    headers: dict[str, str] = {}
    for line in lines[1:]:
        if not line:
            continue
        name, colon, value = line.partition(":")
        if not colon or name != name.strip():
            raise ValueError("not a header")
        name = name.lower()
        headers[name] = ",".join(filter(None, [headers.get(name), value.strip()]))
    return Request(method, parts.path, parse_qs(parts.query, max_num_fields=100), headers)


def encode(response: Response, *, head_only: bool = False) -> bytes:
    headers = {
        "Content-Type": response.kind,
        "Content-Length": str(len(response.content)),
        "Cache-Control": "no-store",
        "X-Content-Type-Options": "nosniff",
        "Connection": "close",
        **response.headers,
    }
    lines = [f"HTTP/1.1 {response.status.value} {response.status.phrase}"]
    lines += [f"{name}: {value}" for name, value in headers.items()]
    head = "\r\n".join([*lines, "", ""]).encode("latin-1")
    return head if head_only else head + response.content


def error(status: HTTPStatus, text: str, **headers: str) -> Response:
    return Response(status, f"{text}\n".encode(), headers=headers)
