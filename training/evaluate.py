"""How well a network does on rows that it was not trained on."""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from neurona_training.data import Dataset, Split

_CPU = torch.device("cpu")
_ROWS_AT_ONCE = 256  # what is asked in one go, so that memory does not grow with the data


def answers(network: nn.Module, split: Split, place: torch.device = _CPU) -> Tensor:
    """What it says to each row: logits or values, (rows, outputs), on the CPU.

    place: where the network is.
    """
    network.eval()
    parts = [torch.split(torch.from_numpy(array), _ROWS_AT_ONCE) for array in split.arrays]
    with torch.inference_mode():
        return torch.cat(
            [network(*(part.to(place) for part in some)).cpu() for some in zip(*parts, strict=True)]
        )


def accuracy(logits: NDArray[Any], targets: NDArray[Any]) -> float:
    """The part of the rows whose largest logit is that of the right class, 0..1."""
    return float(np.mean(logits.argmax(axis=1) == targets))


def rmse(values: NDArray[Any], targets: NDArray[Any]) -> float:
    """The root of the mean squared error, in the unit of the targets."""
    return float(np.sqrt(np.mean(np.square(values.astype(np.float64) - targets))))


def figures(network: nn.Module, data: Dataset) -> dict[str, float]:
    """By name: how well it does on the test rows, and what the baselines get there."""
    tested = answers(network, data.test).numpy()
    validated = answers(network, data.validation).numpy()
    if data.is_classification:
        measured = {
            "test_accuracy": accuracy(tested, data.test.targets),
            "validation_accuracy": accuracy(validated, data.validation.targets),
        }
    else:
        measured = {
            "test_rmse": rmse(tested, data.test.targets),
            "validation_rmse": rmse(validated, data.validation.targets),
        }
        for name, values in data.baselines.items():
            measured[f"{name}_rmse"] = rmse(values, data.test.targets)
    return {**measured, "test_rows": float(len(data.test))}
