"""The networks of `make bench-gpu-models`, and what the CPU answers to their rows."""

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from neurona_protos.prediction_pb2 import PredictRequest
from neurona_protos.tensors import to_tensor

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
from seeded_weights import LIST, expand_network, read_rows

MAX_ROWS = 16
"""Rows of a batch in the server of all recipes: its batch sizes are 1, 2, 4, 8 and 16."""


@dataclass(frozen=True)
class ServedNetwork:
    """A network, some rows for it, and what ONNX Runtime alone answers on the CPU.

    Attributes:
        name: Of the model.
        path: Its file.
        rows: Inputs by name, each with the same number of rows.
        answers: The outputs for them.
        tolerance: How much a row's outputs may differ on another device, relative to their size.
    """

    name: str
    path: Path
    rows: Mapping[str, NDArray[Any]]
    answers: Sequence[NDArray[Any]]
    tolerance: float

    def take(self, indices: Sequence[int]) -> tuple[dict[str, NDArray[Any]], list[NDArray[Any]]]:
        """Return some of the rows and the answers to them, in this order."""
        chosen = [index % len(self.answers[0]) for index in indices]
        inputs = {name: np.ascontiguousarray(array[chosen]) for name, array in self.rows.items()}
        return inputs, [array[chosen] for array in self.answers]

    def request(self, indices: Sequence[int]) -> tuple[PredictRequest, list[NDArray[Any]]]:
        """Return a request for some of the rows, and the outputs that are expected."""
        inputs, answers = self.take(indices)
        tensors = [to_tensor(name, array) for name, array in inputs.items()]
        return PredictRequest(model=self.name, inputs=tensors, raw_outputs=True), answers


def open_network(networks: Path, name: str, folder: Path) -> ServedNetwork:
    """Write a network as folder/NAME/1/model.onnx, and run its rows on the CPU."""
    listed = _read_list(networks)
    path = expand_network(networks / name, folder / name / "1")
    rows = read_rows(networks / name, listed[name]["row"])
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return ServedNetwork(name, path, rows, session.run(None, rows), listed[name]["tolerance"])


def has_networks(folder: Path) -> bool:
    """Return whether a folder has what `make bench-gpu-models` writes."""
    return (folder / LIST).is_file()


def list_networks(folder: Path) -> dict[str, str]:
    """Return the use of each network, "benchmark" or "recipe", by its name."""
    return {name: entry["use"] for name, entry in _read_list(folder).items()}


def _read_list(folder: Path) -> dict[str, dict[str, Any]]:
    listed: dict[str, dict[str, Any]] = json.loads((folder / LIST).read_text())
    return listed


def relative_error(answer: NDArray[Any], expected: NDArray[Any]) -> float:
    """Return the largest error of a row, relative to the length of a typical row; never NaN."""
    assert answer.shape == expected.shape, f"shape {answer.shape} (expected {expected.shape})"
    assert np.isfinite(answer).all(), "an output is not finite"
    if not len(answer):
        return 0.0
    difference = (answer.astype(np.float64) - expected).reshape(len(answer), -1)
    typical = np.linalg.norm(expected.astype(np.float64).reshape(len(answer), -1), axis=1).mean()
    return float(np.linalg.norm(difference, axis=1).max() / max(typical, 1e-12))
