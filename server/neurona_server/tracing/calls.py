"""Spans of calls, and of the requests in a stream.

Names and attributes follow OpenTelemetry's semantic conventions for RPC, those of gRPC servers.
"""

import random
import time
from collections.abc import Callable, Iterable

from opentelemetry import trace as api
from opentelemetry.context import Context
from opentelemetry.trace import Span, SpanKind, Status, StatusCode, Tracer
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from neurona_server.errors import NeuronaError
from neurona_server.rpc.caller import Metadata, parent_of
from neurona_server.rpc.status import code_of
from neurona_server.rpc.submission import Submission
from neurona_server.tracing.unfailing import unfailing

FAULTS = {2, 4, 12, 13, 14, 15}
"""Codes that are the server's fault: UNKNOWN, DEADLINE_EXCEEDED, UNIMPLEMENTED, INTERNAL,
UNAVAILABLE and DATA_LOSS. The conventions call only those an error of the server's span."""

_W3C = TraceContextTextMapPropagator()


class CallTracer:
    def __init__(self, tracer: Tracer, ratio: float, room: Callable[[], bool]) -> None:
        """`room` says whether a span that is made now can be kept, and counts it if not."""
        self._tracer = tracer
        self._ratio = ratio
        self._room = room

    def samples(self, metadata: Metadata) -> bool:
        """What the caller decided for its trace holds; a call without one has its chance."""
        parent = parent_of(metadata)
        chance = random.random()  # noqa: S311  nobody gains by foreseeing it
        return (chance < self._ratio if parent is None else parent[1]) and self._room()

    def call(self, path: str, metadata: Metadata) -> "CallTrace":
        """Of one that is sampled, and begins now."""
        context = _context_of(metadata)
        service, _, method = path.removeprefix("/").partition("/")
        span = self._tracer.start_span(
            f"{service}/{method}",
            context,
            SpanKind.SERVER,
            {"rpc.system": "grpc", "rpc.service": service, "rpc.method": method},
        )
        return CallTrace(self._tracer, span)


class CallTrace:
    """As `rpc.caller` has it."""

    def __init__(self, tracer: Tracer, span: Span) -> None:
        self._tracer = tracer
        self.span = span
        self.context = api.set_span_in_context(span, Context())
        self.trace_id = f"{span.get_span_context().trace_id:032x}"
        self._open = [True]
        self._error: Exception | None = None

    def request(self, number: int) -> "CallTrace":
        attributes = {"neurona.request.number": number if number < 1 << 63 else str(number)}
        return CallTrace(
            self._tracer, self._tracer.start_span("request", self.context, attributes=attributes)
        )

    @unfailing
    def answered(self, request: Submission, error: Exception | None) -> None:
        self._error = error
        self.span.set_attributes(
            {
                "neurona.model": request.model.name,
                "neurona.version": request.model.version,
                "neurona.rows": request.rows,
            }
        )
        if error is not None and request.arrived and not request.taken:
            self.queued(request.arrived, time.monotonic(), error)

    def queued(self, arrived: float, left: float, error: Exception | None = None) -> None:
        """Its request has waited, by the monotonic clock."""
        queue = self._tracer.start_span("queue", self.context, start_time=nanoseconds(arrived))
        if error is not None:
            fail(queue, error)
        queue.end(nanoseconds(left))

    @unfailing
    def end(self, error: Exception | None = None) -> None:
        try:
            self._open.pop()
        except IndexError:
            return
        error = self._error or error
        code = 0 if error is None else code_of(error)
        self.span.set_attribute("rpc.grpc.status_code", code)
        if error is not None:
            fail(self.span, error, is_fault=code in FAULTS)
        self.span.end()


def fail(span: Span, error: Exception, *, is_fault: bool = True) -> None:
    """The span has failed with it. What is no word of ours to a caller, like ONNX Runtime's, is in
    the log: here is only its kind."""
    kind = type(error).__qualname__
    attributes = {"exception.type": kind}
    if isinstance(error, NeuronaError):
        attributes["exception.message"] = str(error)
    span.add_event("exception", attributes)
    if is_fault:
        span.set_attribute("error.type", kind)
        span.set_status(Status(StatusCode.ERROR, attributes.get("exception.message", kind)))


def nanoseconds(moment: float) -> int:
    """Since 1970, of a moment of the monotonic clock."""
    return time.time_ns() - round((time.monotonic() - moment) * 1e9)


def _context_of(metadata: Iterable[tuple[str, str | bytes]]) -> Context:
    carrier: dict[str, str] = {}
    for key, value in metadata:
        if key in ("traceparent", "tracestate") and isinstance(value, str):
            # Of several, tracestate counts as one list; of traceparent there must be one.
            carrier[key] = f"{carrier[key]},{value}" if key in carrier else value
    return _W3C.extract(carrier, Context()) if "traceparent" in carrier else Context()
