"""Finds the inputs of a graph that hold lengths of sequences, and what they are the lengths of.

They are what recurrent nodes and ReverseSequence call sequence_lens. ONNX Runtime fails a whole
run in which one length is not from 0 to the number of steps. The meaning of the operators is that
of ONNX's docs/Operators.md, the field numbers are those of onnx.proto3.
"""

import logging
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from neurona_server.models.onnx.model_file import (
    ProtobufField,
    find_graph,
    open_model_file,
    read_fields,
)

log = logging.getLogger(__name__)

MAX_NODES = 10_000
"""Nodes of a graph in which lengths are looked for; more take seconds."""

_RECURRENT = ("RNN", "GRU", "LSTM", "com.microsoft.DynamicQuantizeLSTM")
_LENGTHS_INPUT = 4  # of a recurrent node
_WITH_INTEGERS = (*_RECURRENT, "ReverseSequence", "Transpose", "Gather")
"""Operators of which attributes are read."""

_STANDARD_DOMAINS = ("", "ai.onnx", "ai.onnx.ml")
_MAX_NAME_BYTES = 1024
_MAX_STEPS_BACK = 100

_SAME_AXES = {
    *("Identity", "Cast", "Add", "Sub", "Mul", "Div", "Pow", "Sqrt", "Log", "Exp", "Abs", "Neg"),
    *("Clip", "Max", "Min", "Relu", "LeakyRelu", "Tanh", "Sigmoid", "Softmax", "LogSoftmax"),
    *("Dropout", "LayerNormalization", "Where", "Erf", "Gelu", "LabelEncoder"),
}
"""Operators whose output has the steps along the same axis as their input that is no constant."""

_SAME_VALUES = {"Identity", "Cast", "Squeeze", "Unsqueeze", "Reshape", "Flatten"}
"""Operators that pass lengths on. Of what others compute, the input may have any value."""


@dataclass(frozen=True)
class LengthsInput:
    """An input that holds the lengths of sequences.

    Attributes:
        name: Of the input.
        sequences: The input with the sequences; "" if it was not found.
        axis: Its axis along which steps follow each other.
    """

    name: str
    sequences: str
    axis: int


@dataclass
class _Node:
    operator: str = ""
    inputs: list[str] = field(default_factory=list)
    outputs: list[str] = field(default_factory=list)
    numbers: dict[str, list[int]] = field(default_factory=dict)
    """Attributes that are integers."""


@dataclass(frozen=True)
class _Graph:
    inputs: Collection[str]
    """That callers must send."""

    constants: Mapping[str, Sequence[int]]
    """Shapes by name."""

    producers: Mapping[str, _Node]
    """By output."""

    def computed_inputs(self, node: _Node) -> list[int]:
        """Return the indices of a node's inputs that depend on those of the graph."""
        return [
            index
            for index, name in enumerate(node.inputs)
            if name in self.producers or name in self.inputs
        ]


def find_lengths_inputs(path: Path) -> Sequence[LengthsInput]:
    """Return the inputs of a valid model that its nodes read as lengths of sequences."""
    constants: dict[str, Sequence[int]] = {}
    inputs: set[str] = set()
    nodes: list[_Node] = []
    with open_model_file(path) as (file, size):
        graph_field, _ = find_graph(file, size)
        for part in read_fields(file, graph_field.start, graph_field.end):
            if part.number == 1:
                if len(nodes) == MAX_NODES:
                    log.debug("%s: too large to find lengths of sequences", path)
                    return ()
                nodes.append(_read_node(file, part))
            elif part.number == 5:
                name, shape = _read_integers(file, part, name=8, integers=(1,))
                constants[name] = shape
            elif part.number == 11:
                name, _ = _read_integers(file, part, name=1, integers=())
                inputs.add(name)
    producers = {output: node for node in nodes for output in node.outputs if output}
    graph = _Graph(inputs - constants.keys(), constants, producers)
    lengths_inputs: dict[str, LengthsInput] = {}
    for node in nodes:
        lengths, axis = _read_lengths(node)
        name = _follow_lengths(lengths, graph)
        if name and not (name in lengths_inputs and lengths_inputs[name].sequences):
            sequences, axis = _follow_steps(node.inputs[0], axis, graph)
            lengths_inputs[name] = LengthsInput(name, sequences, axis)
    return tuple(lengths_inputs.values())


def _read_lengths(node: _Node) -> tuple[str, int]:
    """Return the tensor with the lengths that a node reads, "" if none, and the axis of steps."""
    if node.operator in _RECURRENT and len(node.inputs) > _LENGTHS_INPUT:
        return node.inputs[_LENGTHS_INPUT], node.numbers.get("layout", [0])[0]
    if node.operator == "ReverseSequence" and len(node.inputs) > 1:
        return node.inputs[1], node.numbers.get("time_axis", [0])[0]
    return "", 0


def _follow_lengths(tensor: str, graph: _Graph) -> str:
    """Return the model's input that holds the lengths of a tensor, "" if none does."""
    for _ in range(_MAX_STEPS_BACK):
        if tensor in graph.inputs:
            return tensor
        node = graph.producers.get(tensor)
        if node is None or node.operator not in _SAME_VALUES or graph.computed_inputs(node) != [0]:
            break
        tensor = node.inputs[0]
    return ""


def _follow_steps(tensor: str, axis: int, graph: _Graph) -> tuple[str, int]:
    """Return the model's input that a tensor comes from, "" if none, and the axis in that input."""
    for _ in range(_MAX_STEPS_BACK):
        if tensor in graph.inputs:
            return tensor, axis
        node = graph.producers.get(tensor)
        if node is None or len(computed := graph.computed_inputs(node)) != 1:
            break
        if node.operator == "Transpose":
            order = node.numbers.get("perm")
            if order is None or not 0 <= axis < len(order):
                break
            axis = order[axis]
        elif not _keeps_axes(node, computed[0], graph):
            break
        tensor = node.inputs[computed[0]]
    return "", 0


def _keeps_axes(node: _Node, computed: int, graph: _Graph) -> bool:
    """Return whether a node's output has the axes, but for the last one, of its computed input."""
    others = [name for index, name in enumerate(node.inputs) if index != computed and name]
    shapes = [graph.constants.get(name) for name in others]
    if node.operator == "MatMul":
        # A matrix before the steps would change their number.
        return computed == 0 and [len(shape or ()) for shape in shapes] == [2]
    if node.operator == "Gather":
        # Constant indices would do so too, and other tables add other axes.
        first_axis = node.numbers.get("axis", [0]) == [0]
        return computed == 1 and first_axis and [len(shape or ()) for shape in shapes] == [2]
    # More axes, or sizes, would be those of the output, as broadcasting has it.
    fits = all(shape is not None and len(shape) <= 2 and set(shape[:-1]) <= {1} for shape in shapes)
    return node.operator in _SAME_AXES and fits


def _read_node(file: BinaryIO, part: ProtobufField) -> _Node:
    node = _Node()
    attributes, domain = [], ""
    for one in read_fields(file, part.start, part.end):
        if one.number == 1:
            node.inputs.append(_read(file, one))
        elif one.number == 2:
            node.outputs.append(_read(file, one))
        elif one.number == 4:
            node.operator = _read(file, one)
        elif one.number == 5:
            attributes.append(one)
        elif one.number == 7:
            domain = _read(file, one)
    if domain not in _STANDARD_DOMAINS:  # such as a function that is called like an operator
        node.operator = f"{domain}.{node.operator}"
    if node.operator in _WITH_INTEGERS:
        for attribute in attributes:
            name, numbers = _read_integers(file, attribute, name=1, integers=(3, 8))
            node.numbers[name] = numbers
    return node


def _read_integers(
    file: BinaryIO, message: ProtobufField, *, name: int, integers: Collection[int]
) -> tuple[str, list[int]]:
    """Return the name in a message and its integers, packed or not, by the numbers of fields."""
    text, numbers = "", []
    for part in read_fields(file, message.start, message.end):
        if part.number == name:
            text = _read(file, part)
        elif part.number in integers:
            file.seek(part.start)
            numbers.extend(_varints(file.read(min(part.end - part.start, _MAX_NAME_BYTES))))
    return text, numbers


def _varints(content: bytes) -> list[int]:
    numbers, value, shift = [], 0, 0
    for byte in content:
        value |= (byte & 0x7F) << shift
        shift += 7
        if byte < 0x80:
            numbers.append(value)
            value = shift = 0
    return numbers


def _read(file: BinaryIO, part: ProtobufField) -> str:
    file.seek(part.start)
    return file.read(min(part.end - part.start, _MAX_NAME_BYTES)).decode("utf-8", "replace")
