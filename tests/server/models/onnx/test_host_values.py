from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from support import onnx_models

from neurona_server.models.onnx import host_values
from neurona_server.models.onnx.host_values import find_host_values

FLOAT, INT64 = TensorProto.FLOAT, TensorProto.INT64


def find(folder: Path, nodes: list[Any], **constants: Any) -> frozenset[str] | None:
    """Of a graph with x of floats, and n and m of integers."""
    path = onnx_models.save(
        folder / "model.onnx",
        [helper.make_node(*node[:3], **(node[3] if len(node) > 3 else {})) for node in nodes],
        {"x": (FLOAT, ["a", "b"]), "n": (INT64, ["c"]), "m": (INT64, ["d"])},
        {"y": (FLOAT, ["s"])},
        {name: np.array(value) for name, value in constants.items()},
    )
    return find_host_values(path)


@pytest.mark.parametrize(
    ("nodes", "names"),
    [
        ([("Reshape", ["x", "n"], ["y"])], {"n"}),
        ([("Abs", ["n"], ["i"]), ("Slice", ["x", "zero", "i"], ["y"])], {"n"}),
        ([("Add", ["n", "m"], ["i"]), ("Tile", ["x", "i"], ["y"])], {"n", "m"}),
        ([("LSTM", ["x", "w", "r", "", "n"], ["y"])], {"n"}),
        ([("ReduceMean", ["x", "m"], ["y"])], {"m"}),
        ([("Shape", ["x"], ["s"]), ("Reshape", ["x", "s"], ["y"])], set()),
        ([("Gather", ["x", "n"], ["y"])], set()),
        ([("Cast", ["n"], ["f"], {"to": FLOAT}), ("Add", ["x", "f"], ["y"])], set()),
        ([("Cast", ["x"], ["i"], {"to": INT64}), ("Expand", ["x", "i"], ["y"])], {"x"}),
        ([("Identity", ["x"], ["y"])], set()),
    ],
)
def test_values_are_followed_to_what_the_host_reads(
    tmp_path: Path, nodes: list[Any], names: set[str]
) -> None:
    assert find(tmp_path, nodes, zero=[0], w=[0.0], r=[0.0]) == names


@pytest.mark.parametrize(
    "node",
    [
        ("NonZero", ["x"], ["y"]),
        ("RandomNormalLike", ["x"], ["y"]),
        ("FusedMatMul", ["x", "x"], ["y"], {"domain": "com.microsoft"}),
        ("Anything", ["x"], ["y"], {"domain": "example"}),
    ],
)
def test_what_is_not_captured(tmp_path: Path, node: Any) -> None:
    assert find(tmp_path, [node]) is None


def test_control_flow_functions_and_large_graphs_are_not_captured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert find_host_values(onnx_models.save_loop(tmp_path / "loop.onnx")) is None
    path = onnx_models.save_classifier(tmp_path / "classifier.onnx")
    assert find_host_values(path) == frozenset()
    model = onnx.load(path)
    opset = [helper.make_opsetid("", 17)]
    node = helper.make_node("Identity", ["a"], ["b"])
    model.functions.append(helper.make_function("example", "Same", ["a"], ["b"], [node], opset))
    onnx.save(model, tmp_path / "function.onnx")
    assert find_host_values(tmp_path / "function.onnx") is None
    monkeypatch.setattr(host_values, "MAX_NODES", 2)
    assert find_host_values(path) is None


def test_nodes_that_are_not_in_order_are_not_followed(tmp_path: Path) -> None:
    """ONNX Runtime takes them: it sorts them."""
    nodes = [
        helper.make_node("Reshape", ["x", "i"], ["y"]),
        helper.make_node("Abs", ["n"], ["i"]),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [
            helper.make_tensor_value_info("x", FLOAT, ["a"]),
            helper.make_tensor_value_info("n", INT64, ["c"]),
        ],
        [helper.make_tensor_value_info("y", FLOAT, None)],
    )
    path = tmp_path / "model.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)]), path)
    assert find_host_values(path) is None
