"""The metrics port: /metrics, /healthz and the status page, for operators.

It has an event loop in a thread of its own, not that of a transport: it must neither wait for the
transports nor slow them down. When everything is busy, operators need this port most. It stands
alone because the server that it uses serves other applications too.
"""

import logging
from collections.abc import Callable, Iterable
from functools import partial
from http import HTTPStatus

from prometheus_client import CollectorRegistry

from neurona_server.errors import quoted
from neurona_server.web.allowed_hosts import AllowedHosts
from neurona_server.web.connection import HttpLimits
from neurona_server.web.endpoints import (
    HEALTH_PATH,
    Endpoints,
    FilteredCollector,
    SelectSamples,
)
from neurona_server.web.http_server import HttpServer
from neurona_server.web.messages import HttpRequest, HttpResponse, error_response

log = logging.getLogger(__name__)


class MetricsServer:
    """Serves metrics, health and the status page from its construction until `close`."""

    def __init__(
        self,
        address: str,
        registry: CollectorRegistry,
        state: Callable[[], str],
        select_samples: SelectSamples | None = None,
        *,
        hosts: Iterable[str] = (),
    ) -> None:
        """Start serving.

        Args:
            address: HOST:PORT; port 0 is any free port.
            registry: The metrics.
            state: See Endpoints.
            select_samples: See Endpoints. Without it, all samples are collected and then filtered.
            hosts: Names to answer for besides those that AllowedHosts always allows.

        Raises:
            ConfigError: The address is in use, or not of this machine.
        """
        self.limits = HttpLimits(idle_timeout=0.0)  # metrics are read every few seconds only
        self._server = HttpServer(
            "metrics",
            address,
            self._answer,
            self.limits,
            advice=" (expected another metrics_address, or off)",
        )
        self.port: int = self._server.port
        self._hosts = AllowedHosts(address.rpartition(":")[0].strip("[]"), hosts)
        select_samples = select_samples or partial(FilteredCollector, registry)
        self._endpoints = Endpoints(registry, state, select_samples, self._server.reserve)
        self._server.start()

    @property
    def connection_count(self) -> int:
        """The number of open connections."""
        return self._server.connection_count

    def close(self) -> None:
        """Stop serving. A second call does nothing."""
        self._server.stop()

    async def _answer(self, request: HttpRequest) -> HttpResponse:
        # Load balancers ask for the health under the name of their site. It tells a web page no
        # more than the rejection would: that a server is here.
        if request.path == HEALTH_PATH or self._hosts.allows(request.host):
            return await self._endpoints.answer(request)
        text = (
            f"unknown host {quoted(request.host)} (expected an IP address, a name without dots or "
            "a name of the server's option metrics_hosts)"
        )
        return error_response(HTTPStatus.MISDIRECTED_REQUEST, text)
