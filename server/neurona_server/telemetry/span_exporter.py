"""Sets up tracing, from options and from OpenTelemetry's own environment variables.

OpenTelemetry is imported once an endpoint is configured: without one it need not be installed.
"""

import os
import uuid
from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import urlsplit

from neurona_server.address import is_local
from neurona_server.errors import ConfigError
from neurona_server.telemetry.metrics import Metrics
from neurona_server.telemetry.trace import BatchTracerFactory, CallTracer

if TYPE_CHECKING:  # an optional dependency
    from opentelemetry.sdk.resources import Resource

MAX_LINKS = 1024
"""Requests that the span of a batch is linked to. OpenTelemetry's default is 128."""


class Tracing(NamedTuple):
    """The tracers of a server."""

    calls: CallTracer
    batches: BatchTracerFactory
    close: Callable[[float], None]
    """Sends the queued spans, for at most the given number of seconds."""


def set_up_tracing(
    endpoint: str, ratio: float, metrics: Metrics, process: int | None = None
) -> Tracing | None:
    """Start exporting spans to an OTLP collector.

    Args:
        endpoint: The collector's URL (OTLP over gRPC).
        ratio: The share, from 0 to 1, of the calls without a trace of their own to be traced.
        metrics: Counts the spans that are sent and lost.
        process: The number of this process if there are several.

    Returns:
        The tracers; None if the environment variable OTEL_SDK_DISABLED is "true".

    Raises:
        ConfigError: OpenTelemetry is not installed, or one of its environment variables is
            invalid.
    """
    if os.environ.get("OTEL_SDK_DISABLED", "").strip().lower() == "true":
        return None
    try:
        from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.trace import SpanLimits, TracerProvider
        from opentelemetry.sdk.trace.sampling import ALWAYS_ON
    except ImportError as error:
        raise ConfigError(
            f"traces_endpoint is {endpoint!r}, but OpenTelemetry is not installed "
            f"({error.name}): pip install 'neurona[tracing]'"
        ) from error
    from neurona_server.telemetry.span_processor import NonBlockingSpanProcessor
    from neurona_server.telemetry.spans import SpanBatchTracer, SpanCallTracer

    try:
        exporter = OTLPSpanExporter(endpoint=endpoint, channel_options=_channel_options(endpoint))
        limits = SpanLimits(max_links=MAX_LINKS)
    except Exception as error:  # its exceptions are not only OSError and ValueError
        raise ConfigError(f"invalid OTEL_ environment variables: {error}") from error
    processor = NonBlockingSpanProcessor(exporter, endpoint, metrics.spans)
    provider = TracerProvider(
        # Sampling is decided before a span is made (`SpanCallTracer.should_sample`).
        sampler=ALWAYS_ON,
        resource=_resource(process),
        shutdown_on_exit=False,
        span_limits=limits,
    )
    provider.add_span_processor(processor)
    tracer = provider.get_tracer("neurona")
    return Tracing(
        SpanCallTracer(tracer, ratio, processor.has_room),
        partial(SpanBatchTracer, tracer),
        processor.close,
    )


def _channel_options(endpoint: str) -> Any:
    """Return gRPC's options: a collector on this machine is not reached through a proxy."""
    host = urlsplit(endpoint).hostname or ""
    address = f"[{host}]:0" if ":" in host else f"{host}:0"
    return (("grpc.enable_http_proxy", 0),) if is_local(address) else ()


def _resource(process: int | None) -> "Resource":
    """Return the attributes of this process.

    OTEL_SERVICE_NAME and OTEL_RESOURCE_ATTRIBUTES override them.
    """
    from opentelemetry.sdk.resources import OTELResourceDetector, Resource

    defaults: Mapping[str, str | int] = {
        "service.name": "neurona",
        "service.instance.id": str(uuid.uuid4()),
        **({} if process is None else {"neurona.process": process}),
    }
    return Resource.create({**defaults, **OTELResourceDetector().detect().attributes})
