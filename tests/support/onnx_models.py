"""Saves small ONNX models for tests, each for one thing that a server must handle."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from neurona_protos import metadata as model_metadata
from neurona_protos.prediction_pb2 import ModelMetadata, Task, ValueDescription

Size = int | str
LABELS = ("ant", "bee", "cat")
WEIGHTS = np.arange(12, dtype=np.float32).reshape(4, 3) / 10 - 0.5


def save(
    path: Path,
    nodes: Sequence[onnx.NodeProto],
    inputs: dict[str, tuple[int, Sequence[Size]]],
    outputs: dict[str, tuple[int, Sequence[Size]]],
    constants: dict[str, np.ndarray[Any, Any]] | None = None,
    metadata: ModelMetadata | None = None,
) -> Path:
    """Save a graph as an ONNX file, and return its path.

    Args:
        path: The file; its folders are made.
        nodes: The nodes of the graph.
        inputs: Element type and shape of each input.
        outputs: Element type and shape of each output.
        constants: Arrays that nodes use by name.
        metadata: Neurona's metadata of the model, if it is to have any.
    """
    graph = helper.make_graph(
        list(nodes),
        "test",
        [helper.make_tensor_value_info(n, t, list(s)) for n, (t, s) in inputs.items()],
        [helper.make_tensor_value_info(n, t, list(s)) for n, (t, s) in outputs.items()],
        [numpy_helper.from_array(array, name) for name, array in (constants or {}).items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    if metadata is not None:
        helper.set_model_props(model, {model_metadata.KEY: model_metadata.to_json(metadata)})
    path.parent.mkdir(parents=True, exist_ok=True)
    onnx.save(model, path)
    return path


def save_classifier(path: Path, offset: float = 0.0) -> Path:
    """Save a classifier: probabilities = softmax((x + offset) @ WEIGHTS), x of shape [batch, 4]."""
    return save(
        path,
        [
            helper.make_node("Add", ["x", "offset"], ["moved"]),
            helper.make_node("MatMul", ["moved", "weights"], ["logits"]),
            helper.make_node("Softmax", ["logits"], ["probabilities"], axis=1),
        ],
        {"x": (TensorProto.FLOAT, ["batch", 4])},
        {"probabilities": (TensorProto.FLOAT, ["batch", 3])},
        {"weights": WEIGHTS, "offset": np.float32(offset).reshape(1)},
        ModelMetadata(task=Task.TASK_CLASSIFICATION, answer="probabilities", labels=LABELS),
    )


def save_regressor(path: Path) -> Path:
    """Save a regressor: value = the sum of each row, whose number of steps is free."""
    return save(
        path,
        [helper.make_node("ReduceSum", ["series", "axes"], ["value"], keepdims=1)],
        {"series": (TensorProto.FLOAT, ["batch", "time"])},
        {"value": (TensorProto.FLOAT, ["batch", 1])},
        {"axes": np.array([1])},
        ModelMetadata(
            task=Task.TASK_REGRESSION,
            answer="value",
            values=[ValueDescription(name="total", unit="kg")],
        ),
    )


def save_picker(path: Path) -> Path:
    """Save a lookup: picked = table[index] for each row; an index above 3 fails the whole run."""
    return save(
        path,
        [helper.make_node("Gather", ["table", "index"], ["picked"])],
        {"index": (TensorProto.INT64, ["batch"])},
        {"picked": (TensorProto.FLOAT, ["batch"])},
        {"table": np.array([0, 10, 20, 30], np.float32)},
    )


def save_fixed(path: Path) -> Path:
    """Save twice = 2 * x with fixed shapes, which cannot be batched."""
    return save(
        path,
        [helper.make_node("Add", ["x", "x"], ["twice"])],
        {"x": (TensorProto.FLOAT, [1, 2])},
        {"twice": (TensorProto.FLOAT, [1, 2])},
    )


def save_running_sum(path: Path) -> Path:
    """Save a cumulative sum over axis 0, which is time: its rows are not independent."""
    return save(
        path,
        [helper.make_node("CumSum", ["x", "axis"], ["sums"])],
        {"x": (TensorProto.FLOAT, ["time", 2])},
        {"sums": (TensorProto.FLOAT, ["time", 2])},
        {"axis": np.array(0)},
    )


ECHOED = {
    "BOOL": TensorProto.BOOL,
    "UINT8": TensorProto.UINT8,
    "UINT16": TensorProto.UINT16,
    "UINT32": TensorProto.UINT32,
    "UINT64": TensorProto.UINT64,
    "INT8": TensorProto.INT8,
    "INT16": TensorProto.INT16,
    "INT32": TensorProto.INT32,
    "INT64": TensorProto.INT64,
    "FP16": TensorProto.FLOAT16,
    "FP32": TensorProto.FLOAT,
    "FP64": TensorProto.DOUBLE,
    "BYTES": TensorProto.STRING,
    "BF16": TensorProto.BFLOAT16,
}


def save_echo(path: Path, kind: str) -> Path:
    """Save echo = x of shape [batch, n]; `kind` is a datatype of the Open Inference Protocol."""
    return save(
        path,
        [helper.make_node("Identity", ["x"], ["echo"])],
        {"x": (ECHOED[kind], ["batch", "n"])},
        {"echo": (ECHOED[kind], ["batch", "n"])},
    )


def save_echoes(root: Path) -> Path:
    """Save a model echo_<datatype> for each datatype, and return the repository."""
    for kind in ECHOED:
        save_echo(root / f"echo_{kind}" / "1" / "model.onnx", kind)
    return root


def save_upper(path: Path) -> Path:
    """Save y = x in capital letters, by an operator that takes UTF-8 only."""
    return save(
        path,
        [
            helper.make_node(
                "StringNormalizer", ["x"], ["y"], case_change_action="UPPER", locale="C"
            )
        ],
        {"x": (TensorProto.STRING, ["n"])},
        {"y": (TensorProto.STRING, ["n"])},
    )


def save_sum(path: Path) -> Path:
    """Save sum = a + b of shape [batch, 2]."""
    shape = (TensorProto.FLOAT, ["batch", 2])
    nodes = [helper.make_node("Add", ["a", "b"], ["sum"])]
    return save(path, nodes, {"a": shape, "b": shape}, {"sum": shape})


def save_adjustable(path: Path) -> Path:
    """Save y = x * scale with an optional input scale, by default 2."""
    return save(
        path,
        [helper.make_node("Mul", ["x", "scale"], ["y"])],
        {"x": (TensorProto.FLOAT, ["batch", 2]), "scale": (TensorProto.FLOAT, [1])},
        {"y": (TensorProto.FLOAT, ["batch", 2])},
        {"scale": np.full(1, 2, np.float32)},
    )


def save_slow(path: Path, products: int = 30) -> Path:
    """Save y = x for one number, with many products of a large matrix: a run takes a good part of a
    second."""
    nodes = [helper.make_node("Mul", ["table", "x"], ["product0"])]
    nodes += [
        helper.make_node("MatMul", [f"product{i}", "table"], [f"product{i + 1}"])
        for i in range(products)
    ]
    nodes.append(helper.make_node("ReduceMax", [f"product{products}"], ["y"], keepdims=0))
    return save(
        path,
        nodes,
        {"x": (TensorProto.FLOAT, [1])},
        {"y": (TensorProto.FLOAT, [])},
        {"table": np.eye(800, dtype=np.float32)},
    )


def save_wide(path: Path) -> Path:
    """Save y = the mean of exp(x) for each row of 1000 numbers, as 100 copies of each: a run needs
    800 kB a row."""
    return save(
        path,
        [
            helper.make_node("Concat", ["x"] * 100, ["copies"], axis=1),
            helper.make_node("Exp", ["copies"], ["powers"]),
            helper.make_node("ReduceMean", ["powers"], ["y"], axes=[1], keepdims=1),
        ],
        {"x": (TensorProto.FLOAT, ["batch", 1000])},
        {"y": (TensorProto.FLOAT, ["batch", 1])},
    )


def save_loop(path: Path) -> Path:
    """Save y = x + n, as a loop that adds 1 to all of x `n` times: its time depends on a value."""
    int64, boolean, kind = TensorProto.INT64, TensorProto.BOOL, TensorProto.FLOAT
    body = helper.make_graph(
        [
            helper.make_node("Identity", ["condition"], ["goes_on"]),
            helper.make_node("Add", ["sum", "one"], ["next_sum"]),
        ],
        "body",
        [
            helper.make_tensor_value_info("step", int64, []),
            helper.make_tensor_value_info("condition", boolean, []),
            helper.make_tensor_value_info("sum", kind, ["size"]),
        ],
        [
            helper.make_tensor_value_info("goes_on", boolean, []),
            helper.make_tensor_value_info("next_sum", kind, ["size"]),
        ],
    )
    return save(
        path,
        [
            helper.make_node("Squeeze", ["n"], ["steps"]),
            helper.make_node("Loop", ["steps", "true", "x"], ["y"], body=body),
        ],
        {"x": (kind, ["size"]), "n": (int64, [1])},
        {"y": (kind, ["size"])},
        {"true": np.array(True), "one": np.ones(1, np.float32)},
    )


def save_quick_at_32(path: Path) -> Path:
    """Save y = x that is fast for multiples of 32 rows only, like a model on some accelerators."""
    slow = [helper.make_node("Mul", ["table", "first"], ["product0"])]
    slow += [
        helper.make_node("MatMul", [f"product{i}", "table"], [f"product{i + 1}"]) for i in range(3)
    ]
    slow += [
        helper.make_node("ReduceMax", ["product3"], ["largest"], keepdims=0),
        helper.make_node("Mul", ["largest", "nothing"], ["added"]),
        helper.make_node("Add", ["x", "added"], ["slow_y"]),
    ]
    quick = [helper.make_node("Identity", ["x"], ["quick_y"])]
    kind = TensorProto.FLOAT

    def branch(nodes: Sequence[onnx.NodeProto], name: str) -> onnx.GraphProto:
        output = helper.make_tensor_value_info(name, kind, ["batch", 2])
        return helper.make_graph(list(nodes), name, [], [output])

    return save(
        path,
        [
            helper.make_node("Shape", ["x"], ["rows"], end=1),
            helper.make_node("Mod", ["rows", "multiple"], ["remainder"]),
            helper.make_node("Equal", ["remainder", "zero"], ["is_multiple"]),
            helper.make_node("ReduceMax", ["x"], ["first"], keepdims=0),
            helper.make_node(
                *("If", ["is_multiple"], ["y"]),
                then_branch=branch(quick, "quick_y"),
                else_branch=branch(slow, "slow_y"),
            ),
        ],
        {"x": (kind, ["batch", 2])},
        {"y": (kind, ["batch", 2])},
        {
            "multiple": np.array([32]),
            "zero": np.array([0]),
            "nothing": np.zeros((), np.float32),
            "table": np.eye(400, dtype=np.float32),
        },
    )


def save_large(path: Path, megabytes: int) -> Path:
    """Save y = x @ weights with a matrix of this size."""
    side = int((megabytes * 1e6 / 4) ** 0.5)
    return save(
        path,
        [helper.make_node("MatMul", ["x", "weights"], ["y"])],
        {"x": (TensorProto.FLOAT, ["batch", side])},
        {"y": (TensorProto.FLOAT, ["batch", side])},
        {"weights": np.random.default_rng(0).random((side, side), np.float32)},
    )


def save_endless_loop(path: Path) -> Path:
    """Save a model whose runs never end: y = x + 0.5 + 0.5 + ..., x of shape [batch]."""
    body = helper.make_graph(
        [
            helper.make_node("Identity", ["go_on"], ["go_on_again"]),
            helper.make_node("Add", ["sum", "half"], ["next_sum"]),
        ],
        "body",
        [
            helper.make_tensor_value_info("step", TensorProto.INT64, []),
            helper.make_tensor_value_info("go_on", TensorProto.BOOL, []),
            helper.make_tensor_value_info("sum", TensorProto.FLOAT, ["n"]),
        ],
        [
            helper.make_tensor_value_info("go_on_again", TensorProto.BOOL, []),
            helper.make_tensor_value_info("next_sum", TensorProto.FLOAT, ["n"]),
        ],
        [numpy_helper.from_array(np.array([0.5], np.float32), "half")],
    )
    return save(
        path,
        [helper.make_node("Loop", ["", "true", "x"], ["y"], body=body)],
        {"x": (TensorProto.FLOAT, ["batch"])},
        {"y": (TensorProto.FLOAT, ["batch"])},
        {"true": np.array(True)},
    )


def save_crash(path: Path, *, at_load: bool) -> Path:
    """Save a model that ends its process by SIGFPE: -2**31 / -1 overflows int32.

    ONNX Runtime computes constants when it loads a graph. Else y = (x - 2**31) / -1, x of shape
    [batch], crashes at x = 0.
    """
    nodes = [
        helper.make_node("Div", ["least", "minus_one"], ["quotient"]),
        helper.make_node("Add", ["x", "quotient"], ["y"]),
    ]
    if not at_load:
        nodes = [
            helper.make_node("Add", ["x", "least"], ["sum"]),
            helper.make_node("Div", ["sum", "minus_one"], ["y"]),
        ]
    return save(
        path,
        nodes,
        {"x": (TensorProto.INT32, ["batch"])},
        {"y": (TensorProto.INT32, ["batch"])},
        {"least": np.array([-(2**31)], np.int32), "minus_one": np.array([-1], np.int32)},
    )
