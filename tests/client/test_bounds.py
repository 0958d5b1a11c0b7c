"""Ten thousand calls at a time, and what they cost in memory; contexts that are passed on."""

import asyncio
import gc
import resource
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from neurona_client import AsyncClient, Client

CALLS = 10_000
ROW = np.ones(4, np.float32)
KIB = 1024


def resident():
    """Bytes."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize()


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs /proc")
def test_ten_thousand_calls_at_a_time_keep_bounded_memory(make_server):
    """Each has 16 KB, shared by all callers; encoded they would be 160 MB."""
    server = make_server()
    series = np.ones(4 * KIB, np.float32)
    limit = 4 << 20
    most = 0

    async def main():
        nonlocal most
        address = f"127.0.0.1:{server.port}"
        async with AsyncClient(address, max_pending_bytes=limit) as client:
            await client.predict("regressor", series)
            gc.collect()
            before = resident()

            async def ask():
                nonlocal most
                answer = await client.predict("regressor", series)
                most = max(most, client._calls.gate.inside[1])
                assert answer.value == series.size

            await asyncio.gather(*(ask() for _ in range(CALLS)))
            assert client._calls.gate.inside == (0, 0)
            return resident() - before

    grown = asyncio.run(main())
    assert limit / 2 < most <= limit
    # Tasks and futures of the callers take some KB each; requests and the server's part of them,
    # which runs in this process too, are bounded.
    assert grown < 120 << 20


@pytest.mark.parametrize("coalesce", [True, False])
def test_a_span_that_is_recorded_is_passed_on(server, coalesce, monkeypatch):
    trace = pytest.importorskip("opentelemetry.trace", reason="needs opentelemetry-api")
    seen = []
    context = trace.SpanContext(0xABC, 0xDEF, is_remote=False, trace_flags=trace.TraceFlags(1))
    with Client(f"127.0.0.1:{server.port}", coalesce=coalesce, timeout=20) as client:
        endpoint = client._calls.fleet.endpoints[0]
        call = endpoint.call

        def noted(path, message, timeout, metadata, done):
            seen.append((path, dict(metadata)))
            return call(path, message, timeout, metadata, done)

        monkeypatch.setattr(endpoint, "call", noted)
        client.predict("classifier", ROW)
        seen.clear()
        with trace.use_span(trace.NonRecordingSpan(context)):
            assert client.predict("classifier", ROW).label == "cat"
        client.predict("classifier", ROW, request_id="mine")
    parent = f"00-{0xABC:032x}-{0xDEF:016x}-01"
    assert next(one[1].get("traceparent") for one in seen if "Predict" in one[0]) == parent
    assert seen[-1][1] == {"x-request-id": "mine"}


def test_importing_the_package_imports_nothing_heavy():
    code = (
        "import sys, neurona_client, neurona_client.errors, neurona_client.options\n"
        "print([name for name in ('grpc', 'numpy', 'google.protobuf') if name in sys.modules])\n"
        "neurona_client.Client\n"
        "print([name for name in ('asyncio', 'PIL', 'opentelemetry') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout.split("\n")[0] == "[]"
    assert "PIL" not in done.stdout
    assert "opentelemetry" not in done.stdout


def test_every_name_of_the_package_is_there():
    import neurona_client

    for name in neurona_client.__all__:
        assert getattr(neurona_client, name) is not None
    assert set(neurona_client.__all__) <= set(dir(neurona_client))
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        neurona_client.nothing  # noqa: B018
