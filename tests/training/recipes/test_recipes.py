"""Recipes trained in full: the metrics they must reach, measured on the exported file."""

import numpy as np
import onnx
import pytest

from neurona_protos import metadata
from neurona_protos.prediction_pb2 import TASK_CLASSIFICATION, TASK_REGRESSION
from neurona_training.learning.evaluation import expected_calibration_error
from neurona_training.recipes import RECIPES


def _read(path):
    properties = {item.key: item.value for item in onnx.load(path).metadata_props}
    return metadata.from_json(properties[metadata.KEY])


@pytest.mark.parametrize(("name", "least"), [("lenet5", 0.97), ("lstm", 0.94)])
def test_digits_are_recognised(trained, ask, name, least):
    path = trained(name)
    test = RECIPES[name].load().test
    probabilities = ask(path.read_bytes(), test.inputs)

    accuracy = np.mean(probabilities.argmax(axis=1) == test.targets)
    assert accuracy >= least
    np.testing.assert_allclose(probabilities.sum(axis=1), 1, rtol=1e-5)
    assert probabilities.min() >= 0

    # As sure as it is right, though it has learned smoothed labels.
    mean_confidence = probabilities.max(axis=1).mean()
    assert mean_confidence == pytest.approx(accuracy, abs=0.025)
    assert expected_calibration_error(probabilities, test.targets) <= 0.03

    described = _read(path)
    assert 0.3 < described.figures["temperature"] < 0.9
    # A temperature behind a recurrent network leaves its stepwise form.
    assert path.with_name("step.onnx").exists() == (name == "lstm")
    assert described.task == TASK_CLASSIFICATION
    assert described.answer == "probabilities"
    assert list(described.labels) == [str(digit) for digit in range(10)]
    assert described.figures["test_accuracy"] == pytest.approx(accuracy, abs=1e-9)
    assert described.figures["test_rows"] == len(test) == 360


def test_sunspots_are_forecast_better_than_by_mean_and_persistence(trained, ask):
    path = trained("rnn")
    data = RECIPES["rnn"].load()
    test = data.test
    values, lower, upper = np.split(ask(path.read_bytes(), test.inputs), 3, axis=1)
    assert values.shape == test.targets.shape

    def rmse(answers):
        return np.sqrt(np.mean((answers - test.targets) ** 2))

    figures = _read(path).figures
    expected = {
        "test_rmse": rmse(values),
        "mean_rmse": rmse(data.train.targets.mean()),
        "persistence_rmse": rmse(test.inputs[:, -1]),
        "interval_coverage": np.mean((lower <= test.targets) & (test.targets <= upper)),
    }
    assert {name: figures[name] for name in expected} == pytest.approx(expected, rel=1e-4)
    assert expected["test_rmse"] < 0.75 * expected["persistence_rmse"]
    assert expected["test_rmse"] < 0.5 * expected["mean_rmse"]

    described = _read(path)
    assert described.task == TASK_REGRESSION
    assert described.answer == "value"
    assert [(value.name, value.unit) for value in described.values] == [
        (f"next year{bound}", "sunspots") for bound in ("", ", lower 90 %", ", upper 90 %")
    ]


@pytest.mark.parametrize(
    ("name", "input_name", "shape"),
    [
        ("lenet5", "image", ["batch", 8, 8]),
        ("lstm", "sequence", ["batch", "time", 8]),
        ("rnn", "series", ["batch", "time", 1]),
    ],
)
def test_the_metadata_describes_inputs_and_provenance(trained, name, input_name, shape):
    model = onnx.load(trained(name))
    (model_input,) = model.graph.input
    sizes = [size.dim_param or size.dim_value for size in model_input.type.tensor_type.shape.dim]
    assert (model_input.name, sizes) == (input_name, shape)
    assert model_input.type.tensor_type.elem_type == onnx.TensorProto.FLOAT
    (answer,) = model.graph.output
    assert answer.type.tensor_type.shape.dim[0].dim_param == "batch"

    described = _read(trained(name))
    assert [one.name for one in described.inputs] == [input_name]
    assert all(one.description and one.unit for one in described.inputs)
    data, provenance = RECIPES[name].load(), described.provenance
    assert described.description == f"{RECIPES[name].description}, trained on: {data.source}"
    assert provenance["recipe"] == name
    assert provenance["seed"] == "0"
    assert provenance["data"] == data.source
    assert provenance["data_set"] == data.name == RECIPES[name].default_data
    assert provenance["opset"] == str(model.opset_import[0].version)
    assert provenance["test_rows"] == str(len(data.test))
    assert (
        1
        <= int(provenance["best_epoch"])
        <= int(provenance["epochs"])
        == RECIPES[name].settings(data, data.name).hyperparameters.epochs
    )
    assert {"torch", "exporter", "onnx", "onnxruntime", "parameters"} <= set(provenance)


def test_the_file_contains_no_path_of_the_training_machine(trained):
    for name in ("lenet5", "lstm", "rnn"):
        assert b".py" not in trained(name).read_bytes()


def test_graphs_are_small(trained, operators):
    """The speed of the server depends on it."""
    assert operators(trained("lstm").read_bytes()) == [
        *("Sub", "Mul", "Transpose", "LSTM", "Squeeze", "Gemm", "Mul", "Softmax")
    ]
    forecast = operators(trained("rnn").read_bytes())  # a linear forecast, and a correction of it
    assert forecast.count("RNN") == 1
    assert len(forecast) <= 50
    assert operators(trained("lenet5").read_bytes()).count("Conv") == 4
    assert len(operators(trained("lenet5").read_bytes())) == 20
