"""Which nodes beside recurrent ones are known to handle each step by itself."""

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from neurona_server.sequences.operators import find_operator_across_steps
from neurona_server.sequences.tensor_axes import TRACED_SIZES, TensorAxes, TracedRun

CONSTANTS = {
    "matrix": np.ones((4, 4), np.float32),
    "vector": np.ones(4, np.float32),
    "minus_one": np.array([-1]),
    "zero": np.array([0]),
    "one": np.array([1]),
    "two": np.array([2]),
    "merged": np.array([-1, 4]),
    "flat": np.array([0, -1]),
    "axis_1": np.array(1),
    "axis_2": np.array(2),
}


def find_operator(operator, inputs=("x",), opset=17, **attributes):
    """Return what is found for a node that reads x of shape [rows, time, 4]."""
    node = helper.make_node(operator, inputs, ["y"], **attributes)
    graph = helper.make_graph(
        [node],
        "test",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["rows", "time", 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(array, name) for name, array in CONSTANTS.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    runs = []
    for rows, steps in TRACED_SIZES:
        x = np.random.default_rng(0).random((rows, steps, 4), np.float32)
        (y,) = ReferenceEvaluator(model).run(None, {"x": x})
        runs.append(TracedRun(rows, steps, {**CONSTANTS, "x": x, "y": y}))
    found, masked = find_operator_across_steps(model, TensorAxes(runs), opset, ())
    assert masked == ""
    return found


@pytest.mark.parametrize(
    "call",
    [
        lambda: find_operator("Relu"),
        lambda: find_operator("Add", ["x", "vector"]),
        lambda: find_operator("Mul", ["x", "x"]),
        lambda: find_operator("MatMul", ["x", "matrix"]),
        lambda: find_operator("Transpose", perm=[1, 0, 2]),
        lambda: find_operator("Reshape", ["x", "merged"]),
        lambda: find_operator("Softmax", axis=2),
        lambda: find_operator("Softmax"),
        lambda: find_operator("Softmax", opset=11, axis=2),
        lambda: find_operator("LogSoftmax", axis=-1),
        lambda: find_operator("ReduceSum", ["x", "two"]),
        lambda: find_operator("ReduceMean", axes=[-1]),
        lambda: find_operator("ArgMax", axis=2),
        lambda: find_operator("Concat", ["x", "x"], axis=2),
        lambda: find_operator("LayerNormalization", ["x", "vector", "vector"], axis=-1),
        lambda: find_operator("Slice", ["x", "zero", "two", "two"]),
        lambda: find_operator("Gather", ["x", "one"], axis=2),
        lambda: find_operator("Gather", ["x", "zero"], axis=1),
        lambda: find_operator("CumSum", ["x", "axis_2"]),
        lambda: find_operator("Shape"),
    ],
)
def test_nodes_that_handle_each_step_by_itself(call):
    assert call() == ""


@pytest.mark.parametrize(
    ("call", "operator"),
    [
        (lambda: find_operator("ReduceSum", ["x", "one"]), "ReduceSum"),
        (lambda: find_operator("ReduceSum", ["x"]), "ReduceSum"),
        (lambda: find_operator("ReduceMax", axes=[1], keepdims=1), "ReduceMax"),
        (lambda: find_operator("Softmax", axis=1), "Softmax"),
        (lambda: find_operator("Softmax", opset=11), "Softmax"),
        (lambda: find_operator("ArgMax", axis=1), "ArgMax"),
        (lambda: find_operator("CumSum", ["x", "axis_1"]), "CumSum"),
        (lambda: find_operator("Concat", ["x", "x"], axis=1), "Concat"),
        (lambda: find_operator("Slice", ["x", "one", "two", "one"]), "Slice"),
        (lambda: find_operator("Gather", ["x", "one"], axis=1), "Gather"),
        (lambda: find_operator("Gather", ["x", "minus_one"], axis=1), "Gather"),
        (lambda: find_operator("Flatten"), "Flatten"),
        (lambda: find_operator("NonZero"), "NonZero"),
        (lambda: find_operator("Reshape", ["x", "flat"]), "Reshape"),
    ],
)
def test_nodes_that_may_look_across_steps(call, operator):
    assert call() == operator
