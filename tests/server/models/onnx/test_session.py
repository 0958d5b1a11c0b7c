import ctypes
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from onnx import TensorProto, helper
from support import onnx_models

from neurona_server.errors import (
    ConfigError,
    InvalidArgumentError,
    LoadError,
    UnavailableError,
)
from neurona_server.models.onnx import runtime
from neurona_server.models.onnx.cuda_driver import load_driver
from neurona_server.models.onnx.runtime import (
    CPU,
    CUDA,
    RuntimeOptions,
    ThreadBudget,
    check_options,
)
from neurona_server.models.onnx.session import ArenaShrinker, Session
from neurona_server.models.synthetic_inputs import make_inputs

X = {"x": np.ones((2, 4), np.float32)}
no_gpu = pytest.mark.skipif(not runtime.missing_gpu_reason(), reason="there is a GPU")


@pytest.fixture
def path(tmp_path):
    return onnx_models.save_classifier(tmp_path / "model.onnx")


def test_placement_is_reported_by_onnxruntime(path):
    session = Session(path, RuntimeOptions(providers=("cpu",)))
    reported = hasattr(onnxruntime.InferenceSession, "get_provider_graph_assignment_info")
    assert session.placement == ({CPU: 3} if reported else {})
    assert session.degraded == ""


@no_gpu
def test_model_without_its_gpu_is_degraded_if_one_is_expected(path):
    assert Session(path, RuntimeOptions()).degraded == ""
    session = Session(path, RuntimeOptions(gpu_expected=True))
    assert session.provider == CPU
    assert session.degraded.startswith("runs on the CPU: this ")


@no_gpu
def test_no_model_is_loaded_on_the_cpu_if_a_gpu_is_required(path):
    with pytest.raises(LoadError, match=r"runs on the CPU: .*, and require_gpu is set"):
        Session(path, RuntimeOptions(require_gpu=True))
    with pytest.raises(LoadError, match=r"none of its providers \(cuda\) is available"):
        Session(path, RuntimeOptions(providers=("cuda",)))
    assert Session(path, RuntimeOptions(require_gpu=True, providers=("cpu",))).provider == CPU


@no_gpu
def test_server_does_not_start_without_a_required_gpu(repository):
    done = subprocess.run(
        [
            Path(sys.executable).with_name("neurona-serve"),
            *("--repository", repository, "--require-gpu", "true", "--address", "127.0.0.1:0"),
        ],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith("neurona-serve: option require_gpu is set, but this ")


def test_unknown_provider_is_an_invalid_option():
    with pytest.raises(ConfigError, match=r"has 'gpu' \(expected some of .*cpu, cuda"):
        check_options(RuntimeOptions(providers=("gpu",)))


@pytest.mark.gpu
@pytest.mark.skipif(bool(runtime.missing_gpu_reason()), reason=runtime.missing_gpu_reason())
def test_gpu_runs_the_model(path):
    assert runtime.missing_gpu_reason() == ""
    check_options(RuntimeOptions(require_gpu=True))
    session = Session(path, RuntimeOptions(require_gpu=True, gpu_memory_bytes=1 << 30))
    assert session.provider == CUDA
    assert session.placement == {CUDA: 3}
    assert session.degraded == ""
    on_cpu = Session(path, RuntimeOptions(providers=("cpu",)))
    np.testing.assert_allclose(session.run(X)[0], on_cpu.run(X)[0], rtol=1e-3)
    shrinking = Session(path, RuntimeOptions(shrink_seconds=1e-9))
    np.testing.assert_allclose(shrinking.run(X)[0], on_cpu.run(X)[0], rtol=1e-3)


def test_failing_run_raises_and_prints_nothing(tmp_path, capfd):
    session = Session(onnx_models.save_picker(tmp_path / "m.onnx"), RuntimeOptions())
    with pytest.raises(Exception, match="indices element out of data bounds, idx=9"):
        session.run({"index": np.array([9])})
    assert capfd.readouterr() == ("", "")


def test_closed_session_rejects_runs(path):
    session = Session(path, RuntimeOptions())
    assert session.run(X)[0].shape == (2, 3)
    session.close()
    session.close()
    with pytest.raises(UnavailableError, match="unloaded"):
        session.run(X)


def test_run_in_flight_completes_when_the_session_is_closed(path):
    started, closed = threading.Event(), threading.Event()

    class Inputs(dict[str, np.ndarray[Any, Any]]):
        def keys(self):  # called by ONNX Runtime's session at the start of a run
            started.set()
            assert closed.wait(10)
            return super().keys()

    session, answers = Session(path, RuntimeOptions()), []
    expected = session.run(X)[0]
    thread = threading.Thread(target=lambda: answers.append(session.run(Inputs(X))[0]))
    thread.start()
    assert started.wait(10)
    session.close()
    closed.set()
    thread.join(10)
    assert np.array_equal(answers[0], expected)


def test_threads_are_reserved_and_released(path):
    budget = ThreadBudget(5)
    assert [budget.reserve(4) for _ in range(4)] == [4, 3, 1, 1]
    budget.release(3)
    assert budget.reserve(2) == 2
    options = RuntimeOptions(threads=3, pool_threads=4)
    assert runtime.thread_budget(4).reserve(1) == 1
    before = len(os.listdir("/proc/self/task")) if sys.platform == "linux" else 0
    sessions = [Session(path, options) for _ in range(5)]
    if sys.platform == "linux":
        assert len(os.listdir("/proc/self/task")) == before + 4
    for session in sessions[:4]:
        session.close()
        session.close()
    with pytest.raises(LoadError):
        Session(path.parent / "nothing.onnx", options)
    del sessions, session
    assert runtime.thread_budget(4).reserve(99) == 5
    runtime.thread_budget(4).release(5)


IDLE = """
import sys, time
from pathlib import Path
import numpy as np
from neurona_server.models.onnx.runtime import RuntimeOptions
from neurona_server.models.onnx.session import Session
session = Session(Path(sys.argv[1]), RuntimeOptions(threads=4, spinning=sys.argv[2] == "spinning"))
x = {"x": np.ones((4096, 4), np.float32)}
used = 0.0
for _ in range(10):
    session.run(x)
    before = time.process_time()
    time.sleep(0.03)
    used += time.process_time() - before
print(used)
"""


@pytest.mark.parametrize("mode", ["sleeping", "spinning"])
def test_threads_sleep_between_runs_unless_spinning_is_enabled(path, mode):
    """CPU seconds during 0.3 s without a run, with 3 threads that could spin."""
    done = subprocess.run(
        [sys.executable, "-c", IDLE, path, mode],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert (float(done.stdout) > 0.02) is (mode == "spinning"), done.stdout


def test_folder_with_spaces_is_not_in_the_message(tmp_path):
    folder = tmp_path / "my secret models"
    onnx_models.save(
        folder / "model.onnx",
        [helper.make_node("Nonsense", ["x"], ["y"])],
        {"x": (TensorProto.FLOAT, [1])},
        {"y": (TensorProto.FLOAT, [1])},
    )
    with pytest.raises(LoadError, match="Nonsense") as caught:
        Session(folder / "model.onnx", RuntimeOptions())
    assert "secret" not in str(caught.value)
    assert tmp_path.name not in str(caught.value)


def test_arena_is_shrunk_once_per_interval_after_runs():
    now = [0.0]
    shrinker = ArenaShrinker(60, lambda: now[0])
    results = []
    for now[0] in (59, 60, 61, 120, 1000):
        assert not shrinker.is_due_in_run()
        results.append(shrinker.is_due(running=False))
    assert results == [False, True, False, True, True]
    now[0] = 2000
    assert not shrinker.is_due(running=False)  # there was no run since
    assert not shrinker.is_due_in_run()
    shrinker.stop()
    assert not shrinker.is_due(running=False)
    assert not ArenaShrinker(0, lambda: now[0]).is_due(running=False)


def test_arena_of_a_session_that_runs_is_shrunk_by_its_next_run():
    now = [0.0]
    shrinker = ArenaShrinker(60, lambda: now[0])
    assert not shrinker.is_due_in_run()
    now[0] = 60
    assert not shrinker.is_due(running=True)
    assert not shrinker.is_due(running=False)
    assert [shrinker.is_due_in_run() for _ in range(2)] == [True, False]
    now[0] = 120
    assert shrinker.is_due(running=False)


@pytest.mark.parametrize("kind", sorted(onnx_models.ECHOED))
def test_idle_session_shrinks_its_arena_once_whatever_its_inputs_are(tmp_path, kind):
    file = onnx_models.save_echo(tmp_path / "model.onnx", kind)
    session = Session(file, RuntimeOptions(shrink_seconds=1e-9))
    assert not session.shrink_arena()  # it has not run
    (spec,) = session.inputs
    (echo,) = session.run(make_inputs([spec], 2, 3))
    assert session.shrink_arena()
    assert not session.shrink_arena()
    (again,) = session.run(make_inputs([spec], 2, 3))
    assert np.array_equal(again, echo)
    session.close()
    assert not session.shrink_arena()


def test_run_that_shrinks_the_arena_has_the_same_outputs(path):
    expected = Session(path, RuntimeOptions(shrink_seconds=0)).run(X)[0]
    session = Session(path, RuntimeOptions(shrink_seconds=1e-9))
    for _ in range(3):
        session.run(X)
        session._shrinker.is_due(running=True)
        assert np.array_equal(session.run(X)[0], expected)
    without = Session(path, RuntimeOptions(shrink_seconds=1e-9, arena=False))
    assert np.array_equal(without.run(X)[0], expected)
    assert not without.shrink_arena()
    # As for a provider without an arena although the options enable it.
    for use in (lambda: without._shrinker.is_due(running=True), without.shrink_arena):
        without._shrinker = ArenaShrinker(1e-9)
        without._shrinker.is_due_in_run()
        assert not use()
        assert np.array_equal(without.run(X)[0], expected)
        assert not without._shrinker.is_due(running=False)


@pytest.mark.parametrize(("operator", "gates"), [("GRU", 3), ("LSTM", 4)])
@pytest.mark.parametrize("shape", [(3, 0, 8), (0, 0, 8)])
def test_recurrent_nodes_get_no_empty_input(tmp_path, operator, gates, shape):
    """ONNX Runtime alone would end the process."""
    path = onnx_models.save(
        tmp_path / "model.onnx",
        [helper.make_node(operator, ["x", "w", "r"], ["y"], hidden_size=4)],
        {"x": (TensorProto.FLOAT, ["time", "batch", 8])},
        {"y": (TensorProto.FLOAT, ["time", 1, "batch", 4])},
        {
            "w": np.ones((1, 4 * gates, 8), np.float32),
            "r": np.ones((1, 4 * gates, 4), np.float32),
        },
    )
    session = Session(path, RuntimeOptions())
    assert session.run({"x": np.ones((3, 2, 8), np.float32)})[0].shape == (3, 1, 2, 4)
    with pytest.raises(InvalidArgumentError, match="without values"):
        session.run({"x": np.ones(shape, np.float32)})


@pytest.mark.parametrize("free", [Session.free_memory, Session.close])
def test_memory_is_freed_beside_captures_of_cuda_graphs(path, cuda_stub, monkeypatch, free):
    """CUDA refuses that otherwise, and spoils the capture: whatever thread it is."""
    cuda_stub.install(monkeypatch)
    load_driver()
    session = Session(path, RuntimeOptions())
    modes = []

    def run():
        free(session)
        mode = ctypes.c_int(0)
        ctypes.CDLL(str(cuda_stub.path)).cuThreadExchangeStreamCaptureMode(ctypes.byref(mode))
        modes.append(mode.value)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert modes == [2]  # CU_STREAM_CAPTURE_MODE_RELAXED
