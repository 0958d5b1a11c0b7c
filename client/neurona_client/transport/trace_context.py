"""The trace that a call belongs to, where the caller has OpenTelemetry: no dependency of ours.

Nothing is imported here: a span can only be current where OpenTelemetry has been imported.
"""

import sys

Metadata = tuple[tuple[str, str], ...]


def context() -> Metadata:
    """The metadata that pass the current span on (W3C Trace Context); empty where there is none,
    or nobody records it."""
    trace = sys.modules.get("opentelemetry.trace")
    if trace is None:
        return ()
    current = trace.get_current_span().get_span_context()
    if not (current.is_valid and current.trace_flags & 1):
        return ()
    said = [("traceparent", f"00-{current.trace_id:032x}-{current.span_id:016x}-01")]
    state = current.trace_state.to_header() if current.trace_state else ""
    if state:
        said.append(("tracestate", state))
    return tuple(said)
