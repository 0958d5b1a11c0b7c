"""neurona-serve --supervise true: one server process that is restarted when it crashes or hangs."""

import json
import os
import re
import signal
import sys
import time
from pathlib import Path

import grpc
import numpy as np
import pytest
from grpc_health.v1.health_pb2 import HealthCheckRequest
from onnx import TensorProto, helper
from support import onnx_models
from support.server_process import LoadGenerator, run_neurona_serve

from neurona_protos.prediction_pb2 import (
    ListModelsRequest,
    LoadModelRequest,
    PredictRequest,
    State,
    UnloadModelRequest,
)
from neurona_protos.prediction_pb2_grpc import ModelsStub, PredictionStub
from neurona_protos.tensors import to_tensor

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="workers inherit descriptors")

ONE = ("--supervise", "true")
TWO = ("--processes", "2")
REQUEST = PredictRequest(model="m", inputs=[to_tensor("x", np.ones((1, 4), np.float32))])
SLOW = PredictRequest(model="slow", inputs=[to_tensor("x", np.ones(1, np.float32))])
CRASH = PredictRequest(
    model="div",
    inputs=[
        to_tensor("a", np.array([-(2**31)], np.int32)),
        to_tensor("b", np.array([-1], np.int32)),
    ],
)
"""ONNX Runtime checks for a division by 0, but not for this overflow: SIGFPE."""

QUARANTINED = (
    "quarantined: the server process was killed by SIGFPE twice while it ran (replace its files or "
    "restart the server to try again)"
)
RETRY = {
    "methodConfig": [
        {
            "name": [{}],
            "retryPolicy": {
                "maxAttempts": 5,
                "initialBackoff": "0.2s",
                "maxBackoff": "2s",
                "backoffMultiplier": 2,
                "retryableStatusCodes": ["UNAVAILABLE"],
            },
        }
    ]
}


@pytest.fixture
def models(tmp_path):
    onnx_models.save_classifier(tmp_path / "m" / "1" / "model.onnx")
    return tmp_path


@pytest.fixture
def connect():
    """Makes channels that share no connections."""
    channels = []

    def connect(server, *, retry=True):
        options = {
            "grpc.use_local_subchannel_pool": 1,
            "grpc.enable_retries": int(retry),
            "grpc.service_config": json.dumps(RETRY),
            "grpc.max_reconnect_backoff_ms": 200,
        }
        channels.append(grpc.insecure_channel(server.address, options=list(options.items())))
        return channels[-1]

    yield connect
    for channel in channels:
        channel.close()


def save_division(models, name="div"):
    tensor = TensorProto.INT32, ["n"]
    nodes = [helper.make_node("Div", ["a", "b"], ["y"])]
    path = models / name / "1" / "model.onnx"
    return onnx_models.save(path, nodes, {"a": tensor, "b": tensor}, {"y": tensor})


def workers(server):
    """Returns the pids of the workers of a supervisor."""
    pids = set()
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, parent = stat.read_text().rpartition(")")[2].split()[:2]
        except OSError:  # it has just ended
            continue
        if int(parent) == server.pid and state != "Z":
            pids.add(int(stat.parent.name))
    return pids


def restarts(server):
    return server.sample("neurona_process_restarts_total")


def serving(server):
    return server.sample('neurona_processes{state="serving"}')


def crash(channel):
    """Makes the worker crash whose connection that is."""
    with pytest.raises(grpc.RpcError):
        PredictionStub(channel).Predict(CRASH, timeout=20, wait_for_ready=True)


def list_versions(channel):
    request = ListModelsRequest()
    response = ModelsStub(channel).List(request, timeout=20, wait_for_ready=True)
    return {
        model.model: (version.state, version.reason)
        for model in response.models
        for version in model.versions
    }


@pytest.mark.parametrize("transport", ["cygrpc", pytest.param("aio", marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    "mode", [ONE, pytest.param(TWO, marks=pytest.mark.slow)], ids=["one", "two"]
)
def test_a_model_that_ran_at_two_crashes_is_quarantined(
    models, serve, connect, wait_until, mode, transport
):
    model_file = save_division(models)
    server = serve(models, *mode, "--transport", transport, "--poll-ms", "50")
    processes = 2 if mode is TWO else 1
    wait_until(lambda: serving(server) == processes)
    with LoadGenerator([connect(server) for _ in range(4)], REQUEST, wait_for_ready=True) as load:
        for number in (1, 2):
            wait_until(lambda: serving(server) == processes)
            since = load.answered
            wait_until(lambda since=since: load.answered > since + 100)
            before = workers(server)
            crash(connect(server, retry=False))
            wait_until(lambda number=number: restarts(server) == number)
        # With two processes the other one, which had loaded the model, is replaced too.
        wait_until(lambda: len(workers(server) - before) == processes == len(workers(server)))
        # One that is stopping still counts as serving.
        failure = f"div/1: failed to load: {QUARANTINED}"
        wait_until(lambda: server.log.count(failure) == processes)
        wait_until(lambda: serving(server) == processes)
        since = load.answered
        wait_until(lambda: load.answered > since + 100)
        for _ in range(6):
            channel = connect(server)
            versions = list_versions(channel)
            assert versions["m"][0] == State.STATE_READY
            assert versions["div"] == (State.STATE_FAILED, QUARANTINED)
            with pytest.raises(grpc.RpcError) as info:
                PredictionStub(channel).Predict(CRASH, timeout=20)
            assert info.value.code() == grpc.StatusCode.NOT_FOUND
        assert server.sample('neurona_version_problem{model="div",version="1"}') == 1
    assert server.log.count(f"div/1: {QUARANTINED}") == 1
    assert server.log.count(failure) == processes, server.log
    assert server.log.count("killed by SIGFPE while it ran div/1; restarting") == 2
    assert not re.search(r" m/1: (failed|quarantined)", server.log)

    onnx_models.save_classifier(model_file)  # other files are another model
    wait_until(lambda: list_versions(connect(server))["div"][0] == State.STATE_READY)
    assert server.stop() == 0, server.log


@pytest.mark.slow
def test_with_its_only_model_quarantined_the_server_waits_for_other_files(
    tmp_path, serve, connect, wait_until
):
    model_file = save_division(tmp_path)
    server = serve(tmp_path, *ONE, "--poll-ms", "50", "--strict", "true")
    crash(connect(server, retry=False))
    crash(connect(server, retry=False))
    assert list_versions(connect(server)) == {"div": (State.STATE_FAILED, QUARANTINED)}
    onnx_models.save_classifier(model_file)
    wait_until(lambda: list_versions(connect(server))["div"][0] == State.STATE_READY)
    assert server.stop() == 0


def test_a_supervised_process_looks_like_one_that_is_not(models, serve, wait_until):
    pages, logs = [], []
    for flags in ((), ONE):
        server = serve(models, *flags)
        PredictionStub(server.channel).Predict(REQUEST, timeout=20)
        page = server.metrics()
        pages.append(
            {
                line.rpartition(" ")[0]
                for line in page.splitlines()
                if not re.match(r"#|process_|python_|neurona_process|neurona_stalls", line)
            }
        )
        assert server.stop() == 0
        logs.append(server.log)
    assert pages[0] == pages[1]
    # The same lines, by the supervisor or by the process, and the process has no number.
    for text in ("metrics on http://127.0.0.1:", "serving gRPC on 127.0.0.1:", "received SIGTERM"):
        assert all(text in log for log in logs)
    assert logs[0].count(": m/1: ready on") == logs[1].count(": m/1: ready on") == 1
    assert "process 0" not in logs[1]


def test_status_of_failed_starts(tmp_path):
    done = run_neurona_serve("--repository", tmp_path, *ONE)
    assert done.returncode == 1
    assert done.stderr.count("no model in") == 1
    assert "Traceback" not in done.stderr


@pytest.mark.slow
def test_sighup_replaces_the_process_and_no_call_fails(
    models, serve, connect, wait_until, tmp_path
):
    options = tmp_path / "options.toml"
    options.write_text("max_batch_rows = 16\n")
    server = serve(models, *ONE, "--config", options)
    limit = 'neurona_batch_limit_rows{model="m",version="1"}'
    assert server.sample(limit) == 16
    with LoadGenerator([connect(server) for _ in range(4)], REQUEST, pause=0.002) as load:
        wait_until(lambda: load.answered > 100)
        before = workers(server)
        options.write_text("max_batch_rows = 8\n")
        server.send_signal(signal.SIGHUP)
        wait_until(lambda: len(workers(server)) == 1 and workers(server) != before)
        since = load.answered
        wait_until(lambda: load.answered > since + 100)
        wait_until(lambda: server.sample(limit) == 8)
    assert load.error is None
    series = 'neurona_requests_total{model="m",outcome="ok",version="1"}'
    assert server.sample(series) == load.answered
    assert server.stop() == 0


@pytest.mark.slow
def test_a_unix_socket_has_one_process_at_a_time(models, serve, wait_until, tmp_path):
    server = serve(models, *ONE, "--address", f"unix:{tmp_path}/socket")
    for act in (
        lambda pid: server.send_signal(signal.SIGHUP),
        lambda pid: os.kill(pid, signal.SIGKILL),
    ):
        (before,) = workers(server)
        act(before)
        wait_until(lambda before=before: workers(server) and before not in workers(server))
        request = HealthCheckRequest()
        wait_until(lambda: serving(server) == 1)
        server.health.Check(request, timeout=20, wait_for_ready=True)
    assert server.stop() == 0, server.log


def test_a_new_process_has_the_models_that_calls_have_loaded(models, serve, connect, wait_until):
    onnx_models.save_classifier(models / "n" / "1" / "model.onnx")
    onnx_models.save_classifier(models / "o" / "1" / "model.onnx")
    server = serve(models, *ONE, "--model-control", "explicit", "--load-model", "m")
    stub = ModelsStub(server.channel)
    for name in ("n", "o"):
        stub.Load(LoadModelRequest(model=name), timeout=20)
    stub.Unload(UnloadModelRequest(model="m"), timeout=20)
    time.sleep(2)  # the supervisor learns of them within a second
    (pid,) = workers(server)
    (models / "o" / "1" / "model.onnx").unlink()
    os.kill(pid, signal.SIGKILL)
    wait_until(lambda: pid not in workers(server) and serving(server) == 1)
    states = {name: state for name, (state, _) in list_versions(connect(server)).items()}
    assert states["n"] == State.STATE_READY
    assert states["m"] == State.STATE_UNLOADED
    assert server.stop() == 0


@pytest.mark.slow
def test_a_new_process_does_not_wait_for_a_file_that_the_old_one_had_not_loaded(
    models, serve, wait_until
):
    server = serve(models, *ONE, "--load-timeout-s", "600")
    (pid,) = workers(server)
    onnx_models.save_endless_loop(models / "endless" / "1" / "model.onnx")
    wait_until(lambda: "endless/1: loading" in server.log)
    time.sleep(2)  # the supervisor learns within a second what is served
    os.kill(pid, signal.SIGKILL)
    wait_until(lambda: pid not in workers(server) and serving(server) == 1)
    PredictionStub(server.channel).Predict(REQUEST, timeout=20, wait_for_ready=True)
    assert server.stop() == 0


@pytest.mark.long
@pytest.mark.slow
@pytest.mark.parametrize("mode", [ONE, TWO], ids=["one", "two"])
def test_a_process_that_hangs_is_killed_and_restarted(models, serve, connect, wait_until, mode):
    server = serve(models, *mode)
    wait_until(lambda: serving(server) == (2 if mode is TWO else 1))
    frozen = min(workers(server))
    os.kill(frozen, signal.SIGSTOP)
    wait_until(lambda: frozen not in workers(server))
    assert re.search(rf"\(pid {frozen}\) gave no sign of life for 1\d s; killing it", server.log)
    wait_until(lambda: "killed because it gave no sign of life" in server.log)
    wait_until(lambda: serving(server) == (2 if mode is TWO else 1))
    for _ in range(12):
        PredictionStub(connect(server)).Predict(REQUEST, timeout=20)
    # One that hangs does not keep the server from ending either.
    os.kill(min(workers(server)), signal.SIGSTOP)
    started = time.monotonic()
    assert server.stop() == 1
    assert time.monotonic() - started < 25


def test_counts_of_a_killed_process_are_lost_for_a_second_only(models, serve, wait_until):
    server = serve(models, *ONE)
    stub = PredictionStub(server.channel)
    for _ in range(200):
        stub.Predict(REQUEST, timeout=20)
    time.sleep(2.5)  # longer than between two reports
    (pid,) = workers(server)
    os.kill(pid, signal.SIGKILL)
    wait_until(lambda: pid not in workers(server) and serving(server) == 1)
    assert server.sample('neurona_requests_total{model="m",outcome="ok",version="1"}') == 200
    assert server.stop() == 0


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ((), TWO),
        *[
            pytest.param(*modes, marks=pytest.mark.slow)
            for modes in ((TWO, ()), (TWO, TWO), (ONE, ()), ((), ONE))
        ],
    ],
)
def test_the_port_is_free_after_a_stop_with_open_connections(models, serve, connect, first, second):
    server = serve(models, *first)
    channels = [connect(server) for _ in range(10)]
    for channel in channels:
        PredictionStub(channel).Predict(REQUEST, timeout=20)
    assert server.stop() == 0
    server.flags = second
    server.start().wait_until_serving()
    assert server.stop() == 0
