"""The recipes in full: what they must reach, measured on the file that was written."""

import numpy as np
import onnx
import pytest

from neurona_protos import metadata
from neurona_protos.prediction_pb2 import TASK_CLASSIFICATION, TASK_REGRESSION
from neurona_training.recipes import RECIPES


def _read(path):
    properties = {item.key: item.value for item in onnx.load(path).metadata_props}
    return metadata.from_json(properties[metadata.KEY])


@pytest.mark.parametrize(("name", "least"), [("lenet5", 0.97), ("lstm", 0.94)])
def test_digits_are_read(trained, ask, name, least):
    path = trained(name)
    test = RECIPES[name].load().test
    probabilities = ask(path.read_bytes(), test.inputs)

    accuracy = np.mean(probabilities.argmax(axis=1) == test.targets)
    assert accuracy >= least
    np.testing.assert_allclose(probabilities.sum(axis=1), 1, rtol=1e-5)
    assert probabilities.min() >= 0

    said = _read(path)
    assert said.task == TASK_CLASSIFICATION
    assert said.answer == "probabilities"
    assert list(said.labels) == [str(digit) for digit in range(10)]
    assert said.figures["test_accuracy"] == pytest.approx(accuracy, abs=1e-9)
    assert said.figures["test_rows"] == len(test) == 360


def test_sunspots_are_foretold_better_than_by_mean_and_persistence(trained, ask):
    path = trained("rnn")
    data = RECIPES["rnn"].load()
    test = data.test
    values = ask(path.read_bytes(), test.inputs)
    assert values.shape == test.targets.shape

    def rmse(answers):
        return np.sqrt(np.mean((answers - test.targets) ** 2))

    figures = _read(path).figures
    expected = {
        "test_rmse": rmse(values),
        "mean_rmse": rmse(data.train.targets.mean()),
        "persistence_rmse": rmse(test.inputs[:, -1]),
    }
    assert {name: figures[name] for name in expected} == pytest.approx(expected, rel=1e-4)
    assert expected["test_rmse"] < 0.75 * expected["persistence_rmse"]
    assert expected["test_rmse"] < 0.5 * expected["mean_rmse"]

    said = _read(path)
    assert said.task == TASK_REGRESSION
    assert said.answer == "value"
    assert [(value.name, value.unit) for value in said.values] == [("next year", "sunspots")]


@pytest.mark.parametrize(
    ("name", "given", "shape"),
    [
        ("lenet5", "image", ["batch", 8, 8]),
        ("lstm", "sequence", ["batch", "time", 8]),
        ("rnn", "series", ["batch", "time", 1]),
    ],
)
def test_the_file_says_what_it_takes_and_how_it_was_made(trained, name, given, shape):
    model = onnx.load(trained(name))
    (taken,) = model.graph.input
    sizes = [size.dim_param or size.dim_value for size in taken.type.tensor_type.shape.dim]
    assert (taken.name, sizes) == (given, shape)
    assert taken.type.tensor_type.elem_type == onnx.TensorProto.FLOAT
    (answer,) = model.graph.output
    assert answer.type.tensor_type.shape.dim[0].dim_param == "batch"

    said = _read(trained(name))
    assert [described.name for described in said.inputs] == [given]
    assert all(described.description and described.unit for described in said.inputs)
    data, made = RECIPES[name].load(), said.provenance
    assert said.description == f"{RECIPES[name].description}, trained on: {data.source}"
    assert made["recipe"] == name
    assert made["seed"] == "0"
    assert made["data"] == data.source
    assert made["data_set"] == data.name == RECIPES[name].default_data
    assert made["opset"] == str(model.opset_import[0].version)
    assert made["test_rows"] == str(len(data.test))
    assert (
        1
        <= int(made["best_epoch"])
        <= int(made["epochs"])
        == RECIPES[name].default_hyperparameters.epochs
    )
    assert {"torch", "exporter", "onnx", "onnxruntime", "parameters"} <= set(made)


def test_no_path_of_the_machine_that_trained_is_in_the_file(trained):
    for name in ("lenet5", "lstm", "rnn"):
        assert b".py" not in trained(name).read_bytes()


def test_graphs_are_small(trained, operators):
    """Their speed is what the server is measured by."""
    assert operators(trained("lstm").read_bytes()) == [
        *("Sub", "Mul", "Transpose", "LSTM", "Squeeze", "Gemm", "Softmax")
    ]
    assert operators(trained("rnn").read_bytes()) == [
        *("Sub", "Mul", "Transpose", "RNN", "Squeeze", "Gemm", "Mul", "Add")
    ]
    assert operators(trained("lenet5").read_bytes()).count("Conv") == 4
    assert len(operators(trained("lenet5").read_bytes())) == 19
