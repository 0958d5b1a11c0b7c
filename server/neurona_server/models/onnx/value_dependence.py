"""Finds models whose run time depends on the values of their inputs, not only on their shapes.

No measurement predicts such a run: the count of a loop, the end of a range or the repeats of a tile
may be any number. The values of the inputs are followed through the graph to the inputs of nodes
that decide how often a node runs or how large its output is. The meaning of the operators is that
of ONNX's docs/Operators.md.
"""

import itertools
import logging
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import BinaryIO

from neurona_server.models.onnx.model_file import (
    ProtobufField,
    find_graph,
    open_model_file,
    read_fields,
)

log = logging.getLogger(__name__)

MAX_NODES = 1000
"""Nodes after which the analysis, of some 0.1 ms a node, ends without a result."""

_MAX_NAME_BYTES = 1024

_VALUE, _SHAPE = 1, 2
"""What of a tensor depends on the values of the model's inputs."""

_SIZE_INPUTS: Mapping[str, Sequence[int]] = {
    "AffineGrid": (1,),
    "BlackmanWindow": (0,),
    "CenterCropPad": (1,),
    "Col2Im": (1,),
    "ConstantOfShape": (0,),
    "DFT": (1,),
    "Expand": (1,),
    "HammingWindow": (0,),
    "HannWindow": (0,),
    "If": (0,),
    "Loop": (0, 1),
    "MaxUnpool": (2,),
    "MelWeightMatrix": (0, 1),
    "OneHot": (1,),
    "Pad": (1,),
    "Range": (0, 1, 2),
    "Resize": (1, 2, 3),
    "STFT": (1, 3),
    "Tile": (1,),
    "Upsample": (1,),
    # Of ONNX Runtime: lengths of what is generated.
    "BeamSearch": (1, 2, 3, 4),
    "GreedySearch": (1, 2),
    "Sampling": (1, 2),
    "WhisperBeamSearch": (1, 2, 3, 4),
}
"""By operator, the inputs whose values decide the size of its output or what it runs how often."""

_SHAPE_FROM_VALUES = {"Compress", "NonMaxSuppression", "NonZero", "StringSplit", "Unique"}
"""Operators whose values decide the shape of their outputs, within the size of their inputs."""


_WITH_GRAPHS = {"If", "Loop", "Scan", "SequenceMap"}
"""Operators with graphs in their attributes. Those of others may be long: all trees of a forest."""


class _TooManyNodesError(Exception):
    pass


class _DependentError(Exception):
    """The model's run time depends on values."""


def time_depends_on_values(path: Path) -> bool:
    """Return whether the run time of a valid model may depend on the values of its inputs.

    Returns False for a graph with more than MAX_NODES nodes.
    """
    with open_model_file(path) as (file, size):
        graph, functions = find_graph(file, size)
        try:
            _Analysis(file, functions).follow_graph(graph, {}, None)
        except _DependentError:
            return True
        except (_TooManyNodesError, RecursionError):
            log.debug("%s: too large to find whether its time depends on values", path)
    return False


class _Analysis:
    """Follows values through graphs. A tensor's dependence is a sum of _VALUE and _SHAPE."""

    def __init__(self, file: BinaryIO, functions: Iterable[ProtobufField]) -> None:
        self._file = file
        self._functions = {self._text(function, 1): function for function in functions}
        self._nodes = 0

    def follow_graph(
        self,
        graph: ProtobufField,
        outer: Mapping[str, int],
        dependences: Iterable[int] | None,
    ) -> list[int]:
        """Return how the outputs of a graph depend on values.

        Args:
            graph: A GraphProto.
            outer: The dependence of the tensors around it, by name.
            dependences: Those of its inputs; None if they are the model's inputs.

        Raises:
            _DependentError: The time of a node depends on them.
            _TooManyNodesError: There are too many nodes.
        """
        parts: dict[int, list[ProtobufField]] = {1: [], 5: [], 11: [], 12: []}
        for part in read_fields(self._file, graph.start, graph.end):
            parts.get(part.number, []).append(part)
        constants = {self._text(tensor, 8) for tensor in parts[5]}
        inputs = [self._text(info, 1) for info in parts[11]]
        if dependences is None:
            dependences = [0 if name in constants else _VALUE for name in inputs]
        scope = {**outer, **dict.fromkeys(constants, 0)}
        scope.update(zip(inputs, dependences, strict=False))
        self._follow_nodes(parts[1], scope)
        return [scope.get(self._text(info, 1), 0) for info in parts[12]]

    def _follow_nodes(self, nodes: Iterable[ProtobufField], scope: dict[str, int]) -> None:
        for node in nodes:
            self._nodes += 1
            if self._nodes > MAX_NODES:
                raise _TooManyNodesError
            self._follow_node(node, scope)

    def _follow_node(self, node: ProtobufField, scope: dict[str, int]) -> None:
        inputs: list[int] = []
        outputs: list[str] = []
        operator, attributes = "", []
        for part in read_fields(self._file, node.start, node.end):
            if part.number == 1:
                inputs.append(scope.get(self._read(part), 0))  # "" is no input
            elif part.number == 2:
                outputs.append(self._read(part))
            elif part.number == 4:
                operator = self._read(part)
            elif part.number == 5:
                attributes.append(part)
        graphs = [
            part
            for attribute in (attributes if operator in _WITH_GRAPHS else ())
            for part in read_fields(self._file, attribute.start, attribute.end)
            if part.number in (6, 11)
        ]
        if any(inputs[i] & _VALUE for i in _SIZE_INPUTS.get(operator, ()) if i < len(inputs)):
            raise _DependentError
        dependence = _union(inputs)
        results = [dependence] * len(outputs)
        if operator in ("Shape", "Size"):
            results = [_VALUE if dependence & _SHAPE else 0]
        elif operator in _SHAPE_FROM_VALUES and dependence:
            results = [_VALUE | _SHAPE] * len(outputs)
        elif operator in self._functions:
            results = self._follow_function(self._functions[operator], inputs)
        elif operator == "Loop":
            results = self._follow_loop(graphs[0], inputs, scope)
        else:
            for graph in graphs:  # of a branch, which has no inputs, or of a loop over an axis
                body = self.follow_graph(graph, scope, itertools.repeat(dependence))
                results = [results[0] | _union(body)] * len(outputs)
        scope.update(zip(outputs, results, strict=False))
        scope.pop("", None)

    def _follow_loop(
        self, body: ProtobufField, inputs: Sequence[int], scope: Mapping[str, int]
    ) -> list[int]:
        condition = inputs[1] if len(inputs) > 1 else 0
        carried = list(inputs[2:])
        outputs: list[int] = []
        for _ in range(2):  # what a step returns is what the next one gets
            outputs = self.follow_graph(body, scope, [0, condition, *carried])
            if outputs and outputs[0] & _VALUE:
                raise _DependentError
            carried = [before | after for before, after in zip(carried, outputs[1:], strict=False)]
        return outputs[1:]

    def _follow_function(self, function: ProtobufField, inputs: Sequence[int]) -> list[int]:
        parts: dict[int, list[ProtobufField]] = {4: [], 5: [], 7: []}
        for part in read_fields(self._file, function.start, function.end):
            parts.get(part.number, []).append(part)
        scope = dict(zip(map(self._read, parts[4]), inputs, strict=False))
        self._follow_nodes(parts[7], scope)
        return [scope.get(self._read(part), 0) for part in parts[5]]

    def _text(self, message: ProtobufField, number: int) -> str:
        """Return a string field of a message, "" if it has none."""
        for part in read_fields(self._file, message.start, message.end):
            if part.number == number:
                return self._read(part)
        return ""

    def _read(self, part: ProtobufField) -> str:
        self._file.seek(part.start)
        return self._file.read(min(part.end - part.start, _MAX_NAME_BYTES)).decode(
            "utf-8", "replace"
        )


def _union(dependences: Iterable[int]) -> int:
    union = 0
    for dependence in dependences:
        union |= dependence
    return union
