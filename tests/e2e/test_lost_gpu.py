"""A supervised server whose only GPU is lost: a fresh process takes its place.

In the workers the stand-in for the driver has the GPU, the CPU stands in for it, and a file says
that it is lost: sitecustomize.py, which Python imports first, sees to that.
"""

import sys
from pathlib import Path

import grpc
import numpy as np
import pytest
from support import onnx_models
from support.server_process import ServerProcess

from neurona_protos.prediction_pb2 import DescribeModelRequest, PredictRequest
from neurona_protos.prediction_pb2_grpc import ModelsStub, PredictionStub
from neurona_protos.tensors import to_tensor

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform != "linux", reason="workers inherit descriptors"),
]

SITECUSTOMIZE = """
import os, sys

if any("processes.worker" in argument for argument in sys.orig_argv):
    from pathlib import Path
    import pytest
    from neurona_server.models.onnx.session import Session
    from support import cuda_stand_ins
    from support.cuda_stub import CudaStub

    lost = Path({lost!r})
    cuda_stand_ins.install(pytest.MonkeyPatch(), CudaStub(Path({stub!r})), devices=1)
    run = Session._run

    def run_or_fail(session, *arguments):
        if session.device.kind == "cuda" and lost.exists():
            lost.write_text(str(os.getpid()))
            raise RuntimeError("CUDA failure 719: unspecified launch failure ; GPU=0 ; hostname=a")
        return run(session, *arguments)

    Session._run = run_or_fail
"""
REQUEST = PredictRequest(model="m", inputs=[to_tensor("x", np.zeros((1, 4), np.float32))])


@pytest.fixture
def lost(tmp_path, cuda_stub, monkeypatch):
    """The file that makes runs on the GPU fail as on a lost one, as long as it exists."""
    lost, site = tmp_path / "lost", tmp_path / "site"
    site.mkdir()
    text = SITECUSTOMIZE.format(lost=str(lost), stub=str(cuda_stub.path))
    (site / "sitecustomize.py").write_text(text)
    tests = str(Path(__file__).parents[1])
    monkeypatch.setenv("PYTHONPATH", f"{site}:{tests}")
    return lost


def test_a_worker_that_has_lost_its_only_gpu_is_replaced(tmp_path, lost, wait_until):
    onnx_models.save_classifier(tmp_path / "repository" / "m" / "1" / "model.onnx")
    flags = ("--supervise", "true", "--load-check", "false", "--inline", "never")
    with ServerProcess(tmp_path / "repository", *flags) as server:
        prediction, models = PredictionStub(server.channel), ModelsStub(server.channel)

        def devices():
            try:
                version = models.Describe(DescribeModelRequest(model="m"), timeout=5).version
            except grpc.RpcError:
                return []
            return [device.label for device in version.devices]

        assert prediction.Predict(REQUEST, timeout=10).model == "m"
        assert devices() == ["cuda:0"]
        lost.touch()
        with pytest.raises(grpc.RpcError) as raised:
            prediction.Predict(REQUEST, timeout=10)
        assert raised.value.code() == grpc.StatusCode.UNAVAILABLE
        assert "device lost: cuda:0" in raised.value.details()
        loser = lost.read_text()
        lost.unlink()  # it works for a new process
        wait_until(lambda: "worker 0 has lost its GPUs; replacing it" in server.log)
        wait_until(lambda: devices() == ["cuda:0"])
        assert prediction.Predict(REQUEST, timeout=10, wait_for_ready=True).model == "m"
        assert loser
        assert server.log.count("worker 0 serving") == 2
        assert server.is_running
