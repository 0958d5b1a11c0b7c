"""The report's plot of time by length. It is alone since it runs exported models."""

import dataclasses
from typing import cast

import numpy as np
import pytest
import torch

from neurona_training.architectures.input_layers import Normalise
from neurona_training.architectures.recurrent import LastState
from neurona_training.baselines.comparison import Comparison
from neurona_training.data import Dataset, Input, Split
from neurona_training.export.metadata import model_metadata
from neurona_training.export.onnx_export import export_trained_network
from neurona_training.learning.run import FitResult, Hyperparameters
from neurona_training.report.latency import (
    BATCH_ROWS,
    latency_plot,
    latency_section,
    lengths_to_show,
    measure_latency,
)
from neurona_training.report.results import RunResults

LONGEST = 120


@pytest.fixture(scope="module")
def recurrent_results():
    """An LSTM with the weights that it begins with; its test rows have 4 to LONGEST steps."""
    generator = np.random.default_rng(0)
    rows = generator.normal(0, 1, (32, LONGEST, 4)).astype(np.float32)
    lengths = np.linspace(4, LONGEST, 32).astype(np.int32)
    split = Split(rows, np.arange(32, dtype=np.int64) % 3, lengths)
    axes = ("batch", "time", "feature")
    data = Dataset(
        name="noise",
        source="random numbers",
        train=split,
        validation=split,
        test=split,
        input=Input("x", axes, "numbers near 0", ""),
        labels=("a", "b", "c"),
    )
    torch.manual_seed(0)
    network = LastState(Normalise(0.0, 1.0), "lstm", features=4, hidden=32, outputs=3).eval()
    described = model_metadata(data, "a test", {}, {"seed": 0})
    return RunResults(
        name="noise",
        network=network,
        data=data,
        fit_result=FitResult(network, 0, 0.0),
        hyperparameters=Hyperparameters(epochs=0, batch_rows=1, learning_rate=0.1),
        baselines=(),
        comparison=cast(Comparison, None),  # of the whole page alone
        metadata=described,
        files={"float32": (1, described)},
        seconds=1.0,
        model=export_trained_network(network, data, described),
    )


def test_longer_sequences_take_longer(recurrent_results):
    lengths = lengths_to_show(recurrent_results)
    seconds = measure_latency(recurrent_results)
    assert list(seconds) == lengths
    assert (lengths[0], lengths[-1]) == (4, LONGEST)
    (alone, batch), (longest_alone, longest_batch) = seconds[lengths[0]], seconds[LONGEST]
    # 30 times the steps; the rest of a run, and what else the machine does, blurs that.
    assert longest_alone > alone
    assert longest_batch > batch
    assert longest_batch < 10 * BATCH_ROWS * longest_alone


def test_the_section_says_what_a_step_costs(recurrent_results):
    section = latency_section(recurrent_results)
    assert f"{LONGEST} steps takes" in section.caption
    assert "each step" in section.caption
    assert f"in a batch of {BATCH_ROWS}" in section.caption
    assert section.pictures[0].png


def test_the_plot_shows_both_curves_in_milliseconds(recurrent_results):
    figure = latency_plot(recurrent_results, [1, 10], [0.001, 0.010], [0.002, 0.020])
    batch, alone = figure.axes[0].lines[:2]
    assert list(alone.get_ydata()) == [1.0, 10.0]
    assert list(batch.get_ydata()) == [2.0, 20.0]


def test_networks_without_steps_have_no_section(finished_run, recurrent_results):
    assert latency_section(dataclasses.replace(recurrent_results, model=b"")) is None
    dense = finished_run("mlp", "xor", None)
    content = export_trained_network(dense.network, dense.data, dense.metadata)
    assert latency_section(dataclasses.replace(dense, model=content)) is None


def test_a_forecast_that_reads_a_window_has_no_section(finished_run):
    forecast = finished_run("rnn", "sunspots", 1)
    assert forecast.is_series
    assert latency_section(dataclasses.replace(forecast, model=b"not read")) is None
