"""Puts tracing together, from options and from OpenTelemetry's own environment variables."""

import os
import uuid
from collections.abc import Mapping
from typing import TYPE_CHECKING, Protocol

from neurona_server.errors import ConfigError
from neurona_server.metrics import Metrics

if TYPE_CHECKING:
    from opentelemetry.sdk.resources import Resource

    from neurona_server.tracing.batches import Tracer
    from neurona_server.tracing.calls import CallTracer

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


def open_tracing(
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
    from neurona_server.tracing.batches import Tracer
    from neurona_server.tracing.calls import CallTracer
    from neurona_server.tracing.shipping import Shipping

    try:
        exporter = OTLPSpanExporter(endpoint=endpoint)
        limits = SpanLimits(max_links=LINKS)
    except Exception as error:  # it has kinds of its own beside OSError and ValueError
        raise ConfigError(f"the OTEL_ variables of the environment: {error}") from error
    shipping = Shipping(exporter, endpoint, metrics.spans)
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
