import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from support import onnx_models

from neurona_server.models.onnx import value_dependence
from neurona_server.models.onnx.value_dependence import time_depends_on_values

FLOAT, INT64 = TensorProto.FLOAT, TensorProto.INT64


@pytest.fixture
def depends(tmp_path):
    """Whether a graph of these nodes depends on values: x of floats, n and m of integers."""

    def depends(*nodes, inputs=("x", "n"), **constants):
        kinds = {"x": (FLOAT, ["a", "b"]), "n": (INT64, [1]), "m": (INT64, ["c"])}
        path = onnx_models.save(
            tmp_path / "model.onnx",
            [helper.make_node(*node) for node in nodes],
            {name: kinds[name] for name in inputs},
            {"y": (FLOAT, ["s"])},
            {name: np.array(value) for name, value in constants.items()},
        )
        return time_depends_on_values(path)

    return depends


@pytest.mark.parametrize(
    "nodes",
    [
        [("Squeeze", ["n"], ["end"]), ("Range", ["zero", "end", "one"], ["y"])],
        [("Expand", ["x", "n"], ["y"])],
        [("Tile", ["x", "m"], ["y"])],
        [("Abs", ["m"], ["size"]), ("ConstantOfShape", ["size"], ["y"])],
        [("Pad", ["x", "m"], ["y"])],
        [("Resize", ["x", "", "", "m"], ["y"])],
        [
            ("NonZero", ["x"], ["places"]),
            ("Shape", ["places"], ["s"]),
            ("Expand", ["x", "s"], ["y"]),
        ],
        [
            ("Cast", ["x"], ["flag"]),
            ("Concat", ["n", "m"], ["s"]),
            ("Expand", ["flag", "s"], ["y"]),
        ],
    ],
)
def test_size_that_comes_from_values_is_found(depends, nodes):
    assert depends(*nodes, inputs=("x", "n", "m"), zero=0, one=1)


@pytest.mark.parametrize(
    "nodes",
    [
        [
            ("Shape", ["x"], ["s"]),
            ("Expand", ["one", "s"], ["ones"]),
            ("Add", ["x", "ones"], ["y"]),
        ],
        [
            ("Shape", ["x"], ["s"]),
            ("Gather", ["s", "zero"], ["e"]),
            ("Range", ["zero", "e", "one"], ["y"]),
        ],
        [("Gather", ["x", "n"], ["y"])],
        [("Tile", ["x", "twice"], ["y"])],
        [("NonZero", ["x"], ["y"])],
        [("Relu", ["x"], ["r"]), ("MatMul", ["r", "x"], ["y"])],
    ],
)
def test_size_that_comes_from_shapes_and_constants_is_not(depends, nodes):
    assert not depends(*nodes, zero=0, one=1, twice=[2, 2])


def test_loops_and_branches(tmp_path):
    assert time_depends_on_values(onnx_models.save_loop(tmp_path / "loop.onnx"))
    assert not time_depends_on_values(onnx_models.save_quick_at_32(tmp_path / "branch.onnx"))
    assert not time_depends_on_values(onnx_models.save_classifier(tmp_path / "plain.onnx"))


def loop(path, body_nodes, steps, condition="true"):
    """Save a loop of `steps` whose body sets `goes_on` and `next` from `i`, `c` and `last`."""
    body = helper.make_graph(
        [helper.make_node(*node) for node in body_nodes],
        "body",
        [
            helper.make_tensor_value_info("i", INT64, []),
            helper.make_tensor_value_info("c", TensorProto.BOOL, []),
            helper.make_tensor_value_info("last", FLOAT, None),
        ],
        [
            helper.make_tensor_value_info("goes_on", TensorProto.BOOL, []),
            helper.make_tensor_value_info("next", FLOAT, None),
        ],
    )
    node = helper.make_node("Loop", [steps, condition, "x"], ["y"], body=body)
    return onnx_models.save(
        path,
        [node],
        {"x": (FLOAT, ["a"])},
        {"y": (FLOAT, ["s"])},
        {"true": np.array(True), "ten": np.array(10), "limit": np.array(0.5, np.float32)},
    )


def test_loop_that_goes_on_while_a_value_says_so_is_found(tmp_path):
    counted = [("Identity", ["c"], ["goes_on"]), ("Abs", ["last"], ["next"])]
    path = tmp_path / "model.onnx"
    assert not time_depends_on_values(loop(path, counted, "ten"))
    while_small = [
        ("Abs", ["last"], ["next"]),
        ("ReduceMax", ["next"], ["largest"]),
        ("Less", ["largest", "limit"], ["goes_on"]),
    ]
    assert time_depends_on_values(loop(path, while_small, ""))
    first = [("Less", ["i", "ten"], ["goes_on"]), ("Abs", ["last"], ["next"])]
    assert not time_depends_on_values(loop(path, first, ""))


def test_function_of_the_model_is_followed(tmp_path):
    def save(size):
        body = [helper.make_node("Expand", ["data", "size"], ["result"])]
        opset = helper.make_opsetid("", 17)
        function = helper.make_function("own", "grow", ["data", "size"], ["result"], body, [opset])
        nodes = [
            helper.make_node("Shape", ["x"], ["shape"]),
            helper.make_node("grow", ["x", size], ["y"], domain="own"),
        ]
        graph = helper.make_graph(
            nodes,
            "test",
            [
                helper.make_tensor_value_info("x", FLOAT, ["a"]),
                helper.make_tensor_value_info("n", INT64, [1]),
            ],
            [helper.make_tensor_value_info("y", FLOAT, None)],
        )
        model = helper.make_model(
            graph, functions=[function], opset_imports=[opset, helper.make_opsetid("own", 1)]
        )
        onnx.save(model, tmp_path / "model.onnx")
        return tmp_path / "model.onnx"

    assert time_depends_on_values(save("n"))
    assert not time_depends_on_values(save("shape"))


def test_large_graph_is_not_followed_to_its_end(depends, monkeypatch):
    monkeypatch.setattr(value_dependence, "MAX_NODES", 1)
    assert not depends(("Abs", ["n"], ["size"]), ("Expand", ["x", "size"], ["y"]))
