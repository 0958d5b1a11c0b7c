"""What is in a model's file, before ONNX Runtime sees it.

A file of 2 GiB that is no model, or one that is still being copied, is told from a model by a
few reads: fields are passed over by seeking. The numbers of the fields are those of onnx.proto3
(https://github.com/onnx/onnx/blob/main/onnx/onnx.proto3), what they mean is in its docs/IR.md and
docs/ExternalData.md.
"""

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO, NamedTuple

from neurona_server.errors import LoadError

VARINT, FIXED64, LENGTH, FIXED32 = 0, 1, 2, 5
_SIZES = {FIXED64: 8, FIXED32: 4}
_LONGEST_VARINT = 10  # bytes, for 64 bits
MOST_FIELDS = 2_000_000
"""Of one message: more would be seconds of looking at what nobody made in earnest."""


class NotProtobufError(ValueError):
    """These bytes are no protobuf message."""


class CutOffError(ValueError):
    """The message ends too early. `expected` is the byte at which it should end, or more."""

    def __init__(self, expected: int) -> None:
        super().__init__(f"expected at least {expected} bytes")
        self.expected = expected


class Field(NamedTuple):
    number: int
    wire_type: int
    start: int
    """Where its value begins, in bytes from the file's start."""
    end: int
    value: int
    """Of a varint; else 0."""


def fields(file: BinaryIO, start: int, end: int) -> Iterator[Field]:
    """The fields between two places. The caller may seek between two of them.

    Raises NotProtobufError, or CutOffError when a field reaches over `end`.
    """
    count = 0
    while start < end:
        count += 1
        if count > MOST_FIELDS:
            raise NotProtobufError(f"more than {MOST_FIELDS:,} fields")
        file.seek(start)
        tag, start = _varint(file, start, end)
        number, wire_type = tag >> 3, tag & 7
        value = 0
        if wire_type == VARINT:
            value, stop = _varint(file, start, end)
        elif wire_type == LENGTH:
            size, start = _varint(file, start, end)
            stop = start + size
        elif wire_type in _SIZES:
            stop = start + _SIZES[wire_type]
        else:
            raise NotProtobufError(f"wire type {wire_type}")
        if number == 0:
            raise NotProtobufError("field number 0")
        if stop > end:
            raise CutOffError(stop)
        yield Field(number, wire_type, start, stop, value)
        start = stop


def _varint(file: BinaryIO, at: int, end: int) -> tuple[int, int]:
    value = 0
    for count in range(_LONGEST_VARINT):
        if at + count >= end:
            raise CutOffError(end + 1)
        byte = file.read(1)
        if not byte:
            raise CutOffError(end + 1)
        value |= (byte[0] & 0x7F) << (7 * count)
        if byte[0] < 0x80:
            return value, at + count + 1
    raise NotProtobufError("a varint of more than 64 bits")


_GRAPH, _FUNCTIONS = 7, 25
# Of ModelProto: ir_version to doc_string, graph, opset_import, metadata_props, training_info,
# functions, configuration. A later ONNX may add some, but not in the hundreds.
_WIRE_TYPES = {1: VARINT, 5: VARINT} | dict.fromkeys((2, 3, 4, 6, 7, 8, 14, 20, 25, 26), LENGTH)
_MOST_FIELD_NUMBERS = 100
_LARGEST = 2**31 - 1  # bytes: what protobuf can read
_CHUNK = 1 << 20
_LONGEST_LOCATION = 4096  # bytes

_LOOKS = (
    (b"version https://git-lfs", "a pointer of git-lfs: fetch the file itself with git lfs pull"),
    (b"<", "a page of HTML or XML: was a web page downloaded in its place?"),
    (b"PK\x03\x04", "a zip archive, as PyTorch saves: export it to ONNX"),
    (b"\x89HDF", "an HDF5 file, as Keras saves: export it to ONNX"),
    (b"\x1f\x8b", "a gzip archive: unpack it"),
    (b"\x80\x02", "a Python pickle: export the model to ONNX"),
)

# Without O_NONBLOCK a pipe that is called like a model would be waited for for ever; Windows has
# none, and translates what is not opened as O_BINARY.
_READ = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)


@dataclass
class GraphOutline:
    """What a graph holds, without what its tensors hold."""

    size: int = 0
    """Bytes of the file."""
    nodes: int = 0
    """Of the graph itself; those of graphs inside its nodes are not counted."""
    external: set[str] = field(default_factory=set)
    """Where tensors lie that are not in the file, as the file says it."""
    nested: bool = False
    """Whether some of these belong to a graph inside a node."""


def check_model_file(path: Path) -> int:
    """The file's size in bytes. Raises LoadError when it is no ONNX model, or not all of one."""
    with _opened(path) as (file, size):
        _find_graph(file, size)
    return size


def read_outline(path: Path) -> GraphOutline:
    """Raises LoadError like `check_model_file`."""
    with _opened(path) as (file, size):
        graph, functions = _find_graph(file, size)
        found = GraphOutline(size)
        try:
            _walk_graph(file, graph, found, nested=False)
            for function in functions:
                for node in fields(file, function.start, function.end):
                    if node.number == 7:
                        _walk_node(file, node, found, nested=False)
        except RecursionError as error:
            raise LoadError("its graphs are nested too deeply") from error
        except (NotProtobufError, CutOffError) as error:
            raise LoadError(f"it is damaged: its graph is no protobuf message ({error})") from error
    return found


def inside(path: Path, root: Path) -> bool:
    """Whether what `path` leads to, all links followed, lies in `root`. Both must exist."""
    try:
        return path.resolve(strict=True).is_relative_to(root.resolve(strict=True))
    except (OSError, RuntimeError):  # nothing there, or links that go round in circles
        return False


@contextmanager
def _opened(path: Path) -> Iterator[tuple[BinaryIO, int]]:
    try:
        number = os.open(path, _READ)
        with open(number, "rb") as file:
            status = os.fstat(number)
            if not stat.S_ISREG(status.st_mode):
                raise LoadError("it is not a file")
            yield file, status.st_size
    except OSError as error:
        raise LoadError(f"its file cannot be read: {error.strerror}") from error


def _find_graph(file: BinaryIO, size: int) -> tuple[Field, list[Field]]:
    """The graph, and the functions beside it."""
    if size == 0:
        raise LoadError("its file is empty: still being copied?")
    graph, functions = None, []
    try:
        for one in fields(file, 0, size):
            wanted = _WIRE_TYPES.get(one.number, one.wire_type)
            if one.number > _MOST_FIELD_NUMBERS or one.wire_type != wanted:
                raise NotProtobufError("no field of ModelProto")
            if one.number == _GRAPH:
                graph = one
            elif one.number == _FUNCTIONS:
                functions.append(one)
    except NotProtobufError:
        raise LoadError(f"its file is not ONNX: it looks like {_looks(file)}") from None
    except CutOffError as error:
        if looks := _known_looks(_head(file)):
            raise LoadError(f"its file is not ONNX: it looks like {looks}") from None
        raise LoadError(
            f"its file ends after {size:,} of at least {error.expected:,} bytes: "
            "still being copied?"
        ) from None
    if graph is None:
        raise LoadError("its file has no graph: still being copied, or not ONNX?")
    if size > _LARGEST:
        raise LoadError(
            f"its file has {size:,} bytes: a model of 2 GiB or more needs its weights as external "
            "data"
        )
    return graph, functions


def _looks(file: BinaryIO) -> str:
    head = _head(file)
    if known := _known_looks(head):
        return known
    if not any(head):
        return "zeros: a file that was made but not filled?"
    try:
        head.decode("ascii")
    except ValueError:
        return f"data that begin with the bytes {head[:8].hex(' ')}"
    return "a text"


def _known_looks(head: bytes) -> str:
    start = head.lstrip()
    return next((looks for magic, looks in _LOOKS if start.startswith(magic)), "")


def _head(file: BinaryIO) -> bytes:
    file.seek(0)
    return file.read(256)


def _walk_graph(file: BinaryIO, graph: Field, found: GraphOutline, *, nested: bool) -> None:
    for one in fields(file, graph.start, graph.end):
        if one.number == 1:
            found.nodes += not nested
            _walk_node(file, one, found, nested=nested)
        elif one.number == 5:
            _walk_tensor(file, one, found, nested=nested)
        elif one.number == 15:  # a sparse tensor: its values and where they stand
            for tensor in fields(file, one.start, one.end):
                if tensor.number in (1, 2):
                    _walk_tensor(file, tensor, found, nested=nested)


def _walk_node(file: BinaryIO, node: Field, found: GraphOutline, *, nested: bool) -> None:
    # Quicker than a look at each attribute: every external tensor must say this of itself.
    if nested or _contains(file, node, b"location"):
        for attribute in fields(file, node.start, node.end):
            if attribute.number == 5:
                _walk_attribute(file, attribute, found)


def _contains(file: BinaryIO, within: Field, text: bytes) -> bool:
    file.seek(within.start)
    left, before = within.end - within.start, b""
    while left > 0 and (chunk := file.read(min(left, _CHUNK))):
        if text in before + chunk:
            return True
        before = chunk[1 - len(text) :]
        left -= len(chunk)
    return False


def _walk_attribute(file: BinaryIO, attribute: Field, found: GraphOutline) -> None:
    for one in fields(file, attribute.start, attribute.end):
        if one.wire_type != LENGTH:
            continue
        if one.number in (5, 10):
            _walk_tensor(file, one, found, nested=False)
        elif one.number in (6, 11):
            _walk_graph(file, one, found, nested=True)


def _walk_tensor(file: BinaryIO, tensor: Field, found: GraphOutline, *, nested: bool) -> None:
    for entry in fields(file, tensor.start, tensor.end):
        if entry.number != 13:  # external_data: pairs of key and value
            continue
        pair = {}
        for one in fields(file, entry.start, entry.end):
            file.seek(one.start)
            pair[one.number] = file.read(min(one.end - one.start, _LONGEST_LOCATION))
        if pair.get(1) == b"location":
            found.external.add(pair.get(2, b"").decode("utf-8", "replace"))
            found.nested |= nested
