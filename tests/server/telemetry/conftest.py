import pytest
from prometheus_client import CollectorRegistry
from support.otlp_collector import Collector

from neurona_server.telemetry.metrics import Metrics
from neurona_server.telemetry.span_exporter import set_up_tracing


@pytest.fixture
def metrics():
    return Metrics(CollectorRegistry())


@pytest.fixture
def span_counts(metrics):
    """Returns the number of spans by outcome."""
    return lambda: {
        sample.labels["outcome"]: sample.value
        for family in metrics.registry.collect()
        for sample in family.samples
        if sample.name == "neurona_trace_spans_total"
    }


@pytest.fixture
def messages(caplog):
    """Returns the log messages of a module."""
    return lambda module: [
        record.getMessage() for record in caplog.records if record.name == module.__name__
    ]


@pytest.fixture
def collector():
    """An OTLP collector."""
    collector = Collector()
    yield collector
    collector.stop()


class TracedServer:
    """A server whose calls are traced."""

    def __init__(self, collector, make_server, *arguments, ratio=1.0, **options):
        self.collector = collector
        self.metrics = Metrics(CollectorRegistry())
        self._tracing = set_up_tracing(collector.url, ratio, self.metrics)
        self.server = make_server(*arguments, tracing=self._tracing, **options)

    def stop_and_get_spans(self):
        """Stop the server and return all spans of its calls."""
        self.server.stop()
        self._tracing.close(10)
        return self.collector.spans

    def count(self, outcome):
        labels = {"outcome": outcome}
        return self.metrics.registry.get_sample_value("neurona_trace_spans_total", labels) or 0


@pytest.fixture
def make_traced(collector, make_server):
    """Starts a `TracedServer`, with the arguments of `make_server`."""
    return lambda *arguments, **options: TracedServer(collector, make_server, *arguments, **options)
