"""Networks from before backpropagation, and what the multilayer perceptron adds."""

import numpy as np
import onnx
import pytest
import torch
from support.in_process_server import InProcessServer

from neurona_protos import metadata
from neurona_protos.prediction_pb2 import PredictRequest
from neurona_protos.tensors import to_tensor
from neurona_server.batching.policy import BatchPolicy
from neurona_training.architectures.classic import Threshold
from neurona_training.architectures.input_layers import StandardiseColumns
from neurona_training.cli.main import main
from neurona_training.data import Dataset, Input, Split, Value
from neurona_training.data.catalogue import load
from neurona_training.errors import DataError, FitError
from neurona_training.learning.evaluation import evaluate, rmse
from neurona_training.learning.run import Run
from neurona_training.recipes import RECIPES
from neurona_training.recipes.classic import WEIGHTS


def _fit(name, data=None, **changed):
    recipe = RECIPES[name]
    loaded = recipe.load(data)
    settings = recipe.settings(loaded, loaded.name).with_changes(changed)
    return recipe.fit(loaded, settings, Run(name, 0)), loaded


TRUE_FOR = {
    "not": {(0,)},
    "and": {(1, 1)},
    "or": {(0, 1), (1, 0), (1, 1)},
    "nand": {(0, 0), (0, 1), (1, 0)},
    "xor": {(0, 1), (1, 0)},
    "majority": {(0, 1, 1), (1, 0, 1), (1, 1, 0), (1, 1, 1)},
}


@pytest.fixture(scope="module")
def logic(tmp_path_factory):
    """A model repository with McCulloch and Pitts's neurons for each truth table."""
    root = tmp_path_factory.mktemp("logic")
    for name in TRUE_FOR:
        command = ["mcculloch-pitts", "--data", name, "--name", name, "--out", str(root)]
        assert main(command) == 0
    return root


def _table(name):
    """All inputs, and whether the output is true for each."""
    true_for = TRUE_FOR[name]
    inputs = np.array(list(np.ndindex((2,) * len(min(true_for)))), np.float32)
    return inputs, np.array([tuple(map(int, row)) in true_for for row in inputs])


@pytest.mark.parametrize("name", TRUE_FOR)
def test_neurons_with_weights_set_by_hand_give_the_complete_truth_table(logic, ask, name):
    model = (logic / name / "1" / "model.onnx").read_bytes()
    inputs, expected = _table(name)
    probabilities = ask(model, inputs)
    assert np.array_equal(probabilities[:, 1] == 1, expected)
    assert np.array_equal(probabilities[:, 0] == 1, ~expected)
    properties = onnx.load_from_string(model).metadata_props
    described = metadata.from_json({item.key: item.value for item in properties}[metadata.KEY])
    assert list(described.labels) == ["false", "true"]
    assert described.figures["test_accuracy"] == 1
    assert described.provenance["best_epoch"] == "0"


def test_truth_tables_are_served(logic):
    server = InProcessServer(logic, BatchPolicy())
    try:
        for name in TRUE_FOR:
            inputs, expected = _table(name)
            request = PredictRequest(model=name, inputs=[to_tensor("inputs", inputs)])
            answer = server.prediction.Predict(request, timeout=10)
            labels = [row.labels[0] for row in answer.classification.rows]
            assert labels == ["true" if true else "false" for true in expected]
    finally:
        server.stop()


def test_a_data_set_without_weights_set_by_hand_is_rejected():
    with pytest.raises(
        DataError, match="cannot learn data set 'iris' .*set by hand for not, and, "
    ):
        _fit("mcculloch-pitts", "iris")


def test_only_xor_needs_a_second_layer():
    assert {name: len(layers) for name, layers in WEIGHTS.items() if len(layers) > 1} == {"xor": 2}


def test_a_unit_fires_at_and_above_its_threshold():
    unit = Threshold(2, 1)
    unit.weight.copy_(torch.tensor([[1.0, -2.0]]))
    unit.threshold.fill_(1)
    rows = torch.tensor([[1.0, 0.0], [0.99, 0.0], [3.0, 1.0], [2.0, 1.0]])
    assert unit(rows).flatten().tolist() == [1, 0, 1, 0]


def test_the_perceptron_converges_if_a_plane_separates_the_classes():
    result, data = _fit("perceptron")
    assert result.history[-1].loss == 0  # a whole epoch without a mistake
    assert len(result.history) < RECIPES["perceptron"].tuned_settings.hyperparameters.epochs
    assert evaluate(result.network, data)["test_accuracy"] == 1


@pytest.mark.parametrize("seed", range(3))
def test_the_perceptron_cannot_solve_xor_and_the_mlp_can(seed):
    solved = {}
    for name in ("perceptron", "mlp"):
        recipe = RECIPES[name]
        data = recipe.load("xor")
        result = recipe.fit(data, recipe.tuned["xor"], Run(name, seed))
        solved[name] = evaluate(result.network, data)["test_accuracy"]
    assert solved["mlp"] == 1
    assert 0.5 <= solved["perceptron"] <= 0.75


def test_the_perceptron_rejects_more_than_two_classes():
    with pytest.raises(DataError, match="data set 'iris' has 3 classes"):
        _fit("perceptron", "iris")


def test_adaline_converges_to_least_squares():
    result, data = _fit("adaline")
    again = [_fit("adaline", epochs=2)[0].network.weight for _ in range(2)]
    assert torch.equal(*again)
    error = evaluate(result.network, data)["test_rmse"]
    train, test = (
        np.column_stack([part.inputs, np.ones(len(part))]) for part in (data.train, data.test)
    )
    weights, *_ = np.linalg.lstsq(train, data.train.targets)
    assert error == pytest.approx(rmse(test @ weights, data.test.targets), rel=0.01)
    assert error < 0.85 * rmse(np.full(1, data.train.targets.mean()), data.test.targets)
    assert result.history[-1].loss < result.history[0].loss


def test_the_mlp_classifies_tumours_and_is_no_worse_than_adaline_on_diabetes():
    result, data = _fit("mlp", "breast-cancer")
    assert evaluate(result.network, data)["test_accuracy"] >= 0.96
    result, data = _fit("mlp", "diabetes")
    linear, _ = _fit("adaline", epochs=50)
    best, worse = (evaluate(one.network, data)["test_rmse"] for one in (result, linear))
    assert best <= worse


@pytest.mark.parametrize(
    ("name", "rows"),
    [("iris", 150), ("iris-setosa", 150), ("breast-cancer", 569), ("diabetes", 442)],
)
def test_rows_are_split_the_same_on_each_call(name, rows):
    data, again = load(name), load(name)
    parts = (data.train, data.validation, data.test)
    assert sum(len(part) for part in parts) == rows
    assert 0.60 <= len(data.train) / rows <= 0.70
    assert np.array_equal(data.test.inputs, again.test.inputs)
    assert data.kind == "rows"
    if data.is_classification:  # stratified
        shares = [np.bincount(part.targets) / len(part) for part in parts]
        assert np.abs(shares[0] - shares[2]).max() < 0.02


def test_each_column_is_standardised():
    numbers = torch.tensor([[1.0, 500.0, 5.0], [3.0, 700.0, 5.0], [5.0, 900.0, 5.0]])
    root = 1.5**0.5
    expected = torch.tensor([[-root, -root, 0], [0, 0, 0], [root, root, 0]])
    torch.testing.assert_close(StandardiseColumns(numbers.numpy())(numbers), expected)


def _linear_table(columns):
    generator = np.random.default_rng(0)
    weights = generator.normal(size=columns)

    def split(rows):
        inputs = generator.normal(size=(rows, columns)).astype(np.float32)
        targets = (inputs @ weights + generator.normal(size=rows)).astype(np.float32)
        return Split(inputs, targets[:, None])

    described = Input("features", ("batch", "feature"), "numbers", "")
    parts = (split(400), split(100), split(100))
    return Dataset("wide", "numpy", *parts, input=described, values=(Value("y", ""),))


def test_adaline_takes_smaller_steps_for_many_columns():
    """A step moves the output by the sum of the squared inputs: 0.01 diverges from 200 on."""
    recipe, data = RECIPES["adaline"], _linear_table(300)
    settings = recipe.settings(data, None)
    result = recipe.fit(data, settings.with_changes({"epochs": 10}), Run("wide", 0))
    assert evaluate(result.network, data)["test_rmse"] < 0.7 * data.test.targets.std()
    assert recipe.settings(_linear_table(10), None).hyperparameters.learning_rate == 0.01


def test_a_rule_that_diverges_is_an_error():
    recipe, data = RECIPES["adaline"], _linear_table(300)
    settings = recipe.settings(data, None).with_changes({"epochs": 2, "learning_rate": 1.0})
    with pytest.raises(FitError, match="validation loss is .* smaller learning rate"):
        recipe.fit(data, settings, Run("wide", 0))
