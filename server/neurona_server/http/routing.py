"""Routes: what a group of paths adds to the HTTP transport, and the requests that it gets.

A route is a method, a pattern of a path and a handler, a coroutine function that runs in the event
loop of the server:

    async def infer(request: ApiRequest) -> HttpResponse:
        model = request.params["model"]
        message = make_message(model, await request.body())
        answer = await request.call("/inference.GRPCInferenceService/ModelInfer", message)
        return HttpResponse(HTTPStatus.OK, make_json(answer), JSON)

    routes = [
        Route("POST", "/v2/models/{model}/infer", infer, Right.PREDICT, write_error=...),
        Route("GET", "/", page),
    ]

- `{name}` in a pattern is one segment of a path, decoded. A route for GET answers HEAD too.
- The right is checked before the handler is called, so before a body is received.
- `request.call` runs the function of a gRPC method, by its path, with a serialized message. It does
  not block: the handler waits as a coroutine, without a thread.
- A handler raises a NeuronaError for a request that it rejects; it becomes the response, as
  `write_error` of the route writes it. Any other exception is a bug: it is logged, and the caller
  gets the status 500 without its text.
- A handler is cancelled (asyncio.CancelledError) when its caller leaves, and so is the call that it
  waits for. It must not block: `request.work` runs what takes longer than a millisecond in a
  thread of the server's worker pool.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Protocol, TypeVar

from neurona_server.errors import forget_frames, quoted
from neurona_server.http.error_responses import (
    HttpError,
    NoRouteError,
    WriteError,
    write_json_error,
)
from neurona_server.http.operation import Operation
from neurona_server.rpc.call import BaseCall
from neurona_server.rpc.security.access import Grant, Right
from neurona_server.rpc.worker_pool import WorkerPool
from neurona_server.telemetry.trace import Metadata
from neurona_server.web.messages import HttpRequest, HttpResponse, decode_segment

Result = TypeVar("Result")


class RequestServices(Protocol):
    """What a request needs of its transport."""

    workers: WorkerPool

    async def receive_body(self, request: "ApiRequest", max_bytes: int | None) -> bytes:
        """See `ApiRequest.body`."""

    async def call(self, request: "ApiRequest", path: str, message: bytes) -> bytes:
        """See `ApiRequest.call`."""

    @property
    def post(self) -> Callable[[Callable[[], None]], None]:
        """Calls a function in the server's thread; from any thread."""


class ApiRequest(BaseCall):
    """A request of a route. Only its handler uses it, in the server's thread."""

    def __init__(
        self,
        transport: "RequestServices",
        request: HttpRequest,
        params: Mapping[str, str],
        deadline: float,
    ) -> None:
        super().__init__(request.fields, None)
        self.method = request.method
        self.path = request.path
        self.params = params
        """The segments of the path by their names in the route's pattern, decoded."""
        self.headers = request.headers
        """By name in lower case; several with the same name are joined by commas."""
        self.deadline = deadline
        """In seconds of the monotonic clock, inf if the caller set none."""
        self.grant: Grant
        """The rights of the caller."""
        self.timings: dict[str, str] = {}
        """Entries of the header Server-Timing: a name and its parameters, as "dur=1.5"."""
        self.response_headers: dict[str, str] = {}
        """Headers that the response gets in addition to those of the handler."""
        self.may_compress = True
        """Whether a large response is compressed if the caller accepts that."""
        self.charged_bytes = 0
        """Bytes of large messages that the budget counts for it."""
        self._transport = transport
        self.raw = request
        self.started = time.monotonic()

    @property
    def metadata(self) -> Metadata:
        """The headers as a call's metadata."""
        return self.raw.fields

    @property
    def query(self) -> Mapping[str, list[str]]:
        """The fields of the query. Raises HttpError."""
        try:
            return self.raw.query
        except ValueError as error:
            raise HttpError(HTTPStatus.BAD_REQUEST, f"invalid query: {error}") from None

    @property
    def content_length(self) -> int | None:
        """The announced bytes of the body as it is sent; None if it is sent in chunks."""
        return self.raw.content_length

    @property
    def host(self) -> str:
        """The requested host, with its port if there is one."""
        return self.raw.host

    async def body(self, max_bytes: int | None = None) -> bytes:
        """Return the whole body, decompressed.

        Args:
            max_bytes: Its maximum size; None: that of a message, the option max_message_bytes.

        Raises:
            TooLargeError: It is larger.
            BuffersFullError: The server has no room for it now (the option max_buffered_bytes).
            HttpError: It is compressed in another way than gzip or deflate, or is damaged.
        """
        return await self._transport.receive_body(self, max_bytes)

    async def call(self, path: str, message: bytes) -> bytes:
        """Call the function of a gRPC method, with the caller's token, deadline and trace.

        Args:
            path: That of the method, as "/neurona.v1.Prediction/Predict".
            message: The serialized request message.

        Returns:
            The serialized response message.

        Raises:
            NeuronaError: The call has failed, as it would over gRPC.
        """
        return await self._transport.call(self, path, message)

    async def work(self, function: Callable[[], Result], nbytes: int) -> Result:
        """Run a function that takes long, of `nbytes` of a message, in a worker's thread.

        Raises:
            QueueFullError: Too many bytes are waiting for the workers.
            Exception: What the function raises.
        """
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Result] = loop.create_future()

        def finish(result: Result | None, error: Exception | None) -> None:
            if future.done():  # the caller has left
                if error is not None:
                    forget_frames(error)
                return
            if error is not None:
                future.set_exception(error)
            else:
                future.set_result(result)  # type: ignore[arg-type]  # of this type, maybe None

        def run() -> None:
            if future.cancelled():
                return
            result, failure = None, None
            try:
                result = function()
            except Exception as error:  # raised again where the result is awaited
                failure = error
            self._transport.post(lambda: finish(result, failure))

        self._transport.workers.submit(run, nbytes)
        return await future


Handler = Callable[[ApiRequest], Awaitable[HttpResponse]]


@dataclass(frozen=True)
class Route:
    """The handler of one method and one pattern of paths; see the module's docstring."""

    method: str
    pattern: str
    handler: Handler
    right: Right | None = None
    """The right that a caller needs where there are tokens; None: everybody may call it."""
    write_error: WriteError = write_json_error
    any_host: bool = False
    """Whether requests for any host are answered: it tells a web page nothing."""
    operation: Operation | None = None
    """What the OpenAPI document says of it; None: what its path says."""


@dataclass
class _PathNode:
    """What follows a part of a path."""

    children: dict[str, "_PathNode"] = field(default_factory=dict)
    """By the next segment."""
    parameter: "_PathNode | None" = None
    """Of any other segment."""
    routes: dict[str, tuple[Route, tuple[str, ...]]] = field(default_factory=dict)
    """By method, with the names of the parameters, if the path ends here."""


class Router:
    """Finds the route of a request."""

    def __init__(self, routes: Sequence[Route]) -> None:
        """Make the tree of paths.

        Raises:
            ValueError: Two routes have the same method and pattern.
        """
        self._root = _PathNode()
        self._error_writers: dict[str, WriteError] = {}
        for route in routes:
            self._add(route)

    def find(self, method: str, raw_path: str) -> tuple[Route, dict[str, str]]:
        """Return the route of a request, and its parameters.

        Args:
            method: The method of the request.
            raw_path: Its path, with escaped characters: a slash in a segment is %2F.

        Raises:
            HttpError: There is none; the message says which methods there are.
        """
        segments = [decode_segment(segment) for segment in raw_path.split("/")[1:]]
        values: list[str] = []
        node = self._find_node(self._root, segments, values)
        if node is None:
            path = quoted(decode_segment(raw_path))
            raise NoRouteError(HTTPStatus.NOT_FOUND, f"unknown path {path}")
        match = node.routes.get(method) or (node.routes.get("GET") if method == "HEAD" else None)
        if match is None:
            allowed = ", ".join([*node.routes, *(["HEAD"] if "GET" in node.routes else [])])
            raise HttpError(
                HTTPStatus.METHOD_NOT_ALLOWED,
                f"method {quoted(method)} not allowed (expected {allowed})",
                Allow=allowed,
            )
        route, names = match
        return route, dict(zip(names, values, strict=True))

    def error_writer(self, path: str) -> WriteError:
        """Return how errors of a path without a route are written: as those beside it."""
        return self._error_writers.get(path.split("/")[1] if path else "", write_json_error)

    def _add(self, route: Route) -> None:
        node, names = self._root, []
        segments = route.pattern.split("/")[1:]
        for segment in segments:
            if segment.startswith("{"):
                names.append(segment.strip("{}"))
                node.parameter = node.parameter or _PathNode()
                node = node.parameter
            else:
                node = node.children.setdefault(segment, _PathNode())
        if route.method in node.routes:
            raise ValueError(f"two routes {route.method} {route.pattern}")
        node.routes[route.method] = route, tuple(names)
        self._error_writers.setdefault(segments[0], route.write_error)

    def _find_node(
        self, node: _PathNode, segments: Sequence[str], values: list[str]
    ) -> _PathNode | None:
        """Return the node of the segments below `node`, and append its parameters to `values`."""
        if not segments:
            return node if node.routes else None
        first, rest = segments[0], segments[1:]
        child = node.children.get(first)
        if child is not None and (match := self._find_node(child, rest, values)):
            return match
        if node.parameter is None or not first:
            return None
        values.append(first)
        match = self._find_node(node.parameter, rest, values)
        if match is None:
            values.pop()
        return match
