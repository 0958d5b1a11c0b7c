"""What is answered on which path."""

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

from neurona_server.web.http import Request, Response, error, takes_gzip, wants_openmetrics

log = logging.getLogger(__name__)

QUICK = 1
"""gzip's level: the page shrinks to a 20th with it, and higher ones cost several times the CPU."""


Choose = Callable[[frozenset[str]], Collector]
"""Of all that there is, the samples that have one of these names."""


class FilteredCollector(Collector):
    """For a registry that does not know beforehand what its collectors will have."""

    def __init__(self, registry: CollectorRegistry, names: frozenset[str]) -> None:
        self._registry = registry
        self._names = names

    def collect(self) -> Iterable[Metric]:
        for metric in self._registry.collect():
            samples = [sample for sample in metric.samples if sample.name in self._names]
            if samples:
                chosen = Metric(metric.name, metric.documentation, metric.type)
                chosen.samples = samples
                yield chosen


def write_exposition(source: Collector, *, open_metrics: bool, zipped: bool) -> tuple[bytes, str]:
    """The page and its content type.

    Takes as long as there are series: 0.4 s for 300 models.
    """
    if open_metrics:
        content: bytes = openmetrics.generate_latest(source)  # type: ignore[no-untyped-call]
        kind = openmetrics.CONTENT_TYPE_LATEST
    else:
        content, kind = generate_latest(source), CONTENT_TYPE_PLAIN_0_0_4
    return (gzip.compress(content, QUICK) if zipped else content), kind


AT_A_TIME = 2
"""A second one, so that one that hangs (in a GPU's driver) does not take the page from all."""

Rendered = tuple[bytes, str]


class SharedRenders:
    """For one loop. However many ask, what waits is one render for each key."""

    def __init__(self) -> None:
        self._free = asyncio.Semaphore(AT_A_TIME)
        self._waiting: dict[Hashable, asyncio.Task[Rendered]] = {}

    async def get(self, key: Hashable, render: Callable[[], Rendered]) -> Rendered:
        """What `render` gives, begun after this call. Raises what it raises."""
        task = self._waiting.get(key)
        if task is None:
            task = asyncio.create_task(self._run(key, render))
            self._waiting[key] = task
        # One who goes does not take it from the others.
        return await asyncio.shield(task)

    async def _run(self, key: Hashable, render: Callable[[], Rendered]) -> Rendered:
        async with self._free:
            del self._waiting[key]  # who comes from now on has another one
            return await _beside(render)


async def _beside(render: Callable[[], Rendered]) -> Rendered:
    """In a daemon thread: one that hangs must not keep the process from ending."""
    loop = asyncio.get_running_loop()
    done: asyncio.Future[Rendered] = loop.create_future()

    def end(result: Rendered | None, error: BaseException | None) -> None:
        if done.cancelled():
            return
        if error is not None:
            done.set_exception(error)
        elif result is not None:
            done.set_result(result)

    def run() -> None:
        result, raised = None, None
        try:
            result = render()
        except Exception as error:  # its caller has it
            raised = error
        try:
            loop.call_soon_threadsafe(end, result, raised)
        except RuntimeError:  # the loop is closed: nobody waits any more
            return

    threading.Thread(target=run, name="metrics page", daemon=True).start()
    return await done


STYLES = ("style.css",)
SCRIPTS = ("exposition.js", "window.js", "figures.js", "drawing.js", "table.js", "main.js")
"""In the order in which they stand in the document; they share one scope."""


def load() -> tuple[bytes, str]:
    """The document, and its Content-Security-Policy."""
    style, script = _join(STYLES), '"use strict";\n(() => {\n' + _join(SCRIPTS) + "\n})();\n"
    document = _read("page.html")
    for place, text in (("/*style*/", style), ("/*script*/", script)):
        before, after = document.split(place)  # each stands in it once
        document = before + text + after
    policy = (
        f"default-src 'none'; script-src {_hash(script)}; style-src {_hash(style)}; "
        "connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; "
        "frame-ancestors 'none'"
    )
    return document.encode(), policy


def _join(names: tuple[str, ...]) -> str:
    return "\n".join(map(_read, names))


def _read(name: str) -> str:
    return (resources.files("neurona_server.web") / "page" / name).read_text("utf-8")


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


SERVING, NOT_SERVING, STARTING = "SERVING", "NOT_SERVING", "STARTING"

MOST_NAMES = 100
"""That a caller may ask for."""

Answer = Callable[[Request], Awaitable[Response]]


class Endpoints:
    """Called in the loop of the port; what takes time is done beside it."""

    def __init__(
        self, registry: CollectorRegistry, state: Callable[[], str], choose: Choose
    ) -> None:
        """`state` says SERVING, NOT_SERVING or STARTING at once; `choose` gives a part of what
        is in the registry."""
        self._registry = registry
        self._choose = choose
        self._state = state
        self._renders = SharedRenders()
        self._document, self._policy = load()
        self._answers: dict[str, Answer] = {
            "/": self._page,
            "/metrics": self._metrics,
            "/healthz": self._health,
        }

    async def answer(self, request: Request) -> Response:
        answer = self._answers.get(request.path)
        if answer is None:
            paths = ", ".join(self._answers)
            return error(HTTPStatus.NOT_FOUND, f"there is nothing here; there is {paths}")
        if request.method not in ("GET", "HEAD"):
            text = "expected GET or HEAD"
            return error(HTTPStatus.METHOD_NOT_ALLOWED, text, Allow="GET, HEAD")
        try:
            return await answer(request)
        except Exception:  # whatever it is, it is not for the caller
            log.exception("%s cannot be answered", request.path)
            text = "an internal error; the server's log says why"
            return error(HTTPStatus.INTERNAL_SERVER_ERROR, text)

    async def _health(self, _: Request) -> Response:
        state = self._state()
        good = state == SERVING
        status = HTTPStatus.OK if good else HTTPStatus.SERVICE_UNAVAILABLE
        return Response(status, f"{state}\n".encode())

    async def _metrics(self, request: Request) -> Response:
        names = frozenset(request.query.get("name[]", [])[:MOST_NAMES])
        open_metrics = wants_openmetrics(request.headers.get("accept", ""))
        zipped = takes_gzip(request.headers.get("accept-encoding", ""))

        def write() -> tuple[bytes, str]:
            source = self._choose(names) if names else self._registry
            return write_exposition(source, open_metrics=open_metrics, zipped=zipped)

        content, kind = await self._renders.get((names, open_metrics, zipped), write)
        headers = {"Vary": "Accept, Accept-Encoding"}
        if zipped:
            headers["Content-Encoding"] = "gzip"
        return Response(HTTPStatus.OK, content, kind, headers)

    async def _page(self, _: Request) -> Response:
        headers = {
            "Content-Security-Policy": self._policy,
            "Referrer-Policy": "no-referrer",
            "X-Frame-Options": "DENY",
        }
        kind = "text/html; charset=utf-8"
        return Response(HTTPStatus.OK, self._document, kind, headers)
