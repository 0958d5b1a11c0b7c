"""A file is loaded in a child process first, which it may crash or block."""

import logging
import os
import signal
import threading
import time
from dataclasses import replace

import pytest
from support import onnx_models

from neurona_protos.prediction_pb2 import DataType
from neurona_server.errors import LoadError
from neurona_server.models.load_cancellation import LoadCancellation
from neurona_server.models.load_check import child_process
from neurona_server.models.load_check.checked_files import CheckedFiles, make_key
from neurona_server.models.load_check.checker import LoadChecker
from neurona_server.models.model_options import ModelOptions
from neurona_server.models.onnx.runtime import RuntimeOptions
from neurona_server.models.repository.scanner import find_models
from neurona_server.models.repository.settings import WarmUpInput, WarmUpSample

OPTIONS = ModelOptions(runtime=RuntimeOptions(threads=1))


@pytest.fixture
def checker(wait_until):
    checker = LoadChecker(timeout=60.0)
    yield checker
    for child in checker._idle:
        child.process.kill()
    wait_until(lambda: not checker._idle)


@pytest.fixture
def good(tmp_path):
    onnx_models.save_classifier(tmp_path / "good" / "1" / "model.onnx")
    return source_of(tmp_path, "good")


def source_of(root, name):
    (source,) = [source for source in find_models([root]) if source.name == name]
    return source


def check(checker, source, options=OPTIONS):
    """Return why the file cannot be loaded, or ""."""
    try:
        checker.check(source, options, LoadCancellation())
    except LoadError as error:
        return str(error)
    return ""


def test_a_load_that_is_cancelled_while_the_child_starts_leaves_the_child_idle(good, checker):
    cancellation = LoadCancellation()
    take_child = checker._take_child

    def take_and_cancel():
        child = take_child()
        cancellation.cancel("the model was unloaded")
        return child

    checker._take_child = take_and_cancel
    with pytest.raises(LoadError, match="unloaded"):
        checker.check(good, OPTIONS, cancellation)
    assert len(checker._idle) == 1


def test_a_good_file_passes_and_the_child_waits_for_the_next(good, checker):
    assert check(checker, good) == ""
    (child,) = checker._idle
    assert check(checker, good) == ""
    assert checker._idle == [child]


def test_a_child_without_a_gpu_passes_what_the_server_may_run_on_one(good, checker):
    options = replace(OPTIONS, runtime=RuntimeOptions(threads=1, require_gpu=True))
    assert check(checker, good, options) == ""


@pytest.mark.parametrize("at_load", [True, False])
def test_a_crash_is_reported_with_its_signal_and_the_next_file_gets_a_new_child(
    tmp_path, good, checker, at_load
):
    onnx_models.save_crash(tmp_path / "crash" / "1" / "model.onnx", at_load=at_load)
    crash = source_of(tmp_path, "crash")
    for _ in range(2):
        assert check(checker, crash) == "the process that loaded it was killed by SIGFPE"
    assert check(checker, good) == ""


def test_a_file_that_the_server_would_reject_is_rejected_with_its_reason_and_log(
    tmp_path, checker, caplog
):
    caplog.set_level(logging.INFO)
    path = tmp_path / "bad" / "1" / "model.onnx"
    path.parent.mkdir(parents=True)
    path.write_bytes(b"no model")
    assert check(checker, source_of(tmp_path, "bad")).startswith("its file is no")
    onnx_models.save_classifier(path)
    sample = WarmUpSample("s", 1, {"x": WarmUpInput(DataType.DATA_TYPE_FLOAT, (1, 5))})
    source = source_of(tmp_path, "bad")
    source = replace(source, settings=replace(source.settings, warm_up=(sample,)))
    assert "its warm-up sample 's'" in check(checker, source)
    path.write_bytes(path.read_bytes().replace(b"Softmax", b"Sofamax"))
    assert check(checker, source_of(tmp_path, "bad")).startswith("ONNX Runtime cannot load it")
    assert f"bad/1: in its check: {path}: [ONNXRuntimeError]" in caplog.text
    assert len(checker._idle) == 1


def test_a_cancelled_check_kills_the_child(tmp_path, checker, wait_until):
    onnx_models.save_endless_loop(tmp_path / "endless" / "1" / "model.onnx")
    cancellation, reasons = LoadCancellation(), []

    def run():
        try:
            checker.check(source_of(tmp_path, "endless"), OPTIONS, cancellation)
        except LoadError as error:
            reasons.append(str(error))

    thread = threading.Thread(target=run)
    thread.start()
    wait_until(lambda: cancellation._interrupts)
    process = cancellation._interrupts[0].__self__
    cancellation.cancel("it takes too long")
    thread.join(10)
    assert reasons == ["it takes too long"]
    assert process.returncode == -signal.SIGKILL
    assert not checker._idle


@pytest.mark.slow
def test_an_idle_child_ends_and_a_dead_one_is_replaced(good, checker, wait_until):
    assert check(checker, good) == ""
    (child,) = checker._idle
    os.kill(child.process.pid, signal.SIGKILL)
    assert check(checker, good) == ""
    (other,) = checker._idle
    assert other is not child
    started = time.monotonic()
    wait_until(lambda: not checker._idle)
    assert time.monotonic() - started > child_process.IDLE_SECONDS / 2
    assert other.process.returncode == 0


def test_a_file_that_changes_meanwhile_is_not_loaded(good, checker):
    os.utime(good.path)
    assert check(checker, good) == "its files were changed while they were checked"


def test_a_file_that_has_passed_is_not_checked_again(tmp_path, good, wait_until):
    folder = tmp_path / "checked"
    folder.mkdir()
    checker = LoadChecker(60.0, CheckedFiles(folder))
    assert check(checker, good) == ""
    checker = LoadChecker(60.0, CheckedFiles(folder))
    assert check(checker, good) == ""
    assert not checker._idle  # no child was started
    assert check(checker, good, replace(OPTIONS, instances=2)) == ""
    assert len(checker._idle) == 1
    onnx_models.save_crash(good.path, at_load=True)
    assert check(checker, source_of(tmp_path, "good")).endswith("SIGFPE")
    assert len([*folder.iterdir()]) == 2


def test_the_key_depends_on_all_that_is_loaded(tmp_path, good):
    def key(source=good, options=OPTIONS):
        return make_key(source, options, LoadCancellation())

    keys = {key()}
    assert key(options=replace(OPTIONS, runtime=replace(OPTIONS.runtime, cache=tmp_path))) in keys
    keys.add(key(options=replace(OPTIONS, runtime=replace(OPTIONS.runtime, arena=False))))
    values = tmp_path / "values"
    values.write_bytes(bytes(16))
    sample = WarmUpSample("s", 1, {"x": WarmUpInput(DataType.DATA_TYPE_FLOAT, (1, 4), file=values)})
    source = replace(good, settings=replace(good.settings, warm_up=(sample,)))
    keys.add(key(source))
    values.write_bytes(bytes(15) + b"1")
    keys.add(key(source))
    onnx_models.save_classifier(good.path, offset=1.0)
    keys.add(key())
    assert len(keys) == 5


def test_without_a_child_nothing_is_loaded(good, checker, monkeypatch):
    monkeypatch.setattr("sys.executable", "/nonexistent/python")
    reason = check(checker, good)
    assert reason.startswith("the process to check it cannot be started: No such file")
    monkeypatch.setattr("sys.executable", "/bin/false")
    reason = check(checker, good)
    assert reason.startswith("the process to check it cannot be started: it ended with status 1")
