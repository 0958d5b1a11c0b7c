"""What providers on GPUs need to know of a model before they compile it, or choose kernels for it.

TensorRT compiles a graph for a range of shapes, its profile: the smallest, the largest, and those
that it chooses kernels for. Without one, ONNX Runtime compiles again, for seconds to minutes, each
time a request has a larger or smaller shape than all before. Sources: ONNX Runtime's docs,
TensorRT Execution Provider, and onnx.proto3. Written from the documentation, not run on a GPU yet.
"""

import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Final

from neurona_server.models.onnx.model_file import (
    ProtobufField,
    find_graph,
    open_model_file,
    read_fields,
)
from neurona_server.models.onnx.provider_options import write_flag

log = logging.getLogger(__name__)

MIN_LARGEST_ROWS: Final = 8
"""Rows that a profile allows at least: the check of batching runs some rows together."""

MISSING_PROFILE: Final = "no associated shape profiles provided"
"""Part of ONNX Runtime's message about a graph of which TensorRT runs parts only, whose inputs have
free sizes: a profile for the inputs of the model is not enough then."""

_MAX_NAME_BYTES = 1 << 16
_FLOAT16, _BFLOAT16 = 10, 16  # TensorProto.DataType
_QUANTIZED = {b"QuantizeLinear", b"DequantizeLinear"}
_CONVOLUTIONS = {b"Conv", b"ConvTranspose", b"FusedConv"}


@dataclass(frozen=True)
class GraphInput:
    """A required input of a graph. `shape` has None for a free size; None: no shape is declared."""

    name: str
    element_type: int
    shape: tuple[int | None, ...] | None


@dataclass(frozen=True)
class GraphTraits:
    """What decides how a graph is compiled."""

    inputs: tuple[GraphInput, ...] = ()
    has_float16: bool = False
    has_bfloat16: bool = False
    is_quantized: bool = False
    """Whether it has nodes that quantise or dequantise tensors."""

    has_convolution: bool = False


def read_traits(path: Path) -> GraphTraits:
    """Return the traits of a valid model; graphs inside its nodes do not count.

    Raises:
        LoadError: The file is not an ONNX model.
    """
    with open_model_file(path) as (file, size):
        graph, _ = find_graph(file, size)
        inputs: list[GraphInput] = []
        initialisers: set[str] = set()
        element_types: set[int] = set()
        operators: set[bytes] = set()
        for part in read_fields(file, graph.start, graph.end):
            if part.number == 1:
                operators.add(_read_operator(file, part))
            elif part.number == 5:
                name, element_type = _read_tensor(file, part)
                initialisers.add(name)
                element_types.add(element_type)
            elif part.number == 11:
                inputs.append(_read_input(file, part))
    required = tuple(one for one in inputs if one.name not in initialisers)
    element_types.update(one.element_type for one in required)
    return GraphTraits(
        required,
        _FLOAT16 in element_types,
        _BFLOAT16 in element_types,
        bool(_QUANTIZED & operators),
        bool(_CONVOLUTIONS & operators),
    )


def make_profile(inputs: Sequence[GraphInput], max_rows: int) -> dict[str, str]:
    """Return shapes for runs of 1 to `max_rows` rows, by "min", "opt" and "max".

    Kernels are chosen for the largest batch: under load, batches are as large as they may be.

    Args:
        inputs: The inputs of the graph.
        max_rows: The most rows of a batch; 0: not known, or requests do not share runs.

    Returns:
        Shapes as "x:1x3x224x224,y:1x5", empty if there is no profile: no size is free, one other
        than the number of rows is, or a name cannot be written.
    """
    free = [one for one in inputs if one.shape is None or None in one.shape]
    if not free or not max_rows:
        return {}
    shapes: dict[str, list[str]] = {"min": [], "opt": [], "max": []}
    largest = max(max_rows, MIN_LARGEST_ROWS)
    for one in free:
        if one.shape is None or None in one.shape[1:] or not _NAME.fullmatch(one.name):
            return {}
        for kind, rows in (("min", 1), ("opt", max_rows), ("max", largest)):
            sizes = "x".join(map(str, [rows, *one.shape[1:]]))
            shapes[kind].append(f"{one.name}:{sizes}")
    return {kind: ",".join(parts) for kind, parts in shapes.items()}


def tensorrt_options(traits: GraphTraits, max_rows: int) -> dict[str, str]:
    """Return the options of the TensorRT provider that follow from a model.

    TensorRT uses the precision of a float16 or int8 model only if its flag is set.
    """
    flags = {
        "trt_fp16_enable": traits.has_float16,
        "trt_bf16_enable": traits.has_bfloat16,
        "trt_int8_enable": traits.is_quantized,
    }
    options = {name: write_flag("tensorrt", value=True) for name, needed in flags.items() if needed}
    profile = make_profile(traits.inputs, max_rows)
    return options | {f"trt_profile_{kind}_shapes": text for kind, text in profile.items()}


def without_profile(options: Mapping[str, str]) -> dict[str, str]:
    """Return the options but those of the profile."""
    return {key: value for key, value in options.items() if not key.startswith("trt_profile_")}


_NAME: Final = re.compile(r"[^,\s]+")


def _read_operator(file: BinaryIO, node: ProtobufField) -> bytes:
    for part in read_fields(file, node.start, node.end):
        if part.number == 4:
            return _read_bytes(file, part)
    return b""


def _read_tensor(file: BinaryIO, tensor: ProtobufField) -> tuple[str, int]:
    """Return the name and the element type of a TensorProto."""
    name, element_type = "", 0
    for part in read_fields(file, tensor.start, tensor.end):
        if part.number == 8:
            name = _read_bytes(file, part).decode("utf-8", "replace")
        elif part.number == 2:
            element_type = _read_varint(file, part)
    return name, element_type


def _read_input(file: BinaryIO, info: ProtobufField) -> GraphInput:
    """Read a ValueInfoProto: its name and, in its type, the element type and shape of a tensor."""
    name, element_type = "", 0
    shape: tuple[int | None, ...] | None = None
    for part in read_fields(file, info.start, info.end):
        if part.number == 1:
            name = _read_bytes(file, part).decode("utf-8", "replace")
        elif part.number == 2:
            for kind in read_fields(file, part.start, part.end):
                if kind.number != 1:
                    continue
                for one in read_fields(file, kind.start, kind.end):
                    if one.number == 1:
                        element_type = _read_varint(file, one)
                    elif one.number == 2:
                        dimensions = read_fields(file, one.start, one.end)
                        shape = tuple([_read_size(file, size) for size in dimensions])
    return GraphInput(name, element_type, shape)


def _read_size(file: BinaryIO, dimension: ProtobufField) -> int | None:
    for part in read_fields(file, dimension.start, dimension.end):
        if part.number == 1:
            size = _read_varint(file, part)
            return size if 0 < size < 1 << 31 else None
    return None


def _read_bytes(file: BinaryIO, part: ProtobufField) -> bytes:
    file.seek(part.start)
    return file.read(min(part.end - part.start, _MAX_NAME_BYTES))


def _read_varint(file: BinaryIO, part: ProtobufField) -> int:
    file.seek(part.start)
    value = 0
    for index, byte in enumerate(file.read(part.end - part.start)):
        value |= (byte & 0x7F) << (7 * index)
    return value
