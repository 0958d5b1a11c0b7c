import pytest
from prometheus_client import CollectorRegistry
from support.otlp_collector import Collector

from neurona_server.telemetry.metrics import Metrics
from neurona_server.telemetry.span_exporter import set_up_tracing


@pytest.fixture
def collector():
    collector = Collector()
    yield collector
    collector.stop()


class Traced:
    """A server whose calls are traced; `spans` are all of them, once it is done."""

    def __init__(self, collector, make_server, *arguments, ratio=1.0, **options):
        self.collector = collector
        self.metrics = Metrics(CollectorRegistry())
        self._tracing = set_up_tracing(collector.url, ratio, self.metrics)
        self.server = make_server(*arguments, tracing=self._tracing, **options)

    def spans(self):
        self.server.stop()
        self._tracing.close(10)
        return self.collector.spans

    def count(self, outcome):
        labels = {"outcome": outcome}
        return self.metrics.registry.get_sample_value("neurona_trace_spans_total", labels) or 0


@pytest.fixture
def traced(collector, make_server):
    return lambda *arguments, **options: Traced(collector, make_server, *arguments, **options)
