"""Memory stays bounded with ten thousand calls at a time."""

import asyncio
import gc
import resource
from pathlib import Path

import numpy as np
import pytest

from neurona_client import AsyncClient

CALLS = 10_000
ROW = np.ones(4, np.float32)
KIB = 1024


def resident_bytes():
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize()


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs /proc")
def test_memory_is_bounded_with_ten_thousand_calls_at_a_time(make_server):
    """Each has 16 KB of input, shared by all callers; encoded they would be 160 MB."""
    server = make_server()
    series = np.ones(4 * KIB, np.float32)
    limit = 4 << 20
    highest = 0

    async def main():
        nonlocal highest
        address = f"127.0.0.1:{server.port}"
        async with AsyncClient(address, max_pending_bytes=limit) as client:
            await client.predict("regressor", series)
            gc.collect()
            before = resident_bytes()

            async def predict():
                nonlocal highest
                result = await client.predict("regressor", series)
                highest = max(highest, client._base.capacity.in_flight[1])
                assert result.value == series.size

            await asyncio.gather(*(predict() for _ in range(CALLS)))
            assert client._base.capacity.in_flight == (0, 0)
            return resident_bytes() - before

    grown = asyncio.run(main())
    assert limit / 2 < highest <= limit
    # Tasks and futures of the callers take some KB each. Requests are bounded, also in the server,
    # which runs in this process too.
    assert grown < 120 << 20
