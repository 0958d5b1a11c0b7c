"""L0_lifecycle and L0_model_update: callers load and unload models."""

import threading

import grpc
import numpy as np
import pytest
from support import triton_models
from support.triton_calls import expect_error, make_request, values_of
from support.triton_models import save_versions

pytestmark = pytest.mark.triton("L0_lifecycle")
EXPLICIT = ("--model-control", "explicit")


@pytest.mark.slow
def test_model_control(start, tmp_path):
    save_versions(tmp_path / "onnx", 1, 3)
    triton = start(*EXPLICIT).triton
    assert triton.are_gone("onnx", 1, 3)
    assert triton.is_ready()
    triton.load("onnx")
    triton.check_versions("onnx", 1, 3)
    (tmp_path / "onnx" / "config.pbtxt").unlink()
    triton.check_versions("onnx", 1, 3)
    triton.load("onnx")
    assert triton.are_gone("onnx", 1)
    triton.check_versions("onnx", 3)
    triton.unload("onnx")
    assert triton.are_gone("onnx", 1, 3)
    triton.load("onnx")
    triton.check_versions("onnx", 3)
    triton.unload("onnx", unload_dependents=True)
    assert triton.are_gone("onnx", 3)


@pytest.mark.slow
@pytest.mark.triton("L0_lifecycle", cause="load and unload")
def test_unload_what_is_not_loaded(start, tmp_path):
    save_versions(tmp_path / "onnx", 1)
    triton = start(*EXPLICIT).triton
    triton.unload("unknown_model")
    triton.unload("onnx")


@pytest.mark.slow
@pytest.mark.triton("L0_lifecycle", declared="a load that fails")
def test_load_an_unknown_model(start, tmp_path):
    save_versions(tmp_path / "onnx", 1)
    triton = start(*EXPLICIT).triton
    expect_error(  # Triton's status is INTERNAL
        lambda: triton.load("unknown_model"),
        "NOT_FOUND",
        "failed to load 'unknown_model', failed to poll from model repository",
    )


@pytest.mark.slow
@pytest.mark.triton("L0_lifecycle", declared="a load that fails")
def test_model_control_fail(start, tmp_path):
    triton_models.save_broken(tmp_path / "broken")
    triton = start(*EXPLICIT).triton
    for _ in range(2):  # Triton's status is INTERNAL
        expect_error(
            lambda: triton.load("broken"), "FAILED_PRECONDITION", "load failed for model 'broken'"
        )
    assert not triton.is_model_ready("broken")


@pytest.mark.slow
def test_control_at_startup(start, tmp_path):
    for name in ("one", "two", "three"):
        save_versions(tmp_path / name, 1, 3)
    triton = start(*EXPLICIT, "--load-model", "one", "--load-model", "two").triton
    triton.check_versions("one", 1, 3)
    triton.check_versions("two", 1, 3)
    assert triton.are_gone("three", 1, 3)


@pytest.mark.triton("L0_lifecycle", cause="load and unload")
def test_model_repository_index(start, tmp_path):
    for name in ("one", "two"):
        save_versions(tmp_path / name, 1, 2, 3)
    save_versions(tmp_path / "latest", 1, 2, more="")
    triton = start(*EXPLICIT, "--load-model", "one", "--load-model", "latest").triton
    index = triton.index()
    ready = {key for key, (state, _) in index.items() if state == "READY"}
    assert ready == {("one", "1"), ("one", "3"), ("latest", "2")}
    assert {name for name, _ in index} == {"one", "two", "latest"}
    assert {*triton.index(ready=True)} == ready
    triton.unload("one")
    states = {state for (name, _), (state, _) in triton.index().items() if name == "one"}
    assert states == {"UNAVAILABLE"}
    assert ("one", "1") not in triton.index(ready=True)


@pytest.mark.slow
def test_model_availability_on_reload(start, tmp_path):
    save_versions(tmp_path / "onnx", 1, more="")
    triton = start(*EXPLICIT, "--load-model", "onnx").triton
    triton.check_versions("onnx", 1)
    save_versions(tmp_path / "onnx", 2, more="")
    failures, stop = [], threading.Event()

    values = values_of("INT32", (1, 16))
    request = make_request("onnx", {f"INPUT{i}": ("INT32", values) for i in range(2)})

    def ask():
        while not stop.is_set():
            try:
                triton.stub.ModelInfer(request, timeout=30)
            except grpc.RpcError as error:
                failures.append(error)

    caller = threading.Thread(target=ask)
    caller.start()
    triton.load("onnx")
    stop.set()
    caller.join()
    assert failures == []
    assert triton.are_gone("onnx", 1)
    triton.check_versions("onnx", 2)


@pytest.mark.slow
def test_model_reload_fail(start, tmp_path):
    save_versions(tmp_path / "onnx", 1, more="")
    triton = start(*EXPLICIT, "--load-model", "onnx").triton
    save_version_2 = tmp_path / "onnx" / "2" / "model.onnx"
    save_version_2.parent.mkdir()
    save_version_2.write_bytes(b"no model")
    with pytest.raises(grpc.RpcError) as caught:
        triton.load("onnx")
    assert "version 2" in caught.value.details() or "/2" in caught.value.details()
    assert triton.is_model_ready("onnx", "1")
    assert not triton.is_model_ready("onnx", "2")
    triton.check_versions("onnx", 1)


CONFIG = (
    '{"backend": "onnxruntime", "version_policy": {"specific": {"versions": [2]}}, '
    '"max_batch_size": 8}'
)


@pytest.mark.triton("L0_lifecycle", cause="overrides at load")
def test_config_override(start, tmp_path):
    save_versions(tmp_path / "onnx", 1, 2, 3, more='default_model_filename: "missing.onnx"')
    triton = start(*EXPLICIT).triton
    with pytest.raises(grpc.RpcError, match="load failed for model 'onnx'"):
        triton.load("onnx")
    triton.load("onnx", config=CONFIG)
    assert triton.are_ready("onnx", 2)
    assert triton.are_gone("onnx", 1, 3)
    triton.check_versions("onnx", 2)
    with pytest.raises(grpc.RpcError):
        triton.load("onnx")
    assert triton.are_ready("onnx", 2)
    assert triton.are_gone("onnx", 1, 3)
    triton.unload("onnx")
    assert triton.are_gone("onnx", 2)


@pytest.mark.slow
@pytest.mark.triton("L0_lifecycle", cause="overrides at load")
def test_file_override(start, tmp_path):
    save_versions(tmp_path / "onnx", 1, more="")
    content = triton_models.save_add_sub(tmp_path / "other.onnx", swap=True).read_bytes()
    (tmp_path / "other.onnx").unlink()
    triton = start(*EXPLICIT, "--load-model", "onnx").triton
    with pytest.raises(grpc.RpcError):  # files without a config
        triton.load("onnx", **{"file:1/model.onnx": content})
    triton.check_versions("onnx", 1)
    config = '{"backend": "onnxruntime"}'
    triton.load("brought", config=config, **{"file:7/model.onnx": content})
    triton.check_versions("brought", 7)
    triton.load("onnx", config=config, **{"file:2/model.onnx": content})
    assert triton.are_gone("onnx", 1)
    triton.check_versions("onnx", 2)
    triton.load("onnx")
    triton.check_versions("onnx", 1)


@pytest.mark.slow
@pytest.mark.triton("L0_lifecycle", cause="overrides at load")
@pytest.mark.parametrize(
    "parameters", [{"config": "{"}, {"config": "[]"}, {"config": "null"}, {"wrong": "x"}]
)
def test_invalid_load_parameters(start, tmp_path, parameters):
    save_versions(tmp_path / "onnx", 1)
    triton = start(*EXPLICIT).triton
    with pytest.raises(grpc.RpcError) as caught:
        triton.load("onnx", **parameters)
    assert caught.value.code().name in ("INVALID_ARGUMENT", "UNIMPLEMENTED", "FAILED_PRECONDITION")
    assert triton.are_gone("onnx", 1)


@pytest.mark.slow
@pytest.mark.triton("L0_lifecycle", declared="load, unload")
@pytest.mark.parametrize("mode", ["poll", "none"])
def test_control_without_explicit_control(start, tmp_path, mode):
    save_versions(tmp_path / "onnx", 1)
    triton = start("--model-control", mode).triton
    for call in (lambda: triton.load("onnx"), lambda: triton.unload("onnx")):
        expect_error(
            call,
            "FAILED_PRECONDITION",
            "explicit model load / unload is not allowed",
            "model_control is not explicit",
        )


@pytest.mark.slow
@pytest.mark.triton("L0_model_update")
def test_update_of_instances_while_it_serves(start, tmp_path):
    folder = tmp_path / "slow"
    triton_models.save_slow_identity(folder / "1" / "model.onnx")
    instances = "instance_group [ {{ count: {} kind: KIND_CPU }} ]"
    config = triton_models.identities_config("FP32", [[1]], more=instances.format(1))
    triton_models.write_config(folder, config)
    triton = start(*EXPLICIT, "--load-model", "slow", "--threads", "1").triton
    inputs = {"INPUT0": ("FP32", np.ones((1, 1), np.float32))}
    for count in (2, 1):
        calls = [triton.start("slow", inputs) for _ in range(3)]
        config = triton_models.identities_config("FP32", [[1]], more=instances.format(count))
        triton_models.write_config(folder, config)
        triton.load("slow")
        assert triton.config("slow").instance_group[0].count == count
        for call in calls:
            assert call.result().raw_output_contents[0] == np.float32(1).tobytes()
    triton_models.write_config(folder, "no_such_field: 1")
    with pytest.raises(grpc.RpcError):
        triton.load("slow")
    assert triton.infer("slow", inputs).arrays["OUTPUT0"] == 1


@pytest.mark.slow
def test_many_loads_at_once(start, tmp_path):
    names = [f"model{i}" for i in range(6)]
    for name in names:
        save_versions(tmp_path / name, 1, more="")
    triton = start(*EXPLICIT).triton
    callers = [threading.Thread(target=triton.load, args=[name]) for name in names * 2]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    for name in names:
        triton.check_versions(name, 1)
