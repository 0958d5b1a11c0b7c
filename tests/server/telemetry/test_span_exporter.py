"""Spans on their way: nobody waits for a collector, and what it does not take is counted."""

import logging
import socket
import sys
import threading

import pytest
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult
from prometheus_client import CollectorRegistry

from neurona_server.errors import ConfigError
from neurona_server.telemetry import span_exporter
from neurona_server.telemetry.metrics import Metrics
from neurona_server.telemetry.span_exporter import NonBlockingSpanProcessor, set_up_tracing
from neurona_server.telemetry.spans import CallTracer


@pytest.fixture
def metrics():
    return Metrics(CollectorRegistry())


def counts(metrics):
    return {
        sample.labels["outcome"]: sample.value
        for family in metrics.registry.collect()
        for sample in family.samples
        if sample.name == "neurona_trace_spans_total"
    }


def said(caplog):
    return [r.getMessage() for r in caplog.records if r.name == span_exporter.__name__]


class Puppet(SpanExporter):
    """An exporter that does what the test says, when it says so."""

    def __init__(self):
        self.let, self.asked = threading.Semaphore(0), threading.Semaphore(0)
        self.result = SpanExportResult.SUCCESS
        self.closed = False

    def export(self, spans):
        self.asked.release()
        self.let.acquire()
        return self.result

    def shutdown(self):
        self.closed = True
        self.let.release()


@pytest.fixture
def puppet(monkeypatch):
    monkeypatch.setattr(span_exporter, "PAUSE", 0.0)
    return Puppet()


@pytest.mark.parametrize("quiet", [0.0, 60.0])
def test_a_loss_is_said_once_and_so_is_its_end(
    metrics, puppet, caplog, wait_until, quiet, monkeypatch
):
    monkeypatch.setattr(span_exporter, "QUIET", quiet)
    caplog.set_level(logging.INFO)
    ship = NonBlockingSpanProcessor(puppet, "http://away:1", metrics.spans)
    results = [SpanExportResult.FAILURE] * 3 + [SpanExportResult.SUCCESS] * 2
    for count, result in enumerate(results, 1):
        puppet.result = result
        ship.on_end(object())
        assert puppet.asked.acquire(timeout=10)
        puppet.let.release()
        # The next one is put aside once this one is over and counted.
        wait_until(lambda: sum(counts(metrics).values()) == count)  # noqa: B023
    ship.close(10)
    assert counts(metrics) == {"lost": 3, "sent": 2}
    lost, *again = said(caplog)
    assert lost.startswith("traces are lost: http://away:1 does not take them")
    # One that takes some and loses some would fill the log otherwise.
    assert again == ([] if quiet else ["traces get to http://away:1 again"])


def test_a_collector_that_hangs_holds_nobody_up(metrics, puppet, caplog, monkeypatch):
    monkeypatch.setattr(span_exporter, "MOST_WAITING", 5)
    ship = NonBlockingSpanProcessor(puppet, "http://slow:1", metrics.spans)
    ship.on_end(object())
    assert puppet.asked.acquire(timeout=10)
    for _ in range(8):
        ship.on_end(object())
    assert counts(metrics)["lost"] == 3
    assert not CallTracer(None, 1.0, ship.room).samples([])  # no span is made for nothing
    ship.close(0.1)
    assert puppet.closed
    assert sum(counts(metrics).values()) == 10
    assert len(said(caplog)) == 1


def test_a_collector_that_is_away(metrics, caplog):
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        tracing = set_up_tracing(f"http://127.0.0.1:{held.getsockname()[1]}", 1.0, metrics)
        trace = tracing.calls.call("/s/M", [])
        trace.end()
        tracing.close(0.5)
    assert counts(metrics) == {"lost": 1, "sent": 0}
    (lost,) = said(caplog)
    assert "does not take them (" in lost


def test_the_environment_of_opentelemetry_counts(metrics, collector, monkeypatch):
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_HEADERS", "api-key=secret")
    monkeypatch.setenv("OTEL_RESOURCE_ATTRIBUTES", "deployment.environment=test,service.name=x")
    monkeypatch.setenv("OTEL_SERVICE_NAME", "mine")
    tracing = set_up_tracing(collector.url, 1.0, metrics, process=3)
    tracing.calls.call("/s/M", []).end()
    tracing.close(10)
    ((span),) = collector.spans
    assert ("api-key", "secret") in [(key, value) for key, value in collector.metadata]
    assert span.resource["service.name"] == "mine"
    assert span.resource["deployment.environment"] == "test"
    assert span.resource["neurona.process"] == 3
    assert len(span.resource["service.instance.id"]) == 36


@pytest.mark.parametrize(
    "name",
    [
        *("OTEL_EXPORTER_OTLP_TIMEOUT", "OTEL_EXPORTER_OTLP_COMPRESSION"),
        "OTEL_SPAN_ATTRIBUTE_COUNT_LIMIT",
    ],
)
def test_a_word_of_the_environment_that_is_none(metrics, monkeypatch, name):
    monkeypatch.setenv(name, "much")
    with pytest.raises(ConfigError, match="the OTEL_ variables of the environment: .*much"):
        set_up_tracing("http://127.0.0.1:1", 1.0, metrics)


def test_what_callers_send_is_no_reason_of_a_loss(metrics, caplog):
    with socket.socket() as held:  # nobody listens there
        held.bind(("127.0.0.1", 0))
        tracing = set_up_tracing(f"http://127.0.0.1:{held.getsockname()[1]}", 1.0, metrics)
        parent = "00-" + "1" * 32 + "-" + "2" * 16 + "-01"
        metadata = [("traceparent", parent), ("tracestate", "a caller's words")]
        tracing.calls.call("/s/M", metadata).end()
        tracing.close(0.0)
    (lost,) = said(caplog)
    assert "words" not in lost


def test_opentelemetry_may_be_told_to_be_off(metrics, monkeypatch):
    monkeypatch.setenv("OTEL_SDK_DISABLED", "true")
    assert set_up_tracing("http://127.0.0.1:1", 1.0, metrics) is None


def test_without_the_packages_it_is_said_what_to_install(metrics, monkeypatch):
    monkeypatch.setitem(sys.modules, "opentelemetry.sdk.trace", None)
    with pytest.raises(ConfigError, match=r"pip install 'neurona\[tracing\]'"):
        set_up_tracing("http://127.0.0.1:1", 1.0, metrics)
