"""Writes small ONNX models without the package onnx, which the server does without.

The numbers of fields and types are those of onnx.proto (https://github.com/onnx/onnx).
"""

from collections.abc import Mapping, Sequence

import numpy as np

from neurona_protos.wire_format import VARINT, length_delimited, varint
from neurona_server.batching.request import Array

FLOAT, INT64, FLOAT16 = 1, 7, 10
"""TensorProto.DataType."""

Size = int | str
Declaration = tuple[int, Sequence[Size]]
"""Element type and shape of an input or output; a name stands for a free size."""

_NUMPY_TYPES = {np.dtype(np.float32): FLOAT, np.dtype(np.int64): INT64}
_INT, _INTS = 2, 7  # AttributeProto.AttributeType
_IR_VERSION, _OPSET = 8, 13


def write_model(
    nodes: Sequence[bytes],
    inputs: Mapping[str, Declaration],
    outputs: Mapping[str, Declaration],
    constants: Mapping[str, Array] | None = None,
) -> bytes:
    """Return a ModelProto of opset 13.

    Args:
        nodes: What `write_node` returns, in the order of their runs.
        inputs: By name.
        outputs: By name.
        constants: Arrays of float32 or int64 that nodes use by name.
    """
    graph = [length_delimited(1, node) for node in nodes]
    graph.append(_text(2, "graph"))
    graph += [length_delimited(5, _tensor(n, array)) for n, array in (constants or {}).items()]
    for field, declarations in ((11, inputs), (12, outputs)):
        graph += [length_delimited(field, _value_info(n, *d)) for n, d in declarations.items()]
    opset = _text(1, "") + _number(2, _OPSET)
    return (
        _number(1, _IR_VERSION) + length_delimited(7, b"".join(graph)) + length_delimited(8, opset)
    )


def write_node(
    operator: str,
    inputs: Sequence[str],
    outputs: Sequence[str],
    **attributes: int | Sequence[int],
) -> bytes:
    """Return a NodeProto."""
    parts = [_text(1, name) for name in inputs] + [_text(2, name) for name in outputs]
    parts.append(_text(4, operator))
    for name, value in attributes.items():
        if isinstance(value, int):
            content = _number(3, value) + _number(20, _INT)
        else:
            content = b"".join([_number(8, one) for one in value]) + _number(20, _INTS)
        parts.append(length_delimited(5, _text(1, name) + content))
    return b"".join(parts)


def _tensor(name: str, array: Array) -> bytes:
    sizes = b"".join([_number(1, size) for size in array.shape])
    data = length_delimited(9, array.tobytes())
    return sizes + _number(2, _NUMPY_TYPES[array.dtype]) + _text(8, name) + data


def _value_info(name: str, element_type: int, shape: Sequence[Size]) -> bytes:
    sizes = [_number(1, size) if isinstance(size, int) else _text(2, size) for size in shape]
    dimensions = b"".join([length_delimited(1, size) for size in sizes])
    tensor = _number(1, element_type) + length_delimited(2, dimensions)
    return _text(1, name) + length_delimited(2, length_delimited(1, tensor))


def _text(field: int, text: str) -> bytes:
    return length_delimited(field, text.encode())


def _number(field: int, value: int) -> bytes:
    return varint(field << 3 | VARINT) + varint(value)
