"""Sends ended spans to a collector from a thread of its own, and counts the spans that are lost.

OpenTelemetry's BatchSpanProcessor does not report how many spans it drops, and makes every span
even while its queue is full. This one counts each, and `has_room` says beforehand whether a span
is worth making.
"""

import atexit
import logging
import threading
import time
from collections import deque

from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult
from prometheus_client import Counter

log = logging.getLogger(__name__)

MAX_QUEUED = 8192
"""Spans that may wait to be sent; further ones are lost."""

MAX_EXPORTED = 512
"""Spans of one message to the collector."""

PAUSE = 1.0
"""Seconds in which spans are collected for a message, unless MAX_EXPORTED have ended before."""

RECOVERY = 60.0
"""Seconds without a loss after which the collector counts as recovered."""


class _LastMessage(logging.Handler):
    """Keeps the last log message of OpenTelemetry's exporter, as the reason of a loss.

    The exporter repeats itself, so its messages are not logged as such. Other messages of
    OpenTelemetry are about callers' headers and quote them: they are dropped.
    """

    text = ""

    def emit(self, record: logging.LogRecord) -> None:
        if record.name.startswith("opentelemetry.exporter"):
            self.text = record.getMessage()


class NonBlockingSpanProcessor(SpanProcessor):
    """Queues ended spans and exports them in a thread; never blocks the thread that ends a span."""

    def __init__(self, exporter: SpanExporter, endpoint: str, spans: Counter) -> None:
        self._exporter = exporter
        self._endpoint = endpoint
        self._sent, self._lost = spans.labels("sent"), spans.labels("lost")
        self._queue: deque[ReadableSpan] = deque()
        self._not_empty, self._batch_full = threading.Event(), threading.Event()
        self._closing = self._closed = False
        self._exporting = 0  # spans that are being sent
        self._counting = threading.Lock()
        self._losing = False
        self._last_loss = 0.0  # monotonic
        self._reason = _LastMessage()
        library = logging.getLogger("opentelemetry")
        library.handlers[:] = [self._reason]
        library.propagate = False
        self._thread = threading.Thread(target=self._export_all, name="traces", daemon=True)
        self._thread.start()
        atexit.register(self.close, 0.0)  # for a process that exits during its start

    def has_room(self) -> bool:
        """Return whether one more span can be queued; if not, it counts as lost."""
        if len(self._queue) < MAX_QUEUED:
            return True
        self._lost.inc()
        self._log_loss("more spans arrive than it accepts")
        return False

    def on_end(self, span: ReadableSpan) -> None:
        if not self.has_room():
            return
        self._queue.append(span)
        if not self._not_empty.is_set():
            self._not_empty.set()
        if len(self._queue) >= MAX_EXPORTED and not self._batch_full.is_set():
            self._batch_full.set()

    def close(self, timeout: float) -> None:
        """Send the queued spans for at most `timeout` seconds. A second call does nothing."""
        if self._closing:
            return
        atexit.unregister(self.close)
        self._closing = True
        self._batch_full.set()
        self._not_empty.set()
        self._thread.join(timeout)
        self._exporter.shutdown()
        with self._counting:
            self._closed = True
            unsent = len(self._queue) + self._exporting
        if unsent:
            self._lost.inc(unsent)
            self._log_loss(self._reason.text or "it did not accept them before the server stopped")

    def _export_all(self) -> None:
        while True:
            self._not_empty.wait()
            self._batch_full.wait(PAUSE)
            # Cleared before the queue is read, so that a later span sets them again.
            self._not_empty.clear()
            self._batch_full.clear()
            while self._queue:
                count = min(len(self._queue), MAX_EXPORTED)
                self._export([self._queue.popleft() for _ in range(count)])
            if self._closing:
                return

    def _export(self, spans: list[ReadableSpan]) -> None:
        self._exporting = len(spans)
        try:
            success = self._exporter.export(spans) is SpanExportResult.SUCCESS
        except Exception as error:  # whatever it is, the next ones are tried
            self._reason.text = str(error)
            success = False
        with self._counting:
            self._exporting = 0
            if self._closed:  # `close` has counted them as lost
                return
            (self._sent if success else self._lost).inc(len(spans))
        if not success:
            self._log_loss(self._reason.text)
        elif self._losing and time.monotonic() - self._last_loss >= RECOVERY:
            self._losing = False
            log.info("trace export recovered: %s accepts spans again", self._endpoint)

    def _log_loss(self, reason: str) -> None:
        self._last_loss = time.monotonic()
        if not self._losing:
            self._losing = True
            log.warning(
                "trace export failed: %s does not accept spans (%s); neurona_trace_spans_total "
                "counts the lost ones",
                *(self._endpoint, reason),
            )
