"""Saves small recurrent ONNX models for tests, with random weights.

They are made of ONNX's own operators RNN, GRU and LSTM, in the forms that exporters write: several
layers, one or two directions, the answer of the last step or of each step, read in several ways.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

FEATURES, HIDDEN, CLASSES, TOKENS = 3, 4, 2, 11

Array = NDArray[Any]
Operator = Literal["RNN", "GRU", "LSTM"]
Answer = Literal["last", "steps", "both"]
ReadOut = Literal["final", "gather", "shape", "slice"]

_GATES = {"RNN": 1, "GRU": 3, "LSTM": 4}


@dataclass(frozen=True)
class RecurrentModel:
    """What a model is made of.

    Attributes:
        operator: Of its layers.
        layers: How many, each reads the states of the one before.
        direction: Of all layers: forward, reverse or bidirectional.
        answer: "last": values [batch, CLASSES] after the last step; "steps": of each step, [batch,
            time, CLASSES]; "both": the last ones, then those of each step.
        read_out: How the last step is read: "final" Y_h, "gather" index -1 of Y, "shape" the index
            that is the number of steps - 1, "slice" from -1 on.
        lengths: Whether it has an input "lengths" int32 [batch], which its layers read.
        tokens: Whether its input is "tokens" int64 [batch, time], below TOKENS, instead of "steps"
            float [batch, time, FEATURES].
        initial: The state before the first step: "" none, "zeros" computed from the number of rows,
            "learned" constants, "input" the inputs "h0" and, for an LSTM, "c0" [batch, HIDDEN] of
            the first layer.
        pooling: An operator such as ReduceMean over the steps before the answer, which looks at all
            of them; "" for none. The answer is "last" then.
        time: The size of the time axis: free with a name, or fixed.
        opset: Version of the operators.
        dtype: Of all numbers.
        seed: Of the weights.
    """

    operator: Operator = "LSTM"
    layers: int = 1
    direction: str = "forward"
    answer: Answer = "last"
    read_out: ReadOut = "final"
    lengths: bool = False
    tokens: bool = False
    initial: Literal["", "zeros", "learned", "input"] = ""
    pooling: str = ""
    time: str | int = "time"
    opset: int = 17
    dtype: type[np.floating[Any]] = np.float32
    seed: int = 0

    @property
    def directions(self) -> int:
        """Directions of each layer."""
        return 2 if self.direction == "bidirectional" else 1

    @property
    def state_size(self) -> int:
        """Numbers of the state of a row, of all layers."""
        return self.layers * HIDDEN * (2 if self.operator == "LSTM" else 1)

    def make_inputs(self, rows: int, steps: int, seed: int = 0) -> dict[str, Array]:
        """Return random inputs; the lengths are all steps."""
        random = np.random.default_rng(seed)
        if self.tokens:
            arrays: dict[str, Array] = {"tokens": random.integers(0, TOKENS, (rows, steps))}
        else:
            arrays = {"steps": random.standard_normal((rows, steps, FEATURES)).astype(self.dtype)}
        if self.lengths:
            arrays["lengths"] = np.full(rows, steps, np.int32)
        if self.initial == "input":
            for name in ("h0", "c0") if self.operator == "LSTM" else ("h0",):
                arrays[name] = random.standard_normal((rows, HIDDEN)).astype(self.dtype)
        return arrays


@dataclass
class _Builder:
    model: RecurrentModel
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    constants: dict[str, Array] = field(default_factory=dict)
    count: int = 0

    def __post_init__(self) -> None:
        self.random = np.random.default_rng(self.model.seed)

    def add(self, operator: str, inputs: Sequence[str], **attributes: Any) -> str:
        """Add a node with one output, and return the name of it."""
        self.count += 1
        output = f"{operator.lower()}_{self.count}"
        self.nodes.append(helper.make_node(operator, inputs, [output], **attributes))
        return output

    def axes(self, operator: str, tensor: str, axes: Sequence[int]) -> str:
        """Add Squeeze or Unsqueeze, whose axes are an attribute before version 13."""
        if self.model.opset < 13:
            return self.add(operator, [tensor], axes=[*axes])
        return self.add(operator, [tensor, self.constant(np.array(axes, np.int64))])

    def constant(self, array: Array) -> str:
        self.count += 1
        name = f"constant_{self.count}"
        self.constants[name] = array
        return name

    def weights(self, *shape: int) -> str:
        bound = 1.4 / HIDDEN**0.5  # so that rounding errors do not grow with the steps
        values = self.random.uniform(-bound, bound, shape)
        return self.constant(values.astype(self.model.dtype))


def save_recurrent(path: Path, model: RecurrentModel | None = None) -> Path:
    """Save a model as an ONNX file, and return its path; its folders are made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    onnx.save(make_recurrent(model or RecurrentModel()), path)
    return path


def make_recurrent(model: RecurrentModel) -> onnx.ModelProto:
    """Return the model as ONNX has it."""
    builder = _Builder(model)
    element = helper.np_dtype_to_tensor_dtype(np.dtype(model.dtype))
    inputs: dict[str, tuple[int, list[str | int]]] = {}
    size = FEATURES
    if model.tokens:
        inputs["tokens"] = (TensorProto.INT64, ["batch", model.time])
        size = HIDDEN
        steps = builder.add("Gather", [builder.weights(TOKENS, HIDDEN), "tokens"], axis=0)
    else:
        inputs["steps"] = (element, ["batch", model.time, FEATURES])
        steps = "steps"
    if model.lengths:
        inputs["lengths"] = (TensorProto.INT32, ["batch"])
    steps = builder.add("Transpose", [steps], perm=[1, 0, 2])  # ONNX has time first
    every = last = ""
    for layer in range(model.layers):
        initial = _initial_states(builder, steps, layer)
        if model.initial == "input" and layer == 0:
            inputs |= {name: (element, ["batch", HIDDEN]) for name in ("h0", "c0")[: len(initial)]}
        every, last = _add_layer(builder, steps, size, layer, initial)
        size = model.directions * HIDDEN
        merged = builder.add("Transpose", [every], perm=[0, 2, 1, 3])
        steps = builder.add("Reshape", [merged, builder.constant(np.array([0, 0, size]))])
    read = _read_out(builder, steps, last, size)
    outputs: dict[str, list[str | int]] = {}
    if model.answer in ("last", "both"):
        outputs[_add_answer(builder, read, size, "last")] = ["batch", CLASSES]
    if model.answer in ("steps", "both"):
        rows_first = builder.add("Transpose", [steps], perm=[1, 0, 2])
        outputs[_add_answer(builder, rows_first, size, "every")] = ["batch", model.time, CLASSES]
    graph = helper.make_graph(
        builder.nodes,
        "recurrent",
        [helper.make_tensor_value_info(n, t, s) for n, (t, s) in inputs.items()],
        [helper.make_tensor_value_info(n, element, s) for n, s in outputs.items()],
        [numpy_helper.from_array(array, name) for name, array in builder.constants.items()],
    )
    opset = helper.make_opsetid("", model.opset)
    return helper.make_model(graph, opset_imports=[opset], ir_version=8)


def _initial_states(builder: _Builder, steps: str, layer: int) -> list[str]:
    model = builder.model
    names = ["h0", "c0"] if model.operator == "LSTM" else ["h0"]
    if model.initial == "input":
        return [builder.axes("Unsqueeze", name, [0]) for name in names] if layer == 0 else []
    if not model.initial:
        return []
    shape = builder.add("Shape", [steps])
    rows = builder.add("Gather", [shape, builder.constant(np.array([1]))], axis=0)
    first, last = (builder.constant(np.array([size])) for size in (model.directions, HIDDEN))
    whole = builder.add("Concat", [first, rows, last], axis=0)
    if model.initial == "zeros":
        zero = numpy_helper.from_array(np.zeros(1, model.dtype))
        return [builder.add("ConstantOfShape", [whole], value=zero) for _ in names]
    learned = [builder.weights(model.directions, 1, HIDDEN) for _ in names]
    return [builder.add("Expand", [values, whole]) for values in learned]


def _add_layer(
    builder: _Builder, steps: str, size: int, layer: int, initial: Sequence[str]
) -> tuple[str, str]:
    """Add a recurrent node, and return the names of Y and Y_h."""
    model = builder.model
    gates, directions = _GATES[model.operator], model.directions
    node_inputs = [
        steps,
        builder.weights(directions, gates * HIDDEN, size),
        builder.weights(directions, gates * HIDDEN, HIDDEN),
        builder.weights(directions, 2 * gates * HIDDEN),
    ]
    if model.lengths or initial:
        node_inputs += ["lengths" if model.lengths else "", *initial]
    outputs = [f"every_{layer}", f"final_{layer}"]
    builder.nodes.append(
        helper.make_node(
            model.operator,
            node_inputs,
            outputs,
            name=f"layer_{layer}",
            hidden_size=HIDDEN,
            direction=model.direction,
        )
    )
    return outputs[0], outputs[1]


def _read_out(builder: _Builder, steps: str, last: str, size: int) -> str:
    """Return what the answer is made of: [batch, size]."""
    model = builder.model
    if model.pooling:
        return builder.add(model.pooling, [steps], axes=[0], keepdims=0)
    if model.read_out == "final":
        rows_first = builder.add("Transpose", [last], perm=[1, 0, 2])
        return builder.add("Reshape", [rows_first, builder.constant(np.array([0, size]))])
    if model.read_out == "slice":
        if model.opset < 10:
            one = builder.add("Slice", [steps], starts=[-1], ends=[1 << 62], axes=[0])
        else:
            ends = [builder.constant(np.array([value])) for value in (-1, 1 << 62, 0)]
            one = builder.add("Slice", [steps, *ends])
        return builder.axes("Squeeze", one, [0])
    index = builder.constant(np.array(-1))
    if model.read_out == "shape":
        shape = builder.add("Shape", [steps])
        count = builder.add("Gather", [shape, builder.constant(np.array(0))], axis=0)
        index = builder.add("Sub", [count, builder.constant(np.array(1))])
    return builder.add("Gather", [steps, index], axis=0)


def _add_answer(builder: _Builder, tensor: str, size: int, name: str) -> str:
    product = builder.add("MatMul", [tensor, builder.weights(size, CLASSES)])
    builder.nodes.append(helper.make_node("Add", [product, builder.weights(CLASSES)], [name]))
    return name


def run_alone(
    session: Any, inputs: Mapping[str, Array], lengths: Sequence[int], time_axis: int = 1
) -> list[list[Array]]:
    """Return the outputs of each row that is run alone, without what is behind its length.

    Args:
        session: Of ONNX Runtime, with the file as it is.
        inputs: Of several rows; those with a time axis are cut.
        lengths: Of the rows.
        time_axis: Of the inputs that have more than one axis, but for states.
    """
    outputs = []
    for row, length in enumerate(lengths):
        alone = {}
        for name, array in inputs.items():
            one = array[row : row + 1]
            if name in ("steps", "tokens"):
                one = one.take(range(length), axis=time_axis)
            elif name == "lengths":
                one = np.minimum(one, length)
            alone[name] = one
        outputs.append(session.run(None, alone))
    return outputs
