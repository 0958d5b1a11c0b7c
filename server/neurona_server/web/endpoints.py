"""Answers the paths of the metrics port: /metrics, /healthz and the status page at /."""

import asyncio
import base64
import gzip
import hashlib
import logging
import threading
from collections.abc import Awaitable, Callable, Hashable, Iterable
from http import HTTPStatus
from importlib import resources

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4
from prometheus_client.metrics_core import Metric
from prometheus_client.openmetrics import exposition as openmetrics
from prometheus_client.registry import Collector

from neurona_server.web.http import (
    HttpRequest,
    HttpResponse,
    accepts_gzip,
    error_response,
    prefers_openmetrics,
)

log = logging.getLogger(__name__)

SERVING, NOT_SERVING, STARTING = "SERVING", "NOT_SERVING", "STARTING"

GZIP_LEVEL = 1
"""Shrinks the page to a 20th; higher levels cost several times the CPU."""

MAX_NAMES = 100
"""Sample names that a request may select."""

MAX_CONCURRENT_RENDERS = 2
"""Two, so that one that hangs (in a GPU's driver) does not block the page for everyone."""

STYLES = ("style.css",)
SCRIPTS = ("exposition.js", "window.js", "figures.js", "drawing.js", "table.js", "main.js")
"""In the order of the document; they share one scope."""

SelectSamples = Callable[[frozenset[str]], Collector]
"""Returns a collector of the samples with these names."""

RenderedPage = tuple[bytes, str]
"""Content and content type."""


class Endpoints:
    """Answers requests, in the event loop of the server; rendering runs in other threads."""

    def __init__(
        self, registry: CollectorRegistry, state: Callable[[], str], select_samples: SelectSamples
    ) -> None:
        """Make the document and the table of paths.

        Args:
            registry: The metrics.
            state: Returns SERVING, NOT_SERVING or STARTING, which a reason may follow, without
                blocking.
            select_samples: Returns a collector of some samples of the registry.
        """
        self._registry = registry
        self._select_samples = select_samples
        self._state = state
        self._renders = SharedRenders()
        self._document, self._policy = build_status_page()
        self._handlers: dict[str, Callable[[HttpRequest], Awaitable[HttpResponse]]] = {
            "/": self._answer_page,
            "/metrics": self._answer_metrics,
            "/healthz": self._answer_health,
        }

    async def answer(self, request: HttpRequest) -> HttpResponse:
        """Answer a request, unknown paths and methods and internal errors included."""
        handler = self._handlers.get(request.path)
        if handler is None:
            paths = ", ".join(self._handlers)
            return error_response(HTTPStatus.NOT_FOUND, f"not found; available paths: {paths}")
        if request.method not in ("GET", "HEAD"):
            text = "method not allowed (expected GET or HEAD)"
            return error_response(HTTPStatus.METHOD_NOT_ALLOWED, text, Allow="GET, HEAD")
        try:
            return await handler(request)
        except Exception:  # its message is not for the caller
            log.exception("failed to answer %s", request.path)
            text = "internal error; the server's log says why"
            return error_response(HTTPStatus.INTERNAL_SERVER_ERROR, text)

    async def _answer_health(self, _: HttpRequest) -> HttpResponse:
        state = self._state()
        status = HTTPStatus.OK if state == SERVING else HTTPStatus.SERVICE_UNAVAILABLE
        return HttpResponse(status, f"{state}\n".encode())

    async def _answer_metrics(self, request: HttpRequest) -> HttpResponse:
        names = frozenset(request.query.get("name[]", [])[:MAX_NAMES])
        open_metrics = prefers_openmetrics(request.headers.get("accept", ""))
        compressed = accepts_gzip(request.headers.get("accept-encoding", ""))

        def render() -> RenderedPage:
            source = self._select_samples(names) if names else self._registry
            return render_metrics(source, open_metrics=open_metrics, compressed=compressed)

        key = names, open_metrics, compressed
        content, content_type = await self._renders.get(key, render)
        headers = {"Vary": "Accept, Accept-Encoding"}
        if compressed:
            headers["Content-Encoding"] = "gzip"
        return HttpResponse(HTTPStatus.OK, content, content_type, headers)

    async def _answer_page(self, _: HttpRequest) -> HttpResponse:
        headers = {
            "Content-Security-Policy": self._policy,
            "Referrer-Policy": "no-referrer",
            "X-Frame-Options": "DENY",
        }
        content_type = "text/html; charset=utf-8"
        return HttpResponse(HTTPStatus.OK, self._document, content_type, headers)


class SharedRenders:
    """Renders pages in threads, and shares each render among all requests that wait for it."""

    def __init__(self) -> None:
        self._slots = asyncio.Semaphore(MAX_CONCURRENT_RENDERS)
        self._pending: dict[Hashable, asyncio.Task[RenderedPage]] = {}

    async def get(self, key: Hashable, render: Callable[[], RenderedPage]) -> RenderedPage:
        """Return the result of a `render` that began after this call; raise what it raises."""
        task = self._pending.get(key)
        if task is None:
            task = asyncio.create_task(self._render(key, render))
            self._pending[key] = task
        # A request that is cancelled must not cancel the render of the others.
        return await asyncio.shield(task)

    async def _render(self, key: Hashable, render: Callable[[], RenderedPage]) -> RenderedPage:
        async with self._slots:
            del self._pending[key]  # later requests need a later render
            return await _run_in_daemon_thread(render)


async def _run_in_daemon_thread(render: Callable[[], RenderedPage]) -> RenderedPage:
    """Run `render` in a daemon thread: one that hangs must not keep the process from ending."""
    loop = asyncio.get_running_loop()
    future: asyncio.Future[RenderedPage] = loop.create_future()

    def finish(result: RenderedPage | None, error: BaseException | None) -> None:
        if future.cancelled():
            return
        if error is not None:
            future.set_exception(error)
        elif result is not None:
            future.set_result(result)

    def run() -> None:
        result, failure = None, None
        try:
            result = render()
        except Exception as error:  # raised again where the result is awaited
            failure = error
        try:
            loop.call_soon_threadsafe(finish, result, failure)
        except RuntimeError:  # the loop is closed: no request waits for the result
            return

    threading.Thread(target=run, name="metrics page", daemon=True).start()
    return await future


class FilteredCollector(Collector):
    """A collector of the samples of a registry that have one of these names.

    For a registry whose collectors do not describe their metrics: it collects all of them.
    """

    def __init__(self, registry: CollectorRegistry, names: frozenset[str]) -> None:
        self._registry = registry
        self._names = names

    def collect(self) -> Iterable[Metric]:
        for metric in self._registry.collect():
            samples = [sample for sample in metric.samples if sample.name in self._names]
            if samples:
                selected = Metric(metric.name, metric.documentation, metric.type)
                selected.samples = samples
                yield selected


def render_metrics(source: Collector, *, open_metrics: bool, compressed: bool) -> RenderedPage:
    """Render metrics as text. Slow: about 0.4 s for 300 models."""
    if open_metrics:
        content: bytes = openmetrics.generate_latest(source)  # type: ignore[no-untyped-call]
        content_type = openmetrics.CONTENT_TYPE_LATEST
    else:
        content, content_type = generate_latest(source), CONTENT_TYPE_PLAIN_0_0_4
    return (gzip.compress(content, GZIP_LEVEL) if compressed else content), content_type


def build_status_page() -> tuple[bytes, str]:
    """Return the HTML document, and its Content-Security-Policy."""
    style = _join_files(STYLES)
    script = '"use strict";\n(() => {\n' + _join_files(SCRIPTS) + "\n})();\n"
    document = _read_file("page.html")
    for placeholder, text in (("/*style*/", style), ("/*script*/", script)):
        before, after = document.split(placeholder)  # each occurs once
        document = before + text + after
    policy = (
        f"default-src 'none'; script-src {_csp_hash(script)}; style-src {_csp_hash(style)}; "
        "connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; "
        "frame-ancestors 'none'"
    )
    return document.encode(), policy


def _join_files(names: tuple[str, ...]) -> str:
    return "\n".join(map(_read_file, names))


def _read_file(name: str) -> str:
    return (resources.files("neurona_server.web") / "page" / name).read_text("utf-8")


def _csp_hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
