"""The paths of the playground: the page at /, its files, and what it may know of the server.

The page calls neurona.v1 as JSON, with the token that a person gives it. So its own files need none
and have no secret: they are the same for everybody. Each file is a route by itself, so that no path
of a request becomes a path of the file system.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from http import HTTPStatus
from importlib import resources
from pathlib import Path

from neurona_server.http.routing import ApiRequest, Handler, Route
from neurona_server.web.messages import HttpResponse, error_response

ROOT = "/playground/"
"""The path below which the files of the page are."""

PROTO_PATH = f"{ROOT}prediction.proto"

CONTENT_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
}

POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src 'self' blob: data:; media-src 'self' blob:; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types 'none'"
)
"""Its Content-Security-Policy: no file of another server, and no markup made from text."""

HEADERS: Mapping[str, str] = {
    "Content-Security-Policy": POLICY,
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "microphone=(self), camera=(), geolocation=()",
    "Referrer-Policy": "no-referrer",
    "X-Frame-Options": "DENY",
}


@dataclass(frozen=True)
class ServerPort:
    """Where another part of the server listens."""

    host: str
    """As configured, so also "0.0.0.0"."""
    port: int
    tls: bool = False


@dataclass(frozen=True)
class ServerFacts:
    """What the page says of the server to everybody who opens it."""

    grpc: ServerPort | None
    """None: gRPC has no TCP port."""
    metrics: ServerPort | None
    """That of the status page; None: there is none."""
    tokens: bool
    """Whether calls need a token."""
    version: str = ""
    """Of this package; "" keeps it from callers that have no token."""
    openapi: str = ""
    """The path of the OpenAPI description; "" if there is none."""


def server_port(address: str, bound_port: int, *, tls: bool = False) -> ServerPort | None:
    """Return where a part of the server listens.

    Args:
        address: Its configured HOST:PORT; "": it has no port.
        bound_port: The port that it has if the configured one is 0; 0: unknown.
        tls: Whether it expects TLS.

    Returns:
        None if the port is unknown.
    """
    host, _, port = address.rpartition(":")
    number = int(port or 0) or bound_port
    return ServerPort(host, number, tls) if number else None


def playground_routes(facts: ServerFacts) -> list[Route]:
    """Return the routes of the page.

    Args:
        facts: What it may know of the server.

    Returns:
        Routes for / and for everything below /playground/.
    """
    links = [{"name": "OpenAPI", "path": facts.openapi}] if facts.openapi else []
    links.append({"name": "prediction.proto", "path": PROTO_PATH})
    document = {name: value for name, value in asdict(facts).items() if name != "openapi"}
    server = json.dumps({**document, "links": links}).encode()
    routes = [
        Route("GET", f"{ROOT}server.json", _sends(server, "application/json")),
        Route("GET", PROTO_PATH, _sends(_read_proto(), "text/plain; charset=utf-8")),
    ]
    for name, content in _read_files():
        path = "/" if name == "page.html" else ROOT + name
        routes.append(Route("GET", path, _sends(content, CONTENT_TYPES[Path(name).suffix])))
    return routes


def disabled_routes() -> list[Route]:
    """Return the route of / without the page, which says so."""

    async def answer(_: ApiRequest) -> HttpResponse:
        text = "the playground is off (expected the option playground)"
        return error_response(HTTPStatus.NOT_FOUND, text)

    return [Route("GET", "/", answer)]


def _sends(content: bytes, content_type: str) -> Handler:
    response = HttpResponse(HTTPStatus.OK, content, content_type, HEADERS)

    async def answer(_: ApiRequest) -> HttpResponse:
        return response

    return answer


def _read_files() -> Sequence[tuple[str, bytes]]:
    """Return name and content of each file of the page."""
    folder = resources.files(__package__) / "static"
    files = sorted(folder.iterdir(), key=lambda file: file.name)
    return [(file.name, file.read_bytes()) for file in files]


def _read_proto() -> bytes:
    """Return prediction.proto: installed beside its generated code, in a clone a folder above."""
    package = Path(str(resources.files("neurona_protos")))
    for folder in (package, package.parent):
        if (path := folder / "prediction.proto").is_file():
            return path.read_bytes()
    raise FileNotFoundError("prediction.proto is not installed")
