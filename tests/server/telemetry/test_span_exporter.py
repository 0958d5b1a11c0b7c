"""Setting up tracing: options, OpenTelemetry's environment variables, and missing packages."""

import socket
import subprocess
import sys

import pytest

from neurona_server.errors import ConfigError
from neurona_server.telemetry import span_processor
from neurona_server.telemetry.span_exporter import set_up_tracing

WITHOUT_OPENTELEMETRY = """
import sys
sys.modules["opentelemetry"] = None
from prometheus_client import CollectorRegistry
import neurona_server.app
from neurona_server.errors import ConfigError
from neurona_server.telemetry.metrics import Metrics
from neurona_server.telemetry.span_exporter import set_up_tracing
try:
    set_up_tracing("http://127.0.0.1:1", 1.0, Metrics(CollectorRegistry()))
except ConfigError as error:
    print(error)
"""


@pytest.fixture
def closed_endpoint():
    """The URL of a port on which nobody listens."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        yield f"http://127.0.0.1:{bound.getsockname()[1]}"


def test_an_unreachable_collector_loses_spans(metrics, span_counts, messages, closed_endpoint):
    tracing = set_up_tracing(closed_endpoint, 1.0, metrics)
    tracing.calls.start_call("/s/M", []).end()
    tracing.close(0.5)
    assert span_counts() == {"lost": 1, "sent": 0}
    (lost,) = messages(span_processor)
    assert "does not accept spans (" in lost


def test_a_collector_on_this_machine_is_not_reached_through_a_proxy(
    metrics, collector, monkeypatch
):
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    tracing = set_up_tracing(collector.url, 1.0, metrics)
    tracing.calls.start_call("/s/M", []).end()
    tracing.close(10)
    assert len(collector.spans) == 1


def test_opentelemetrys_environment_variables_apply(metrics, collector, monkeypatch):
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_HEADERS", "api-key=secret")
    monkeypatch.setenv("OTEL_RESOURCE_ATTRIBUTES", "deployment.environment=test,service.name=x")
    monkeypatch.setenv("OTEL_SERVICE_NAME", "mine")
    tracing = set_up_tracing(collector.url, 1.0, metrics, process=3)
    tracing.calls.start_call("/s/M", []).end()
    tracing.close(10)
    (span,) = collector.spans
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
def test_an_invalid_environment_variable_is_an_error(metrics, monkeypatch, name):
    monkeypatch.setenv(name, "much")
    with pytest.raises(ConfigError, match="invalid OTEL_ environment variables: .*much"):
        set_up_tracing("http://127.0.0.1:1", 1.0, metrics)


def test_a_callers_headers_are_not_logged_as_the_reason_of_a_loss(
    metrics, messages, closed_endpoint
):
    tracing = set_up_tracing(closed_endpoint, 1.0, metrics)
    parent = "00-" + "1" * 32 + "-" + "2" * 16 + "-01"
    metadata = [("traceparent", parent), ("tracestate", "a caller's words")]
    tracing.calls.start_call("/s/M", metadata).end()
    tracing.close(0.0)
    (lost,) = messages(span_processor)
    assert "words" not in lost


def test_an_environment_variable_disables_tracing(metrics, monkeypatch):
    monkeypatch.setenv("OTEL_SDK_DISABLED", "true")
    assert set_up_tracing("http://127.0.0.1:1", 1.0, metrics) is None


def test_without_its_packages_tracing_says_which_to_install():
    command = [sys.executable, "-c", WITHOUT_OPENTELEMETRY]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == (
        "traces_endpoint is 'http://127.0.0.1:1', but OpenTelemetry is not installed "
        "(opentelemetry.exporter): pip install 'neurona[tracing]'\n"
    )
