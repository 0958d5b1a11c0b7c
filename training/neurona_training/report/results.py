"""What a report is about, and what several of its charts need."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import nn

from neurona_protos.prediction_pb2 import ModelMetadata
from neurona_training.architectures.columns import EncodeColumns
from neurona_training.baselines.comparison import Comparison
from neurona_training.baselines.estimators import Baseline
from neurona_training.data import Dataset
from neurona_training.learning.evaluation import predict, softmax
from neurona_training.learning.populations import Populations
from neurona_training.learning.run import FitResult, Hyperparameters
from neurona_training.report.drawing import format_number
from neurona_training.report.network_layers import Layer, trace_layers


@dataclass(frozen=True)
class RunResults:
    """One finished run.

    Args:
        name: of the model.
        network: trained; takes the inputs of `data`.
        data: its test rows are shown.
        fit_result: the epochs.
        hyperparameters: with which it was trained.
        baselines: rules and estimators on the same rows.
        comparison: of the network with them.
        metadata: of the model's file.
        files: by variant, float32 first: the file's bytes and its metadata.
        seconds: from data to file.
        populations: how validation and test rows compare.
        model: the bytes of its ONNX file; empty if there is none.
    """

    name: str
    network: nn.Module
    data: Dataset
    fit_result: FitResult
    hyperparameters: Hyperparameters
    baselines: tuple[Baseline, ...]
    comparison: Comparison
    metadata: ModelMetadata
    files: Mapping[str, tuple[int, ModelMetadata]]
    seconds: float
    populations: Populations | None = None
    model: bytes = b""

    @cached_property
    def predictions(self) -> NDArray[Any]:
        """For the test rows: probabilities (rows, classes), or values (rows, values)."""
        if self.data.is_classification:
            return softmax(self._outputs)
        return self._outputs[:, : len(self.data.values)]

    @property
    def intervals(self) -> tuple[NDArray[Any], NDArray[Any]] | None:
        """For the test rows, lower and upper bounds (rows, values); None if there are none."""
        count = len(self.data.values)
        if self.data.is_classification or self._outputs.shape[1] == count:
            return None
        return self._outputs[:, count : 2 * count], self._outputs[:, 2 * count :]

    @cached_property
    def _outputs(self) -> NDArray[Any]:
        return predict(self.network, self.data.test).numpy()

    @cached_property
    def worst_rows(self) -> NDArray[np.int64]:
        """Indices of all test rows, the worst prediction first."""
        targets = self.data.test.targets
        if self.data.is_classification:
            badness = -self.predictions[np.arange(len(targets)), targets]
            # First the wrong ones, the most certain first; then the right ones, the least
            # certain first.
            is_wrong = self.predictions.argmax(axis=1) != targets
            badness = np.where(is_wrong, 1 + self.predictions.max(axis=1), badness)
        else:
            badness = np.abs(self.predictions - targets).max(axis=1)
        return np.argsort(-badness, kind="stable")

    @cached_property
    def brightest(self) -> float:
        """The largest number of the test inputs: white in pictures."""
        return float(self.data.test.inputs.max())

    @cached_property
    def layers(self) -> tuple[Layer, ...]:
        """The network's layers, in the order in which a row passes them."""
        return trace_layers(self.network, self.row_arrays([0]))

    @cached_property
    def right_rows(self) -> list[int]:
        """Test rows that are classified correctly: of each class the surest, then the next."""
        targets, certainty = self.data.test.targets, self.predictions.max(axis=1)
        right = np.flatnonzero(self.predictions.argmax(axis=1) == targets)
        right = right[np.argsort(-certainty[right], kind="stable")]
        rank: dict[int, int] = {}
        keyed = []
        for row in right.tolist():
            rank[int(targets[row])] = rank.get(int(targets[row]), -1) + 1
            keyed.append((rank[int(targets[row])], int(targets[row]), row))
        return [row for _, _, row in sorted(keyed)]

    @cached_property
    def date_columns(self) -> frozenset[int]:
        """Positions of the main input's columns that are dates."""
        return frozenset(
            position
            for module in self.network.modules()
            if isinstance(module, EncodeColumns)
            for position in module.encoding.dates
        )

    def format_cell(self, column: int, value: float) -> str:
        """A number of the main input for a reader; days since 1970 as a date."""
        if math.isnan(value):
            return "missing"
        if column in self.date_columns:
            seconds = np.datetime64(round(value * 86400), "s")
            return str(seconds).replace("T", " ").removesuffix(" 00:00:00")
        return format_number(value)

    def row_arrays(self, rows: list[int]) -> tuple[NDArray[Any], ...]:
        """The network's inputs for some test rows."""
        return tuple(array[rows] for array in self.data.test.arrays)

    @property
    def is_series(self) -> bool:
        """Whether the test rows follow each other in time."""
        return self.data.is_series

    @property
    def keeps_last_epoch(self) -> bool:
        """Whether the model has the weights of the last epoch, whatever the validation rows say."""
        return self.hyperparameters.keep_epoch == "last"

    @property
    def unit(self) -> str:
        """Unit of a regression's errors."""
        return self.data.error_unit

    def test_input(self, row: int) -> NDArray[Any]:
        """The main input of a test row, without its padding."""
        split = self.data.test
        array: NDArray[Any] = split.inputs[row]
        return array if split.lengths is None else array[: split.lengths[row]]

    def column_names(self, count: int) -> list[str]:
        """A name for each index on the last axis of the main input."""
        described = self.data.input
        if len(described.columns) == count:
            return list(described.columns)
        axis = described.axes[-1] if described.axes[-1] != "batch" else described.name
        return [axis] if count == 1 else [f"{axis} {number}" for number in range(1, count + 1)]
