"""What is answered on which path."""

import logging
from collections.abc import Awaitable, Callable
from http import HTTPStatus

from prometheus_client import CollectorRegistry

from neurona_server.web import document, exposition
from neurona_server.web.acceptance import takes_gzip, wants_openmetrics
from neurona_server.web.exposition import Choose
from neurona_server.web.messages import Request, Response, error
from neurona_server.web.renders import Renders

log = logging.getLogger(__name__)

SERVING, NOT_SERVING, STARTING = "SERVING", "NOT_SERVING", "STARTING"

MOST_NAMES = 100
"""That a caller may ask for."""

Answer = Callable[[Request], Awaitable[Response]]


class Paths:
    """Called in the loop of the port; what takes time is done beside it."""

    def __init__(
        self, registry: CollectorRegistry, state: Callable[[], str], choose: Choose
    ) -> None:
        """`state` says SERVING, NOT_SERVING or STARTING at once; `choose` gives a part of what
        is in the registry."""
        self._registry = registry
        self._choose = choose
        self._state = state
        self._renders = Renders()
        self._document, self._policy = document.load()
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
            return exposition.write(source, open_metrics=open_metrics, zipped=zipped)

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
