"""Columns of a table in pieces: inputs of the network, and part of the exported file."""

import numpy as np
import pytest
import torch

from neurona_training.architectures.table_features import TableFeatures
from neurona_training.data import Dataset, Input, Split, Value
from neurona_training.export.metadata import describe_scaling, model_metadata
from neurona_training.export.onnx_export import export_trained_network
from neurona_training.learning.evaluation import evaluate
from neurona_training.learning.run import Run
from neurona_training.recipes import RECIPES


@pytest.fixture(scope="module")
def prices():
    """A price with steps, of a skewed column, a column of few values and a constant one."""
    random = np.random.default_rng(4)

    def split(rows):
        income = np.exp(random.normal(size=rows) * 1.5)
        rooms = random.integers(1, 6, rows)
        inputs = np.stack([income, rooms, np.full(rows, 7.0)], axis=1).astype(np.float32)
        price = 100 * np.floor(np.log(income) * 2) * (rooms >= 3) + 1000
        return Split(inputs, price.astype(np.float32)[:, None])

    described = Input("row", ("batch", "column"), "", "", columns=("income", "rooms", "seven"))
    parts = (split(1500), split(300), split(300))
    return Dataset("prices", "", *parts, described, values=(Value("price", "EUR"),))


def test_each_piece_is_linear_between_its_quantiles(prices):
    features = TableFeatures(prices)
    with torch.no_grad():
        columns = features(torch.from_numpy(prices.train.inputs))
    assert columns.shape == (1500, features.width)
    assert features.width == 3 + 24 + 4  # quantiles of a skewed column, steps of five values
    pieces = columns[:, 3:]
    assert pieces.min() == -0.5
    assert pieces.max() == 0.5
    with torch.no_grad():
        beyond = features(torch.tensor([[1e9, 3.0, 7.0], [-1e9, 3.0, 7.0]]))
    assert beyond.isfinite().all()
    assert beyond[0, 3:27].tolist() == [0.5] * 24
    assert beyond.abs().max() <= 4  # a mistyped value does not carry the network away
    assert beyond[1, 3:27].tolist() == [-0.5] * 24


def test_the_defaults_of_a_table_follow_its_steps_and_are_exported(prices, ask):
    recipe = RECIPES["mlp"]
    settings = recipe.settings(prices, None).with_changes({"epochs": 12})
    assert settings.network.columns == "pieces"
    errors = {}
    for columns in ("pieces", "scaled"):
        changed = settings.with_changes({"columns": columns})
        network = recipe.fit(prices, changed, Run("prices", 0)).network
        errors[columns] = evaluate(network, prices)["test_rmse"]
        if columns == "pieces":
            assert "28 pieces of columns" in describe_scaling(network)
            model = export_trained_network(network, prices, model_metadata(prices, "", {}, {}))
            answers = ask(model, prices.test.inputs)
            rmse = np.sqrt(np.mean((answers - prices.test.targets) ** 2))
            assert rmse == pytest.approx(errors[columns], rel=1e-4)
    assert errors["pieces"] < 0.7 * errors["scaled"]
    assert errors["pieces"] < 0.4 * prices.test.targets.std()


def test_images_of_a_fully_connected_network_have_no_columns():
    recipe = RECIPES["mlp"]
    data = recipe.load("digits")
    settings = recipe.settings(data, None)
    assert settings.network.columns is None


def _table(columns):
    inputs = np.stack(columns, axis=1).astype(np.float32)
    split = Split(inputs, np.zeros((len(inputs), 1), np.float32))
    names = tuple(map(str, range(inputs.shape[1])))
    described = Input("row", ("batch", "column"), "", "", columns=names)
    return Dataset("t", "", split, split, split, described, values=(Value("y", ""),))


def test_one_large_number_does_not_hide_the_others():
    ages = np.linspace(18, 80, 500)
    incomes = np.geomspace(10, 5000, 500)
    ages[7], incomes[9] = 1e9, 1e10  # mistyped
    features = TableFeatures(_table([ages, incomes]))
    assert features.width == 2 + 24 + 24
    with torch.no_grad():
        young, old = features(torch.tensor([[20.0, 20.0], [70.0, 3000.0]]))
    assert (young[2:26] - old[2:26]).abs().sum() > 10
    assert (young[26:] - old[26:]).abs().sum() > 10


def test_a_column_of_the_smallest_numbers_is_finite():
    tiny = np.random.default_rng(0).normal(size=100) * 1e-40
    features = TableFeatures(_table([tiny, np.arange(100)]))
    with torch.no_grad():
        assert features(torch.from_numpy(features_of(tiny))).isfinite().all()


def features_of(column):
    return np.stack([column, np.arange(len(column))], axis=1).astype(np.float32)
