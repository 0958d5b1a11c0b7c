"""L0_lifecycle: what is served when the repository changes, and when callers load and unload."""

import shutil
import signal
import threading
import time

import grpc
import numpy as np
import pytest
from support import triton_models
from support.triton_calls import expect_error, make_request, values_of, wait_for

pytestmark = pytest.mark.triton("L0_lifecycle")
POLL = ("--poll-ms", "50")
EXPLICIT = ("--model-control", "explicit")
ALL = "version_policy { specific { versions: [ 1, 3 ] } }"


def save(folder, *versions, more=ALL):
    """Save versions of a model, of which those above 1 swap the outputs."""
    for version in versions:
        triton_models.save_add_sub(folder / str(version) / "model.onnx", swap=version > 1)
    if more is not None:
        triton_models.write_config(folder, triton_models.add_sub_config(more=more))


def check(triton, model, *versions):
    """Check that a model answers, with each of these versions."""
    values = values_of("INT32", (1, 16))
    for version in versions:
        result = triton.infer(
            model,
            {"INPUT0": ("INT32", values), "INPUT1": ("INT32", values)},
            version=str(version),
        )
        name = "OUTPUT0" if version == 1 else "OUTPUT1"
        assert (result.arrays[name] == values * 2).all()


def is_ready(triton, model, *versions):
    return all(triton.is_model_ready(model, str(version)) for version in versions)


def is_gone(triton, model, *versions):
    return not any(triton.is_model_ready(model, str(version)) for version in versions)


@pytest.fixture
def start(serve, tmp_path):
    """Starts a server, once for each test, with the repository `tmp_path`."""

    def start(*flags, root=tmp_path, **options):
        server = serve(root, *flags, **options)
        started.append(server)
        return server

    started = []
    yield start
    for server in started:
        server.kill()


def save_broken(folder):
    folder.joinpath("1").mkdir(parents=True)
    folder.joinpath("1", "model.onnx").write_bytes(b"no model")


@pytest.mark.triton("L0_lifecycle", cause="strict readiness")
@pytest.mark.parametrize("strict", [True, False], ids=["strict", "nostrict"])
def test_parse_error_modelfail(start, tmp_path, strict):
    save(tmp_path / "good", 1)
    save_broken(tmp_path / "broken")
    server = start("--strict-readiness", str(strict).lower(), wait=False)
    triton = server.triton
    grpc.channel_ready_future(server.channel).result(60)
    wait_for(lambda: triton.is_model_ready("good", "1"))
    assert triton.is_live()
    if strict:
        assert not triton.is_ready()
    else:
        wait_for(triton.is_ready)
    assert not triton.is_model_ready("broken", "1")
    check(triton, "good", 1)
    message = expect_error(
        lambda: check(triton, "broken", 1),
        "NOT_FOUND",
        "Request for unknown model: 'broken'",
    )
    assert "no" in message


@pytest.mark.triton("L0_lifecycle", cause="error texts")
def test_has_no_available_versions(start, tmp_path):
    save(tmp_path / "good", 1)
    save_broken(tmp_path / "broken")
    triton = start("--strict-readiness", "false").triton
    request = make_request("broken", {})
    expect_error(
        lambda: triton.stub.ModelInfer(request, timeout=30),
        "UNAVAILABLE",
        "Request for unknown model: 'broken' has no available versions",
    )


@pytest.mark.triton("L0_lifecycle", cause="strict readiness")
def test_parse_error_model_no_version(start, tmp_path):
    save(tmp_path / "good", 1, 3)
    (tmp_path / "empty").mkdir()
    triton_models.write_config(tmp_path / "empty", triton_models.add_sub_config())
    server = start("--strict-readiness", "true", wait=False)
    grpc.channel_ready_future(server.channel).result(60)
    wait_for(lambda: is_ready(server.triton, "good", 1, 3))
    assert not server.triton.is_ready()
    assert not server.triton.is_model_ready("empty")
    check(server.triton, "good", 1, 3)


@pytest.mark.triton("L0_lifecycle", cause="strict readiness")
def test_parse_error_of_a_config(start, tmp_path):
    save(tmp_path / "good", 1)
    save(tmp_path / "bad", 1, more="no_such_field: 1")
    triton = start("--strict-readiness", "false").triton
    assert triton.is_live()
    assert triton.is_ready()
    expect_error(
        lambda: triton.metadata("bad", "1"), "NOT_FOUND", "Request for unknown model: 'bad'"
    )
    check(triton, "good", 1)


@pytest.mark.parametrize("name", ["01", "abc", "1.0"])
def test_other_folders_than_versions_are_passed_over(start, tmp_path, name):
    save(tmp_path / "model", 1)
    (tmp_path / "model" / name).mkdir()
    triton = start("--strict-readiness", "false").triton
    assert triton.is_model_ready("model", "1")
    check(triton, "model", 1)


def test_dynamic_model_load_unload(start, tmp_path):
    save(tmp_path / "onnx", 1, 3)
    triton = start(*POLL).triton
    assert is_gone(triton, "second", 1, 3)
    save(tmp_path / "staging" / "second", 1, 3)
    shutil.move(tmp_path / "staging" / "second", tmp_path / "second")
    wait_for(lambda: is_ready(triton, "second", 1, 3))
    check(triton, "second", 3)
    counts = {s.version: s.inference_stats.success.count for s in triton.statistics("second")}
    assert counts == {"1": 0, "3": 1}
    shutil.rmtree(tmp_path / "second")
    wait_for(lambda: is_gone(triton, "second", 1, 3))
    expect_error(
        lambda: check(triton, "second", 3), "NOT_FOUND", "Request for unknown model: 'second'"
    )
    save(tmp_path / "second", 1, 3)
    wait_for(lambda: is_ready(triton, "second", 1, 3))
    assert is_ready(triton, "onnx", 1, 3)
    shutil.rmtree(tmp_path / "onnx")
    wait_for(lambda: is_gone(triton, "onnx", 1, 3))
    assert triton.is_live()


def test_statistics_of_a_model_that_returns(start, tmp_path):
    save(tmp_path / "onnx", 1, 3)
    triton = start(*POLL).triton
    check(triton, "onnx", 3)
    shutil.move(tmp_path / "onnx", tmp_path.parent / "moved")
    wait_for(lambda: is_gone(triton, "onnx", 3))
    shutil.move(tmp_path.parent / "moved", tmp_path / "onnx")
    wait_for(lambda: is_ready(triton, "onnx", 1, 3))
    counts = {s.version: s.inference_stats.success.count for s in triton.statistics("onnx")}
    assert counts == {"1": 0, "3": 0}


def test_dynamic_model_load_unload_disabled(start, tmp_path):
    save(tmp_path / "onnx", 1, 3)
    triton = start("--model-control", "none").triton
    save(tmp_path / "second", 1, 3)
    time.sleep(0.5)
    assert is_gone(triton, "second", 1, 3)
    shutil.rmtree(tmp_path / "onnx")
    time.sleep(0.5)
    assert is_ready(triton, "onnx", 1, 3)
    check(triton, "onnx", 1, 3)


def test_dynamic_version_load_unload(start, tmp_path):
    save(tmp_path / "onnx", 1, 2, 3, more="version_policy { all {} }")
    triton = start(*POLL).triton
    check(triton, "onnx", 1)
    shutil.rmtree(tmp_path / "onnx" / "1")
    wait_for(lambda: is_gone(triton, "onnx", 1))
    assert is_ready(triton, "onnx", 2, 3)
    expect_error(
        lambda: check(triton, "onnx", 1),
        "NOT_FOUND",
        "Request for unknown model: 'onnx' version 1 is not",
        "version '1' is not",
    )
    shutil.copytree(tmp_path / "onnx" / "2", tmp_path / "onnx" / "7")
    wait_for(lambda: is_ready(triton, "onnx", 2, 3, 7))


def test_dynamic_version_load_unload_disabled(start, tmp_path):
    save(tmp_path / "onnx", 1, 2, 3, more="version_policy { all {} }")
    triton = start("--model-control", "none").triton
    shutil.copytree(tmp_path / "onnx" / "2", tmp_path / "onnx" / "7")
    shutil.rmtree(tmp_path / "onnx" / "1")
    time.sleep(0.5)
    assert is_ready(triton, "onnx", 1, 2, 3)
    assert is_gone(triton, "onnx", 7)
    check(triton, "onnx", 1)


def test_dynamic_model_modify(start, tmp_path):
    save(tmp_path / "onnx", 1, 3)
    triton = start(*POLL).triton
    check(triton, "onnx", 1, 3)
    save(tmp_path / "onnx", more="")
    wait_for(lambda: is_gone(triton, "onnx", 1) and is_ready(triton, "onnx", 3))
    expect_error(lambda: check(triton, "onnx", 1), "NOT_FOUND", "Request for unknown model")
    check(triton, "onnx", 3)


def test_dynamic_file_delete(start, tmp_path):
    save(tmp_path / "onnx", 1, 3)
    triton = start(*POLL).triton
    (tmp_path / "onnx" / "config.pbtxt").unlink()
    wait_for(lambda: is_gone(triton, "onnx", 1) and is_ready(triton, "onnx", 3))
    check(triton, "onnx", 3)


@pytest.mark.triton("L0_lifecycle", declared="a model in two repositories")
def test_multiple_model_repository_polling(start, tmp_path):
    first, second = tmp_path / "first", tmp_path / "second"
    save(first / "onnx", 1)
    save(second / "other", 1, 3)
    triton = start(*POLL, "--repository", second, root=first).triton
    check(triton, "onnx", 1)
    save(second / "onnx", 1, 3)
    time.sleep(0.5)
    check(triton, "onnx", 1)  # the first repository counts
    shutil.rmtree(first / "onnx")
    wait_for(lambda: is_ready(triton, "onnx", 1, 3))
    check(triton, "other", 1, 3)


def test_model_control(start, tmp_path):
    save(tmp_path / "onnx", 1, 3)
    triton = start(*EXPLICIT).triton
    assert is_gone(triton, "onnx", 1, 3)
    assert triton.is_ready()
    triton.load("onnx")
    check(triton, "onnx", 1, 3)
    (tmp_path / "onnx" / "config.pbtxt").unlink()
    check(triton, "onnx", 1, 3)
    triton.load("onnx")
    assert is_gone(triton, "onnx", 1)
    check(triton, "onnx", 3)
    triton.unload("onnx")
    assert is_gone(triton, "onnx", 1, 3)
    triton.load("onnx")
    check(triton, "onnx", 3)
    triton.unload("onnx", unload_dependents=True)
    assert is_gone(triton, "onnx", 3)


@pytest.mark.triton("L0_lifecycle", cause="load and unload")
def test_unload_what_is_not_loaded(start, tmp_path):
    save(tmp_path / "onnx", 1)
    triton = start(*EXPLICIT).triton
    triton.unload("unknown_model")
    triton.unload("onnx")


@pytest.mark.triton("L0_lifecycle", cause="error texts")
def test_load_an_unknown_model(start, tmp_path):
    save(tmp_path / "onnx", 1)
    triton = start(*EXPLICIT).triton
    try:
        expect_error(
            lambda: triton.load("unknown_model"),
            "INTERNAL",
            "failed to load 'unknown_model', failed to poll from model repository",
        )
    except AssertionError:
        expect_error(
            lambda: triton.load("unknown_model"),
            "NOT_FOUND",
            "failed to load 'unknown_model'",
            "unknown_model",
        )


@pytest.mark.triton("L0_lifecycle", cause="error texts")
def test_model_control_fail(start, tmp_path):
    save_broken(tmp_path / "broken")
    triton = start(*EXPLICIT).triton
    for _ in range(2):
        with pytest.raises(grpc.RpcError) as caught:
            triton.load("broken")
        assert "load failed for model 'broken'" in caught.value.details()
    assert not triton.is_model_ready("broken")


def test_control_at_startup(start, tmp_path):
    for name in ("one", "two", "three"):
        save(tmp_path / name, 1, 3)
    triton = start(*EXPLICIT, "--load-model", "one", "--load-model", "two").triton
    check(triton, "one", 1, 3)
    check(triton, "two", 1, 3)
    assert is_gone(triton, "three", 1, 3)


@pytest.mark.triton("L0_lifecycle", cause="load and unload")
def test_model_repository_index(start, tmp_path):
    for name in ("one", "two"):
        save(tmp_path / name, 1, 2, 3)
    save(tmp_path / "latest", 1, 2, more="")
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


def test_model_availability_on_reload(start, tmp_path):
    save(tmp_path / "onnx", 1, more="")
    triton = start(*EXPLICIT, "--load-model", "onnx").triton
    check(triton, "onnx", 1)
    save(tmp_path / "onnx", 2, more="")
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
    assert is_gone(triton, "onnx", 1)
    check(triton, "onnx", 2)


def test_model_reload_fail(start, tmp_path):
    save(tmp_path / "onnx", 1, more="")
    triton = start(*EXPLICIT, "--load-model", "onnx").triton
    save_version_2 = tmp_path / "onnx" / "2" / "model.onnx"
    save_version_2.parent.mkdir()
    save_version_2.write_bytes(b"no model")
    with pytest.raises(grpc.RpcError) as caught:
        triton.load("onnx")
    assert "version 2" in caught.value.details() or "/2" in caught.value.details()
    assert triton.is_model_ready("onnx", "1")
    assert not triton.is_model_ready("onnx", "2")
    check(triton, "onnx", 1)


CONFIG = (
    '{"backend": "onnxruntime", "version_policy": {"specific": {"versions": [2]}}, '
    '"max_batch_size": 8}'
)


@pytest.mark.triton("L0_lifecycle", cause="overrides at load")
def test_config_override(start, tmp_path):
    save(tmp_path / "onnx", 1, 2, 3, more='default_model_filename: "missing.onnx"')
    triton = start(*EXPLICIT).triton
    with pytest.raises(grpc.RpcError, match="load failed for model 'onnx'"):
        triton.load("onnx")
    triton.load("onnx", config=CONFIG)
    assert is_ready(triton, "onnx", 2)
    assert is_gone(triton, "onnx", 1, 3)
    check(triton, "onnx", 2)
    with pytest.raises(grpc.RpcError):
        triton.load("onnx")
    assert is_ready(triton, "onnx", 2)
    assert is_gone(triton, "onnx", 1, 3)
    triton.unload("onnx")
    assert is_gone(triton, "onnx", 2)


@pytest.mark.triton("L0_lifecycle", cause="overrides at load")
def test_file_override(start, tmp_path):
    save(tmp_path / "onnx", 1, more="")
    content = triton_models.save_add_sub(tmp_path / "other.onnx", swap=True).read_bytes()
    (tmp_path / "other.onnx").unlink()
    triton = start(*EXPLICIT, "--load-model", "onnx").triton
    with pytest.raises(grpc.RpcError):  # files without a config
        triton.load("onnx", **{"file:1/model.onnx": content})
    check(triton, "onnx", 1)
    config = '{"backend": "onnxruntime"}'
    triton.load("brought", config=config, **{"file:7/model.onnx": content})
    check(triton, "brought", 7)
    triton.load("onnx", config=config, **{"file:2/model.onnx": content})
    assert is_gone(triton, "onnx", 1)
    check(triton, "onnx", 2)
    triton.load("onnx")
    check(triton, "onnx", 1)


@pytest.mark.triton("L0_lifecycle", cause="overrides at load")
@pytest.mark.parametrize("parameters", [{"config": "{"}, {"config": "[]"}, {"wrong": "x"}])
def test_invalid_load_parameters(start, tmp_path, parameters):
    save(tmp_path / "onnx", 1)
    triton = start(*EXPLICIT).triton
    with pytest.raises(grpc.RpcError) as caught:
        triton.load("onnx", **parameters)
    assert caught.value.code().name in ("INVALID_ARGUMENT", "UNIMPLEMENTED", "FAILED_PRECONDITION")
    assert is_gone(triton, "onnx", 1)


@pytest.mark.triton("L0_lifecycle", declared="load, unload")
@pytest.mark.parametrize("mode", ["poll", "none"])
def test_control_without_explicit_control(start, tmp_path, mode):
    save(tmp_path / "onnx", 1)
    triton = start("--model-control", mode).triton
    for call in (lambda: triton.load("onnx"), lambda: triton.unload("onnx")):
        expect_error(
            call,
            "FAILED_PRECONDITION",
            "explicit model load / unload is not allowed",
            "model_control is not explicit",
        )


@pytest.mark.triton("L0_lifecycle", declared="a model in two repositories")
def test_a_model_in_two_repositories_at_startup(start, tmp_path):
    first, second = tmp_path / "first", tmp_path / "second"
    for root in (first, second):
        save(root / "onnx", 1)
    save(first / "other", 1)
    flags = ("--strict-readiness", "false", "--repository", second)
    triton = start(*flags, root=first).triton
    check(triton, "other", 1)
    assert is_gone(triton, "onnx", 1)
    reasons = {reason for (name, _), (_, reason) in triton.index().items() if name == "onnx"}
    (reason,) = reasons  # Triton: "model appears in two or more repositories"
    assert "repositories 1 and 2" in reason


@pytest.mark.triton("L0_lifecycle", declared="a model failed to load")
def test_the_default_of_strict_readiness(start, tmp_path):
    save(tmp_path / "good", 1)
    save_broken(tmp_path / "broken")
    assert start().triton.is_ready()


def test_requests_in_flight_at_shutdown(start, tmp_path):
    triton_models.save_slow_identity(tmp_path / "slow" / "1" / "model.onnx", 40)
    server = start("--threads", "1")
    inputs = {"INPUT0": ("FP32", np.ones((1, 1), np.float32))}
    calls = [server.triton.start("slow", inputs) for _ in range(4)]
    wait_for(lambda: "neurona_queue_rows" in server.metrics())
    time.sleep(0.2)
    server.send_signal(signal.SIGINT)
    for call in calls:
        assert call.result().raw_output_contents[0] == np.float32(1).tobytes()
    with pytest.raises(grpc.RpcError) as caught:
        server.triton.infer("slow", inputs)
    assert caught.value.code() == grpc.StatusCode.UNAVAILABLE
    assert server.wait() == 0


def test_many_loads_at_once(start, tmp_path):
    names = [f"model{i}" for i in range(6)]
    for name in names:
        save(tmp_path / name, 1, more="")
    triton = start(*EXPLICIT).triton
    callers = [threading.Thread(target=triton.load, args=[name]) for name in names * 2]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    for name in names:
        check(triton, name, 1)
