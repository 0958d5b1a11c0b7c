"""Versions replaced every second under load: no request fails, and outputs fit the version.

The environment variable NEURONA_SOAK_SECONDS is the duration (default: 12).
"""

import os
import shutil
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from support import onnx_models

from neurona_protos.prediction_pb2 import PredictRequest, PredictStreamRequest, StreamedRequest
from neurona_protos.prediction_pb2_grpc import PredictionStub
from neurona_protos.tensors import to_array, to_tensor

pytestmark = pytest.mark.slow

SECONDS = float(os.environ.get("NEURONA_SOAK_SECONDS", "12"))
KEPT_VERSIONS = 3  # versions on disk


def save(root, version):
    """Saves a version elsewhere and moves it to its place in one step."""
    made = onnx_models.save_classifier(root.parent / "made" / "model.onnx", offset=version / 50)
    made.parent.rename(root / "m" / str(version))


def label(root, version):
    made = root.parent / "model.toml"
    made.write_text(f"[version_labels]\nstable = {version}\n")
    made.rename(root / "m" / "model.toml")


class Caller(threading.Thread):
    """Calls without a pause until the event `stop`, and checks every response."""

    def __init__(self, stub, stop, **version):
        super().__init__()
        self.stub, self.stop, self.version = stub, stop, version
        self.random = np.random.default_rng(1)
        self.versions = []
        self.problems = []

    def run(self):
        while not self.stop.is_set() and not self.problems:
            try:
                self.call()
            except Exception as error:
                self.problems.append(repr(error))

    def request(self, x):
        return PredictRequest(
            model="m", inputs=[to_tensor("x", x)], raw_outputs=True, **self.version
        )

    def call(self):
        x = self.random.standard_normal((1, 4)).astype(np.float32)
        self.check(x, self.stub.Predict(self.request(x), timeout=30))

    def check(self, x, response):
        logits = (x + response.version / 50) @ onnx_models.WEIGHTS
        expected = np.exp(logits) / np.exp(logits).sum()
        output = to_array(response.outputs[0])
        if not np.allclose(output, expected, atol=1e-5):
            self.problems.append(f"version {response.version} returned {output}, not {expected}")
        if self.versions and response.version < self.versions[-1]:
            self.problems.append(f"version {response.version} after {self.versions[-1]}")
        self.versions.append(response.version)


class Streamer(Caller):
    def call(self):
        rows = self.random.standard_normal((8, 1, 4)).astype(np.float32)
        requests = [StreamedRequest(id=i, request=self.request(x)) for i, x in enumerate(rows)]
        message = PredictStreamRequest(requests=requests)
        responses = {
            response.id: response
            for part in self.stub.PredictStream(iter([message]), timeout=30)
            for response in part.responses
        }
        for number, x in enumerate(rows):  # they come in any order
            assert responses[number].HasField("response"), responses[number].error
            self.check(x, responses[number].response)


def resident(pid):
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGESIZE")


@pytest.mark.long
def test_versions_are_replaced_every_second_under_load(serve, tmp_path):
    root = tmp_path / "models"
    (root / "m").mkdir(parents=True)
    save(root, 1)
    label(root, 1)
    server = serve(root, "--poll-ms", "100", "--log-level", "warning")
    stub = PredictionStub(server.channel)
    stop = threading.Event()
    callers = [*(Caller(stub, stop) for _ in range(3)), Caller(stub, stop, label="stable")]
    callers.append(Streamer(stub, stop))
    for caller in callers:
        caller.start()
    sizes = {}
    try:
        for version in range(2, 2 + int(SECONDS)):
            save(root, version)
            label(root, version)
            if version > KEPT_VERSIONS:
                shutil.rmtree(root / "m" / str(version - KEPT_VERSIONS))
            time.sleep(1)
            sizes[version] = resident(server.pid)
    finally:
        stop.set()
        for caller in callers:
            caller.join()
    assert not [problem for caller in callers for problem in caller.problems]
    for caller in callers:
        assert len(set(caller.versions)) > 0.8 * SECONDS
    status, log = server.stop(), server.log
    assert status == 0
    assert "Traceback" not in log
    growth = sizes[max(sizes)] / sizes[max(sizes) // 2]
    responses = sum(len(caller.versions) for caller in callers)
    print(f"{responses} responses, {len(sizes)} versions, memory {growth:.3f}")
    assert growth < 1.1
