"""A new version takes over under load: no call fails, every answer is right, memory is freed.

It is alone since it runs a server of its own, as a separate process.
"""

import os
import shutil
import threading
from contextlib import closing

import grpc
import numpy as np
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse
from support.gpu_networks import open_network, relative_error
from support.server_process import ServerProcess

from neurona_protos.prediction_pb2_grpc import PredictionStub
from neurona_protos.tensors import to_array

SWAPS = 5
CALLERS = 4
FIRST_LOAD = 300.0  # seconds, with the start of CUDA
GROWTH = 64 << 20


def test_versions_are_swapped_under_load(networks, device, tmp_path, wait_until):
    network = open_network(networks, "resnet18", tmp_path / "made")
    model = tmp_path / "repository" / network.name
    publish(network, model, 1)
    flags = ["--poll-ms", "100", "--providers", "cuda,cpu" if device == "cuda" else "cpu"]
    if device == "cuda":
        flags += ["--require-gpu", "true"]
    server = ServerProcess(model.parent, *flags)
    with closing(server.start()), Load(server.wait_until_serving(FIRST_LOAD), network) as load:
        used = [gpu_memory(device)]
        for version in range(2, 2 + SWAPS):
            publish(network, model, version)
            wait_until(lambda v=version: health(server, f"{network.name}/{v}") == SERVING)
            shutil.rmtree(model / str(version - 1))
            wait_until(lambda v=version: health(server, f"{network.name}/{v - 1}") == UNKNOWN)
            answered = load.answered
            wait_until(lambda count=answered: load.answered > count + 10 or load.failures)
            used.append(gpu_memory(device))
            assert load.failures == [], f"after {load.answered} answers, version {version}"
    assert load.failures == []
    assert load.answered > 10 * SWAPS
    growth = used[-1] - used[1]
    assert growth < GROWTH, f"the GPU's memory grew by {growth >> 20} MiB in {SWAPS - 1} swaps"


SERVING = HealthCheckResponse.SERVING
UNKNOWN = grpc.StatusCode.NOT_FOUND


def publish(network, model, version):
    """Put the network into the repository as a version; it appears at once, not file by file."""
    unseen = model.parent.parent / f"new-{version}"
    shutil.copytree(network.path.parent, unseen)
    model.mkdir(parents=True, exist_ok=True)
    os.rename(unseen, model / str(version))


def health(server, name):
    try:
        return server.health.Check(HealthCheckRequest(service=name), timeout=5).status
    except grpc.RpcError as error:
        return error.code()


def gpu_memory(device):
    """Return the bytes of the GPU that are in use, by whichever process."""
    if device == "cpu":
        return 0
    from neurona_server.models.onnx.cuda_driver import load_driver

    free, total = load_driver().memory_info(0)
    return total - free


class Load:
    """Callers that check every answer while its block runs."""

    def __init__(self, server, network):
        self.answered = 0
        self.failures = []
        self._server, self._network = server, network
        self._stopping = threading.Event()
        self._threads = [threading.Thread(target=self._call, args=[n]) for n in range(CALLERS)]

    def __enter__(self):
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_):
        self._stopping.set()
        for thread in self._threads:
            thread.join()

    def _call(self, seed):
        random = np.random.default_rng(seed)
        stub = PredictionStub(self._server.channel)
        while not self._stopping.is_set() and not self.failures:
            request, (expected,) = self._network.request(
                random.integers(0, 32, random.integers(1, 9))
            )
            try:
                (output,) = stub.Predict(request, timeout=60).outputs
            except grpc.RpcError as error:
                self.failures.append(f"{error.code()}: {error.details()}")
                return
            if (error := relative_error(to_array(output), expected)) >= self._network.tolerance:
                self.failures.append(f"relative error {error:.2g}")
                return
            self.answered += 1
