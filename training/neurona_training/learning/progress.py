"""The progress bar of a training, a step of the optimiser at a time."""

import sys
from typing import NoReturn

from tqdm import tqdm

from neurona_training.data import Dataset
from neurona_training.learning.run import Epoch

# No steps and no rate: what stands behind the bar fits into a terminal of 80 columns.
_FORMAT = "{desc}: {percentage:3.0f}%|{bar}| {elapsed}<{remaining}{postfix}"
_LIVE, _LOG = 0.1, 10.0  # seconds between refreshes; in a log each of them stays as a line


def bar(name: str, steps: int, done: int, *, shown: bool) -> "tqdm[NoReturn]":
    """For the caller to update and close; `done` steps were made before a checkpoint."""
    return tqdm(
        desc=name,
        unit="step",
        total=steps,
        initial=done,
        mininterval=_LIVE if sys.stderr.isatty() else _LOG,
        disable=not shown,
        bar_format=_FORMAT,
        dynamic_ncols=True,
    )


def told(epoch: Epoch, epochs: int, data: Dataset) -> str:
    """What stands behind the bar."""
    if data.is_classification:
        metric = f"accuracy {epoch.metric:.2%}"
    else:
        metric = f"RMSE {epoch.metric:.4g} {data.values[0].unit}"
    return f"epoch {epoch.number}/{epochs}, loss {epoch.loss:.4f}, validation {metric}"


def say(what: str) -> None:
    """For a person who waits before a terminal; a log has no use for it."""
    if sys.stderr.isatty():
        print(what, file=sys.stderr, flush=True)
