"""Spans of batches and of their runs, made once a run is over: what is not traced costs a look.

A batch belongs to several traces at a time. Its span is a child of its oldest request's that is
traced, so that this trace shows all of the way, and is linked to the requests of all; their spans
are linked to it.
"""

from collections.abc import Sequence

from opentelemetry import trace as api
from opentelemetry.context import Context
from opentelemetry.trace import Link, Span

from neurona_server.batching.request import Request
from neurona_server.batching.trace import RunTimes
from neurona_server.tracing.calls import CallTrace, fail, nanoseconds
from neurona_server.tracing.unfailing import unfailing


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

    @unfailing
    def cut(self, batch: Sequence[Request]) -> None:
        for request in batch:
            if isinstance(trace := request.trace, CallTrace):
                trace.queued(request.arrived, request.taken)

    @unfailing
    def ran(self, batch: Sequence[Request], rows: int, padded: int, times: RunTimes) -> None:
        if traces := _traces(batch):
            span = self._batch(traces, batch, times.started)
            span.set_attribute("neurona.batch.padding", padded - rows)
            run = self._run(span, times.joined)
            run.end(nanoseconds(times.ran))
            span.end(nanoseconds(times.split))

    @unfailing
    def failed(self, batch: Sequence[Request], started: float, error: Exception) -> None:
        if traces := _traces(batch):
            span = self._batch(traces, batch, started)
            run = self._run(span, started)
            for one in (run, span):
                fail(one, error)
                one.end()

    def _batch(self, traces: Sequence[CallTrace], batch: Sequence[Request], started: float) -> Span:
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


def _traces(batch: Sequence[Request]) -> list[CallTrace]:
    return [trace for request in batch if isinstance(trace := request.trace, CallTrace)]
