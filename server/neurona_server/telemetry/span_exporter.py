"""Puts tracing together, from options and from OpenTelemetry's own environment variables."""

import atexit
import logging
import os
import threading
import time
import uuid
from collections import deque
from collections.abc import Mapping
from typing import TYPE_CHECKING, Protocol

from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult
from prometheus_client import Counter

from neurona_server.errors import ConfigError
from neurona_server.telemetry.metrics import Metrics

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


class NonBlockingSpanProcessor(SpanProcessor):
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


if TYPE_CHECKING:
    from opentelemetry.sdk.resources import Resource

    from neurona_server.telemetry.spans import CallTracer, Tracer

LINKS = 1024
"""Requests that a batch's span is linked to at the most. OpenTelemetry's own limit is 128."""


class Closable(Protocol):
    def close(self, timeout: float) -> None:
        """Sends what is left, for so many seconds at the most."""


class Tracing:
    def __init__(self, calls: "CallTracer", batches: "Tracer", shipping: Closable) -> None:
        self.calls = calls
        self.batches = batches
        self.close = shipping.close


def set_up_tracing(
    endpoint: str, ratio: float, metrics: Metrics, process: int | None = None
) -> Tracing | None:
    """`ratio` of the calls that bring no trace of their own are traced, from 0 to 1; `process` is
    the number of one of several. None if OTEL_SDK_DISABLED says so. Raises ConfigError when a
    package or a file is missing."""
    if os.environ.get("OTEL_SDK_DISABLED", "").strip().lower() == "true":
        return None
    try:
        from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.trace import SpanLimits, TracerProvider
        from opentelemetry.sdk.trace.sampling import ALWAYS_ON
    except ImportError as error:
        raise ConfigError(
            f"traces_endpoint is {endpoint!r}, and OpenTelemetry is not installed ({error.name}): "
            "pip install 'neurona[tracing]'"
        ) from error
    from neurona_server.telemetry.spans import CallTracer, Tracer

    try:
        exporter = OTLPSpanExporter(endpoint=endpoint)
        limits = SpanLimits(max_links=LINKS)
    except Exception as error:  # it has kinds of its own beside OSError and ValueError
        raise ConfigError(f"the OTEL_ variables of the environment: {error}") from error
    shipping = NonBlockingSpanProcessor(exporter, endpoint, metrics.spans)
    provider = TracerProvider(
        # Who is traced is decided before a span is made: what is made is kept.
        sampler=ALWAYS_ON,
        resource=_resource(process),
        shutdown_on_exit=False,
        span_limits=limits,
    )
    provider.add_span_processor(shipping)
    tracer = provider.get_tracer("neurona")
    return Tracing(CallTracer(tracer, ratio, shipping.room), Tracer(tracer), shipping)


def _resource(process: int | None) -> "Resource":
    """Whose spans they are. OTEL_SERVICE_NAME and OTEL_RESOURCE_ATTRIBUTES win."""
    from opentelemetry.sdk.resources import OTELResourceDetector, Resource

    own: Mapping[str, str | int] = {
        "service.name": "neurona",
        "service.instance.id": str(uuid.uuid4()),
        **({} if process is None else {"neurona.process": process}),
    }
    return Resource.create({**own, **OTELResourceDetector().detect().attributes})
