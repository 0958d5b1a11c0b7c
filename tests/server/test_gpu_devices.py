"""A server with several GPUs, for which the CPU stands in: what it says and counts by device."""

import time

import numpy as np
import pytest
from support import cuda_stand_ins, onnx_models
from support.in_process_server import run_app

from neurona_protos.model_config_pb2 import ModelInstanceGroup
from neurona_protos.open_inference_pb2 import ModelConfigRequest
from neurona_protos.open_inference_pb2_grpc import GRPCInferenceServiceStub
from neurona_protos.prediction_pb2 import (
    DescribeModelRequest,
    ListModelsRequest,
    PredictRequest,
)
from neurona_protos.prediction_pb2_grpc import ModelsStub, PredictionStub
from neurona_protos.tensors import to_tensor
from neurona_server.errors import ConfigError

UUIDS = [f"GPU-00000000-0000-0000-0000-00000000000{number}" for number in range(2)]


@pytest.fixture
def run(cuda_stub, monkeypatch, tmp_path):
    cuda_stand_ins.install(monkeypatch, cuda_stub, devices=2, memory=16 << 30)
    onnx_models.save_classifier(tmp_path / "both" / "1" / "model.onnx")
    onnx_models.save_classifier(tmp_path / "second" / "1" / "model.onnx")
    (tmp_path / "second" / "model.toml").write_text(f'devices = "{UUIDS[1]}"')
    return lambda *options: run_app(["--repository", str(tmp_path), *options], {})


def test_models_are_described_and_counted_by_device(run):
    with run("--devices", "all", "--inline", "never") as app:
        models = ModelsStub(app.channel)
        found = {one.model: one for one in models.List(ListModelsRequest()).models}
        assert [one.label for one in found["both"].versions[0].devices] == ["cuda:0", "cuda:1"]
        (device,) = found["second"].versions[0].devices
        assert (device.label, device.uuid, device.memory_bytes) == ("cuda:1", UUIDS[1], 16 << 30)
        described = models.Describe(DescribeModelRequest(model="both"))
        assert described.version.devices == found["both"].versions[0].devices
        assert described.batching.instances == 4

        inference = GRPCInferenceServiceStub(app.channel)
        (group,) = inference.ModelConfig(ModelConfigRequest(name="both")).config.instance_group
        assert (group.kind, group.count, group.gpus) == (ModelInstanceGroup.KIND_GPU, 1, [0, 1])

        request = PredictRequest(model="both", inputs=[to_tensor("x", np.ones((1, 4), np.float32))])
        for _ in range(20):
            PredictionStub(app.channel).Predict(request, timeout=10)
        end = time.monotonic() + 10  # a batch is counted after its responses
        runs = []
        while sum(runs) < 20 and time.monotonic() < end:
            runs = [app.count("neurona_device_runs_total", device=f"cuda:{n}") for n in range(2)]
        assert sum(runs) == 20
        assert min(runs) > 0
        for number, uuid in enumerate(UUIDS):
            assert app.count("neurona_device_info", device=f"cuda:{number}", uuid=uuid) == 1


def test_processes_can_divide_the_devices(run):
    with run("--devices", "all", "--processes", "2", "--split-devices", "true") as app:
        (both, _) = ModelsStub(app.channel).List(ListModelsRequest()).models
        assert [one.label for one in both.versions[0].devices] == ["cuda:0"]


def test_devices_that_there_are_not_end_the_start(run):
    with (
        pytest.raises(ConfigError, match="option devices has '2', which no device has"),
        run("--devices", "2"),
    ):
        pass
