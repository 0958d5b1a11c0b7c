"""Checks of a model's file before ONNX Runtime opens it, and an outline of its graph.

A few reads distinguish a model from a file of 2 GiB that is not one or is still being copied: the
parser seeks past the fields that it does not need. The field numbers are those of onnx.proto3
(https://github.com/onnx/onnx/blob/main/onnx/onnx.proto3), their meaning is in ONNX's docs/IR.md
and docs/ExternalData.md.
"""

import math
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO, NamedTuple

from neurona_server.errors import LoadError
from neurona_server.models.onnx.other_formats import describe_content, describe_format

MAX_FIELDS = 2_000_000
"""Fields of one message; a file with more would take seconds and is not a model."""

# Wire types of protobuf's encoding (https://protobuf.dev/programming-guides/encoding/).
_VARINT, _FIXED64, _LENGTH_DELIMITED, _FIXED32 = 0, 1, 2, 5
_FIXED_SIZES = {_FIXED64: 8, _FIXED32: 4}
_MAX_VARINT_BYTES = 10  # for 64 bits

_GRAPH, _FUNCTIONS = 7, 25
# Of ModelProto: ir_version to doc_string, graph, opset_import, metadata_props, training_info,
# functions, configuration. A later ONNX may add some, but not in the hundreds.
_WIRE_TYPES = {1: _VARINT, 5: _VARINT} | dict.fromkeys(
    (2, 3, 4, 6, 7, 8, 14, 20, 25, 26), _LENGTH_DELIMITED
)
_MAX_FIELD_NUMBER = 100
_MAX_FILE_BYTES = 2**31 - 1  # what protobuf can parse
_CHUNK_BYTES = 1 << 20
# Field 4 of a NodeProto, its operator, also of nodes in graphs inside a node.
_RECURRENT = (b"\x22\x03GRU", b"\x22\x04LSTM", b"\x22\x13DynamicQuantizeLSTM")
_SEQUENTIAL = (*_RECURRENT, b"\x22\x03RNN", b"\x22\x04Scan")
_MAX_LOCATION_BYTES = 4096
_MAX_NAME_BYTES = 1 << 16

# Without O_NONBLOCK, opening a pipe that is named like a model would block forever. Windows does
# not have it, and translates line ends in files that are not opened with O_BINARY.
_OPEN_FLAGS = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)


@dataclass
class GraphOutline:
    """What a graph contains, except the contents of its tensors."""

    size: int = 0
    """Bytes of the file."""

    nodes: int = 0
    """Nodes of the graph itself, without those of graphs inside nodes."""

    external: set[str] = field(default_factory=set)
    """Locations of external data, as the file gives them."""

    longest_external: float = 0
    """Bytes of the longest tensor in external data, inf if one does not say how long it is."""

    nested_external: bool = False
    """Whether some of these data belong to a graph inside a node."""

    recurrent: bool = False
    """Whether it has an LSTM or GRU: ONNX Runtime 1.31 ends the process if one gets no values."""

    sequential: bool = False
    """Whether it may have a node that reads steps one after the other."""

    without_shape: set[str] = field(default_factory=set)
    """Names of inputs and outputs that declare no shape: not even a number of axes."""


def read_outline(path: Path) -> GraphOutline:
    """Return the outline of an ONNX model.

    Raises:
        LoadError: The file is not an ONNX model, or incomplete or damaged.
    """
    with open_model_file(path) as (file, size):
        graph, functions = find_graph(file, size)
        outline = GraphOutline(size)
        try:
            _walk_graph(file, graph, outline, nested=False)
            for function in functions:
                for node in read_fields(file, function.start, function.end):
                    if node.number == 7:
                        _walk_node(file, node, outline, nested=False)
        except RecursionError as error:
            raise LoadError("its graphs are nested too deeply") from error
        except (NotProtobufError, TruncatedError) as error:
            raise LoadError(f"it is damaged: its graph is not valid protobuf ({error})") from error
    return outline


@contextmanager
def open_model_file(path: Path) -> Iterator[tuple[BinaryIO, int]]:
    """Open a regular file; yield it and its size. Raises LoadError."""
    try:
        descriptor = os.open(path, _OPEN_FLAGS)
        with open(descriptor, "rb") as file:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode):
                raise LoadError("it is not a file")
            yield file, status.st_size
    except OSError as error:
        raise LoadError(f"its file cannot be read: {error.strerror}") from error


class NotProtobufError(ValueError):
    """The bytes are not a protobuf message."""


class TruncatedError(ValueError):
    """The message ends too early. `expected` is the byte at which it should end, or later."""

    def __init__(self, expected: int) -> None:
        super().__init__(f"expected at least {expected} bytes")
        self.expected = expected


class ProtobufField(NamedTuple):
    """One field of a message in a file."""

    number: int
    wire_type: int
    start: int
    """Offset of its value in the file."""
    end: int


def read_fields(file: BinaryIO, start: int, end: int) -> Iterator[ProtobufField]:
    """Yield the fields between two offsets. The caller may seek between two of them.

    Raises:
        NotProtobufError: The bytes are not fields.
        TruncatedError: A field reaches beyond `end`.
    """
    count = 0
    while start < end:
        count += 1
        if count > MAX_FIELDS:
            raise NotProtobufError(f"more than {MAX_FIELDS:,} fields")
        file.seek(start)
        tag, start = _read_varint(file, start, end)
        number, wire_type = tag >> 3, tag & 7
        if wire_type == _VARINT:
            _, stop = _read_varint(file, start, end)
        elif wire_type == _LENGTH_DELIMITED:
            size, start = _read_varint(file, start, end)
            stop = start + size
        elif wire_type in _FIXED_SIZES:
            stop = start + _FIXED_SIZES[wire_type]
        else:
            raise NotProtobufError(f"wire type {wire_type}")
        if number == 0:
            raise NotProtobufError("field number 0")
        if stop > end:
            raise TruncatedError(stop)
        yield ProtobufField(number, wire_type, start, stop)
        start = stop


def _read_varint(file: BinaryIO, offset: int, end: int) -> tuple[int, int]:
    """Return a varint at the file's position `offset`, and the offset behind it."""
    value = 0
    for count in range(_MAX_VARINT_BYTES):
        if offset + count >= end:
            raise TruncatedError(end + 1)
        byte = file.read(1)
        if not byte:
            raise TruncatedError(end + 1)
        value |= (byte[0] & 0x7F) << (7 * count)
        if byte[0] < 0x80:
            return value, offset + count + 1
    raise NotProtobufError("a varint of more than 64 bits")


def find_graph(file: BinaryIO, size: int) -> tuple[ProtobufField, list[ProtobufField]]:
    """Return the graph of a model, and its functions. Raises LoadError."""
    if size == 0:
        raise LoadError("its file is empty: still being copied?")
    graph, functions = None, []
    try:
        for part in read_fields(file, 0, size):
            expected = _WIRE_TYPES.get(part.number, part.wire_type)
            if part.number > _MAX_FIELD_NUMBER or part.wire_type != expected:
                raise NotProtobufError("not a field of ModelProto")
            if part.number == _GRAPH:
                graph = part
            elif part.number == _FUNCTIONS:
                functions.append(part)
    except NotProtobufError:
        description = describe_content(file, size)
        raise LoadError(f"its file is not ONNX: it looks like {description}") from None
    except TruncatedError as error:
        if description := describe_format(file, size):
            raise LoadError(f"its file is not ONNX: it looks like {description}") from None
        raise LoadError(
            f"its file ends after {size:,} of at least {error.expected:,} bytes: "
            "still being copied?"
        ) from None
    if graph is None:
        if description := describe_format(file, size):
            raise LoadError(f"its file is not ONNX: it looks like {description}")
        raise LoadError("its file has no graph: still being copied, or not ONNX?")
    if size > _MAX_FILE_BYTES:
        raise LoadError(
            f"its file has {size:,} bytes: a model of 2 GiB or more needs its weights as external "
            "data"
        )
    return graph, functions


def _walk_graph(
    file: BinaryIO, graph: ProtobufField, outline: GraphOutline, *, nested: bool
) -> None:
    for part in read_fields(file, graph.start, graph.end):
        if part.number == 1:
            outline.nodes += not nested
            _walk_node(file, part, outline, nested=nested)
        elif part.number == 5:
            _walk_tensor(file, part, outline, nested=nested)
        elif part.number in (11, 12) and not nested:
            _walk_value(file, part, outline)
        elif part.number == 15:  # a sparse tensor: its values and their indices
            for tensor in read_fields(file, part.start, part.end):
                if tensor.number in (1, 2):
                    _walk_tensor(file, tensor, outline, nested=nested)


def _walk_value(file: BinaryIO, info: ProtobufField, outline: GraphOutline) -> None:
    """Read a ValueInfoProto: its name, and its type, of which that of a tensor is field 1."""
    name, has_shape = b"", False
    for part in read_fields(file, info.start, info.end):
        if part.number == 1:
            name = _read(file, part, _MAX_NAME_BYTES)
        elif part.number == 2:
            for kind in read_fields(file, part.start, part.end):
                if kind.number == 1:
                    fields = read_fields(file, kind.start, kind.end)
                    has_shape = any(one.number == 2 for one in fields)
    if not has_shape:
        outline.without_shape.add(name.decode("utf-8", "replace"))


def _read(file: BinaryIO, part: ProtobufField, max_bytes: int) -> bytes:
    file.seek(part.start)
    return file.read(min(part.end - part.start, max_bytes))


def _walk_node(file: BinaryIO, node: ProtobufField, outline: GraphOutline, *, nested: bool) -> None:
    # Faster than parsing every attribute: an external tensor must contain this key.
    if not nested and not outline.recurrent:
        operators = [one for one in _SEQUENTIAL if _contains(file, node, one)]
        outline.sequential |= bool(operators)
        outline.recurrent = any(one in _RECURRENT for one in operators)
    if nested or _contains(file, node, b"location"):
        for attribute in read_fields(file, node.start, node.end):
            if attribute.number == 5:
                _walk_attribute(file, attribute, outline)


def _contains(file: BinaryIO, within: ProtobufField, text: bytes) -> bool:
    file.seek(within.start)
    remaining, previous = within.end - within.start, b""
    while remaining > 0 and (chunk := file.read(min(remaining, _CHUNK_BYTES))):
        if text in previous + chunk:
            return True
        previous = chunk[1 - len(text) :]
        remaining -= len(chunk)
    return False


def _walk_attribute(file: BinaryIO, attribute: ProtobufField, outline: GraphOutline) -> None:
    for part in read_fields(file, attribute.start, attribute.end):
        if part.wire_type != _LENGTH_DELIMITED:
            continue
        if part.number in (5, 10):
            _walk_tensor(file, part, outline, nested=False)
        elif part.number in (6, 11):
            _walk_graph(file, part, outline, nested=True)


def _walk_tensor(
    file: BinaryIO, tensor: ProtobufField, outline: GraphOutline, *, nested: bool
) -> None:
    pairs: dict[bytes, bytes] = {}
    for entry in read_fields(file, tensor.start, tensor.end):
        if entry.number == 13:  # external_data: pairs of key and value
            pair = {}
            for part in read_fields(file, entry.start, entry.end):
                pair[part.number] = _read(file, part, _MAX_LOCATION_BYTES)
            pairs[pair.get(1, b"")] = pair.get(2, b"")
            if pair.get(1) == b"location":  # every one, whichever counts
                outline.external.add(pair.get(2, b"").decode("utf-8", "replace"))
    if b"location" in pairs:
        outline.nested_external |= nested
        length = pairs.get(b"length", b"")
        outline.longest_external = max(
            outline.longest_external, int(length) if length.isdigit() else math.inf
        )
