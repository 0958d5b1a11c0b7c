"""Which versions are being loaded at this moment, and for how long."""

import threading
import time
from collections.abc import Callable, Iterable

from prometheus_client.core import GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from neurona_server.watched import VERSION


class LoadsUnderWay(Collector):
    """Any thread may begin and end a load. A version whose files change while it is loaded is
    loaded again after that, never twice at a time."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._since: dict[tuple[str, int], float] = {}
        self._changing = threading.Lock()

    def begin(self, model: str, version: int) -> None:
        """It is to be loaded now: what it waits for other loads counts."""
        with self._changing:
            self._since[model, version] = self._clock()

    def end(self, model: str, version: int) -> None:
        with self._changing:
            self._since.pop((model, version), None)

    def collect(self) -> Iterable[Metric]:
        seconds = GaugeMetricFamily(
            "neurona_version_loading_seconds",
            "How long a version that is being loaded has been, waiting for its turn included.",
            labels=VERSION,
        )
        with self._changing:
            since = dict(self._since)
        for (model, version), began in since.items():
            seconds.add_metric([model, str(version)], self._clock() - began)
        return [seconds]
