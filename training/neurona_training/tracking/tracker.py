"""The run that a training is logged to."""

from __future__ import annotations

import contextlib
import importlib
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Protocol, TypeVar

from neurona_training.errors import TrackingError
from neurona_training.learning.run import Epoch

# By the name of the extra that installs what it needs.
BACKENDS = {
    "tensorboard": "neurona_training.tracking.tensorboard:TensorBoardBackend",
    "mlflow": "neurona_training.tracking.mlflow:MlflowBackend",
}

Parameters = Mapping[str, str | int | float | bool]
T = TypeVar("T")


class Backend(Protocol):
    """A run of a tracking service.

    Args:
        name: of the model.
        folder: of the model, for services that write files.
        parameters: how it is trained.
    """

    def __init__(self, name: str, folder: Path, parameters: Parameters) -> None: ...

    def log_metrics(self, metrics: Mapping[str, float], epoch: int) -> None:
        """Logs numbers after an epoch; names are `loss/training` and the like."""

    def log_results(self, figures: Mapping[str, float], files: Sequence[Path], epoch: int) -> None:
        """Logs the figures of the finished model, whose weights are those of `epoch`."""

    def close(self, *, failed: bool) -> None:
        """Ends the run."""


class Tracker:
    """Sends epochs and results to the backends.

    A backend that fails is left out from then on, with a line on stderr: a training of hours
    does not end because a server is away.

    Args:
        backends: open runs, by name.
        is_classification: whether an epoch's metric is an accuracy.
    """

    def __init__(self, backends: Mapping[str, Backend], *, is_classification: bool) -> None:
        self._backends = dict(backends)
        self._logged: set[int] = set()  # numbers of epochs
        self._metric = "accuracy/validation" if is_classification else "rmse/validation"

    def log_epoch(self, epoch: Epoch) -> None:
        """Logs losses, metric and learning rate: a listener of `Run`."""
        self._logged.add(epoch.number)
        metrics = {
            "loss/training": epoch.loss,
            "loss/validation": epoch.validation_loss,
            self._metric: epoch.metric,
            "learning_rate": epoch.learning_rate,
        }
        self._ask_all(lambda backend: backend.log_metrics(metrics, epoch.number))

    def log_results(
        self,
        history: Sequence[Epoch],
        figures: Mapping[str, float],
        files: Sequence[Path],
        epoch: int,
    ) -> None:
        """Logs the finished model.

        Args:
            history: all epochs; those before an interruption are logged only now.
            figures: by name.
            files: of the model.
            epoch: the one whose weights it has.
        """
        for one in history:
            if one.number not in self._logged:
                self.log_epoch(one)
        self._ask_all(lambda backend: backend.log_results(figures, files, epoch))

    def close(self, *, failed: bool) -> None:
        """Ends all runs."""
        self._ask_all(lambda backend: backend.close(failed=failed))

    def _ask_all(self, request: Callable[[Backend], None]) -> None:
        for name, backend in list(self._backends.items()):
            try:
                request(backend)
            except Exception as error:  # services have no exception in common
                del self._backends[name]
                reason = _one_line(error)
                print(f"--log {name}: logging ends here, {reason}", file=sys.stderr, flush=True)


@contextlib.contextmanager
def open_tracker(
    backends: Sequence[str],
    name: str,
    folder: Path,
    parameters: Mapping[str, object],
    *,
    is_classification: bool,
) -> Iterator[Tracker]:
    """Opens a run in each service before a training, and ends it after it.

    Args:
        backends: names in `BACKENDS`; none logs nothing.
        name: of the model.
        folder: of the model, for services that write files.
        parameters: how it is trained; those that are None are left out, and mappings in it
            become one entry for each of theirs.
        is_classification: whether an epoch's metric is an accuracy.

    Raises:
        TrackingError: a service cannot be used.
    """
    flat = flatten_parameters(parameters)
    opened: dict[str, Backend] = {}
    try:
        for backend in backends:
            opened[backend] = _open_backend(backend, name, folder, flat)
    except TrackingError:  # those that were opened before it do not run on
        Tracker(opened, is_classification=is_classification).close(failed=True)
        raise
    tracker = Tracker(opened, is_classification=is_classification)
    try:
        yield tracker
    except BaseException:
        tracker.close(failed=True)
        raise
    tracker.close(failed=False)


def flatten_parameters(parameters: Mapping[str, object]) -> Parameters:
    """Numbers and strings by name: `augmentation.pixels` for an entry of a mapping."""
    flat: dict[str, str | int | float | bool] = {}
    for name, value in parameters.items():
        if isinstance(value, Mapping):
            for inner, one in flatten_parameters(value).items():
                flat[f"{name}.{inner}"] = one
        elif value is not None:
            flat[name] = value if isinstance(value, str | int | float | bool) else str(value)
    return flat


def _open_backend(backend: str, name: str, folder: Path, parameters: Parameters) -> Backend:
    module, _, factory = BACKENDS[backend].partition(":")
    try:
        opened: Backend = getattr(importlib.import_module(module), factory)(
            name, folder, parameters
        )
    except ImportError as error:
        raise TrackingError(
            f"--log {backend}: {_one_line(error)} (pip install 'neurona[{backend}]')"
        ) from error
    except Exception as error:  # services have no exception in common
        raise TrackingError(f"--log {backend}: {_one_line(error)}") from error
    return opened


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__
