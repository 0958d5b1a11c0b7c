"""Which models are batched: those whose rows do not change each other, whatever their values."""

import logging

import numpy as np
import pytest
from onnx import TensorProto, helper
from prometheus_client import CollectorRegistry
from support import onnx_models

from neurona_server.models.model import Model
from neurona_server.models.model_options import ModelOptions
from neurona_server.models.repository.scanner import ModelSource
from neurona_server.telemetry.metrics import Metrics

FLOAT, INT64, BOOL, BFLOAT16 = (
    TensorProto.FLOAT,
    TensorProto.INT64,
    TensorProto.BOOL,
    TensorProto.BFLOAT16,
)
node = helper.make_node
CONSTANTS = {
    "mask": np.float32([0, 0, -np.inf, np.nan]),
    "hundred": np.float32(100),
    "hundredth": np.float32(0.01),
    "small": np.float32(1e-3),
    "bound": np.float32(0.3),
    "high": np.float32(50),
    "low": np.float32(0.2),
    "one of many": np.eye(1, 16, dtype=np.float32),
    "axis": np.array(0),
    "four": np.array([4]),
    "zero": np.float32(0),
    "weights": np.random.default_rng(0).standard_normal((4, 4)).astype(np.float32),
}
ROWS = [  # the number of rows as a float
    node("Shape", ["x"], ["count"], end=1),
    node("Cast", ["count"], ["rows"], to=FLOAT),
]
BFLOATS = [node("Cast", ["x"], ["floats"], to=FLOAT)]


def load(tmp_path, nodes, kind=FLOAT):
    path = onnx_models.save(
        tmp_path / "model.onnx",
        nodes,
        {"x": (kind, ["n", 4])},
        {"y": (kind, ["n", 4])},
        CONSTANTS,
    )
    return Model(ModelSource("m", 1, path), ModelOptions(), Metrics(CollectorRegistry()))


INDEPENDENT = {
    "a column of -inf and one of NaN": [node("Add", ["x", "mask"], ["y"])],
    "logarithms of negative numbers": [node("Log", ["x"], ["y"])],
    "finite for positive numbers only": [
        node("ReduceMin", ["x"], ["least"], axes=[1]),
        node("Sub", ["least", "bound"], ["rest"]),
        node("Sqrt", ["rest"], ["root"]),
        node("Mul", ["x", "root"], ["y"]),
    ],
    "rounding that differs by batch size": [
        *ROWS,
        node("MatMul", ["x", "weights"], ["product"]),
        node("Mul", ["product", "hundred"], ["large"]),
        node("Mul", ["rows", "hundredth"], ["error"]),
        node("Add", ["large", "error"], ["inexact"]),
        node("Round", ["inexact"], ["y"]),
    ],
    "rounding of sums that differs by batch size": [
        *ROWS,
        node("Mul", ["rows", "small"], ["error"]),
        node("MatMul", ["x", "weights"], ["product"]),
        node("Add", ["product", "error"], ["y"]),
    ],
}


@pytest.mark.parametrize("nodes", INDEPENDENT.values(), ids=INDEPENDENT)
def test_rows_that_do_not_change_each_other_are_batched(tmp_path, nodes):
    assert load(tmp_path, nodes).signature.batched


DEPENDENT = {
    "beside -inf and NaN": [
        node("CumSum", ["x", "axis"], ["sums"]),
        node("Add", ["sums", "mask"], ["y"]),
    ],
    "in NaN alone": [
        node("ReduceMean", ["x"], ["mean"], axes=[0], keepdims=1),
        node("Log", ["mean"], ["log"]),
        node("Mul", ["log", "zero"], ["nothing"]),
        node("Add", ["x", "nothing"], ["y"]),
    ],
    "small beside large values": [
        node("ReduceMean", ["x"], ["mean"], axes=[0], keepdims=1),
        node("Mul", ["mean", "small"], ["part"]),
        node("Add", ["x", "part"], ["y"]),
    ],
    "in the scale of a quantisation": [
        node("DynamicQuantizeLinear", ["x"], ["q", "scale", "point"]),
        node("DequantizeLinear", ["q", "scale", "point"], ["y"]),
    ],
    "in the number of rows": [*ROWS, node("Div", ["x", "rows"], ["y"])],
    "in the number of rows, in one value of many": [
        *ROWS,
        node("Mul", ["rows", "one of many"], ["counts"]),
        node("Concat", ["x"] * 4, ["wide"], axis=1),
        node("Add", ["wide", "counts"], ["y"]),
    ],
    "if any value is above what is usual": [
        node("ReduceMax", ["x"], ["most"], keepdims=0),
        node("Max", ["most", "high"], ["divisor"]),
        node("Div", ["x", "divisor"], ["y"]),
    ],
    "if any value is above what is small": [
        node("ReduceMax", ["x"], ["most"], keepdims=0),
        node("Greater", ["most", "low"], ["is above"]),
        node("Div", ["x", "hundred"], ["divided"]),
        node("Where", ["is above", "divided", "x"], ["y"]),
    ],
    "in the place in the batch": [
        node("Sub", ["x", "x"], ["zeros"]),
        node("Exp", ["zeros"], ["ones"]),
        node("CumSum", ["ones", "axis"], ["place"]),
        node("Add", ["x", "place"], ["y"]),
    ],
    "reversed": [
        node("Shape", ["x"], ["count"], end=1),
        node("Expand", ["count", "four"], ["lengths"]),
        node("ReverseSequence", ["x", "lengths"], ["y"], batch_axis=1, time_axis=0),
    ],
}


@pytest.mark.parametrize("nodes", DEPENDENT.values(), ids=DEPENDENT)
def test_rows_that_change_each_other_are_not_batched(tmp_path, nodes, caplog):
    with caplog.at_level(logging.INFO):
        assert not load(tmp_path, nodes).signature.batched
    assert "m/1: batching disabled: outputs of synthetic inputs depend on other rows" in caplog.text


@pytest.mark.parametrize(
    ("kind", "nodes", "batched"),
    [
        (INT64, [node("Identity", ["x"], ["y"])], True),
        (BOOL, [node("Not", ["x"], ["y"])], True),
        (BFLOAT16, [*BFLOATS, node("Cast", ["floats"], ["y"], to=BFLOAT16)], True),
        (
            INT64,
            [node("ReduceMax", ["x"], ["most"], axes=[0]), node("Sub", ["most", "x"], ["y"])],
            False,
        ),
        (
            INT64,
            [node("ReduceMax", ["x"], ["most"], keepdims=0), node("Add", ["most", "x"], ["y"])],
            False,
        ),
        (
            BFLOAT16,
            [
                *BFLOATS,
                node("CumSum", ["floats", "axis"], ["sums"]),
                node("Cast", ["sums"], ["y"], to=BFLOAT16),
            ],
            False,
        ),
    ],
)
def test_rows_of_other_types_are_compared(tmp_path, kind, nodes, batched):
    assert load(tmp_path, nodes, kind).signature.batched is batched


def test_what_proves_nothing_is_said(tmp_path, caplog):
    with caplog.at_level(logging.INFO):
        nodes = [node("Div", ["x", "zero"], ["y"])]
        assert not load(tmp_path, nodes).signature.batched
    assert "output 'y' of synthetic inputs has no finite value" in caplog.text


def test_random_outputs_are_not_said_to_depend_on_rows(tmp_path, caplog):
    nodes = [node("RandomNormalLike", ["x"], ["noise"]), node("Add", ["x", "noise"], ["y"])]
    with caplog.at_level(logging.INFO):
        assert not load(tmp_path, nodes).signature.batched
    assert "output 'y' of the same inputs differs from run to run" in caplog.text
    assert "depend on other rows" not in caplog.text


def test_output_of_other_rows_is_not_batched(tmp_path, caplog):
    with caplog.at_level(logging.INFO):
        nodes = [node("ReduceMean", ["x"], ["y"], axes=[0], keepdims=1)]
        assert not load(tmp_path, nodes).signature.batched
    assert "output 'y' has shape [1, 4] for 4 rows of inputs" in caplog.text
