"""An idle model returns the memory of its burst, while the server goes on to serve."""

import os
import resource
from pathlib import Path

import numpy as np
import pytest
from support import onnx_models
from support.in_process_server import run_app

from neurona_protos.prediction_pb2 import PredictRequest
from neurona_protos.prediction_pb2_grpc import PredictionStub
from neurona_protos.tensors import to_array, to_tensor
from neurona_server.models.arena_maintenance import ArenaMaintenance


def resident_bytes():
    return int(Path(f"/proc/{os.getpid()}/statm").read_text().split()[1]) * resource.getpagesize()


def test_idle_model_returns_the_memory_of_its_burst(tmp_path, wait_until):
    onnx_models.save_wide(tmp_path / "wide" / "1" / "model.onnx")

    def request(rows):
        x = to_tensor("x", np.zeros((rows, 1000), np.float32))
        return PredictRequest(model="wide", inputs=[x])

    flags = ["--repository", tmp_path, "--shrink-seconds", "0.5", "--max-batch-rows", "500"]
    with run_app([str(flag) for flag in flags], {}) as app:
        stub = PredictionStub(app.channel)
        stub.Predict(request(1), timeout=60)
        wait_until(lambda: not app.app._registry.models()[0].sessions[0]._shrinker._used)
        before = resident_bytes()
        runs = app.count("neurona_run_duration_seconds_count")
        stub.Predict(request(500), timeout=60)
        wait_until(lambda: not app.app._registry.models()[0].sessions[0]._shrinker._used)
        wait_until(lambda: resident_bytes() < before + (100 << 20))
        assert app.count("neurona_run_duration_seconds_count") == runs + 1
        (y,) = stub.Predict(request(2), timeout=60).outputs
        assert to_array(y).tolist() == [[1], [1]]


class FaultyModel:
    def __init__(self):
        self.asked = 0

    @property
    def sessions(self):
        self.asked += 1
        raise RuntimeError("a bug")


@pytest.mark.parametrize(("seconds", "asked"), [(0.01, True), (0.0, False)])
def test_fault_does_not_end_the_maintenance_and_no_interval_means_never(seconds, asked, wait_until):
    model = FaultyModel()
    maintenance = ArenaMaintenance(lambda: [model], seconds)
    maintenance.start()
    if asked:
        wait_until(lambda: model.asked > 2)
    maintenance.stop()
    assert bool(model.asked) is asked
