"""neurona-serve --processes 2: two workers that serve, and their supervisor."""

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
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse
from grpc_health.v1.health_pb2_grpc import HealthStub
from support import onnx_models
from support.server_process import LoadGenerator, run_neurona_serve

from neurona_protos.open_inference_pb2 import ModelStatisticsRequest
from neurona_protos.open_inference_pb2_grpc import GRPCInferenceServiceStub
from neurona_protos.prediction_pb2 import PredictRequest
from neurona_protos.prediction_pb2_grpc import PredictionStub
from neurona_protos.tensors import to_array, to_tensor

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="ports are shared on Linux")

REQUEST = PredictRequest(model="m", inputs=[to_tensor("x", np.ones((1, 4), np.float32))])
SLOW = PredictRequest(model="slow", inputs=[to_tensor("x", np.ones(1, np.float32))])
TWO = ("--processes", "2")
RETRY = {
    "methodConfig": [
        {
            "name": [{"service": "neurona.v1.Prediction"}],
            "retryPolicy": {
                "maxAttempts": 5,
                "initialBackoff": "0.05s",
                "maxBackoff": "0.5s",
                "backoffMultiplier": 2,
                "retryableStatusCodes": ["UNAVAILABLE"],
            },
        }
    ]
}


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    root = tmp_path_factory.mktemp("models")
    onnx_models.save_classifier(root / "m" / "1" / "model.onnx")
    return root


@pytest.fixture
def wait_until():

    def wait_until(condition):
        end = time.monotonic() + 60
        while not condition():
            assert time.monotonic() < end, "waited in vain"
            time.sleep(0.02)

    return wait_until


@pytest.fixture
def connect():
    """Makes channels that share no connections."""
    channels = []

    def connect(address, **options):
        arguments = {"grpc.use_local_subchannel_pool": 1, **options}
        channels.append(grpc.insecure_channel(address, options=list(arguments.items())))
        return channels[-1]

    yield connect
    for channel in channels:
        channel.close()


@pytest.fixture
def load_on(connect):
    """Makes load over several connections, by clients that retry."""

    def load_on(server):
        config = {"grpc.service_config": json.dumps(RETRY)}
        channels = [connect(server.address, **config) for _ in range(4)]
        # The pause leaves the processes that start CPU time.
        return LoadGenerator(channels, REQUEST, pause=0.002, wait_for_ready=True)

    return load_on


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


def is_alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def predictions(server):
    return server.sample('neurona_requests_total{model="m",outcome="ok",version="1"}')


def both_serve(server):
    return server.sample('neurona_processes{state="serving"}') == 2


def test_calls_reach_both_workers_and_metrics_are_their_sums(models, serve, connect, wait_until):
    server = serve(models, *TWO)
    wait_until(lambda: both_serve(server))
    channels = [connect(server.address) for _ in range(24)]
    for channel in channels:
        assert PredictionStub(channel).Predict(REQUEST, timeout=20).model == "m"
        state = HealthStub(channel).Check(HealthCheckRequest(), timeout=20)
        assert state.status == HealthCheckResponse.SERVING
    counts = set()
    for channel in channels:
        statistics = GRPCInferenceServiceStub(channel).ModelStatistics(
            ModelStatisticsRequest(name="m"), timeout=20
        )
        counts.add(statistics.model_stats[0].inference_count)
    assert sum(counts) == 24 or counts == {12}  # each worker has its own statistics
    assert predictions(server) == 24
    assert server.sample('neurona_batch_rows_count{model="m",version="1"}') == 24
    metrics = server.metrics()
    assert {"0", "1"} == set(re.findall(r'neurona_inline\{model="m",process="(\d)"', metrics))
    assert metrics.count("# TYPE neurona_requests_total counter") == 1
    assert server.sample("neurona_serving") == 2
    memory = dict(
        re.findall(r'neurona_process_resident_memory_bytes\{process="(\w+)"\} (\S+)', metrics)
    )
    assert set(memory) == {"0", "1", "supervisor"}
    (total,) = re.findall(r"(?m)^process_resident_memory_bytes (\S+)", metrics)
    assert float(total) == sum(map(float, memory.values()))
    assert set(re.findall(r'neurona_process_cpu_seconds_total\{process="(\w+)"', metrics)) == set(
        memory
    )
    frozen = min(workers(server))
    os.kill(frozen, signal.SIGSTOP)
    assert predictions(server) == 24  # by its last snapshot
    os.kill(frozen, signal.SIGCONT)
    status, log = server.stop(), server.log
    assert status == 0, log


def test_a_killed_worker_is_replaced_and_no_call_fails(models, serve, load_on, wait_until):
    server = serve(models, *TWO)
    wait_until(lambda: both_serve(server))
    with load_on(server) as load:
        wait_until(lambda: load.answered > 100)
        before, scraped = workers(server), predictions(server)
        os.kill(min(before), signal.SIGKILL)
        wait_until(lambda: server.sample("neurona_process_restarts_total") == 1)
        assert predictions(server) >= scraped
        wait_until(lambda: both_serve(server))
        since = load.answered
        wait_until(lambda: load.answered > since + 100)
    assert load.error is None
    assert len(workers(server) & before) == 1
    status, log = server.stop(), server.log
    assert status == 0, log
    assert "killed by SIGKILL; restarting" in log


def test_sighup_replaces_all_workers_and_no_call_fails(
    models, serve, load_on, wait_until, tmp_path
):
    options = tmp_path / "neurona.toml"
    options.write_text("max_batch_rows = 16\n")
    server = serve(models, *TWO, "--config", str(options))
    wait_until(lambda: both_serve(server))
    limit = 'neurona_batch_limit_rows{model="m",process="%d",version="1"}'
    with load_on(server) as load:
        wait_until(lambda: load.answered > 100)
        before, scraped = workers(server), predictions(server)
        options.write_text("max_batch_rows = 8\n")
        server.send_signal(signal.SIGHUP)
        wait_until(lambda: len(workers(server) - before) == 2 == len(workers(server)))
        wait_until(lambda: both_serve(server))
        assert predictions(server) >= scraped
        since = load.answered
        wait_until(lambda: load.answered > since + 100)
        assert [server.sample(limit % n) for n in range(2)] == [8, 8]  # reloaded
    assert load.error is None
    assert predictions(server) == load.answered  # with the counts of the replaced workers

    replaced = workers(server)
    options.write_text("max_batch_rows = 0\n")
    server.send_signal(signal.SIGHUP)
    wait_until(lambda: "before it served; running workers keep serving" in server.log)
    assert "option max_batch_rows is 0 (expected" in server.log
    server.health.Check(HealthCheckRequest(), timeout=20)
    assert replaced <= workers(server)
    status, log = server.stop(), server.log
    assert status == 0, log


def test_sigterm_completes_running_requests_of_both_workers(tmp_path, serve, connect, wait_until):
    onnx_models.save_slow(tmp_path / "slow" / "1" / "model.onnx")
    server = serve(tmp_path, *TWO, "--threads", "1")
    wait_until(lambda: both_serve(server))
    pids = workers(server)
    channels = [connect(server.address) for _ in range(8)]
    watches = [HealthStub(one).Watch(HealthCheckRequest(), timeout=60) for one in channels]
    assert {next(watch).status for watch in watches} == {HealthCheckResponse.SERVING}
    calls = [PredictionStub(one).Predict.future(SLOW, timeout=60) for one in channels[:2]]
    wait_until(lambda: queued_or_started(server) >= 2)
    server.terminate()
    for pid in pids:  # as systemd does: it signals the whole group
        os.kill(pid, signal.SIGTERM)
    assert {next(watch).status for watch in watches} == {HealthCheckResponse.NOT_SERVING}
    for call in calls:
        assert to_array(call.result().outputs[0]) == 1
    status, log = server.wait(), server.log
    assert status == 0, log
    assert log.rstrip().endswith("stopped")
    assert not any(map(is_alive, pids))


def queued_or_started(server):
    return server.sample(
        'neurona_queue_duration_seconds_count{model="slow",version="1"}'
    ) + server.sample('neurona_queue_rows{model="slow",version="1"}')


def test_a_second_signal_ends_all_processes_immediately(models, serve, wait_until):
    server = serve(models, *TWO, "--drain-delay-ms", "60000")
    wait_until(lambda: both_serve(server))
    pids = workers(server)
    watch = server.health.Watch(HealthCheckRequest(), timeout=60)
    assert next(watch).status == HealthCheckResponse.SERVING
    server.terminate()
    assert next(watch).status == HealthCheckResponse.NOT_SERVING
    status, log = server.stop(signal.SIGTERM), server.log
    assert status == 1
    assert "second signal" in log
    wait_until(lambda: not any(map(is_alive, pids)))


def test_workers_end_with_their_supervisor(models, serve, wait_until):
    server = serve(models, *TWO)
    wait_until(lambda: both_serve(server))
    pids = workers(server)
    assert len(pids) == 2
    server.kill()
    wait_until(lambda: not any(map(is_alive, pids)))


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--strict", "true"), "strict is true and a model cannot be served: m: version 1: "),
        (("--repository", "nowhere"), "nowhere"),
        (("--address", "unix:s"), "expected an address HOST:PORT"),
    ],
)
def test_a_failed_start_is_logged_once(tmp_path, flags, message):
    (tmp_path / "m" / "1").mkdir(parents=True)
    (tmp_path / "m" / "1" / "model.onnx").write_bytes(b"not a model")
    done = run_neurona_serve("--repository", ".", *TWO, *flags, cwd=tmp_path)
    assert done.returncode == 1
    errors = [line for line in done.stderr.splitlines() if line.startswith("neurona-serve: ")]
    assert len(errors) == 1
    assert message in errors[0]
    assert "Traceback" not in done.stderr


def test_triton_metrics_are_those_of_all_processes(serve, models, connect):
    server = serve(models, *TWO, "--triton-metrics", "true")
    for _ in range(8):  # either process takes a connection
        PredictionStub(connect(server.address)).Predict(REQUEST, timeout=20)
    page = server.metrics()
    labels = 'model="m",version="1"'
    assert f"nv_inference_request_success{{{labels}}} 8.0\n" in page
    assert f"nv_inference_count{{{labels}}} 8.0\n" in page
    assert f"nv_inference_pending_request_count{{{labels}}} 0.0\n" in page
    assert "# TYPE nv_inference_request_success counter\n" in page
