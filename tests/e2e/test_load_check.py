"""Model files that crash ONNX Runtime or never end: the server serves the others."""

import os
import shutil
import signal
import time
from pathlib import Path

import numpy as np
import pytest
from support import onnx_models
from support.server_process import run_neurona_serve

from neurona_protos.prediction_pb2 import ListModelsRequest, PredictRequest, State
from neurona_protos.prediction_pb2_grpc import ModelsStub, PredictionStub
from neurona_protos.tensors import to_tensor

KILLED = "the process that loaded it was killed by SIGFPE"
REJECTED = "load rejected: the server ended 2 times while it was loading this file"
ENDLESS = "load timed out: no progress for 3 s (the option load_timeout_s)"


def save_good(root, name="good"):
    onnx_models.save_classifier(root / name / "1" / "model.onnx")


def save_crashes(root):
    onnx_models.save_crash(root / "crash_at_load" / "1" / "model.onnx", at_load=True)
    onnx_models.save_crash(root / "crash_at_run" / "1" / "model.onnx", at_load=False)


def save_endless(root, name="endless"):
    onnx_models.save_endless_loop(root / name / "1" / "model.onnx")


def versions(server):
    models = ModelsStub(server.channel).List(ListModelsRequest(), timeout=10).models
    return {model.model: model.versions[0] for model in models}


def reasons(server):
    return {name: version.reason for name, version in versions(server).items() if version.reason}


def predict(server, name="good"):
    request = PredictRequest(model=name, inputs=[to_tensor("x", np.ones((1, 4), np.float32))])
    return PredictionStub(server.channel).Predict(request, timeout=20).version


def processes_of(server):
    """The commands of the processes that the server has started, and of theirs, by pid."""
    parents, commands = {}, {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
            commands[int(stat.parent.name)] = (stat.parent / "cmdline").read_bytes().decode()
        except OSError:
            continue
        parents[int(stat.parent.name)] = int(fields[1])
    family = {server.pid}
    for _ in range(3):
        family |= {pid for pid, parent in parents.items() if parent in family}
    return {pid: commands[pid] for pid in family - {server.pid}}


def checks_of(server):
    return [pid for pid, text in processes_of(server).items() if "load_check" in text]


@pytest.mark.parametrize("processes", [1, 2])
def test_a_file_that_crashes_at_its_load_or_first_run_fails(
    serve, tmp_path, wait_until, monkeypatch, processes
):
    monkeypatch.setenv("NEURONA_CACHE", str(tmp_path / "cache"))
    root = tmp_path / "models"
    save_good(root)
    save_crashes(root)
    server = serve(root, "--poll-ms", "50", "--processes", processes)
    assert predict(server) == 1
    assert reasons(server) == {"crash_at_load": KILLED, "crash_at_run": KILLED}
    shutil.rmtree(root / "crash_at_load")
    shutil.rmtree(root / "crash_at_run")
    wait_until(lambda: set(versions(server)) == {"good"})
    save_crashes(root)  # while it serves
    wait_until(lambda: set(reasons(server).values()) == {KILLED})
    save_good(root, "other")
    wait_until(lambda: "other" in versions(server))
    wait_until(lambda: versions(server)["other"].state == State.STATE_READY)
    assert predict(server) == 1
    assert server.stop() == 0


@pytest.mark.slow
def test_loads_that_never_end_hold_up_neither_the_start_nor_other_loads(
    serve, tmp_path, wait_until, monkeypatch
):
    monkeypatch.setenv("NEURONA_CACHE", "off")
    save_good(tmp_path)
    save_endless(tmp_path)
    server = serve(tmp_path, "--poll-ms", "50", "--load-timeout-s", "3")
    assert predict(server) == 1
    assert reasons(server) == {"endless": ENDLESS}
    save_endless(tmp_path, "again")
    wait_until(lambda: reasons(server) == {"endless": ENDLESS, "again": ENDLESS})
    assert predict(server) == 1
    assert server.stop() == 0


def test_the_load_of_a_deleted_model_ends_with_its_process(serve, tmp_path, wait_until):
    save_good(tmp_path)
    server = serve(tmp_path, "--poll-ms", "50")
    save_endless(tmp_path)
    wait_until(lambda: "endless" in versions(server))
    wait_until(lambda: versions(server)["endless"].state == State.STATE_LOADING)
    wait_until(lambda: checks_of(server))
    shutil.rmtree(tmp_path / "endless")
    wait_until(lambda: set(versions(server)) == {"good"})
    wait_until(lambda: checks_of(server) == [])
    assert predict(server) == 1


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_checks_end_with_the_server(start_server, tmp_path, wait_until, number):
    save_good(tmp_path)
    save_endless(tmp_path)
    server = start_server(tmp_path)
    wait_until(lambda: len(checks_of(server)) >= 1)
    checks = checks_of(server)
    started = time.monotonic()
    assert server.stop(number) == (0 if number == signal.SIGTERM else -number)
    assert time.monotonic() - started < 5
    wait_until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in checks))


def test_a_file_that_ended_the_server_twice_is_not_loaded_again(serve, tmp_path, monkeypatch):
    monkeypatch.setenv("NEURONA_CACHE", str(tmp_path / "cache"))
    root = tmp_path / "models"
    for number in range(6):  # loaded at the same time, but without guilt
        save_good(root, f"good{number}")
    crash = onnx_models.save_crash(root / "crash" / "1" / "model.onnx", at_load=True)
    flags = ("--repository", root, "--load-check", "false", "--load-threads", "8")
    for _ in range(2):
        assert run_neurona_serve(*flags).returncode < 0
    server = serve(root, *flags[2:])
    found = reasons(server)
    assert set(found) == {"crash"}
    assert found["crash"].startswith(REJECTED)
    assert predict(server, "good5") == 1
    assert server.stop() == 0
    os.utime(crash)  # as its owner is told to
    assert run_neurona_serve(*flags).returncode < 0


def test_a_stop_during_a_load_is_not_counted_as_its_crash(
    start_server, tmp_path, wait_until, monkeypatch
):
    cache = tmp_path / "cache"
    monkeypatch.setenv("NEURONA_CACHE", str(cache))
    root = tmp_path / "models"
    save_endless(root)
    server = start_server(root, "--load-check", "false")
    wait_until(lambda: [*cache.glob("loads/*.loading")])
    assert server.stop() == 0
    assert [*cache.glob("loads/*")] == []
