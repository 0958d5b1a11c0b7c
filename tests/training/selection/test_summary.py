"""Mean, standard deviation, and how they are printed."""

import pytest

from neurona_training.selection.summary import format_summary, higher_is_better, summarise


@pytest.mark.parametrize(
    ("metric", "values", "unit", "expected"),
    [
        ("test_accuracy", [0.99, 0.98, 0.97], "", "accuracy 98.00 ± 1.00 %"),
        ("test_accuracy", [0.98], "", "accuracy 98.00 %"),
        ("test_rmse", [20.0, 18.5], "sunspots", "RMSE 19.25 ± 1.06 sunspots"),
        ("test_rmse", [123456.0, 123458.0], "EUR2", "RMSE 123,457 ± 1 EUR2"),
        ("test_auc", [0.968, 0.972, 0.957], "", "AUC 0.9657 ± 0.0078"),
    ],
)
def test_a_summary_has_the_decimals_of_its_mean(metric, values, unit, expected):
    assert format_summary(metric, summarise(values), unit) == expected


def test_the_deviation_is_that_of_a_sample():
    summary = summarise([1.0, 2.0, 3.0, 4.0])
    assert (summary.count, summary.mean) == (4, 2.5)
    assert summary.deviation == pytest.approx(1.2909944)
    assert summarise([5.0]).deviation is None


def test_errors_are_better_when_small():
    assert higher_is_better("test_balanced_accuracy")
    assert higher_is_better("auc")
    assert not higher_is_better("rmse")
    assert not higher_is_better("nll")
