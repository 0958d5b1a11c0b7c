"""More connections than a process may have files open: it is served, observed and its log short."""

import socket
import subprocess
import urllib.request

import grpc
import numpy as np
import pytest
from support.server_process import NEURONA_SERVE, free_addresses

from neurona_protos.prediction_pb2 import PredictRequest
from neurona_protos.prediction_pb2_grpc import PredictionStub
from neurona_protos.tensors import to_tensor

DESCRIPTORS = 140
CONNECTIONS = 200

pytestmark = pytest.mark.slow


@pytest.mark.long
@pytest.mark.parametrize("transport", ["cygrpc", "aio"])
def test_a_server_with_few_descriptors_under_many_connections(repository, tmp_path, transport):
    address, metrics_address = free_addresses(2)
    command = [NEURONA_SERVE, "--repository", repository, "--transport", transport]
    command += ["--address", address, "--metrics-address", metrics_address]
    limited = ["sh", "-c", f'ulimit -n {DESCRIPTORS}; exec "$@"', "sh", *map(str, command)]
    log = tmp_path / "log"
    with log.open("wb") as file:
        process = subprocess.Popen(limited, stderr=file)
    held = []
    try:
        with grpc.insecure_channel(address) as channel:
            predict(channel)
            port = int(address.rpartition(":")[2])
            for number in range(CONNECTIONS):
                held.append(socket.create_connection(("127.0.0.1", port), timeout=30))
                if number % 40 == 0:
                    assert read(metrics_address, "/healthz") == b"SERVING\n"
            for _ in range(10):
                predict(channel)
                assert read(metrics_address, "/healthz") == b"SERVING\n"
                assert b"process_open_fds" in read(metrics_address, "/metrics")
        process.terminate()
        assert process.wait(60) == 0
    finally:
        process.kill()
        process.wait()
        for one in held:
            one.close()
    text = log.read_text()
    assert text.count("\n") < 100, text[:4000]


def predict(channel):
    series = np.ones((1, 3), np.float32)
    request = PredictRequest(model="regressor", inputs=[to_tensor("series", series)])
    PredictionStub(channel).Predict(request, timeout=60, wait_for_ready=True)


def read(address, path):
    with urllib.request.urlopen(f"http://{address}{path}", timeout=30) as response:
        return response.read()
