"""Loading and unloading of models in a real server, by polling and by callers."""

import os
import shutil
import time
from pathlib import Path

import grpc
import numpy as np
import pytest
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse
from grpc_health.v1.health_pb2_grpc import HealthStub
from onnx import TensorProto, helper
from support import onnx_models
from support.server_process import run_neurona_serve

from neurona_protos.open_inference_pb2 import ServerReadyRequest
from neurona_protos.open_inference_pb2_grpc import GRPCInferenceServiceStub
from neurona_protos.prediction_pb2 import (
    ListModelsRequest,
    LoadModelRequest,
    PredictRequest,
    State,
    UnloadModelRequest,
)
from neurona_protos.prediction_pb2_grpc import ModelsStub, PredictionStub
from neurona_protos.tensors import to_tensor

TIMES = 100
WIDTH = 1000


def predict(server, name="classifier", width=4):
    request = PredictRequest(model=name, inputs=[to_tensor("x", np.ones((1, width), np.float32))])
    return PredictionStub(server.channel).Predict(request, timeout=20).version


def health(server, name):
    try:
        return server.health.Check(HealthCheckRequest(service=name), timeout=5).status
    except grpc.RpcError as error:
        return error.code()


def save_heavy(root):
    """Saves a model with some megabytes of weights, so that a leak of them would show."""
    weights = np.random.default_rng(1).standard_normal((WIDTH, WIDTH)).astype(np.float32)
    return onnx_models.save(
        root / "heavy" / "1" / "model.onnx",
        [helper.make_node("MatMul", ["x", "weights"], ["y"])],
        {"x": (TensorProto.FLOAT, ["batch", WIDTH])},
        {"y": (TensorProto.FLOAT, ["batch", WIDTH])},
        {"weights": weights},
    )


def resident(pid):
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGESIZE")


def test_new_and_deleted_versions_are_noticed(serve, tmp_path, wait_until):
    onnx_models.save_classifier(tmp_path / "classifier" / "1" / "model.onnx")
    server = serve(tmp_path, "--poll-ms", "50")
    assert health(server, "classifier/2") == grpc.StatusCode.NOT_FOUND
    onnx_models.save_classifier(tmp_path / "classifier" / "2" / "model.onnx")
    wait_until(lambda: health(server, "classifier/2") == HealthCheckResponse.SERVING)
    assert predict(server) == 2
    shutil.rmtree(tmp_path / "classifier" / "2")
    wait_until(lambda: health(server, "classifier/2") == grpc.StatusCode.NOT_FOUND)
    assert predict(server) == 1
    shutil.rmtree(tmp_path / "classifier")
    wait_until(lambda: health(server, "classifier") == grpc.StatusCode.NOT_FOUND)
    assert health(server, "") == HealthCheckResponse.SERVING


def test_a_model_without_its_gpu_is_degraded(serve, tmp_path):
    onnx_models.save_classifier(tmp_path / "classifier" / "1" / "model.onnx")
    server = serve(tmp_path, "--providers", "cuda,cpu")
    (model,) = ModelsStub(server.channel).List(ListModelsRequest()).models
    (version,) = model.versions
    on_gpu = version.provider == "CUDAExecutionProvider"
    assert bool(version.degraded) is not on_gpu
    expected = HealthCheckResponse.SERVING if on_gpu else HealthCheckResponse.NOT_SERVING
    assert health(server, "gpu") == expected
    assert f'neurona_model_degraded{{model="classifier",version="1"}} {0.0 if on_gpu else 1.0}' in (
        server.metrics()
    )


def test_without_control_new_versions_are_ignored(serve, tmp_path):
    onnx_models.save_classifier(tmp_path / "classifier" / "1" / "model.onnx")
    server = serve(tmp_path, "--model-control", "none", "--poll-ms", "10")
    onnx_models.save_classifier(tmp_path / "classifier" / "2" / "model.onnx")
    time.sleep(0.5)  # time for many polls, if there were any
    assert predict(server) == 1


@pytest.mark.long
@pytest.mark.slow
def test_memory_is_freed_by_unloading(serve, tmp_path):
    onnx_models.save_classifier(tmp_path / "classifier" / "1" / "model.onnx")
    save_heavy(tmp_path)
    server = serve(
        *(tmp_path, "--model-control", "explicit", "--load-model", "classifier"),
        *("--log-level", "warning"),
    )
    assert predict(server) == 1
    models = ModelsStub(server.channel)
    sizes = []
    for _ in range(TIMES):
        models.Load(LoadModelRequest(model="heavy"), timeout=30)
        assert predict(server, "heavy", WIDTH) == 1
        models.Unload(UnloadModelRequest(model="heavy"), timeout=30)
        sizes.append(resident(server.pid))
    # The C library sometimes keeps the freed memory of a model.
    early, late = min(sizes[10:30]), min(sizes[-20:])
    print(f"{early / 2**20:.1f} MiB, then {late / 2**20:.1f} MiB")
    assert late < 1.05 * early
    (heavy,) = [m for m in models.List(ListModelsRequest()).models if m.model == "heavy"]
    assert [version.state for version in heavy.versions] == [State.STATE_UNLOADED]
    assert 'model="heavy",version="1",outcome' not in server.metrics()
    assert server.stop() == 0


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--strict", "true"], "strict is true and a model cannot be served: broken: version 1: "),
        (["--model-control", "explicit", "--load-model", "nobody"], "no model 'nobody' in the"),
        (
            ["--model-control", "explicit", "--load-model", "misnamed"],
            "model 'misnamed' cannot be loaded: 'v1' is not a version (expected",
        ),
    ],
)
def test_a_failed_start_logs_its_reason(tmp_path, flags, message):
    onnx_models.save_classifier(tmp_path / "classifier" / "1" / "model.onnx")
    (tmp_path / "broken" / "1").mkdir(parents=True)
    (tmp_path / "broken" / "1" / "model.onnx").write_text("not a model")
    (tmp_path / "misnamed" / "v1").mkdir(parents=True)
    done = run_neurona_serve("--repository", tmp_path, *flags)
    assert done.returncode == 1
    assert message in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr


def test_a_strict_start_passes_over_nothing(tmp_path):
    onnx_models.save_classifier(tmp_path / "classifier" / "1" / "model.onnx")
    onnx_models.save_classifier(tmp_path / "classifier" / "02" / "model.onnx")
    (tmp_path / "classifier.onnx").touch()
    done = run_neurona_serve("--repository", tmp_path, "--strict", "true")
    assert done.returncode == 1
    assert "classifier/02: '02' is not a version (expected a whole number" in done.stderr
    assert done.stderr.splitlines()[-1].endswith("(and 1 more, see the log)")


@pytest.mark.parametrize("processes", [1, 2])
def test_a_failed_model_makes_a_server_unready_if_readiness_is_strict(
    tmp_path, serve, wait_until, processes
):
    onnx_models.save_classifier(tmp_path / "classifier" / "1" / "model.onnx")
    flags = ("--poll-ms", "50", "--strict-readiness", "true", "--processes", processes)
    server = serve(tmp_path, *flags)

    def readiness():
        """Return the readiness of any process by both protocols."""
        with grpc.insecure_channel(
            server.address, options=[("grpc.use_local_subchannel_pool", 1)]
        ) as channel:
            ready = GRPCInferenceServiceStub(channel).ServerReady(ServerReadyRequest(), timeout=20)
            health = HealthStub(channel).Check(HealthCheckRequest(), timeout=20)
        return {ready.ready, health.status == HealthCheckResponse.SERVING}

    assert readiness() == {True}
    (tmp_path / "broken" / "1").mkdir(parents=True)
    (tmp_path / "broken" / "1" / "model.onnx").write_text("not a model")
    wait_until(lambda: all(readiness() == {False} for _ in range(4)))
    assert predict(server) == 1
    assert (
        HealthStub(server.channel)
        .Check(HealthCheckRequest(service="neurona.v1.Prediction"), timeout=20)
        .status
        == HealthCheckResponse.SERVING
    )  # what liveness is checked by
    onnx_models.save_classifier(tmp_path / "broken" / "1" / "model.onnx")
    wait_until(lambda: all(readiness() == {True} for _ in range(4)))
    # A newer version that fails takes no request away.
    (tmp_path / "broken" / "2").mkdir()
    (tmp_path / "broken" / "2" / "model.onnx").write_text("not a model")
    wait_until(lambda: "broken/2: failed to load" in server.log)
    assert readiness() == {True}


def test_a_signal_while_models_load_ends_the_server_at_once(tmp_path, start_server, wait_until):
    nodes = [helper.make_node("Mul", ["table", "x"], ["product0"])]
    nodes += [
        helper.make_node("MatMul", [f"product{i}", "table"], [f"product{i + 1}"])
        for i in range(2000)
    ]
    nodes.append(helper.make_node("ReduceMax", ["product2000"], ["y"], keepdims=0))
    onnx_models.save(
        tmp_path / "slow" / "1" / "model.onnx",
        nodes,
        {"x": (TensorProto.FLOAT, [1])},
        {"y": (TensorProto.FLOAT, [])},
        {"table": np.eye(800, dtype=np.float32)},
    )
    server = start_server(tmp_path)
    wait_until(lambda: "slow/1: loading" in server.log)
    assert server.stop() == 0
    assert "stopped during start-up" in server.log
