"""L0_lifecycle: what is served when the repository changes, and how ready the server is."""

import shutil
import signal
import time

import grpc
import numpy as np
import pytest
from support import triton_models
from support.triton_calls import expect_error, make_request, wait_for
from support.triton_models import save_versions

pytestmark = pytest.mark.triton("L0_lifecycle")
POLL = ("--poll-ms", "50")


@pytest.mark.slow
@pytest.mark.triton("L0_lifecycle", cause="strict readiness")
@pytest.mark.parametrize("strict", [True, False], ids=["strict", "nostrict"])
def test_parse_error_modelfail(start, tmp_path, strict):
    save_versions(tmp_path / "good", 1)
    triton_models.save_broken(tmp_path / "broken")
    flags = ("--strict-readiness", "true") if strict else ()
    server = start(*flags, wait=False)
    triton = server.triton
    grpc.channel_ready_future(server.channel).result(60)
    wait_for(lambda: triton.is_model_ready("good", "1"))
    assert triton.is_live()
    if strict:
        assert not triton.is_ready()
    else:
        wait_for(triton.is_ready)
    assert not triton.is_model_ready("broken", "1")
    triton.check_versions("good", 1)
    message = expect_error(
        lambda: triton.check_versions("broken", 1),
        "NOT_FOUND",
        "Request for unknown model: 'broken'",
    )
    assert "no" in message


@pytest.mark.slow
@pytest.mark.triton("L0_lifecycle", cause="error texts")
def test_has_no_available_versions(start, tmp_path):
    save_versions(tmp_path / "good", 1)
    triton_models.save_broken(tmp_path / "broken")
    triton = start().triton
    request = make_request("broken", {})
    expect_error(
        lambda: triton.stub.ModelInfer(request, timeout=30),
        "NOT_FOUND",
        "Request for unknown model: 'broken' has no available versions",
    )


@pytest.mark.slow
@pytest.mark.triton("L0_lifecycle", cause="strict readiness")
def test_parse_error_model_no_version(start, tmp_path):
    save_versions(tmp_path / "good", 1, 3)
    (tmp_path / "empty").mkdir()
    triton_models.write_config(tmp_path / "empty", triton_models.add_sub_config())
    server = start("--strict-readiness", "true", wait=False)
    grpc.channel_ready_future(server.channel).result(60)
    wait_for(lambda: server.triton.are_ready("good", 1, 3))
    assert not server.triton.is_ready()
    assert not server.triton.is_model_ready("empty")
    server.triton.check_versions("good", 1, 3)


@pytest.mark.slow
@pytest.mark.triton("L0_lifecycle", cause="strict readiness")
def test_parse_error_of_a_config(start, tmp_path):
    save_versions(tmp_path / "good", 1)
    save_versions(tmp_path / "bad", 1, more="no_such_field: 1")
    triton = start().triton
    assert triton.is_live()
    assert triton.is_ready()
    expect_error(
        lambda: triton.metadata("bad", "1"), "NOT_FOUND", "Request for unknown model: 'bad'"
    )
    triton.check_versions("good", 1)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["01", "abc", "1.0"])
def test_other_folders_than_versions_are_passed_over(start, tmp_path, name):
    save_versions(tmp_path / "model", 1)
    (tmp_path / "model" / name).mkdir()
    triton = start().triton
    assert triton.is_model_ready("model", "1")
    triton.check_versions("model", 1)


@pytest.mark.slow
def test_dynamic_model_load_unload(start, tmp_path):
    save_versions(tmp_path / "onnx", 1, 3)
    triton = start(*POLL).triton
    assert triton.are_gone("second", 1, 3)
    save_versions(tmp_path / "staging" / "second", 1, 3)
    shutil.move(tmp_path / "staging" / "second", tmp_path / "second")
    wait_for(lambda: triton.are_ready("second", 1, 3))
    triton.check_versions("second", 3)
    counts = {s.version: s.inference_stats.success.count for s in triton.statistics("second")}
    assert counts == {"1": 0, "3": 1}
    shutil.rmtree(tmp_path / "second")
    wait_for(lambda: triton.are_gone("second", 1, 3))
    expect_error(
        lambda: triton.check_versions("second", 3),
        "NOT_FOUND",
        "Request for unknown model: 'second'",
    )
    save_versions(tmp_path / "second", 1, 3)
    wait_for(lambda: triton.are_ready("second", 1, 3))
    assert triton.are_ready("onnx", 1, 3)
    shutil.rmtree(tmp_path / "onnx")
    wait_for(lambda: triton.are_gone("onnx", 1, 3))
    assert triton.is_live()


@pytest.mark.slow
def test_statistics_of_a_model_that_returns(start, tmp_path):
    save_versions(tmp_path / "onnx", 1, 3)
    triton = start(*POLL).triton
    triton.check_versions("onnx", 3)
    shutil.move(tmp_path / "onnx", tmp_path.parent / "moved")
    wait_for(lambda: triton.are_gone("onnx", 3))
    shutil.move(tmp_path.parent / "moved", tmp_path / "onnx")
    wait_for(lambda: triton.are_ready("onnx", 1, 3))
    counts = {s.version: s.inference_stats.success.count for s in triton.statistics("onnx")}
    assert counts == {"1": 0, "3": 0}


@pytest.mark.slow
def test_dynamic_model_load_unload_disabled(start, tmp_path):
    save_versions(tmp_path / "onnx", 1, 3)
    triton = start("--model-control", "none").triton
    save_versions(tmp_path / "second", 1, 3)
    time.sleep(0.5)
    assert triton.are_gone("second", 1, 3)
    shutil.rmtree(tmp_path / "onnx")
    time.sleep(0.5)
    assert triton.are_ready("onnx", 1, 3)
    triton.check_versions("onnx", 1, 3)


@pytest.mark.slow
@pytest.mark.triton("L0_lifecycle", declared="a version that is gone")
def test_dynamic_version_load_unload(start, tmp_path):
    save_versions(tmp_path / "onnx", 1, 2, 3, more="version_policy { all {} }")
    triton = start(*POLL).triton
    triton.check_versions("onnx", 1)
    shutil.rmtree(tmp_path / "onnx" / "1")
    wait_for(lambda: triton.are_gone("onnx", 1))
    assert triton.are_ready("onnx", 2, 3)
    expect_error(
        lambda: triton.check_versions("onnx", 1),
        "NOT_FOUND",
        "Request for unknown model: 'onnx' version 1 is not found",
    )
    shutil.copytree(tmp_path / "onnx" / "2", tmp_path / "onnx" / "7")
    wait_for(lambda: triton.are_ready("onnx", 2, 3, 7))


@pytest.mark.slow
def test_dynamic_version_load_unload_disabled(start, tmp_path):
    save_versions(tmp_path / "onnx", 1, 2, 3, more="version_policy { all {} }")
    triton = start("--model-control", "none").triton
    shutil.copytree(tmp_path / "onnx" / "2", tmp_path / "onnx" / "7")
    shutil.rmtree(tmp_path / "onnx" / "1")
    time.sleep(0.5)
    assert triton.are_ready("onnx", 1, 2, 3)
    assert triton.are_gone("onnx", 7)
    triton.check_versions("onnx", 1)


@pytest.mark.slow
def test_dynamic_model_modify(start, tmp_path):
    save_versions(tmp_path / "onnx", 1, 3)
    triton = start(*POLL).triton
    triton.check_versions("onnx", 1, 3)
    save_versions(tmp_path / "onnx", more="")
    wait_for(lambda: triton.are_gone("onnx", 1) and triton.are_ready("onnx", 3))
    expect_error(lambda: triton.check_versions("onnx", 1), "NOT_FOUND", "Request for unknown model")
    triton.check_versions("onnx", 3)


@pytest.mark.slow
def test_dynamic_file_delete(start, tmp_path):
    save_versions(tmp_path / "onnx", 1, 3)
    triton = start(*POLL).triton
    (tmp_path / "onnx" / "config.pbtxt").unlink()
    wait_for(lambda: triton.are_gone("onnx", 1) and triton.are_ready("onnx", 3))
    triton.check_versions("onnx", 3)


@pytest.mark.slow
@pytest.mark.triton("L0_lifecycle", declared="a model in two repositories")
def test_multiple_model_repository_polling(start, tmp_path):
    first, second = tmp_path / "first", tmp_path / "second"
    save_versions(first / "onnx", 1)
    save_versions(second / "other", 1, 3)
    triton = start(*POLL, "--repository", second, root=first).triton
    triton.check_versions("onnx", 1)
    save_versions(second / "onnx", 1, 3)
    time.sleep(0.5)
    triton.check_versions("onnx", 1)  # the first repository counts
    shutil.rmtree(first / "onnx")
    wait_for(lambda: triton.are_ready("onnx", 1, 3))
    triton.check_versions("other", 1, 3)


@pytest.mark.slow
@pytest.mark.triton("L0_lifecycle", declared="a model in two repositories")
def test_a_model_in_two_repositories_at_startup(start, tmp_path):
    first, second = tmp_path / "first", tmp_path / "second"
    for root in (first, second):
        save_versions(root / "onnx", 1)
    save_versions(first / "other", 1)
    flags = ("--repository", second)
    triton = start(*flags, root=first).triton
    triton.check_versions("other", 1)
    assert triton.are_gone("onnx", 1)
    reasons = {reason for (name, _), (_, reason) in triton.index().items() if name == "onnx"}
    (reason,) = reasons  # Triton: "model appears in two or more repositories"
    assert "repositories 1 and 2" in reason


@pytest.mark.slow
@pytest.mark.triton("L0_lifecycle", declared="a model failed to load")
def test_the_default_of_strict_readiness(start, tmp_path):
    save_versions(tmp_path / "good", 1)
    triton_models.save_broken(tmp_path / "broken")
    assert start().triton.is_ready()


@pytest.mark.slow
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
