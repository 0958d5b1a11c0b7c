"""Answers the paths of the metrics port: /metrics, /healthz and the status page at /."""

import base64
import gzip
import hashlib
import logging
from collections.abc import Awaitable, Callable, Iterable
from http import HTTPStatus
from importlib import resources

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4
from prometheus_client.metrics_core import Metric
from prometheus_client.openmetrics import exposition as openmetrics
from prometheus_client.registry import Collector

from neurona_server.web.acceptor import DescriptorReserve
from neurona_server.web.messages import (
    MAX_QUERY_FIELDS,
    HttpRequest,
    HttpResponse,
    accepts_encoding,
    error_response,
    prefers_openmetrics,
)
from neurona_server.web.renders import RenderedPage, SharedRenders, TooManyRendersError

log = logging.getLogger(__name__)

SERVING, NOT_SERVING, STARTING = "SERVING", "NOT_SERVING", "STARTING"

HEALTH_PATH = "/healthz"

GZIP_LEVEL = 1
"""Shrinks the page to a 20th; higher levels cost several times the CPU."""

MAX_NAMES = 100
"""Sample names that a request may select."""

DESCRIPTORS_OF_A_RENDER = 2
"""Files that the collectors of the process have open at the same time."""

STYLES = ("style.css",)
SCRIPTS = ("exposition.js", "window.js", "figures.js", "drawing.js", "table.js", "main.js")
"""In the order of the document; they share one scope."""

SelectSamples = Callable[[frozenset[str]], Collector]
"""Returns a collector of the samples with these names."""


class Endpoints:
    """Answers requests, in the event loop of the server; `renders` has threads of its own."""

    def __init__(
        self,
        registry: CollectorRegistry,
        state: Callable[[], str],
        select_samples: SelectSamples,
        reserve: DescriptorReserve,
    ) -> None:
        """Make the document and the table of paths.

        Args:
            registry: The metrics.
            state: Returns SERVING, NOT_SERVING or STARTING, which a reason may follow, without
                blocking.
            select_samples: Returns a collector of some samples of the registry.
            reserve: Descriptors for the files that collectors read.
        """
        self._registry = registry
        self._select_samples = select_samples
        self._state = state
        self._reserve = reserve
        self._renders = SharedRenders()
        self._document, self._policy = build_status_page()
        self._handlers: dict[str, Callable[[HttpRequest], Awaitable[HttpResponse]]] = {
            "/": self._answer_page,
            "/metrics": self._answer_metrics,
            HEALTH_PATH: self._answer_health,
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
        try:
            names = frozenset(request.query.get("name[]", [])[:MAX_NAMES])
        except ValueError:
            text = f"query too long (expected at most {MAX_QUERY_FIELDS} fields)"
            return error_response(HTTPStatus.BAD_REQUEST, text)
        open_metrics = prefers_openmetrics(request.headers.get("accept", ""))
        compressed = accepts_encoding(request.headers.get("accept-encoding", ""), "gzip")

        def render() -> RenderedPage:
            source = self._select_samples(names) if names else self._registry
            with self._reserve.lend(DESCRIPTORS_OF_A_RENDER):
                return render_metrics(source, open_metrics=open_metrics, compressed=compressed)

        key = names, open_metrics, compressed
        try:
            content, content_type = await self._renders.get(key, render, bounded=bool(names))
        except TooManyRendersError:
            text = "too many pages are being rendered; ask again"
            status = HTTPStatus.SERVICE_UNAVAILABLE
            return error_response(status, text, **{"Retry-After": "1"})
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


class _UnsuffixedCounters(Collector):
    """A collector whose counters without the suffix `_total` are of unknown type.

    OpenMetrics has no such counters, and prometheus_client would give them the suffix.
    """

    def __init__(self, source: Collector) -> None:
        self._source = source
        self.names: list[str] = []
        """Of those that were collected."""

    def collect(self) -> Iterable[Metric]:
        for metric in self._source.collect():
            if (
                metric.type == "counter"
                and metric.samples[:1]
                and (metric.samples[0].name == metric.name)
            ):
                self.names.append(metric.name)
                untyped = Metric(metric.name, metric.documentation, "unknown")
                untyped.samples = metric.samples
                yield untyped
            else:
                yield metric


def render_metrics(source: Collector, *, open_metrics: bool, compressed: bool) -> RenderedPage:
    """Render metrics as text. Slow: about 0.4 s for 300 models."""
    source = _UnsuffixedCounters(source)
    if open_metrics:
        content: bytes = openmetrics.generate_latest(source)  # type: ignore[no-untyped-call]
        content_type = openmetrics.CONTENT_TYPE_LATEST
    else:
        content, content_type = generate_latest(source), CONTENT_TYPE_PLAIN_0_0_4
        for name in source.names:  # the text format has them
            head = f"# TYPE {name} ".encode()
            content = content.replace(head + b"untyped\n", head + b"counter\n", 1)
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
