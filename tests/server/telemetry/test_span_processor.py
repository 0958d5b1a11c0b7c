"""Exporting blocks nobody, and spans that a collector does not accept are counted."""

import logging
import threading

import pytest
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult

from neurona_server.telemetry import span_processor
from neurona_server.telemetry.span_processor import NonBlockingSpanProcessor
from neurona_server.telemetry.spans import SpanCallTracer


class FakeExporter(SpanExporter):
    """An exporter that returns `result` once the test allows it."""

    def __init__(self):
        self.allowed, self.started = threading.Semaphore(0), threading.Semaphore(0)
        self.result = SpanExportResult.SUCCESS
        self.closed = False

    def export(self, spans):
        self.started.release()
        self.allowed.acquire()
        return self.result

    def shutdown(self):
        self.closed = True
        self.allowed.release()


@pytest.fixture
def exporter(monkeypatch):
    monkeypatch.setattr(span_processor, "PAUSE", 0.0)
    return FakeExporter()


@pytest.mark.parametrize("recovery", [0.0, 60.0])
def test_a_loss_and_the_recovery_are_logged_once(
    metrics, span_counts, messages, exporter, caplog, wait_until, recovery, monkeypatch
):
    monkeypatch.setattr(span_processor, "RECOVERY", recovery)
    caplog.set_level(logging.INFO)
    processor = NonBlockingSpanProcessor(exporter, "http://away:1", metrics.spans)
    results = [SpanExportResult.FAILURE] * 3 + [SpanExportResult.SUCCESS] * 2
    for count, result in enumerate(results, 1):
        exporter.result = result
        processor.on_end(object())
        assert exporter.started.acquire(timeout=10)
        exporter.allowed.release()
        # The next span is queued once this one is exported and counted.
        wait_until(lambda: sum(span_counts().values()) == count)  # noqa: B023
    processor.close(10)
    assert span_counts() == {"lost": 3, "sent": 2}
    lost, *recovered = messages(span_processor)
    assert lost.startswith("trace export failed: http://away:1 does not accept spans (")
    # A collector that accepts only some spans would fill the log otherwise.
    assert recovered == (
        [] if recovery else ["trace export recovered: http://away:1 accepts spans again"]
    )


def test_a_collector_that_hangs_does_not_block_requests(
    metrics, span_counts, messages, exporter, monkeypatch
):
    monkeypatch.setattr(span_processor, "MAX_QUEUED", 5)
    processor = NonBlockingSpanProcessor(exporter, "http://slow:1", metrics.spans)
    processor.on_end(object())
    assert exporter.started.acquire(timeout=10)
    for _ in range(8):
        processor.on_end(object())
    assert span_counts()["lost"] == 3
    # A span that would be lost is not made.
    assert not SpanCallTracer(None, 1.0, processor.has_room).should_sample([])
    processor.close(0.1)
    assert exporter.closed
    assert sum(span_counts().values()) == 10
    assert len(messages(span_processor)) == 1
