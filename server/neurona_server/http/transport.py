"""The HTTP transport: runs the functions of services for requests over HTTP/1.1.

It serves beside gRPC's transport, in a thread of its own, and shares with it the functions of the
services and so their queues, the tokens, the certificates and the budget of bytes that are being
received and answered.
"""

import asyncio
import logging
import math
import ssl
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from http import HTTPStatus
from urllib.parse import urlsplit

from neurona_server.errors import (
    InvalidArgumentError,
    NeuronaError,
    UnsupportedError,
    forget_frames,
    quoted,
    response_too_large,
)
from neurona_server.http.call import HttpCall
from neurona_server.http.compression import (
    MIN_COMPRESSED_BYTES,
    SLOW_BYTES,
    check_encoding,
    choose_encoding,
    compress,
    decompress,
)
from neurona_server.http.error_responses import HttpError, WriteError, error_reply, write_json_error
from neurona_server.http.routing import ApiRequest, Route, Router
from neurona_server.http.timings import CallTimings
from neurona_server.rpc.call import REQUEST_ID, BaseCall, Methods, Unary, too_large_error
from neurona_server.rpc.security.access import UNRESTRICTED
from neurona_server.rpc.security.tokens import Access
from neurona_server.rpc.transports.buffer_budget import LARGE, BufferBudget
from neurona_server.rpc.worker_pool import WorkerPool
from neurona_server.telemetry.trace import CallTrace, CallTracer
from neurona_server.web.allowed_hosts import ANY, AllowedHosts
from neurona_server.web.connection import HttpLimits
from neurona_server.web.http_server import HttpServer
from neurona_server.web.messages import HttpRequest, HttpResponse

log = logging.getLogger(__name__)

TIMEOUT = "x-request-timeout-ms"
"""The header with the milliseconds in which the caller needs the response."""

MAX_TIMEOUT_MS = 1e9


@dataclass(frozen=True)
class HttpOptions:
    """The options of the HTTP transport."""

    address: str = "127.0.0.1:8000"
    hosts: Sequence[str] = ()
    """Names under which it answers besides those that AllowedHosts always allows."""
    max_message_bytes: int = 64 << 20
    """The size of a body in either direction, decompressed."""
    access: Access | None = None
    """The rights of tokens; without them everybody may do everything."""
    make_tls_context: Callable[[], ssl.SSLContext] | None = None
    """Returns the context of a new connection; None: without TLS."""
    on_reject: Callable[[Exception], None] = lambda _: None
    """Called with the error of each request that the transport rejects itself."""
    reuse_port: bool = False
    """Let several processes listen on the same port and share its connections."""
    tracer: CallTracer | None = None
    """Traces the calls of methods that need a right; without it no call is traced."""
    limits: HttpLimits = field(
        default_factory=lambda: HttpLimits(
            max_connections=1024,
            response_timeout=math.inf,  # as long as its call takes, as over gRPC
            crowd_answer_seconds=math.inf,
            crowd_send_seconds=10.0,
        )
    )


class HttpTransport:
    """Listens from its construction; serves from `start` until `stop`."""

    def __init__(
        self,
        methods: Methods,
        routes: Iterable[Route],
        budget: BufferBudget,
        workers: WorkerPool,
        options: HttpOptions,
    ) -> None:
        """Listen, without accepting connections.

        Args:
            methods: The functions of all services.
            routes: What is answered.
            budget: That of gRPC's transport.
            workers: The threads for what takes long.
            options: The options.

        Raises:
            ConfigError: The address is in use, or not of this machine.
        """
        self.workers = workers
        self._methods = methods
        self._router = Router(list(routes))
        self._budget = budget
        self._options = options
        host = options.address.rpartition(":")[0].strip("[]")
        self._hosts = AllowedHosts(host, options.hosts)
        self._server = HttpServer(
            "HTTP",
            options.address,
            self._answer,
            options.limits,
            reuse_port=options.reuse_port,
            advice=" (expected another http_address, or off)",
            make_tls_context=options.make_tls_context,
        )
        self.port = self._server.port
        self.post = self._server.post
        self.has_turned = self._server.has_turned

    @property
    def connection_count(self) -> int:
        """The number of open connections."""
        return self._server.connection_count

    def start(self) -> None:
        """Accept connections."""
        self._server.start()

    def announce_stop(self) -> None:
        """Make each further response the last one of its connection, so that callers leave."""
        self._server.closes_connections = True

    def stop(self, timeout: float) -> bool:
        """Accept no more connections, wait `timeout` seconds for requests, cancel the others.

        A second call does nothing.

        Returns:
            False if the thread still runs: it is hung.
        """
        return self._server.stop(timeout)

    # What `ApiRequest` uses:

    async def receive_body(self, request: ApiRequest, max_bytes: int | None) -> bytes:
        """See `ApiRequest.body`."""
        raw = request.raw
        limit = self._options.max_message_bytes
        limit = limit if max_bytes is None else min(limit, max_bytes)
        encoding = check_encoding(raw.headers.get("content-encoding", ""))
        announced = raw.content_length
        if announced is not None and announced > limit:
            return await raw.body(limit)  # which raises the error
        # A body of unknown size may have any up to the limit.
        self._charge(request, limit if announced is None or encoding else announced)
        body = await raw.body(limit)
        if not encoding:
            return body
        if len(body) < SLOW_BYTES // 8:  # few enough to be decompressed here, up to this limit
            quick = min(limit, SLOW_BYTES * 4)
            try:
                return decompress(body, encoding, quick)
            except NeuronaError as error:
                if quick == limit or isinstance(error, HttpError):
                    raise
        return await request.work(lambda: decompress(body, encoding, limit), len(body))

    async def call(self, request: ApiRequest, path: str, message: bytes) -> bytes:
        """See `ApiRequest.call`."""
        method = self._methods.get(path)
        if not isinstance(method, Unary):
            raise UnsupportedError(f"{path} is no method of one request and one response")
        options = self._options
        grant = UNRESTRICTED
        if options.access is not None:
            grant = options.access.grant(method.right, request.metadata)
        if len(message) > method.max_message_bytes:
            raise too_large_error(message, method)
        trace: CallTrace = CallTimings(request.timings)
        tracer = options.tracer if method.right is not None else None
        if tracer is not None and tracer.should_sample(request.metadata):
            trace = tracer.start_call(path, request.metadata)
        call = HttpCall(self._server, message, request.deadline, grant, request.metadata, trace)
        started = time.monotonic()
        response = await call.run(method)
        request.timings["total"] = f"dur={1000 * (time.monotonic() - started):.3f}"
        if len(response) > options.max_message_bytes:
            raise response_too_large(len(response), options.max_message_bytes)
        return response

    def _charge(self, request: ApiRequest, size: int) -> None:
        """Charge bytes of a large message until the request has ended.

        Raises BuffersFullError.
        """
        if size <= LARGE:
            return
        raw = request.raw
        self._budget.charge(raw.peer, size)
        request.charged_bytes += size
        raw.on_end = lambda: self._budget.release(raw.peer, request.charged_bytes)

    async def _answer(self, raw: HttpRequest) -> HttpResponse:
        """Answer a request, whatever is wrong with it."""
        identity: BaseCall = BaseCall(raw.fields, None)
        write_error: WriteError = write_json_error
        try:
            try:
                route, params = self._router.find(raw.method, raw.raw_path)
            except HttpError:
                self._check_host(raw)
                write_error = self._router.error_writer(raw.raw_path)
                raise
            write_error = route.write_error
            if not route.any_host:
                self._check_host(raw)
            request = identity = ApiRequest(self, raw, params, _read_deadline(raw))
            request.grant = UNRESTRICTED
            if self._options.access is not None:
                request.grant = self._options.access.grant(route.right, raw.fields)
            elif raw.method not in ("GET", "HEAD"):
                self._check_origin(raw)
            response = await route.handler(request)
            return await self._finish(request, response)
        except asyncio.CancelledError:
            raise
        except Exception as error:
            self._options.on_reject(error)
            reply = error_reply(error, identity)
            forget_frames(error)
            return write_error(reply)

    async def _finish(self, request: ApiRequest, response: HttpResponse) -> HttpResponse:
        """Add the headers of every response, and compress it where the caller accepts that."""
        headers = {**request.response_headers, **response.headers}
        if REQUEST_ID in request.headers:
            headers[REQUEST_ID] = request.request_id
        if request.timings:
            entries = [f"{name};{value}" for name, value in request.timings.items()]
            headers["Server-Timing"] = ", ".join(entries)
        content = response.content
        self._charge(request, len(content))
        if len(content) > MIN_COMPRESSED_BYTES and request.may_compress:
            encoding = choose_encoding(request.headers.get("accept-encoding", ""))
            if encoding:
                content = await self._compress(request, content, encoding)
                headers["Content-Encoding"] = encoding
                headers["Vary"] = "Accept-Encoding"
        return HttpResponse(response.status, content, response.content_type, headers)

    async def _compress(self, request: ApiRequest, content: bytes, encoding: str) -> bytes:
        if len(content) < SLOW_BYTES:
            return compress(content, encoding)
        return await request.work(lambda: compress(content, encoding), len(content))

    def _check_host(self, raw: HttpRequest) -> None:
        if not self._hosts.allows(raw.host):
            raise HttpError(
                HTTPStatus.MISDIRECTED_REQUEST,
                f"unknown host {quoted(raw.host)} (expected an IP address, a name without dots or "
                "a name of the server's option http_hosts)",
            )

    def _check_origin(self, raw: HttpRequest) -> None:
        """Reject what a page of another site has a browser send. Without tokens nothing else does.

        Raises HttpError.
        """
        origin = raw.headers.get("origin")
        if origin is None:
            return  # no browser, which names the origin of every request but for GET and HEAD
        authority = urlsplit(origin).netloc.lower() if "://" in origin else ""
        name = authority.rpartition(":")[0] if ":" in authority else authority
        names = self._options.hosts
        if (authority and authority == raw.host.lower()) or name in names or ANY in names:
            return
        raise HttpError(
            HTTPStatus.FORBIDDEN,
            f"request of a page of another site: origin {quoted(origin)} (expected that of this "
            "server, or a name of its option http_hosts)",
        )


def _read_deadline(raw: HttpRequest) -> float:
    """Return the deadline of a request, inf if it has none. Raises InvalidArgumentError."""
    text = raw.headers.get(TIMEOUT)
    if text is None:
        return math.inf
    try:
        milliseconds = float(text) if text.isascii() and "_" not in text else math.nan
    except ValueError:
        milliseconds = math.nan
    if not 0 < milliseconds <= MAX_TIMEOUT_MS:
        raise InvalidArgumentError(
            f"{TIMEOUT} is {quoted(text)} (expected milliseconds, more than 0 and at most "
            f"{MAX_TIMEOUT_MS:.0f})"
        )
    return time.monotonic() + milliseconds / 1000
