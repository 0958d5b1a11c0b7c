"""What a report tells of, and the questions that several of its pictures ask."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import nn

from neurona_protos.prediction_pb2 import ModelMetadata
from neurona_training.data import Dataset
from neurona_training.learning.evaluation import answers, softmax
from neurona_training.learning.run import Fitted
from neurona_training.recipes.recipe import Training


@dataclass(frozen=True)
class Story:
    """One finished run.

    sizes: by variant, float32 first: the file's bytes and what it says of itself.
    """

    name: str
    network: nn.Module
    data: Dataset
    fitted: Fitted
    training: Training
    described: ModelMetadata
    sizes: Mapping[str, tuple[int, ModelMetadata]]
    seconds: float

    @cached_property
    def answered(self) -> NDArray[Any]:
        """To the test rows: probabilities (rows, classes), or values (rows, values)."""
        raw = answers(self.network, self.data.test).numpy()
        return softmax(raw) if self.data.is_classification else raw

    @cached_property
    def worst(self) -> NDArray[np.int64]:
        """All test rows, the worst answered first."""
        targets = self.data.test.targets
        if self.data.is_classification:
            badness = -self.answered[np.arange(len(targets)), targets]
            # Of wrong answers the surest first, and only then right ones, the least sure first.
            wrong = self.answered.argmax(axis=1) != targets
            badness = np.where(wrong, 1 + self.answered.max(axis=1), badness)
        else:
            badness = np.abs(self.answered - targets).max(axis=1)
        return np.argsort(-badness, kind="stable")

    @property
    def is_series(self) -> bool:
        """Whether the test rows follow each other in time."""
        return "persistence" in self.data.baselines

    @property
    def unit(self) -> str:
        """Of a regression's values."""
        return self.data.values[0].unit if self.data.values else ""

    def shown(self, row: int) -> NDArray[Any]:
        """The main input of a test row, without its padding."""
        split = self.data.test
        whole: NDArray[Any] = split.inputs[row]
        return whole if split.lengths is None else whole[: split.lengths[row]]

    def columns(self, count: int) -> list[str]:
        """A name for each place on the last axis of the main input."""
        given = self.data.input
        if len(given.columns) == count:
            return list(given.columns)
        axis = given.axes[-1] if given.axes[-1] != "batch" else given.name
        return [axis] if count == 1 else [f"{axis} {place}" for place in range(1, count + 1)]
