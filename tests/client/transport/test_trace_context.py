"""The trace context of OpenTelemetry in the metadata of calls."""

import numpy as np
import pytest

from neurona_client import Client

ROW = np.ones(4, np.float32)


@pytest.mark.parametrize("coalesce", [True, False])
def test_a_recorded_span_is_passed_on(server, coalesce, monkeypatch):
    trace = pytest.importorskip("opentelemetry.trace", reason="needs opentelemetry-api")
    calls = []
    context = trace.SpanContext(0xABC, 0xDEF, is_remote=False, trace_flags=trace.TraceFlags(1))
    with Client(f"127.0.0.1:{server.port}", coalesce=coalesce, timeout=20) as client:
        endpoint = client._base.pool.endpoints[0]
        call = endpoint.call

        def record_call(path, message, timeout, metadata, callback):
            calls.append((path, dict(metadata)))
            return call(path, message, timeout, metadata, callback)

        monkeypatch.setattr(endpoint, "call", record_call)
        client.predict("classifier", ROW)
        calls.clear()
        with trace.use_span(trace.NonRecordingSpan(context)):
            assert client.predict("classifier", ROW).label == "cat"
        client.predict("classifier", ROW, request_id="mine")
    parent = f"00-{0xABC:032x}-{0xDEF:016x}-01"
    assert next(one[1].get("traceparent") for one in calls if "Predict" in one[0]) == parent
    assert calls[-1][1] == {"x-request-id": "mine"}
