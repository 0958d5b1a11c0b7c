"""Marks of loads: the next server knows from them which file ended the last one."""

import errno
import fcntl
import signal
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path

import pytest

from neurona_server.models.load_cancellation import LoadCancellation
from neurona_server.models.load_check.load_marks import LoadMarks, withdraw_marks
from neurona_server.models.repository.scanner import ModelSource
from neurona_server.models.repository.settings import ModelSettings, Traffic

DIE = """
import os, sys
from pathlib import Path
from neurona_server.models.load_cancellation import LoadCancellation
from neurona_server.models.load_check.load_marks import LoadMarks, withdraw_marks
from neurona_server.models.repository.scanner import ModelSource
marks = LoadMarks(Path(sys.argv[1]))
loads = [
    marks.mark(ModelSource("m", int(number), "model.onnx"), LoadCancellation())
    for number in sys.argv[3:]
]
for load in loads:
    load.__enter__()
exec(sys.argv[2])
"""


def source_of(number, **changes):
    return replace(ModelSource("m", number, "model.onnx"), **changes)


def die(folder, *numbers, how="os.kill(os.getpid(), 9)"):
    """Load these versions in a process that ends meanwhile."""
    command = [sys.executable, "-c", DIE, str(folder), how, *map(str, numbers)]
    return subprocess.run(command, check=False, timeout=60).returncode


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "loads"
    folder.mkdir()
    return folder


@pytest.fixture
def marks(folder):
    return LoadMarks(folder)


def load(marks, number):
    with marks.mark(source_of(number), LoadCancellation()):
        pass


def test_second_death_rejects_the_file_until_it_changes(folder, marks):
    assert die(folder, 1) == -signal.SIGKILL
    assert marks.find_rejection(source_of(1)) == ""
    assert die(folder, 1) == -signal.SIGKILL
    assert marks.find_rejection(source_of(1)) == (
        "load rejected: the server ended 2 times while it was loading this file "
        "(change or touch the file to load it again)"
    )
    assert LoadMarks(folder).find_rejection(source_of(1))
    assert marks.find_rejection(source_of(2)) == ""
    assert marks.find_rejection(source_of(1, fingerprint=(("model.onnx", 1),))) == ""
    assert marks.find_rejection(source_of(1, settings=ModelSettings(threads=1))) == ""
    routed = ModelSettings(version_labels={"a": 1}, traffic=Traffic(default=1))
    assert marks.find_rejection(source_of(1, settings=routed))


def test_a_load_that_ends_leaves_no_mark_and_clears_earlier_deaths(folder, marks):
    die(folder, 1)
    load(marks, 1)
    assert [*folder.iterdir()] == []
    with pytest.raises(ValueError, match="broken"), marks.mark(source_of(1), LoadCancellation()):
        raise ValueError("broken")
    assert [*folder.iterdir()] == []


def test_a_load_that_fails_keeps_the_earlier_death(folder, marks):
    die(folder, 1)
    with pytest.raises(ValueError, match="broken"), marks.mark(source_of(1), LoadCancellation()):
        raise ValueError("broken")
    die(folder, 1)
    assert marks.find_rejection(source_of(1))


def test_loads_of_a_running_process_are_no_deaths(folder, marks):
    with (
        marks.mark(source_of(1), LoadCancellation()),
        marks.mark(source_of(1), LoadCancellation()),
    ):
        assert marks.find_rejection(source_of(1)) == ""
        command = [sys.executable, "-c", DIE, str(folder), "print(marks._deaths("
            "ModelSource('m', 1, 'model.onnx')))"]  # fmt: skip
        done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=60)
        assert done.stdout == "[]\n"


@pytest.mark.parametrize("how", ["withdraw_marks(); os._exit(0)", "sys.exit()"])
def test_an_ordinary_end_is_no_death(folder, how):
    assert die(folder, 1, 2, how=how) == 0
    assert [*folder.iterdir()] == []


def test_withdrawing_twice_is_harmless(folder, marks):
    with marks.mark(source_of(1), LoadCancellation()):
        withdraw_marks()
        withdraw_marks()
        assert [*folder.iterdir()] == []


def test_files_with_a_death_are_loaded_one_by_one(folder, marks):
    """So that the second death has one culprit."""
    die(folder, 1, 2)
    entered, leave = threading.Event(), threading.Event()

    def load_first():
        with marks.mark(source_of(1), LoadCancellation()):
            entered.set()
            leave.wait(30)

    first = threading.Thread(target=load_first)
    first.start()
    assert entered.wait(30)
    second = threading.Thread(target=load, args=(marks, 2))
    second.start()
    load(marks, 3)  # has not been loaded at a death
    second.join(0.5)
    assert second.is_alive()
    leave.set()
    first.join(30)
    second.join(30)
    assert not second.is_alive()
    assert [*folder.iterdir()] == []


def test_a_file_that_waits_for_another_one_makes_progress(folder, marks):
    """Else its time limit would pass while the other one is loaded."""
    die(folder, 1, 2)
    first, second = LoadCancellation(), LoadCancellation()
    entered = threading.Event()

    def load_second():
        with marks.mark(source_of(2), second):
            entered.set()

    with marks.mark(source_of(1), first):
        thread = threading.Thread(target=load_second)
        thread.start()
        second.last_progress = 0.0
        thread.join(0.5)
        assert thread.is_alive()
        assert second.last_progress
        first.cancel("load timed out")  # a load that was given up holds no turn
        assert entered.wait(30)
    thread.join(30)
    assert [*folder.iterdir()] == []


def test_a_folder_that_becomes_read_only_only_keeps_the_marks(folder, marks, monkeypatch):
    die(folder, 1)

    def refuse(path, **_):
        raise OSError(errno.EROFS, "Read-only file system")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", refuse)
        load(marks, 1)
    assert len([*folder.iterdir()]) == 2


def test_a_file_system_without_locks_keeps_no_marks(folder, marks, monkeypatch):
    def refuse(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    load(marks, 1)
    assert [*folder.iterdir()] == []


def test_a_stop_that_leaves_a_load_is_no_death(folder):
    how = "from neurona_server.app import exit_status; exit_status(drained=False)"
    assert die(folder, 1, how=how) == 0
    assert [*folder.iterdir()] == []


def test_a_folder_that_cannot_be_written_only_loses_the_marks(folder, marks):
    folder.rmdir()
    load(marks, 1)
    assert marks.find_rejection(source_of(1)) == ""
