"""Spans of calls, and of the requests in a stream.

Names and attributes follow OpenTelemetry's semantic conventions for RPC, those of gRPC servers.
"""

import logging
import random
import time
from collections.abc import Callable, Iterable, Sequence
from functools import wraps
from typing import ParamSpec

from opentelemetry import trace as api
from opentelemetry.context import Context
from opentelemetry.trace import Link, Span, SpanKind, Status, StatusCode
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from neurona_server.batching.request import Request
from neurona_server.errors import NeuronaError
from neurona_server.rpc.call import Metadata, parent_of
from neurona_server.rpc.status import code_of
from neurona_server.rpc.submission import Submission
from neurona_server.telemetry.trace import RunTimes

log = logging.getLogger(__name__)

Parameters = ParamSpec("Parameters")


def never_raises(step: Callable[Parameters, None]) -> Callable[Parameters, None]:
    """`step`, but what it raises is said in the log, once."""
    said: list[bool] = []

    @wraps(step)
    def tried(*args: Parameters.args, **kwargs: Parameters.kwargs) -> None:
        try:
            step(*args, **kwargs)
        except Exception:
            if not said:
                said.append(True)
                log.exception("traces are not complete: this is said once")

    return tried


class Tracer:
    """As `batching.trace` has it."""

    def __init__(self, tracer: api.Tracer) -> None:
        self._tracer = tracer

    def model(self, name: str, version: int, provider: str) -> "BatchTracer":
        return BatchTracer(self._tracer, name, version, provider)


class BatchTracer:
    """Likewise. Whatever goes wrong here, the batch goes on."""

    def __init__(self, tracer: api.Tracer, name: str, version: int, provider: str) -> None:
        self._tracer = tracer
        self._attributes: dict[str, str | int] = {
            "neurona.model": name,
            "neurona.version": version,
            "neurona.provider": provider,
        }

    @never_raises
    def cut(self, batch: Sequence[Request]) -> None:
        for request in batch:
            if isinstance(trace := request.trace, CallTrace):
                trace.queued(request.arrived, request.taken)

    @never_raises
    def ran(self, batch: Sequence[Request], rows: int, padded: int, times: RunTimes) -> None:
        if traces := _traces(batch):
            span = self._batch(traces, batch, times.started)
            span.set_attribute("neurona.batch.padding", padded - rows)
            run = self._run(span, times.joined)
            run.end(nanoseconds(times.ran))
            span.end(nanoseconds(times.split))

    @never_raises
    def failed(self, batch: Sequence[Request], started: float, error: Exception) -> None:
        if traces := _traces(batch):
            span = self._batch(traces, batch, started)
            run = self._run(span, started)
            for one in (run, span):
                fail(one, error)
                one.end()

    def _batch(
        self, traces: Sequence["CallTrace"], batch: Sequence[Request], started: float
    ) -> Span:
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

    def _run(self, batch: Span, started: float) -> Span:
        context = api.set_span_in_context(batch, Context())
        attributes = {"neurona.provider": self._attributes["neurona.provider"]}
        return self._tracer.start_span(
            "run", context, attributes=attributes, start_time=nanoseconds(started)
        )


def _traces(batch: Sequence[Request]) -> list["CallTrace"]:
    return [trace for request in batch if isinstance(trace := request.trace, CallTrace)]


FAULTS = {2, 4, 12, 13, 14, 15}
"""Codes that are the server's fault: UNKNOWN, DEADLINE_EXCEEDED, UNIMPLEMENTED, INTERNAL,
UNAVAILABLE and DATA_LOSS. The conventions call only those an error of the server's span."""

_W3C = TraceContextTextMapPropagator()


class CallTracer:
    def __init__(self, tracer: api.Tracer, ratio: float, room: Callable[[], bool]) -> None:
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

    def __init__(self, tracer: api.Tracer, span: Span) -> None:
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

    @never_raises
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

    @never_raises
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
