"""HTTP/1.1 as far as this port needs it (RFC 9112): a request's head, a whole response.

One request on each connection: who reads metrics comes every few seconds, and a connection that
is kept would be one more thing to bound.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from http import HTTPStatus
from urllib.parse import parse_qs


def quality(header: str, *names: str) -> float:
    """How much it wants the best of `names`, 0.0 to 1.0; 0.0: not at all.

    Parameters other than q are passed over. A value that cannot be read counts as 0.0.
    """
    best = 0.0
    for part in header.split(","):
        name, *parameters = [piece.strip().lower() for piece in part.split(";")]
        if name in names:
            wanted = [one[2:] for one in parameters if one.startswith("q=")]
            best = max(best, _number(wanted[0]) if wanted else 1.0)
    return best


def wants_openmetrics(accept: str) -> bool:
    return 0.0 < quality(accept, "application/openmetrics-text") >= quality(accept, "text/plain")


def takes_gzip(accept_encoding: str) -> bool:
    named = [part.partition(";")[0].strip().lower() for part in accept_encoding.split(",")]
    return quality(accept_encoding, "gzip" if "gzip" in named else "*") > 0.0


def _number(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        return 0.0
    return value if 0.0 <= value <= 1.0 else 0.0


TEXT = "text/plain; charset=utf-8"

CONTROLS = re.compile(r"[\x00-\x08\x0a-\x1f\x7f]")
"""What no line may have in it: a proxy before us could see other lines than we do."""

REQUEST_LINE = re.compile(r"([A-Za-z]+) (?:http://[^/?#]+)?(/[^ ]*) HTTP/1\.[0-9]")
"""A target with a scheme and a host is for proxies, but must be understood (section 3.2.2)."""


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
    lines = head.decode("latin-1").removeprefix("\r\n").split("\r\n")
    found = REQUEST_LINE.fullmatch(lines[0])
    if found is None or any(map(CONTROLS.search, lines)):
        raise ValueError("not HTTP/1.1")
    method, target = found.groups()
    path, _, query = target.partition("#")[0].partition("?")
    headers: dict[str, str] = {}
    for line in lines[1:]:
        if not line:
            continue
        name, colon, value = line.partition(":")
        if not colon or name != name.strip():
            raise ValueError("not a header")
        name = name.lower()
        headers[name] = ",".join(filter(None, [headers.get(name), value.strip()]))
    return Request(method, path, parse_qs(query, max_num_fields=100), headers)


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
