"""OpenTelemetry spans of calls, of requests in a stream, and of batches.

Names and attributes follow OpenTelemetry's semantic conventions for RPC, those of gRPC servers.
"""

import logging
import random
import time
from collections.abc import Callable, Sequence
from functools import wraps
from typing import ParamSpec

from opentelemetry import trace as api
from opentelemetry.context import Context
from opentelemetry.trace import Link, Span, SpanKind, Status, StatusCode
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from neurona_server.errors import NeuronaError
from neurona_server.telemetry.trace import Metadata, RunTimes, TracedRequest, parent_of

log = logging.getLogger(__name__)

SERVER_FAULTS = {2, 4, 12, 13, 14, 15}
"""gRPC status codes that make the server's span an error, by the semantic conventions: UNKNOWN,
DEADLINE_EXCEEDED, UNIMPLEMENTED, INTERNAL, UNAVAILABLE and DATA_LOSS."""

_W3C = TraceContextTextMapPropagator()

Parameters = ParamSpec("Parameters")


def never_raises(function: Callable[Parameters, None]) -> Callable[Parameters, None]:
    """Wrap `function` so that its exceptions are logged, only the first one, and not raised."""
    logged: list[bool] = []

    @wraps(function)
    def wrapper(*args: Parameters.args, **kwargs: Parameters.kwargs) -> None:
        try:
            function(*args, **kwargs)
        except Exception:
            if not logged:
                logged.append(True)
                log.exception("traces are incomplete; further errors of this kind are not logged")

    return wrapper


class SpanCallTrace:
    """The span of a call or of one request in a stream (`telemetry.trace.CallTrace`)."""

    def __init__(self, tracer: api.Tracer, span: Span) -> None:
        self._tracer = tracer
        self.span = span
        self.context = api.set_span_in_context(span, Context())
        self.trace_id = f"{span.get_span_context().trace_id:032x}"
        self._open = [True]
        self._error: Exception | None = None

    def start_request(self, number: int) -> "SpanCallTrace":
        attributes = {"neurona.request.number": number if number < 1 << 63 else str(number)}
        return SpanCallTrace(
            self._tracer, self._tracer.start_span("request", self.context, attributes=attributes)
        )

    @never_raises
    def record_outcome(
        self,
        request: TracedRequest,
        model: str,
        version: int,
        error: Exception | None,
        run_rows: int = 0,  # noqa: ARG002  the run's span has them
    ) -> None:
        self._error = error
        self.span.set_attributes(
            {"neurona.model": model, "neurona.version": version, "neurona.rows": request.rows}
        )
        if error is not None and request.queued_at and not request.dequeued_at:
            self.record_queue_time(request.queued_at, time.monotonic(), error)

    def record_queue_time(
        self, queued_at: float, dequeued_at: float, error: Exception | None = None
    ) -> None:
        """Add a span of the time in the queue, in seconds of the monotonic clock."""
        span = self._tracer.start_span("queue", self.context, start_time=nanoseconds(queued_at))
        if error is not None:
            record_error(span, error)
        span.end(nanoseconds(dequeued_at))

    @never_raises
    def end(self, error: Exception | None = None) -> None:
        try:
            self._open.pop()
        except IndexError:
            return
        error = self._error or error
        code = 0
        if error is not None:
            code = error.code if isinstance(error, NeuronaError) else NeuronaError.code
        self.span.set_attribute("rpc.grpc.status_code", code)
        if error is not None:
            record_error(self.span, error, is_fault=code in SERVER_FAULTS)
        self.span.end()


class SpanCallTracer:
    """Starts the spans of calls (`telemetry.trace.CallTracer`).

    `ratio` of the calls without a trace of their own are sampled, from 0 to 1. `has_room` says
    whether one more span can be exported, and counts it as lost if not.
    """

    def __init__(self, tracer: api.Tracer, ratio: float, has_room: Callable[[], bool]) -> None:
        self._tracer = tracer
        self._ratio = ratio
        self._has_room = has_room

    def should_sample(self, metadata: Metadata) -> bool:
        """Follow the caller's decision if the call has a trace, else sample by the ratio."""
        parent = parent_of(metadata)
        chance = random.random()  # noqa: S311  predicting it gains an attacker nothing
        return (chance < self._ratio if parent is None else parent[1]) and self._has_room()

    def start_call(self, path: str, metadata: Metadata) -> SpanCallTrace:
        context = _context_of(metadata)
        service, _, method = path.removeprefix("/").partition("/")
        span = self._tracer.start_span(
            f"{service}/{method}",
            context,
            SpanKind.SERVER,
            {"rpc.system": "grpc", "rpc.service": service, "rpc.method": method},
        )
        return SpanCallTrace(self._tracer, span)


class SpanBatchTracer:
    """A `telemetry.trace.BatchTracer` that adds spans of queue, batch and run to traces."""

    def __init__(self, tracer: api.Tracer, model: str, version: int, provider: str) -> None:
        self._tracer = tracer
        self._attributes: dict[str, str | int] = {
            "neurona.model": model,
            "neurona.version": version,
            "neurona.provider": provider,
        }

    @never_raises
    def record_queue_times(self, batch: Sequence[TracedRequest]) -> None:
        for request in batch:
            if isinstance(trace := request.trace, SpanCallTrace):
                trace.record_queue_time(request.queued_at, request.dequeued_at)

    @never_raises
    def record_run(
        self, batch: Sequence[TracedRequest], rows: int, padded: int, times: RunTimes
    ) -> None:
        if traces := _traces_of(batch):
            span = self._start_batch(traces, batch, times.batch_started)
            span.set_attribute("neurona.batch.padding", padded - rows)
            run = self._start_run(span, times.run_started)
            run.end(nanoseconds(times.run_finished))
            span.end(nanoseconds(times.batch_finished))

    @never_raises
    def record_failed_run(
        self, batch: Sequence[TracedRequest], started: float, error: Exception
    ) -> None:
        if traces := _traces_of(batch):
            span = self._start_batch(traces, batch, started)
            run = self._start_run(span, started)
            for each in (run, span):
                record_error(each, error)
                each.end()

    def _start_batch(
        self, traces: Sequence[SpanCallTrace], batch: Sequence[TracedRequest], started: float
    ) -> Span:
        """Start a batch's span in the first trace, linked with the requests of all traces."""
        span = self._tracer.start_span(
            "batch",
            traces[0].context,
            attributes={
                **self._attributes,
                "neurona.batch.rows": sum([request.rows for request in batch]),
                "neurona.batch.requests": sum([request.count for request in batch]),
            },
            links=[Link(trace.span.get_span_context()) for trace in traces],
            start_time=nanoseconds(started),
        )
        for trace in traces:
            if trace.span.is_recording():
                trace.span.add_link(span.get_span_context())
        return span

    def _start_run(self, batch: Span, started: float) -> Span:
        context = api.set_span_in_context(batch, Context())
        attributes = {"neurona.provider": self._attributes["neurona.provider"]}
        return self._tracer.start_span(
            "run", context, attributes=attributes, start_time=nanoseconds(started)
        )


def record_error(span: Span, error: Exception, *, is_fault: bool = True) -> None:
    """Add `error` to the span as an event and, if it is the server's fault, as its status.

    Of errors that are not written for callers, such as ONNX Runtime's, only the class is
    recorded: the log has their texts.
    """
    kind = type(error).__qualname__
    attributes = {"exception.type": kind}
    if isinstance(error, NeuronaError):
        attributes["exception.message"] = str(error)
    span.add_event("exception", attributes)
    if is_fault:
        span.set_attribute("error.type", kind)
        span.set_status(Status(StatusCode.ERROR, attributes.get("exception.message", kind)))


def nanoseconds(monotonic: float) -> int:
    """Return the Unix time in nanoseconds of a time of the monotonic clock in seconds."""
    return time.time_ns() - round((time.monotonic() - monotonic) * 1e9)


def _traces_of(batch: Sequence[TracedRequest]) -> list[SpanCallTrace]:
    return [trace for request in batch if isinstance(trace := request.trace, SpanCallTrace)]


def _context_of(metadata: Metadata) -> Context:
    """Return the parent context in `traceparent` and `tracestate`, an empty one without them."""
    carrier: dict[str, str] = {}
    for key, value in metadata:
        if key in ("traceparent", "tracestate") and isinstance(value, str):
            # Several tracestate headers count as one list; traceparent must be unique.
            carrier[key] = f"{carrier[key]},{value}" if key in carrier else value
    return _W3C.extract(carrier, Context()) if "traceparent" in carrier else Context()
