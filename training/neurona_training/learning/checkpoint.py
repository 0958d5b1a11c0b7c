"""What a training needs to continue after its process has been killed.

The random numbers of an epoch depend on the seed and the epoch's number alone
(gradient_descent.py), so a checkpoint holds no state of a random generator.
"""

import dataclasses
import hashlib
import os
import pickle
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from neurona_training.data import Dataset
from neurona_training.data.digest import data_digest
from neurona_training.errors import FitError, OutputError
from neurona_training.learning.initial_weights import describe_weights
from neurona_training.learning.run import Epoch, Hyperparameters, Run

State = dict[str, Any]  # the state_dict() of a module or an optimiser


@dataclass(frozen=True)
class Checkpoint:
    """State after the last epoch in `history`.

    fingerprint: identifies the training, so that no other one resumes from it.
    """

    fingerprint: str
    history: tuple[Epoch, ...]
    best_epoch: int
    best_loss: float
    best_weights: State
    weights: State
    optimiser: State
    scaler: State
    average: State


def training_fingerprint(
    data: Dataset, hyperparameters: Hyperparameters, run: Run, processes: int, network: str
) -> str:
    """Describes a training by its data, hyperparameters, seed, processes and first weights.

    Two trainings that lead to the same weights have the same fingerprint, and no others.

    Args:
        data: all of its rows.
        hyperparameters: all but the number of threads, which changes the speed only.
        run: name and seed.
        processes: their number.
        network: the `weights_digest` before training.
    """
    rows = [len(data.train), len(data.validation), len(data.test)]
    hyperparameters = dataclasses.replace(hyperparameters, threads=1)
    start = f", {describe_weights(run.initial_weights)}" if run.initial_weights else ""
    return (
        f"{run.name}, {data.name} {rows} {data_digest(data)[:16]}, {hyperparameters}, "
        f"seed {run.seed}, {processes}, network {network}{start}"
    )


def weights_digest(network: nn.Module) -> str:
    """Returns a short digest of a network's layers and weights."""
    digest = hashlib.sha256(repr(network).encode())
    for name, tensor in network.state_dict().items():
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().numpy().data)
    return digest.hexdigest()[:16]


def save_checkpoint(checkpoint: Checkpoint, path: Path) -> None:
    """Replaces the file in one step, so that a killed process leaves the previous one.

    Raises:
        OutputError: the file cannot be written.
    """
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
        raise OutputError(f"cannot write checkpoint {path}: {error}") from error


def load_checkpoint(path: Path, fingerprint: str) -> Checkpoint | None:
    """Reads the checkpoint of the training with this fingerprint; None without a file.

    Raises:
        FitError: the file cannot be read, or belongs to another training.
    """
    if not path.exists():
        return None
    try:
        # weights_only: tensors and plain values, and no code from the file
        content = torch.load(path, map_location="cpu", weights_only=True)
        content["history"] = tuple(Epoch(**epoch) for epoch in content["history"])
        checkpoint = Checkpoint(**content)
    except (OSError, RuntimeError, EOFError, KeyError, TypeError, pickle.PickleError) as error:
        reason = " ".join(str(error).split())[:200]
        raise FitError(f"cannot read checkpoint {path}: {reason}") from error
    if checkpoint.fingerprint != fingerprint:
        raise FitError(
            f"checkpoint {path} belongs to another training: {checkpoint.fingerprint} "
            f"(expected {fingerprint})"
        )
    return checkpoint
