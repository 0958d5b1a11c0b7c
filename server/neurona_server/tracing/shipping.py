"""Spans on their way to the collector: put aside at once, sent by a thread of their own.

What the collector does not take is lost: counted, and said in the log once until it takes spans
again. Nobody who serves ever waits for it.
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

MOST_WAITING = 8192
"""Spans; what comes while so many wait is lost."""

MOST_AT_ONCE = 512
"""Spans of one message."""

PAUSE = 1.0
"""Seconds in which spans gather, unless there are enough before."""


QUIET = 60.0
"""Seconds without a loss after which the next one is said anew."""


class _Reason(logging.Handler):
    """What the exporter last said: it says it again and again, so it is not heard directly. What
    else OpenTelemetry says is about callers' headers, and quotes them."""

    text = ""

    def emit(self, record: logging.LogRecord) -> None:
        if record.name.startswith("opentelemetry.exporter"):
            self.text = record.getMessage()


class Shipping(SpanProcessor):
    def __init__(self, exporter: SpanExporter, endpoint: str, spans: Counter) -> None:
        self._exporter = exporter
        self._endpoint = endpoint
        self._sent, self._lost = spans.labels("sent"), spans.labels("lost")
        self._waiting: deque[ReadableSpan] = deque()
        self._some, self._enough = threading.Event(), threading.Event()
        self._closing = self._given_up = False
        self._under_way = 0  # spans that are being sent
        self._counting = threading.Lock()
        self._losing = False
        self._last_loss = 0.0  # monotonic
        self._reason = _Reason()
        theirs = logging.getLogger("opentelemetry")
        theirs.handlers[:] = [self._reason]
        theirs.propagate = False
        self._thread = threading.Thread(target=self._ship, name="traces", daemon=True)
        self._thread.start()
        atexit.register(self.close, 0.0)  # a process that gives up while it starts

    def room(self) -> bool:
        """Whether one more can wait: where a collector is away, spans are not even made. Without
        room it counts as lost."""
        if len(self._waiting) < MOST_WAITING:
            return True
        self._lost.inc()
        self._say_lost("more spans come than it takes")
        return False

    def on_end(self, span: ReadableSpan) -> None:
        if not self.room():
            return
        self._waiting.append(span)
        if not self._some.is_set():
            self._some.set()
        if len(self._waiting) >= MOST_AT_ONCE and not self._enough.is_set():
            self._enough.set()

    def close(self, timeout: float) -> None:
        """Sends what is left, for so many seconds at the most. A second call does nothing."""
        if self._closing:
            return
        atexit.unregister(self.close)
        self._closing = True
        self._enough.set()
        self._some.set()
        self._thread.join(timeout)
        self._exporter.shutdown()
        with self._counting:
            self._given_up = True
            left = len(self._waiting) + self._under_way
        if left:
            self._lost.inc(left)
            self._say_lost(self._reason.text or "it did not take them before the end")

    def _ship(self) -> None:
        while True:
            self._some.wait()
            self._enough.wait(PAUSE)
            # Before the look at what waits, so that what comes after it wakes us again.
            self._some.clear()
            self._enough.clear()
            while self._waiting:
                count = min(len(self._waiting), MOST_AT_ONCE)
                self._send([self._waiting.popleft() for _ in range(count)])
            if self._closing:
                return

    def _send(self, spans: list[ReadableSpan]) -> None:
        self._under_way = len(spans)
        try:
            sent = self._exporter.export(spans) is SpanExportResult.SUCCESS
        except Exception as error:  # whatever it is, the next ones are tried
            self._reason.text = str(error)
            sent = False
        with self._counting:
            self._under_way = 0
            if self._given_up:  # and counted
                return
            (self._sent if sent else self._lost).inc(len(spans))
        if not sent:
            self._say_lost(self._reason.text)
        elif self._losing and time.monotonic() - self._last_loss >= QUIET:
            self._losing = False
            log.info("traces get to %s again", self._endpoint)

    def _say_lost(self, reason: str) -> None:
        self._last_loss = time.monotonic()
        if not self._losing:
            self._losing = True
            log.warning(
                "traces are lost: %s does not take them (%s); neurona_trace_spans_total counts",
                *(self._endpoint, reason),
            )
