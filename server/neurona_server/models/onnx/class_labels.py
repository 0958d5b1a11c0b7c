"""Reads the names of the classes from the node of a classifier, as scikit-learn's exporters write.

The operators of classifiers (ai.onnx.ml) have the classes in an attribute, and return the name of
the class beside an array of scores. Others look a name up in an array of names. The field numbers
are those of onnx.proto3.
"""

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

import numpy as np

from neurona_server.errors import LoadError
from neurona_server.models.onnx.model_file import (
    NotProtobufError,
    ProtobufField,
    TruncatedError,
    find_graph,
    open_model_file,
    read_fields,
)

log = logging.getLogger(__name__)

MAX_NODES = 2000
"""Nodes of a graph after which it is no classifier of this kind."""

MAX_CLASSES = 100_000

_MAX_NAME_BYTES = 1024
_MAX_VALUES_BYTES = 16 << 20
_CLASSIFIERS = {"LinearClassifier", "SVMClassifier", "TreeEnsembleClassifier"}
_TEXTS = ("classlabels_strings",)
_INTEGERS = ("classlabels_ints", "classlabels_int64s")
_UNCHANGED = {"Cast", "Flatten", "Identity", "Reshape", "Squeeze"}
"""Operators whose output has the values of their first input."""

_LOOKUPS = {"ArrayFeatureExtractor", "Gather"}
"""Operators whose first input are the values, and whose second one says which."""

_ARGMAX = "ArgMax"
_INT32, _INT64, _STRING = 6, 7, 8  # of TensorProto.DataType


@dataclass(frozen=True)
class ClassLabels:
    """The names of the classes that a label output has one of in each row."""

    names: tuple[str, ...] = ()
    """In the order of the scores, as far as the graph says it; () if it does not."""
    operator: str = ""
    """What chooses the class: a classifier, or ArgMax; "" if it is another."""

    @property
    def is_voted(self) -> bool:
        """Whether the name is not that of the highest score: each pair of classes has a vote."""
        return self.operator == "SVMClassifier"


@dataclass
class _LabelNode:
    inputs: list[str] = field(default_factory=list)
    operator: str = ""
    classes: tuple[str, ...] = ()


def read_class_labels(path: Path, output: str) -> ClassLabels:
    """Return the names of the classes that an output of a model has one of in each row.

    Args:
        path: The model's file.
        output: The name of the output.
    """
    try:
        with open_model_file(path) as (file, size):
            graph, _ = find_graph(file, size)
            return _find_labels(file, graph, output)
    except (LoadError, NotProtobufError, TruncatedError, ValueError, RecursionError) as error:
        log.debug("%s: its classes cannot be read: %s", path.name, error)
        return ClassLabels()


def _find_labels(file: BinaryIO, graph: ProtobufField, output: str) -> ClassLabels:
    nodes: dict[str, _LabelNode] = {}
    constants: dict[str, ProtobufField] = {}
    for count, part in enumerate(read_fields(file, graph.start, graph.end)):
        if count > MAX_NODES:
            return ClassLabels()
        if part.number == 1:
            names, node = _read_node(file, part)
            nodes |= dict.fromkeys(names, node)
        elif part.number == 5:
            constants[_read_name(file, part, 8)] = part
    name = output
    for _ in range(len(nodes)):
        if name not in nodes:
            break
        node = nodes[name]
        if node.classes:
            return ClassLabels(node.classes, node.operator)
        if node.operator in _LOOKUPS and node.inputs[0] in constants:
            looked_up = _read_values(file, constants[node.inputs[0]])
            return ClassLabels(looked_up, _source(nodes, node.inputs[1]))
        if node.operator not in _UNCHANGED:
            break
        name = node.inputs[0]
    return ClassLabels()


def _source(nodes: Mapping[str, _LabelNode], name: str) -> str:
    """Return the operator that an index comes from, if it is ArgMax, or ""."""
    for _ in range(len(nodes)):
        node = nodes.get(name)
        if node is None or node.operator not in _UNCHANGED:
            return _ARGMAX if node is not None and node.operator == _ARGMAX else ""
        name = node.inputs[0]
    return ""


def _read_node(file: BinaryIO, part: ProtobufField) -> tuple[list[str], _LabelNode]:
    node, outputs, attributes = _LabelNode(), [], []
    for one in read_fields(file, part.start, part.end):
        if one.number == 1:
            node.inputs.append(_text(file, one))
        elif one.number == 2:
            outputs.append(_text(file, one))
        elif one.number == 4:
            node.operator = _text(file, one)
        elif one.number == 5:
            attributes.append(one)
    if node.operator in _CLASSIFIERS:
        for attribute in attributes:
            name = _read_name(file, attribute, 1)
            if name in _TEXTS:
                node.classes = node.classes or tuple(_read_strings(file, attribute, 9))
            elif name in _INTEGERS:
                node.classes = node.classes or tuple(map(str, _read_integers(file, attribute, 8)))
    return outputs, node


def _read_values(file: BinaryIO, tensor: ProtobufField) -> tuple[str, ...]:
    """Return the elements of a constant of strings or integers."""
    kind = 0
    raw: Sequence[int] = ()
    for part in read_fields(file, tensor.start, tensor.end):
        if part.number == 2:
            kind = _varints(_bytes(file, part))[0]
        elif part.number == 9 and kind in (_INT32, _INT64):
            content = _bytes(file, part)
            raw = np.frombuffer(content, "<i8" if kind == _INT64 else "<i4").tolist()
    if kind == _STRING:
        return tuple(_read_strings(file, tensor, 6))
    fields = {_INT32: 5, _INT64: 7}
    if kind not in fields:
        return ()
    return tuple(map(str, raw or _read_integers(file, tensor, fields[kind])))


def _read_name(file: BinaryIO, message: ProtobufField, number: int) -> str:
    for part in read_fields(file, message.start, message.end):
        if part.number == number:
            return _text(file, part)
    return ""


def _read_strings(file: BinaryIO, message: ProtobufField, number: int) -> Iterator[str]:
    for part in read_fields(file, message.start, message.end):
        if part.number == number:
            yield _bytes(file, part).decode()


def _read_integers(file: BinaryIO, message: ProtobufField, number: int) -> list[int]:
    """Return the values of a repeated field of int64, packed or not."""
    values: list[int] = []
    for part in read_fields(file, message.start, message.end):
        if part.number == number:
            values += _varints(_bytes(file, part))
    return [value - (1 << 64) if value >= 1 << 63 else value for value in values]


def _varints(content: bytes) -> list[int]:
    values, value, shift = [], 0, 0
    for byte in content:
        value |= (byte & 0x7F) << shift
        shift += 7
        if byte < 0x80:
            values.append(value)
            value = shift = 0
    return values


def _bytes(file: BinaryIO, part: ProtobufField) -> bytes:
    length = part.end - part.start
    if length > _MAX_VALUES_BYTES:
        raise ValueError(f"{length} bytes of values")
    file.seek(part.start)
    return file.read(length)


def _text(file: BinaryIO, part: ProtobufField) -> str:
    if part.end - part.start > _MAX_NAME_BYTES:
        raise ValueError("a name is too long")
    return _bytes(file, part).decode()
