"""The W3C Trace Context of a call, where the caller uses OpenTelemetry.

This file stands alone because nothing else knows OpenTelemetry. It does not import it: a span can
only be current where the caller has imported it.
"""

import sys

Metadata = tuple[tuple[str, str], ...]


def trace_context() -> Metadata:
    """Return metadata that pass on the current span; empty if there is none or it is not recorded.

    Source: W3C Trace Context, w3.org/TR/trace-context.
    """
    trace = sys.modules.get("opentelemetry.trace")
    if trace is None:
        return ()
    span = trace.get_current_span().get_span_context()
    if not (span.is_valid and span.trace_flags & 1):
        return ()
    metadata = [("traceparent", f"00-{span.trace_id:032x}-{span.span_id:016x}-01")]
    state = span.trace_state.to_header() if span.trace_state else ""
    if state:
        metadata.append(("tracestate", state))
    return tuple(metadata)
