"""Probabilities that are as sure as they are right."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from sklearn.metrics import log_loss
from torch import nn

from neurona_training.architectures.input_layers import Temperature, without_wrappers
from neurona_training.data import Dataset, Input, Split, Value
from neurona_training.learning.calibration import (
    calibrate,
    choose_temperature,
    fit_temperature,
    ideal_calibration_error,
)
from neurona_training.learning.evaluation import (
    evaluate,
    expected_calibration_error,
    format_metric,
    measure_predictions,
    negative_log_likelihood,
    reliability_bins,
    softmax,
)


def _drawn(rows, classes, temperature, seed):
    """Logits, and targets drawn with the probabilities that they have at this temperature."""
    random = np.random.default_rng(seed)
    logits = random.normal(0, 3, (rows, classes))
    cumulated = softmax(logits / temperature).cumsum(axis=1)
    targets = (random.random((rows, 1)) > cumulated).sum(axis=1)
    return logits, np.minimum(targets, classes - 1)


def test_calibration_error_and_likelihood_by_hand():
    probabilities = np.array([[0.9, 0.1], [0.05, 0.95], [0.92, 0.08], [0.4, 0.6]])
    targets = np.array([0, 1, 1, 1])
    # 0.90 and 0.92 are in one bin of fifteen: sure 0.91, right 0.5; 0.95 and 0.60 are alone.
    expected = (2 * 0.41 + 0.05 + 0.40) / 4
    assert expected_calibration_error(probabilities, targets) == pytest.approx(expected)
    assert list(reliability_bins(probabilities, targets).rows[[9, 13, 14]]) == [1, 2, 1]
    assert negative_log_likelihood(probabilities, targets) == pytest.approx(
        log_loss(targets, probabilities)
    )
    certain = np.array([[1.0, 0.0]])
    assert expected_calibration_error(certain, np.array([0])) == 0
    assert np.isfinite(negative_log_likelihood(certain, np.array([1])))  # half precision rounds
    assert format_metric("test_ece", 0.0123) == "ECE 1.23 %"
    assert format_metric("test_nll", 0.0361) == "NLL 0.0361"


@pytest.mark.parametrize("temperature", [0.4, 1.0, 3.0])
def test_the_temperature_of_the_rows_is_found(temperature):
    logits, targets = _drawn(4000, 5, temperature, seed=0)
    assert fit_temperature(logits, targets) == pytest.approx(temperature, rel=0.08)
    chosen = choose_temperature(logits, targets)
    assert chosen.cross_fitted_nll < chosen.nll + 1e-3
    after = softmax(logits / chosen.temperature)
    assert expected_calibration_error(after, targets) < 0.03


def test_few_rows_that_are_all_right_do_not_make_the_network_certain():
    logits = np.tile(np.array([[3.0, 0, 0]]), (20, 1))
    confidence = softmax(logits / fit_temperature(logits, np.zeros(20, int))).max()
    assert softmax(logits).max() < confidence < 0.9999


def test_a_temperature_that_helps_by_chance_only_is_rarely_taken():
    """On 30 rows of a calibrated model, the best temperature lowers the NLL of those rows only."""
    taken = [choose_temperature(*_drawn(30, 3, 1.0, seed)).temperature for seed in range(100)]
    assert np.mean([one != 1 for one in taken]) < 0.4


def test_a_calibrated_model_stays_below_what_chance_does_to_it():
    below = 0
    for seed in range(60):
        logits, targets = _drawn(200, 4, 1.0, seed)
        errors = ideal_calibration_error(softmax(logits), draws=200)
        below += expected_calibration_error(softmax(logits), targets) <= errors[189]
        assert 0 < errors[0] <= errors.mean() < 0.15
    assert below >= 54  # 57 expected


class _Scores(nn.Module):
    """Gives its input back as logits."""

    def forward(self, x):
        return x


def _scores(logits, targets):
    logits, targets = logits.astype(np.float32), targets.astype(np.int64)
    parts = [Split(logits[part::3], targets[part::3]) for part in range(3)]
    described = Input("scores", ("batch", "score"), "scores", "none")
    labels = tuple(str(number) for number in range(logits.shape[1]))
    return Dataset("scores", "drawn", *parts, described, labels=labels)


def test_a_network_is_calibrated_without_another_class_becoming_the_first():
    data = _scores(*_drawn(6000, 4, 2.5, seed=3))
    network, calibration = calibrate(_Scores(), data)
    assert isinstance(network, Temperature)
    assert isinstance(without_wrappers(network), _Scores)
    assert calibration.temperature == pytest.approx(2.5, rel=0.2)
    before, after = evaluate(_Scores(), data), evaluate(network, data)
    assert after["test_accuracy"] == before["test_accuracy"]
    assert after["test_ece"] < 0.05 < before["test_ece"]
    assert after["test_nll"] < before["test_nll"]
    assert after["validation_nll"] < before["validation_nll"]
    assert measure_predictions(softmax(data.test.inputs), data)["test_nll"] == before["test_nll"]


def test_a_regression_is_left_alone():
    data = _scores(*_drawn(30, 2, 1.0, seed=0))
    values = [
        Split(part.inputs, part.inputs.copy()) for part in (data.train, data.validation, data.test)
    ]
    regression = replace(
        data,
        **dict(zip(("train", "validation", "test"), values, strict=True)),
        labels=(),
        values=(Value("a", ""), Value("b", "")),
    )
    network = _Scores()
    assert calibrate(network, regression) == (network, None)
    assert torch.equal(network(torch.ones(1, 2)), torch.ones(1, 2))
