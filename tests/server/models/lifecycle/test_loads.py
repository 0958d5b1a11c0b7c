"""A load that never ends, or whose model is gone, holds up nobody; nothing stays of it."""

import shutil
import threading
import time

import grpc
import pytest
from support import onnx_models
from support.in_process_server import InProcessServer

from neurona_protos.prediction_pb2 import (
    ListModelsRequest,
    LoadModelRequest,
    State,
    UnloadModelRequest,
)
from neurona_server.models.lifecycle import load_threads

TIMED_OUT = r"load timed out: no progress for 1 s \(the option load_timeout_s\)"


def save_endless(root, name="endless"):
    onnx_models.save_endless_loop(root / name / "1" / "model.onnx")


def save_good(root, name="good"):
    onnx_models.save_classifier(root / name / "1" / "model.onnx")


def versions(server):
    """The version of each model; all have one."""
    models = server.models.List(ListModelsRequest(), timeout=5).models
    return {model.model: model.versions[0] for model in models}


def states(server):
    return {name: version.state for name, version in versions(server).items()}


def loads_of(name):
    return [one for one in threading.enumerate() if one.name.startswith(f"load {name}")]


def is_running(server, name):
    """Whether the file has been read and its first run is in progress."""
    load = server.reconciler._loads.get((name, 1))
    interrupts = load.cancellation._interrupts if load else []
    return any(getattr(one, "__name__", "") == "terminate" for one in interrupts)


def series_of(server, name):
    return [
        sample
        for family in server.metrics.registry.collect()
        for sample in family.samples
        if sample.labels.get("model") == name
    ]


@pytest.fixture
def start(tmp_path):
    servers = []

    def start(**options):
        servers.append(InProcessServer(tmp_path, **options))
        return servers[-1]

    yield start
    for server in servers:
        server.stop()


def test_start_serves_the_others_when_a_load_has_timed_out(tmp_path, start, wait_until):
    for number in range(5):  # more than are loaded at a time
        save_endless(tmp_path, f"endless{number}")
    save_good(tmp_path)
    server = start(load_timeout=1.0)
    served = versions(server)
    assert served.pop("good").state == State.STATE_READY
    assert len(served) == 5
    for version in served.values():
        assert version.state == State.STATE_FAILED
        assert version.reason == TIMED_OUT.replace("\\", "")
    assert server.count("loads_total", model="endless0", outcome="failed") == 1
    wait_until(lambda: not loads_of("endless"))


def test_slow_loads_do_not_keep_others_from_loading(tmp_path, start, wait_until, monkeypatch):
    monkeypatch.setattr(load_threads, "SLOW_SECONDS", 0.2)
    save_good(tmp_path)
    server = start()
    for number in range(5):
        save_endless(tmp_path, f"endless{number}")
    server.reconciler.poll_once()
    server.reconciler.poll_once()
    wait_until(lambda: len(loads_of("endless")) == 5)
    save_good(tmp_path, "other")
    server.reconciler.poll_once()
    server.reconciler.poll_once()
    wait_until(lambda: states(server)["other"] == State.STATE_READY)
    assert states(server)["endless4"] == State.STATE_LOADING


def test_slow_loads_are_bounded(tmp_path, start, wait_until, monkeypatch):
    monkeypatch.setattr(load_threads, "SLOW_SECONDS", 0.05)
    monkeypatch.setattr(load_threads, "MAX_SLOW_LOADS", 2)
    save_good(tmp_path)
    server = start()
    for number in range(6):
        save_endless(tmp_path, f"endless{number}")
    server.reconciler.poll_once()
    server.reconciler.poll_once()
    wait_until(lambda: len(loads_of("endless")) == 4)
    time.sleep(0.5)  # ten times as long as a load needs to become slow
    assert len(loads_of("endless")) == 4


def test_load_without_a_folder_is_ended_and_forgotten(tmp_path, start, wait_until):
    save_good(tmp_path)
    server = start()
    save_endless(tmp_path)
    server.reconciler.poll_once()
    server.reconciler.poll_once()
    wait_until(lambda: loads_of("endless"))
    shutil.rmtree(tmp_path / "endless")
    server.reconciler.poll_once()
    server.reconciler.poll_once()
    assert set(versions(server)) == {"good"}
    wait_until(lambda: not loads_of("endless"))
    wait_until(lambda: not series_of(server, "endless"))


def test_load_whose_files_change_is_started_again(tmp_path, start, wait_until):
    save_good(tmp_path)
    server = start()
    save_endless(tmp_path)
    server.reconciler.poll_once()
    server.reconciler.poll_once()
    wait_until(lambda: is_running(server, "endless"))
    save_good(tmp_path, "endless")
    server.reconciler.poll_once()
    assert states(server)["endless"] == State.STATE_LOADING
    server.reconciler.poll_once()
    wait_until(lambda: states(server)["endless"] == State.STATE_READY)
    assert server.count("loads_total", model="endless", outcome="failed") == 0


def test_stop_ends_loads(tmp_path, start, wait_until):
    save_good(tmp_path)
    server = start()
    save_endless(tmp_path)
    server.reconciler.poll_once()
    server.reconciler.poll_once()
    wait_until(lambda: loads_of("endless"))
    started = time.monotonic()
    assert server.reconciler.stop(30.0)
    assert time.monotonic() - started < 10
    assert not loads_of("endless")


def test_load_that_cannot_be_interrupted_is_not_repeated(tmp_path, start, wait_until):
    """As with a read of a volume that hangs: its thread stays, but there is only one."""
    save_good(tmp_path)
    server = start(explicit=True, load_timeout=0.3)
    load, proceed = server.reconciler._load_model, threading.Event()
    hanging = []

    def hang(source, cancellation):
        hanging.append(source)
        proceed.wait(60)
        return load(source, cancellation)

    server.reconciler._load_model = hang
    for _ in range(3):
        with pytest.raises(grpc.RpcError, match=r"load timed out: no progress for 0\.3 s"):
            server.models.Load(LoadModelRequest(model="good"), timeout=20)
    assert len(hanging) == 1
    server.reconciler._load_model = load
    proceed.set()
    wait_until(lambda: not loads_of("good"))
    assert server.models.Load(LoadModelRequest(model="good"), timeout=20)
    assert states(server) == {"good": State.STATE_READY}


class TestExplicit:
    def test_models_whose_folder_is_gone_are_forgotten(self, tmp_path, start):
        save_good(tmp_path)
        server = start(explicit=True, load_model=["good"])
        (tmp_path / "kept" / "1").mkdir(parents=True)
        (tmp_path / "kept" / "1" / "model.onnx").write_bytes(b"no model")
        for number in range(3):
            name = f"bad{number}"
            (tmp_path / name / "1").mkdir(parents=True)
            (tmp_path / name / "1" / "model.onnx").write_bytes(b"no model")
            for one in (name, "kept"):
                with pytest.raises(grpc.RpcError, match="load failed for model"):
                    server.models.Load(LoadModelRequest(model=one), timeout=20)
            shutil.rmtree(tmp_path / name)
            name = f"other{number}"
            save_good(tmp_path, name)
            server.models.Load(LoadModelRequest(model=name), timeout=20)
            server.models.Unload(UnloadModelRequest(model=name), timeout=20)
            shutil.rmtree(tmp_path / name)
        assert set(versions(server)) == {"good", "kept", "other2"}  # until the next scan
        with pytest.raises(grpc.RpcError, match="the repository has no model 'bad0'"):
            server.models.Load(LoadModelRequest(model="bad0"), timeout=20)
        assert set(versions(server)) == {"good", "kept"}
        assert states(server)["kept"] == State.STATE_FAILED
        assert not series_of(server, "bad0")
        assert not series_of(server, "other2")
        assert set(server.reconciler._requested) == {"good", "kept"}

    def test_a_poll_forgets_but_does_not_load_or_unload(self, tmp_path, start):
        save_good(tmp_path)
        save_good(tmp_path, "other")
        server = start(explicit=True, load_model=["good"])
        save_good(tmp_path, "new")
        shutil.rmtree(tmp_path / "good")
        shutil.rmtree(tmp_path / "other")
        for _ in range(3):
            server.reconciler.poll_once()
        assert states(server) == {"good": State.STATE_READY}
        server.models.Unload(UnloadModelRequest(model="good"), timeout=20)
        server.reconciler.poll_once()
        assert states(server) == {}
        assert not series_of(server, "good")

    def test_load_of_a_model_that_disappears_is_ended(self, tmp_path, start, wait_until):
        save_good(tmp_path)
        server = start(explicit=True)
        save_endless(tmp_path)
        call = server.models.Load.future(LoadModelRequest(model="endless"), timeout=60)
        wait_until(lambda: loads_of("endless"))
        shutil.rmtree(tmp_path / "endless")
        server.reconciler.poll_once()
        server.reconciler.poll_once()
        assert call.code() == grpc.StatusCode.FAILED_PRECONDITION
        assert set(versions(server)) == {"good"}

    def test_unload_ends_a_load(self, tmp_path, start, wait_until):
        save_endless(tmp_path)
        server = start(explicit=True)
        call = server.models.Load.future(LoadModelRequest(model="endless"), timeout=60)
        wait_until(lambda: loads_of("endless"))
        server.models.Unload(UnloadModelRequest(model="endless"), timeout=20)
        assert call.code() == grpc.StatusCode.FAILED_PRECONDITION
        assert "was unloaded while it was loading" in call.details()
        wait_until(lambda: not loads_of("endless"))
        assert states(server) == {"endless": State.STATE_UNLOADED}
