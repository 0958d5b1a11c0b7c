"""Clients in programs whose threads gevent or eventlet has replaced: each in a process."""

import importlib.util
import subprocess
import sys

import pytest

GEVENT = "from gevent import monkey; monkey.patch_all()"

CLIENT = """
import gevent, numpy as np
from neurona_client import Client, Retries, UnavailableError
inputs = np.zeros((8, 8), np.float32)
ticks = []
def tick():
    while True:
        ticks.append(1)
        gevent.sleep(0.001)
gevent.spawn(tick)
with Client(ADDRESS, timeout=20) as client:
    def call():
        return [client.predict("lenet5", inputs).label for _ in range(20)]
    calls = [gevent.spawn(call) for _ in range(10)]
    gevent.joinall(calls, raise_error=True)
    assert [one.value for one in calls] == [["0"] * 20] * 10
    assert client.predict("lenet5", np.zeros((4000, 8, 8), np.float32))[3999].label == "0"
    def walk():
        with client.session("lstm") as session:
            labels = []
            for row in inputs:
                session.send(row)
                labels.append(session.receive().label)
            return labels
    walks = [gevent.spawn(walk) for _ in range(10)]
    gevent.joinall(walks, raise_error=True)
    assert {len(one.value) for one in walks} == {8}
    assert ticks, "other greenlets do not run while calls wait"
with Client([ADDRESS, "127.0.0.1:1"], timeout=20, coalesce=False) as client:
    assert client.predict("lenet5", inputs).label == "0"
with Client("127.0.0.1:1", retries=Retries(unreachable_timeout=0.1)) as client:
    try:
        client.predict("lenet5", inputs)
    except UnavailableError as error:
        assert "refused" in str(error), error
"""

ASYNC_CLIENT = """
import asyncio, numpy as np
from neurona_client import AsyncClient
async def main():
    async with AsyncClient(ADDRESS, timeout=20) as client:
        calls = [client.predict("lenet5", np.zeros((8, 8), np.float32)) for _ in range(100)]
        assert [one.label for one in await asyncio.gather(*calls)] == ["0"] * 100
asyncio.run(main())
"""

STUBS = """
import grpc
from neurona_protos.prediction_pb2 import ListModelsRequest
from neurona_protos.prediction_pb2_grpc import ModelsStub
channel = grpc.insecure_channel(ADDRESS)
models = ModelsStub(channel).List(ListModelsRequest(), timeout=20).models
"""

EARLY_CLIENT = """
import numpy as np
from neurona_client import Client
client = Client(ADDRESS, timeout=20)
from gevent import monkey; monkey.patch_all()
assert client.predict("lenet5", np.zeros((8, 8), np.float32)).label == "0"
"""

GEVENT_WITHOUT_THREADS = """
from gevent import monkey; monkey.patch_all(thread=False)
import gevent, numpy as np
from neurona_client import Client
with Client(ADDRESS, timeout=20) as client:
    def call():
        return client.predict("lenet5", np.zeros((8, 8), np.float32)).label
    calls = [gevent.spawn(call) for _ in range(20)]
    gevent.joinall(calls, raise_error=True)
    assert [one.value for one in calls] == ["0"] * 20
"""

EVENTLET = """
import eventlet; eventlet.monkey_patch()
from neurona_client import AsyncClient, Client
for kind in (Client, AsyncClient):
    try:
        kind(ADDRESS)
    except RuntimeError as error:
        assert "eventlet has replaced the threads" in str(error), error
    else:
        raise AssertionError(kind)
"""

EVENTLET_WITHOUT_THREADS = """
import eventlet; eventlet.monkey_patch(thread=False)
import numpy as np
from neurona_client import Client
with Client(ADDRESS, timeout=20) as client:
    assert client.predict("lenet5", np.zeros((8, 8), np.float32)).label == "0"
"""


@pytest.mark.parametrize(
    ("library", "program"),
    [
        pytest.param("gevent", GEVENT + STUBS + CLIENT + ASYNC_CLIENT, id="gevent"),
        pytest.param("gevent", EARLY_CLIENT, id="gevent-after-the-client"),
        pytest.param("gevent", GEVENT_WITHOUT_THREADS, id="gevent-without-threads"),
        pytest.param("eventlet", EVENTLET, id="eventlet"),
        pytest.param("eventlet", EVENTLET_WITHOUT_THREADS, id="eventlet-without-threads"),
    ],
)
def test_a_client_works_or_is_refused_at_once(demo_server, library, program):
    if importlib.util.find_spec(library) is None:
        pytest.skip(f"{library} is not installed")
    program = f"ADDRESS = {demo_server.address!r}\n{program}\nprint('done')"
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", program],
        check=False,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.stdout == "done\n", done.stderr
