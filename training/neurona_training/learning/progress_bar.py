"""What a person sees while a network is trained: the progress bar and the status line.

It is alone because all learners and the pipeline use it.
"""

import sys
from typing import NoReturn

from tqdm import tqdm

from neurona_training.data import Dataset
from neurona_training.learning.run import Epoch

# Neither steps nor rate, so that the summary of the epoch fits into a terminal of 80 columns.
_FORMAT = "{desc}: {percentage:3.0f}%|{bar}| {elapsed}<{remaining}{postfix}"
_TERMINAL_INTERVAL, _LOG_INTERVAL = 0.1, 10.0  # seconds; in a log each refresh is a line


def progress_bar(name: str, steps: int, steps_done: int, *, visible: bool) -> "tqdm[NoReturn]":
    """Returns a bar for the caller to update and close.

    steps_done: steps that were made before the checkpoint from which the training resumes.
    """
    return tqdm(
        desc=name,
        unit="step",
        total=steps,
        initial=steps_done,
        mininterval=_TERMINAL_INTERVAL if sys.stderr.isatty() else _LOG_INTERVAL,
        disable=not visible,
        bar_format=_FORMAT,
        dynamic_ncols=True,
    )


def epoch_summary(epoch: Epoch, epochs: int, data: Dataset) -> str:
    """Formats an epoch for the end of the progress bar."""
    if data.is_classification:
        metric = f"accuracy {epoch.metric:.2%}"
    else:
        metric = f"RMSE {epoch.metric:.4g} {data.error_unit}"
    return f"epoch {epoch.number}/{epochs}, loss {epoch.loss:.4f}, validation {metric}"


def status_line(text: str) -> None:
    """Prints what is being done to stderr if that is a terminal; a log has no use for it."""
    if sys.stderr.isatty():
        print(text, file=sys.stderr, flush=True)
