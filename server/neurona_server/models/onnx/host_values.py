"""Finds the inputs of a graph whose values are read by the host when the graph runs on a GPU.

The CUDA kernels of some operators take an input in the memory of the host: a shape, an axis, the
lengths of sequences. A CUDA graph keeps what was made of its values when it was captured. So the
values of the inputs are followed through the graph to such inputs of operators. Which they are is
from ONNX Runtime's kernels (InputMemoryType of OrtMemTypeCPUInput in providers/cuda), their meaning
from ONNX's docs/Operators.md.
"""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import BinaryIO, NamedTuple

from neurona_server.models.onnx.model_file import (
    ProtobufField,
    find_graph,
    open_model_file,
    read_fields,
)

log = logging.getLogger(__name__)

MAX_NODES = 5000
"""Nodes after which the analysis ends without a result."""

_MAX_NAME_BYTES = 1024

_ALL = (*range(8),)
_HOST_INPUTS: Mapping[str, tuple[int, ...]] = {
    "AffineGrid": (1,),
    "BlackmanWindow": (0,),
    "CenterCropPad": (1,),
    "Clip": (1, 2),
    "Col2Im": (1, 2),
    "ConstantOfShape": (0,),
    "CumSum": (1,),
    "DFT": (1, 2),
    "Dropout": (1, 2),
    "Expand": (1,),
    "GRU": (4,),
    "HammingWindow": (0,),
    "HannWindow": (0,),
    "LSTM": (4,),
    "MatMulInteger": (2, 3),
    "MaxUnpool": (2,),
    "MelWeightMatrix": _ALL,
    "NonMaxSuppression": (2, 3, 4),
    "OneHot": (1,),
    "Pad": (1, 2, 3),
    "RNN": (4,),
    "Range": _ALL,
    "Reshape": (1,),
    "Resize": (1, 2, 3),
    "ReverseSequence": (1,),
    "STFT": (1, 3),
    "SequenceAt": (1,),
    "SequenceErase": (1,),
    "SequenceInsert": (2,),
    "Slice": (1, 2, 3, 4),
    "Split": (1,),
    "SplitToSequence": (1,),
    "Squeeze": (1,),
    "Tile": (1,),
    "TopK": (1,),
    "Trilu": (1,),
    "Unsqueeze": (1,),
    "Upsample": (1,),
    **{
        f"Reduce{name}": (1,)
        for name in ("L1", "L2", "LogSum", "LogSumExp", "Max", "Mean", "Min", "Prod", "Sum")
    },
    "ReduceSumSquare": (1,),
}
"""By operator, the inputs that its kernel takes in the memory of the host."""

_UNSUITABLE = {
    *("If", "Loop", "Scan", "SequenceMap"),  # which run or end by values
    *("Compress", "NonZero", "Unique", "StringSplit"),  # whose outputs have as many values as fit
    *("RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike"),  # new ones each
    *("Bernoulli", "Multinomial"),
}
_STANDARD_DOMAINS = ("", "ai.onnx")


class _UnsuitableError(Exception):
    """No CUDA graph can be made of the model, or it is not known what it does with values."""


class _GraphNode(NamedTuple):
    operator: str
    domain: str
    inputs: Sequence[str]
    outputs: Sequence[str]


def find_host_values(path: Path) -> frozenset[str] | None:
    """Return the inputs of a valid model whose values a CUDA graph would keep.

    Returns None if a CUDA graph is not to be tried: the model has control flow, shapes that depend
    on values, random numbers, operators of other domains or functions, or too many nodes.
    """
    with open_model_file(path) as (file, size):
        graph, functions = find_graph(file, size)
        if functions:
            return None
        try:
            return _follow_values(file, graph)
        except _UnsuitableError as error:
            log.debug("%s: not to be captured as a CUDA graph: %s", path, error)
            return None


def _follow_values(file: BinaryIO, graph: ProtobufField) -> frozenset[str]:
    parts: dict[int, list[ProtobufField]] = {1: [], 11: []}
    for part in read_fields(file, graph.start, graph.end):
        parts.get(part.number, []).append(part)
    # By tensor, the inputs of the model that its values are made of.
    origins: dict[str, frozenset[str]] = {}
    for info in parts[11]:
        for part in read_fields(file, info.start, info.end):
            if part.number == 1:
                name = _read(file, part)
                origins[name] = frozenset([name])
    host_values: frozenset[str] = frozenset()
    read: set[str] = set()
    if len(parts[1]) > MAX_NODES:
        raise _UnsuitableError(f"{len(parts[1])} nodes")
    for message in parts[1]:
        node = _read_node(file, message)
        if node.operator in _UNSUITABLE or node.domain not in _STANDARD_DOMAINS:
            raise _UnsuitableError(f"operator {node.domain}:{node.operator}")
        if not read.isdisjoint(node.outputs):  # ONNX Runtime sorts them
            raise _UnsuitableError("its nodes are not in order")
        read.update(filter(None, node.inputs))
        own = [origins.get(name, frozenset()) for name in node.inputs]
        for index in _HOST_INPUTS.get(node.operator, ()):
            if index < len(own):
                host_values |= own[index]
        # Of shapes only the sizes count, which a graph is captured for anyway.
        is_shape = node.operator in ("Shape", "Size")
        made_of = frozenset() if is_shape else frozenset().union(*own)
        origins.update(dict.fromkeys(node.outputs, made_of))
        origins.pop("", None)
    return host_values


def _read_node(file: BinaryIO, message: ProtobufField) -> _GraphNode:
    inputs: list[str] = []
    outputs: list[str] = []
    operator = domain = ""
    for part in read_fields(file, message.start, message.end):
        if part.number == 1:
            inputs.append(_read(file, part))
        elif part.number == 2:
            outputs.append(_read(file, part))
        elif part.number == 4:
            operator = _read(file, part)
        elif part.number == 7:
            domain = _read(file, part)
    return _GraphNode(operator, domain, inputs, outputs)


def _read(file: BinaryIO, part: ProtobufField) -> str:
    file.seek(part.start)
    return file.read(min(part.end - part.start, _MAX_NAME_BYTES)).decode("utf-8", "replace")
