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


def balanced_accuracy(logits: NDArray[Any], targets: NDArray[Any]) -> float:
    """The mean over the classes that have rows of the part that is told right, 0..1."""
    right = logits.argmax(axis=1) == targets
    return float(np.mean([right[targets == one].mean() for one in np.unique(targets)]))


def rmse(values: NDArray[Any], targets: NDArray[Any]) -> float:
    """The root of the mean squared error, in the unit of the targets."""
    return float(np.sqrt(np.mean(np.square(values.astype(np.float64) - targets))))


def auc(probabilities: NDArray[Any], targets: NDArray[Any]) -> float:
    """The area under the receiver's curve, 0..1; each class against the rest, and the mean."""
    from sklearn.metrics import roc_auc_score

    classes = probabilities.shape[1]
    return float(
        np.mean([roc_auc_score(targets == one, probabilities[:, one]) for one in range(classes)])
    )


def figures(network: nn.Module, data: Dataset) -> dict[str, float]:
    """By name: how well it does on the test rows, and what the baselines get there."""
    tested = answers(network, data.test).numpy()
    measured = on_test(softmax(tested) if data.is_classification else tested, data)
    validated = answers(network, data.validation).numpy()
    if data.is_classification:
        measured["validation_accuracy"] = accuracy(validated, data.validation.targets)
        most_frequent = np.bincount(data.train.targets).argmax()
        measured["majority_accuracy"] = float(np.mean(data.test.targets == most_frequent))
    else:
        measured["validation_rmse"] = rmse(validated, data.validation.targets)
        for name, values in data.baselines.items():
            measured[f"{name}_rmse"] = rmse(values, data.test.targets)
    return {**measured, "test_rows": float(len(data.test))}


def on_test(answered: NDArray[Any], data: Dataset) -> dict[str, float]:
    """The figures of these answers to the test rows: probabilities or values."""
    targets = data.test.targets
    if not data.is_classification:
        return {"test_rmse": rmse(answered, targets)}
    measured = {"test_accuracy": accuracy(answered, targets)}
    counts = np.bincount(targets, minlength=len(data.labels))
    if counts.max() > 2 * counts.min():  # the large classes could hide the small ones
        measured["test_balanced_accuracy"] = balanced_accuracy(answered, targets)
    if counts.all():  # without a row of a class it has no meaning
        measured["test_auc"] = auc(answered, targets)
    return measured


def softmax(logits: NDArray[Any]) -> NDArray[np.float64]:
    """The probabilities that a classification's logits stand for, (rows, classes)."""
    raised = np.exp(logits.astype(np.float64) - logits.max(axis=1, keepdims=True))
    shares: NDArray[np.float64] = raised / raised.sum(axis=1, keepdims=True)
    return shares
