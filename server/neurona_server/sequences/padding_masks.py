"""Finds what is behind the ends of rows in the tensors of a graph that callers send lengths to.

Such a graph may look at all steps: it leaves out those behind the end of a row. Runs of synthetic
inputs do not show that it always does, as where it counts a token that they do not have. So the
masks must be seen: zeros under a sum, or very low numbers under a maximum or softmax.
"""

import enum
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from neurona_server.sequences.graph import KNOWN_DOMAINS, STATE_COUNTS, find_attribute
from neurona_server.sequences.tensor_axes import Axis, TensorAxes

if TYPE_CHECKING:
    from onnx import NodeProto

_LOW = -1e4
"""Values up to this are taken for less than any other, so that a softmax leaves them out."""

_STEPS = {Axis.TIME, Axis.ROWS_AND_TIME}

_SUMS = {"ReduceL1", "ReduceL2", "ReduceSum", "ReduceSumSquare"}
_MAXIMA = {"ArgMax", "LogSoftmax", "ReduceLogSumExp", "ReduceMax", "Softmax"}
_PRODUCTS = {"FusedMatMul", "Gemm", "MatMul"}

_KEEP = {"Cast", "Expand", "Identity", "Reshape", "Squeeze", "Transpose", "Unsqueeze"}
"""Operators whose output has the values of input 0."""

_KEEP_ZERO = {"Abs", "Div", "Dropout", "LeakyRelu", "MatMul", "Neg", "Relu", "Sqrt", "Tanh"}
"""Operators whose output is zero where input 0 is."""


class PaddedValue(enum.Enum):
    """What a tensor has behind the ends of rows."""

    UNKNOWN = enum.auto()
    ZERO = enum.auto()
    LOW = enum.auto()


class PaddingMasks:
    """What the tensors of a graph have behind the ends of rows."""

    def __init__(
        self,
        nodes: Iterable["NodeProto"],
        axes: TensorAxes,
        lengths: Collection[str],
        sources: Callable[[str], set[str]],
    ) -> None:
        """Follow the masks.

        Args:
            nodes: All of the graph, in the order of their runs.
            axes: What is along the axes of its tensors.
            lengths: The inputs in which callers send lengths.
            sources: Returns the inputs whose values a tensor depends on.
        """
        self._axes, self._lengths, self._sources = axes, {*lengths}, sources
        self._padding: dict[str, PaddedValue] = {}
        for node in nodes:
            if node.output and node.output[0]:
                self._padding[node.output[0]] = self._follow(node)

    def leave_out_padding(self, node: "NodeProto") -> bool:
        """Return whether a node that looks across steps surely leaves out what is behind the ends.

        Runs have to show that the masks are where the ends are.
        """
        operator = node.op_type
        if node.domain not in KNOWN_DOMAINS:
            return False
        with_steps = [name for name in node.input if name and self._has_steps(name)]
        if all(self._is_of_lengths(name) for name in with_steps):
            return True
        first = self._of(node.input[0])
        if operator in _SUMS:
            return first is PaddedValue.ZERO
        if operator in _MAXIMA:
            return first is PaddedValue.LOW
        if operator in _PRODUCTS:
            return PaddedValue.ZERO in (first, self._of(node.input[1])) or self._is_of_pairs(node)
        return operator == "GatherElements" and self._is_of_lengths(node.input[1])

    def _follow(self, node: "NodeProto") -> PaddedValue:
        operator, padded_values = node.op_type, [self._of(name) for name in node.input]
        if operator == "Where":
            return self._follow_where(node)
        if operator in ("Add", "Sub") and self._adds_mask(node):
            return PaddedValue.LOW
        if operator in STATE_COUNTS or self._is_zero(node, padded_values):
            return PaddedValue.ZERO
        return padded_values[0] if operator in _KEEP else PaddedValue.UNKNOWN

    def _is_zero(self, node: "NodeProto", padded_values: Sequence[PaddedValue]) -> bool:
        operator = node.op_type
        if operator == "Mul":
            return PaddedValue.ZERO in padded_values or any(map(self._is_mask, node.input))
        if operator in ("Add", "Concat", "Sub"):
            return {*padded_values} == {PaddedValue.ZERO}
        if operator == "Exp" or self._is_softmax_of_steps(node):
            return padded_values[0] is PaddedValue.LOW
        return operator in _KEEP_ZERO and padded_values[0] is PaddedValue.ZERO

    def _adds_mask(self, node: "NodeProto") -> bool:
        terms = node.input if node.op_type == "Add" else node.input[1:]
        return any(map(self._is_mask, terms))

    def _follow_where(self, node: "NodeProto") -> PaddedValue:
        if self._is_mask(node.input[0]):
            for name in node.input[1:]:
                values = self._axes.values(name)
                if self._sources(name) or not values:
                    continue
                if all(np.all(array == 0) for array in values):
                    return PaddedValue.ZERO
                if all(np.all(array <= _LOW) for array in values):
                    return PaddedValue.LOW
        return PaddedValue.UNKNOWN

    def _is_of_pairs(self, node: "NodeProto") -> bool:
        """Return whether a product has the steps of both factors along axes of its own."""
        if node.op_type != "MatMul":
            return False
        first, second = (self._axes.find(name) or () for name in node.input)
        return bool(first) and len(second) > 1 and not {first[-1], second[-2]} & _STEPS

    def _is_softmax_of_steps(self, node: "NodeProto") -> bool:
        meanings = self._axes.find(node.input[0]) or ()
        axis = int(find_attribute(node, "axis", -1))
        is_axis = -len(meanings) <= axis < len(meanings)
        return node.op_type == "Softmax" and is_axis and meanings[axis] in _STEPS

    def _is_mask(self, tensor: str) -> bool:
        return self._is_of_lengths(tensor) and self._has_steps(tensor)

    def _is_of_lengths(self, tensor: str) -> bool:
        sources = self._sources(tensor)
        return bool(sources) and sources <= self._lengths

    def _has_steps(self, tensor: str) -> bool:
        meanings = self._axes.find(tensor)
        return meanings is None or bool(_STEPS & {*meanings})

    def _of(self, tensor: str) -> PaddedValue:
        return self._padding.get(tensor, PaddedValue.UNKNOWN)
