"""What a network predicts, and how good that is on rows it was not trained on.

torch is imported late: metrics are also formatted by commands that must start fast.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import torch
    from numpy.typing import NDArray
    from torch import Tensor, nn

    from neurona_training.data import Dataset, Split

# The metrics of the test rows that tables and reports show, in this order.
TEST_METRICS = (
    "test_accuracy",
    "test_balanced_accuracy",
    "test_auc",
    "test_ece",
    "test_nll",
    "test_rmse",
)

CONFIDENCE_BINS = 15  # of equal width, as in C. Guo and others (2017)
_LARGE_VALUE = 1e4  # from which on values have no decimals
_ROWS_AT_ONCE = 256  # per forward pass, so that memory does not grow with the data
_NUMBERS_AT_ONCE = _ROWS_AT_ONCE * 128 * 128 * 3  # of inputs: fewer rows of large images
_MIN_PROBABILITY = 1e-12  # whose logarithm stands for that of a probability rounded to 0


def predict(network: nn.Module, split: Split, device: torch.device | str = "cpu") -> Tensor:
    """Runs the network on all rows, in evaluation mode and in parts of `rows_at_once`.

    Args:
        network: on `device`.
        split: the rows; its arrays are the network's inputs.
        device: where the network is.

    Returns:
        float32 of shape (rows, outputs) on the CPU: logits of a classification, or values in
        the targets' unit.
    """
    import torch

    network.eval()
    rows = rows_at_once(split.inputs)
    parts = [torch.split(torch.from_numpy(array), rows) for array in split.arrays]
    with torch.inference_mode():
        return torch.cat(
            [
                network(*(part.to(device) for part in inputs)).cpu()
                for inputs in zip(*parts, strict=True)
            ]
        )


def rows_at_once(inputs: NDArray[Any]) -> int:
    """How many of these rows a network takes at once, from 1 to 256."""
    return max(1, min(_ROWS_AT_ONCE, _NUMBERS_AT_ONCE // max(1, int(np.prod(inputs.shape[1:])))))


def evaluate(network: nn.Module, data: Dataset) -> dict[str, float]:
    """Measures the network on the test rows.

    Returns:
        Metrics by name: those of `measure_predictions`; validation_accuracy, validation_ece and
        validation_nll, or validation_rmse; and test_rows.
    """
    outputs = predict(network, data.test).numpy()
    metrics = measure_predictions(softmax(outputs) if data.is_classification else outputs, data)
    validated = predict(network, data.validation).numpy()
    if data.is_classification:
        targets, probabilities = data.validation.targets, softmax(validated)
        metrics["validation_accuracy"] = accuracy(validated, targets)
        metrics["validation_ece"] = expected_calibration_error(probabilities, targets)
        metrics["validation_nll"] = negative_log_likelihood(probabilities, targets)
    else:
        targets = data.validation.targets
        metrics["validation_rmse"] = rmse(
            validated[:, : targets.shape[1]], targets, data.error_scales
        )
    return {**metrics, "test_rows": float(len(data.test))}


def measure_predictions(predictions: NDArray[Any], data: Dataset) -> dict[str, float]:
    """Measures predictions for the test rows.

    Args:
        predictions: probabilities of shape (rows, classes), or values of shape (rows, values),
            with their lower and upper bounds behind them (rows, 3 * values).
        data: the data set whose test rows were predicted.

    Returns:
        test_rmse of a regression in `Dataset.error_unit`, and with bounds interval_coverage, the
        fraction of the true values that are within them, and interval_width, their mean distance.
        Of a classification: test_accuracy, test_ece, test_nll, test_balanced_accuracy if the
        largest class has more than twice the rows of the smallest, and test_auc if every class has
        a row.
    """
    targets = data.test.targets
    if not data.is_classification:
        return _measure_values(predictions, targets, data.error_scales)
    metrics = {"test_accuracy": accuracy(predictions, targets)}
    counts = np.bincount(targets, minlength=len(data.labels))
    if counts.max() > 2 * counts.min():  # large classes could hide the small ones
        metrics["test_balanced_accuracy"] = balanced_accuracy(predictions, targets)
    if counts.all():  # undefined without a row of a class
        metrics["test_auc"] = auc(predictions, targets)
    metrics["test_ece"] = expected_calibration_error(predictions, targets)
    metrics["test_nll"] = negative_log_likelihood(predictions, targets)
    return metrics


def _measure_values(
    predictions: NDArray[Any], targets: NDArray[Any], scales: NDArray[np.float64]
) -> dict[str, float]:
    count = targets.shape[1]
    metrics = {"test_rmse": rmse(predictions[:, :count], targets, scales)}
    if predictions.shape[1] > count:
        lower, upper = np.split(predictions[:, count:].astype(np.float64), 2, axis=1)
        metrics["interval_coverage"] = float(np.mean((lower <= targets) & (targets <= upper)))
        metrics["interval_width"] = float(np.mean((upper - lower) / scales))
    return metrics


def accuracy(logits: NDArray[Any], targets: NDArray[Any]) -> float:
    """Fraction of rows whose largest logit is that of the right class, 0..1."""
    return float(np.mean(logits.argmax(axis=1) == targets))


def balanced_accuracy(logits: NDArray[Any], targets: NDArray[Any]) -> float:
    """Mean recall over the classes that have rows, 0..1."""
    right = logits.argmax(axis=1) == targets
    return float(np.mean([right[targets == label].mean() for label in np.unique(targets)]))


def rmse(
    values: NDArray[Any], targets: NDArray[Any], scales: NDArray[np.float64] | float = 1.0
) -> float:
    """Root of the mean squared error.

    Args:
        values: predictions, (rows, values).
        targets: the true ones.
        scales: what errors are divided by, `Dataset.error_scales`.
    """
    errors = (values.astype(np.float64) - targets) / scales
    return float(np.sqrt(np.mean(np.square(errors))))


def auc(probabilities: NDArray[Any], targets: NDArray[Any]) -> float:
    """Area under the ROC curve, 0..1: the mean over the classes, each against the rest."""
    from sklearn.metrics import roc_auc_score

    classes = range(probabilities.shape[1])
    return float(
        np.mean([roc_auc_score(targets == label, probabilities[:, label]) for label in classes])
    )


def negative_log_likelihood(probabilities: NDArray[Any], targets: NDArray[Any]) -> float:
    """Mean over the rows of -log of the probability of the right class, in nats.

    The smallest when the probabilities are the true ones: a proper score (T. Gneiting and A.
    Raftery, Strictly Proper Scoring Rules, Prediction, and Estimation, 2007).
    """
    right = probabilities[np.arange(len(targets)), targets].astype(np.float64)
    return float(0 - np.mean(np.log(np.maximum(right, _MIN_PROBABILITY))))  # 0, never -0


@dataclass(frozen=True)
class ReliabilityBins:
    """Rows grouped by the network's confidence: the largest probability of a row.

    Args:
        rows: how many are in each bin, int64 of shape (bins,).
        confidence: mean confidence of each bin, 0 for an empty one.
        accuracy: fraction of each bin's rows that are right, 0 for an empty one.
    """

    rows: NDArray[np.int64]
    confidence: NDArray[np.float64]
    accuracy: NDArray[np.float64]

    @property
    def error(self) -> float:
        """Distance between confidence and accuracy, the mean over all rows, 0..1."""
        distances = np.abs(self.confidence - self.accuracy)
        return float(np.average(distances, weights=self.rows))


def reliability_bins(
    probabilities: NDArray[Any], targets: NDArray[Any], bins: int = CONFIDENCE_BINS
) -> ReliabilityBins:
    """Groups rows by confidence, in bins of equal width between 0 and 1."""
    confidence = probabilities.max(axis=1).astype(np.float64)
    is_right = probabilities.argmax(axis=1) == targets
    index = confidence_bins(confidence, bins)
    rows = np.bincount(index, minlength=bins)
    divisor = np.maximum(rows, 1)
    return ReliabilityBins(
        rows=rows,
        confidence=np.bincount(index, confidence, minlength=bins) / divisor,
        accuracy=np.bincount(index, is_right, minlength=bins) / divisor,
    )


def confidence_bins(confidence: NDArray[Any], bins: int = CONFIDENCE_BINS) -> NDArray[np.int64]:
    """The bin of each confidence; 1 is in the last."""
    return np.minimum((confidence * bins).astype(np.int64), bins - 1)


def expected_calibration_error(probabilities: NDArray[Any], targets: NDArray[Any]) -> float:
    """ECE: how far confidence and accuracy are apart, 0..1, over 15 bins of equal width.

    M. Naeini and others, Obtaining Well Calibrated Probabilities Using Bayesian Binning, AAAI
    2015; C. Guo and others, On Calibration of Modern Neural Networks, ICML 2017.
    """
    return reliability_bins(probabilities, targets).error


def softmax(logits: NDArray[Any]) -> NDArray[np.float64]:
    """Probabilities of shape (rows, classes) from logits of the same shape."""
    powers = np.exp(logits.astype(np.float64) - logits.max(axis=1, keepdims=True))
    probabilities: NDArray[np.float64] = powers / powers.sum(axis=1, keepdims=True)
    return probabilities


def format_metric(name: str, value: float, unit: str = "") -> str:
    """Formats one metric: `accuracy 99.31 %`, `AUC 0.9620`, `RMSE 15.2 sunspots`, `ECE 1.10 %`."""
    title = name.removeprefix("test_").replace("_", " ")
    for abbreviation in ("auc", "rmse", "ece", "nll"):
        title = re.sub(rf"\b{abbreviation}$", abbreviation.upper(), title)
    if title.endswith(("accuracy", "ECE", "coverage")):
        return f"{title} {100 * value:.2f} %"
    if "RMSE" in title or title.endswith("width"):
        number = f"{value:.4g}" if value < _LARGE_VALUE else f"{value:,.0f}"  # not 5.7e+04
        return f"{title} {number} {unit}".rstrip()
    return f"{title} {value:.4f}"
