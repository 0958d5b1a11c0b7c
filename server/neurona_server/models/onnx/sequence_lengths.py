"""Finds the inputs of a graph that hold lengths of sequences, and what they are the lengths of.

They are what recurrent nodes and ReverseSequence call sequence_lens. ONNX Runtime fails a whole
run in which one length is not from 0 to the number of steps. The meaning of the operators is that
of ONNX's docs/Operators.md, the field numbers are those of onnx.proto3.
"""

import logging
from collections.abc import Mapping, Sequence
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

_RECURRENT = ("RNN", "GRU", "LSTM")
_LENGTHS_INPUT = 4  # of a recurrent node
_MAX_NAME_BYTES = 1024
_MAX_STEPS_BACK = 100

_SAME_AXES = {
    *("Identity", "Cast", "Add", "Sub", "Mul", "Div", "Pow", "Sqrt", "Log", "Exp", "Abs", "Neg"),
    *("Clip", "Max", "Min", "Relu", "LeakyRelu", "Tanh", "Sigmoid", "Softmax", "LogSoftmax"),
    *("Dropout", "LayerNormalization", "Where", "Erf", "Gelu"),
    *("MatMul", "Gemm", "Gather", "LabelEncoder"),
}
"""Operators whose output has the steps along the same axis as their input that is no constant:
products with a constant matrix and look-ups in a constant table change what follows it."""


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


def find_lengths_inputs(path: Path) -> Sequence[LengthsInput]:
    """Return the inputs of a valid model that its nodes read as lengths of sequences."""
    with open_model_file(path) as (file, size):
        graph, _ = find_graph(file, size)
        names: dict[int, list[str]] = {5: [], 11: []}  # initialisers, inputs
        nodes: list[_Node] = []
        for part in read_fields(file, graph.start, graph.end):
            if part.number == 1:
                if len(nodes) == MAX_NODES:
                    log.debug("%s: too large to find lengths of sequences", path)
                    return ()
                nodes.append(_read_node(file, part))
            elif part.number in names:
                names[part.number].append(_text(file, part, 8 if part.number == 5 else 1))
    inputs = {*names[11]} - {*names[5]}
    producers = {output: node for node in nodes for output in node.outputs}
    lengths_inputs: dict[str, LengthsInput] = {}
    for node in nodes:
        lengths, axis = _read_lengths(node)
        name, _ = _follow_back(lengths, 0, inputs, producers)
        if name and not (name in lengths_inputs and lengths_inputs[name].sequences):
            sequences, axis = _follow_back(node.inputs[0], axis, inputs, producers)
            lengths_inputs[name] = LengthsInput(name, sequences, axis)
    return tuple(lengths_inputs.values())


def _read_lengths(node: _Node) -> tuple[str, int]:
    """Return the tensor with the lengths that a node reads, "" if none, and the axis of steps."""
    if node.operator in _RECURRENT and len(node.inputs) > _LENGTHS_INPUT:
        return node.inputs[_LENGTHS_INPUT], node.numbers.get("layout", [0])[0]
    if node.operator == "ReverseSequence" and len(node.inputs) > 1:
        return node.inputs[1], node.numbers.get("time_axis", [0])[0]
    return "", 0


def _follow_back(
    tensor: str, axis: int, inputs: set[str], producers: Mapping[str, _Node]
) -> tuple[str, int]:
    """Return the model's input that a tensor comes from, "" if none, and the axis in that input."""
    for _ in range(_MAX_STEPS_BACK):
        if tensor in inputs:
            return tensor, axis
        node = producers.get(tensor)
        if node is None or not node.inputs:
            break
        computed = [name for name in node.inputs if name in producers or name in inputs]
        if node.operator == "Transpose":
            order = node.numbers.get("perm")
            if order is None or not 0 <= axis < len(order):
                break
            axis = order[axis]
        elif node.operator not in _SAME_AXES or len(computed) != 1:
            break
        if len(computed) != 1:
            break
        (tensor,) = computed
    return "", 0


def _read_node(file: BinaryIO, part: ProtobufField) -> _Node:
    node = _Node()
    attributes = []
    for one in read_fields(file, part.start, part.end):
        if one.number == 1:
            node.inputs.append(_read(file, one))
        elif one.number == 2:
            node.outputs.append(_read(file, one))
        elif one.number == 4:
            node.operator = _read(file, one)
        elif one.number == 5:
            attributes.append(one)
    if node.operator in (*_RECURRENT, "ReverseSequence", "Transpose"):
        for attribute in attributes:
            name, numbers = _read_integers(file, attribute)
            node.numbers[name] = numbers
    return node


def _read_integers(file: BinaryIO, attribute: ProtobufField) -> tuple[str, list[int]]:
    """Return the name of an attribute and its integers, packed or not."""
    name, numbers = "", []
    for part in read_fields(file, attribute.start, attribute.end):
        if part.number == 1:
            name = _read(file, part)
        elif part.number in (3, 8):
            file.seek(part.start)
            numbers.extend(_varints(file.read(min(part.end - part.start, _MAX_NAME_BYTES))))
    return name, numbers


def _varints(content: bytes) -> list[int]:
    numbers, value, shift = [], 0, 0
    for byte in content:
        value |= (byte & 0x7F) << shift
        shift += 7
        if byte < 0x80:
            numbers.append(value)
            value = shift = 0
    return numbers


def _text(file: BinaryIO, message: ProtobufField, number: int) -> str:
    for part in read_fields(file, message.start, message.end):
        if part.number == number:
            return _read(file, part)
    return ""


def _read(file: BinaryIO, part: ProtobufField) -> str:
    file.seek(part.start)
    return file.read(min(part.end - part.start, _MAX_NAME_BYTES)).decode("utf-8", "replace")
