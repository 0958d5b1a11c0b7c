"""All that a training needs to go on after its process has been killed.

The chance of an epoch depends on the seed and the epoch's number alone (fit.py), so there is
no state of a random generator in it.
"""

import dataclasses
import os
import pickle
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from neurona_training.data import Dataset
from neurona_training.errors import FitError, OutputError
from neurona_training.learning.run import Epoch, Run
from neurona_training.recipes.recipe import Training

State = dict[str, Any]  # what a module's or an optimiser's state_dict() gives


@dataclass(frozen=True)
class Checkpoint:
    """After the last epoch in `history`. of: what the training was, to refuse another's."""

    of: str
    history: tuple[Epoch, ...]
    best_epoch: int
    best_loss: float
    best_weights: State
    weights: State
    optimiser: State
    scaler: State


def fingerprint(data: Dataset, training: Training, run: Run, processes: int) -> str:
    """The same for the same training only: data, hyper-parameters, seed, processes."""
    rows = [len(data.train), len(data.validation), len(data.test)]
    sums = [float(np.sum(array, dtype=np.float64)) for array in data.train.arrays]
    training = dataclasses.replace(training, threads=1)  # how fast, not what
    return f"{run.name}, {data.name} {rows} {sums}, {training}, seed {run.seed}, {processes}"


def save(checkpoint: Checkpoint, path: Path) -> None:
    """Whole or not at all: a killed process leaves the one before. Raises OutputError."""
    content = {
        field.name: getattr(checkpoint, field.name) for field in dataclasses.fields(checkpoint)
    }
    content["history"] = [dataclasses.asdict(epoch) for epoch in checkpoint.history]
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.save(content, temporary)
        temporary.replace(path)
    except (OSError, RuntimeError) as error:  # torch's writer raises the latter on a full disk
        temporary.unlink(missing_ok=True)
        raise OutputError(f"the checkpoint {path} cannot be written: {error}") from error


def load(path: Path, of: str) -> Checkpoint | None:
    """The checkpoint of the training `of`; None when there is no file.

    Raises FitError for a file that cannot be read, or that is another training's.
    """
    if not path.exists():
        return None
    try:
        # weights_only: tensors and plain values, and no code that a file could bring along
        content = torch.load(path, map_location="cpu", weights_only=True)
        content["history"] = tuple(Epoch(**epoch) for epoch in content["history"])
        checkpoint = Checkpoint(**content)
    except (OSError, RuntimeError, EOFError, KeyError, TypeError, pickle.PickleError) as error:
        reason = " ".join(str(error).split())[:200]
        raise FitError(f"the checkpoint {path} cannot be read: {reason}") from error
    if checkpoint.of != of:
        raise FitError(
            f"the checkpoint {path} is of another training, {checkpoint.of}; this one is {of}"
        )
    return checkpoint
