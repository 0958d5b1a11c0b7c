"""A killed training resumes to the same weights, alone and under torchrun."""

import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from neurona_training.errors import FitError
from neurona_training.learning import checkpoint
from neurona_training.learning.run import Run
from neurona_training.recipes import RECIPES

TRAIN = (sys.executable, "-m", "neurona_training.cli.main")
TORCHRUN = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")


def _start(*command, **options):
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        command,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
        start_new_session=True,
        **options,
    )


def _wait_for(path, process):
    end = time.monotonic() + 60
    while not path.exists():
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < end
        time.sleep(0.002)


def _weights(path):
    model = onnx.load(path)
    return {one.name: onnx.numpy_helper.to_array(one) for one in model.graph.initializer}


def _finish(process):
    error = process.communicate(timeout=120)[1]
    assert process.returncode == 0, error[-3000:]
    return error


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    out = tmp_path_factory.mktemp("uninterrupted")
    _finish(_start(*TRAIN, "rnn", "--epochs", "30", "--out", str(out)))
    return (out / "rnn" / "1" / "model.onnx").read_bytes()


def test_a_killed_training_resumes_to_the_same_file(tmp_path, uninterrupted):
    command = (*TRAIN, "rnn", "--epochs", "30", "--out", str(tmp_path))
    saved, written = tmp_path / "rnn" / "checkpoint.pt", tmp_path / "rnn" / "1" / "model.onnx"
    process = _start(*command)
    _wait_for(saved, process)
    process.kill()
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    assert not written.exists()
    done = len(torch.load(saved, weights_only=True)["history"])
    assert 1 <= done < 30

    _finish(_start(*command, "--resume"))
    assert written.read_bytes() == uninterrupted
    assert not saved.exists()


def _workers(process):
    """Process ids of torchrun's workers, by rank."""
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    ranks = {}
    for child in children:
        words = Path(f"/proc/{child}/environ").read_bytes().split(b"\0")
        expected = dict(word.split(b"=", 1) for word in words if b"=" in word)
        if b"RANK" in expected:
            ranks[int(expected[b"RANK"])] = int(child)
    return ranks


@pytest.mark.long
@pytest.mark.skipif(sys.platform != "linux", reason="finds the workers in /proc")
@pytest.mark.slow
def test_two_processes_train_as_one_does_and_a_killed_one_restarts(tmp_path, uninterrupted):
    arguments = ("rnn", "--epochs", "30", "--out", str(tmp_path))
    command = (*TORCHRUN, "--max-restarts", "1", "-m", "neurona_training.cli.main", *arguments)
    process = _start(*command, stdout=subprocess.DEVNULL)
    _wait_for(tmp_path / "rnn" / "checkpoint.pt", process)
    os.kill(_workers(process)[1], signal.SIGKILL)
    expected = _finish(process)
    assert "exitcode: -9" in expected  # torchrun saw it die
    assert re.search(r" [1-9][0-9]*%\|[^|]*\| 00:00<\?", expected)  # the second start is not at 0

    written = tmp_path / "rnn" / "1" / "model.onnx"
    alone = tmp_path / "alone.onnx"
    alone.write_bytes(uninterrupted)
    together, one = _weights(written), _weights(alone)
    assert together.keys() == one.keys()
    for name, array in one.items():  # sums in another order, so not to the last bit
        np.testing.assert_allclose(together[name], array, rtol=0.02, atol=2e-3, err_msg=name)


def test_only_the_same_training_is_resumed(tmp_path):
    recipe = RECIPES["rnn"]
    data, settings = recipe.load(), recipe.tuned_settings.with_changes({"epochs": 2})
    path = tmp_path / "checkpoint.pt"
    whole = recipe.fit(data, settings, Run("rnn", 0, path))
    done = recipe.fit(data, settings, Run("rnn", 0, path, resume=True))  # nothing is left to do
    assert done.history == whole.history
    for changed, run in (
        (settings.with_changes({"batch_rows": 8}), Run("rnn", 0, path, resume=True)),
        (settings, Run("rnn", 1, path, resume=True)),
    ):
        with pytest.raises(FitError, match="belongs to another training"):
            recipe.fit(data, changed, run)
    corrected = data.train.targets.copy()
    corrected[0] += 1
    other = replace(data, train=replace(data.train, targets=corrected))
    with pytest.raises(FitError, match="belongs to another training"):
        recipe.fit(other, settings, Run("rnn", 0, path, resume=True))
    faster = recipe.fit(
        data, settings.with_changes({"threads": 2}), Run("rnn", 0, path, resume=True)
    )
    assert faster.history == whole.history


@pytest.mark.parametrize("content", [b"", b"no checkpoint", b"PK\x03\x04 cut off"])
def test_a_damaged_checkpoint_is_one_line(tmp_path, content):
    path = tmp_path / "checkpoint.pt"
    path.write_bytes(content)
    with pytest.raises(FitError, match="cannot read checkpoint") as caught:
        checkpoint.load_checkpoint(path, "")
    assert "\n" not in str(caught.value)
    assert checkpoint.load_checkpoint(tmp_path / "none", "") is None


def test_a_training_on_corrected_data_is_another_one(tmp_path):
    """The same inputs with other targets, or in another order, lead to other weights."""
    recipe = RECIPES["mlp"]
    data = recipe.load("iris")
    settings = recipe.settings(data, "iris").with_changes({"epochs": 1})
    path = tmp_path / "checkpoint.pt"
    recipe.fit(data, settings, Run("iris", 0, path))
    train, validation = data.train, data.validation
    for changed in (
        replace(data, train=replace(train, targets=train.targets[::-1].copy())),
        replace(data, train=replace(train, inputs=train.inputs[::-1].copy())),
        replace(data, validation=replace(validation, targets=validation.targets[::-1].copy())),
    ):
        with pytest.raises(FitError, match="belongs to another training"):
            recipe.fit(changed, settings, Run("iris", 0, path, resume=True))


class _KilledError(Exception):
    pass


@pytest.mark.parametrize(
    "changes",
    [
        {"optimiser": "sgd", "momentum": 0.9, "class_weights": "balanced"},
        {"weight_average": 0.9, "dropout": 0.3, "warm_up": 0.3, "schedule": "linear"},
        {"keep_epoch": "last", "patience": 3, "label_smoothing": 0.1},
        {"pixels": 1.0, "degrees": 8.0, "scale": 0.1, "colour": 0.2, "horizontal_flip": True},
    ],
    ids="-".join,
)
def test_every_option_resumes_to_the_same_weights(changes, tmp_path):
    recipe = RECIPES["mlp"]
    data = recipe.load("digits")
    settings = recipe.settings(data, "digits").with_changes({"epochs": 6, **changes})
    path = tmp_path / "checkpoint.pt"
    whole = recipe.fit(data, settings, Run("digits", 0))

    def kill(epoch):
        if epoch.number == 4:
            raise _KilledError

    with pytest.raises(_KilledError):
        recipe.fit(data, settings, Run("digits", 0, path, listeners=(kill,)))
    resumed = recipe.fit(data, settings, Run("digits", 0, path, resume=True))
    assert resumed.history == whole.history
    assert resumed.best_epoch == whole.best_epoch
    for name, tensor in whole.network.state_dict().items():
        assert torch.equal(resumed.network.state_dict()[name], tensor), name
