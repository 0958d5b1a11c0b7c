"""A baseline as a function of a data set's inputs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import sparse
from sklearn.base import BaseEstimator
from sklearn.neighbors import KNeighborsClassifier, KNeighborsRegressor
from threadpoolctl import threadpool_limits
from torch import Tensor, nn

from neurona_training.baselines.features import latest_steps
from neurona_training.data import Dataset


class BaselineModel(nn.Module):
    """What an estimator says about the columns of the inputs, plus a value that needs no learning.

    Args:
        columns: makes (rows, columns) of the arrays of a split; None if there is no estimator.
        estimator: of scikit-learn, fitted on these columns; None is a rule without learning.
        offset: makes the values, (rows, 1) or (rows, values), to which the estimator's are
            added; None adds nothing.
        classes: how many a classification has; 0 for a regression.
    """

    def __init__(
        self,
        columns: nn.Module | None,
        estimator: BaseEstimator | None,
        offset: nn.Module | None = None,
        classes: int = 0,
    ) -> None:
        super().__init__()
        if (columns is None) != (estimator is None) or (estimator is None and offset is None):
            raise ValueError("no estimator with columns and no offset (expected either or both)")
        self.columns = columns
        self.estimator = estimator
        self.offset = offset
        self.classes = classes

    def forward(self, *inputs: Tensor) -> Tensor:
        """Takes a split's arrays; returns probabilities (rows, classes) or values (rows, values).

        As float64, so that nothing is lost of what the estimator computes.
        """
        outputs: Tensor = torch.zeros(1, dtype=torch.float64)
        if self.columns is not None and self.estimator is not None:
            columns = self.columns(*inputs).numpy()
            outputs = torch.from_numpy(answer(self.estimator, columns, self.classes))
        return outputs if self.offset is None else outputs + self.offset(*inputs)

    def undecided_rows(self, *inputs: Tensor) -> NDArray[np.bool_]:
        """Rows for which rounding decides, (rows,): a neighbour is as far as one left out."""
        estimator = self.estimator
        if not isinstance(estimator, KNeighborsClassifier | KNeighborsRegressor):
            return np.zeros(len(inputs[0]), bool)
        count = min(estimator.n_neighbors + 1, estimator.n_samples_fit_)
        if self.columns is None or count == estimator.n_neighbors:
            return np.zeros(len(inputs[0]), bool)
        with threadpool_limits(1):
            distances, _ = estimator.kneighbors(self.columns(*inputs).numpy(), count)
        undecided: NDArray[np.bool_] = (
            distances[:, -1] - distances[:, -2] <= 1e-4 * distances[:, -1]
        )
        return undecided

    def in_view(self, wrap: Callable[[nn.Module], nn.Module]) -> BaselineModel:
        """The same model for other inputs, each of its torch modules wrapped to take them."""
        return BaselineModel(
            None if self.columns is None else wrap(self.columns),
            self.estimator,
            None if self.offset is None else wrap(self.offset),
            self.classes,
        )


def answer(
    estimator: BaseEstimator, columns: NDArray[np.float32] | sparse.csr_array, classes: int
) -> NDArray[np.float64]:
    """Probabilities of all classes, 0 for one without a training row; or values (rows, values)."""
    with threadpool_limits(1):  # sums in the same order on each call
        if not classes:
            values: NDArray[np.float64] = estimator.predict(columns).reshape(columns.shape[0], -1)
            return values.astype(np.float64)
        probabilities: NDArray[Any] = np.zeros((columns.shape[0], classes))
        probabilities[:, estimator.classes_] = estimator.predict_proba(columns)
        return probabilities


class Constant(nn.Module):
    """The same values for every row: the means of a target, or the frequencies of its classes."""

    values: Tensor

    def __init__(self, values: NDArray[Any]) -> None:
        super().__init__()
        self.register_buffer("values", torch.from_numpy(values.astype(np.float32)))

    def forward(self, *inputs: Tensor) -> Tensor:
        """Returns (rows, values)."""
        return self.values.expand(inputs[0].shape[0], -1)


def constant(data: Dataset) -> Constant:
    """The training rows' mean of each value, or how frequent each class is among them."""
    targets = data.train.targets
    if data.is_classification:
        return Constant(np.bincount(targets, minlength=len(data.labels)) / len(targets))
    return Constant(targets.mean(axis=0, dtype=np.float64))


class LastSeason(nn.Module):
    """Forecasts each step by the value that is whole seasons before it; of season 1, by the last.

    Args:
        season: steps after which the series repeats itself.
        horizon: steps that are forecast.
    """

    back: Tensor

    def __init__(self, season: int, horizon: int) -> None:
        super().__init__()
        ahead = np.arange(1, horizon + 1)
        self.register_buffer("back", torch.from_numpy(-(-ahead // season) * season - ahead))
        self.steps = int(self.back.max()) + 1  # the least that the series must have

    def forward(self, series: Tensor) -> Tensor:
        """Takes (rows, time, channels); returns (rows, horizon) of the first channel."""
        latest = series[:, :, 0].index_select(1, latest_steps(series, self.steps))
        return latest.index_select(1, self.steps - 1 - self.back)
