"""Finds what in a recurrent graph is computed from the number of steps or of rows.

Runs of a few sizes do not show all of it: whether a sequence has more than 100 steps, say, is the
same in all of them. So sizes are followed from node to node, and only what is linear in them is
judged by its values in runs.
"""

import enum
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from neurona_server.sequences.graph import STATE_COUNTS, find_attribute, node_title
from neurona_server.sequences.operators import BY_ELEMENT, MOVES
from neurona_server.sequences.tensor_axes import Axis, TensorAxes

if TYPE_CHECKING:
    from onnx import NodeProto

_SHAPES: Mapping[str, Collection[int]] = {
    **dict.fromkeys(("Expand", "OneHot", "Reshape", "Split", "Tile"), (1,)),
    **dict.fromkeys(("Squeeze", "Unsqueeze"), (1,)),
}
"""The inputs of operators that say which shape the output has, and not which values."""

_INDICES: Mapping[str, Collection[int]] = {
    **dict.fromkeys(("CumSum", "Gather", "GatherND", "ReverseSequence", "TopK"), (1,)),
    "Slice": (1, 2, 3, 4),
    **dict.fromkeys(STATE_COUNTS, (4, 5, 6)),
}
"""The inputs of operators that are indices, lengths or states."""

_LINEAR = MOVES | {"Add", "Cast", "Concat", "Gather", "Identity", "Mul", "Neg", "Split", "Sub"}
"""Operators whose output is linear in sizes if their inputs are: two sizes show whether it is
constant."""

_COPIES = {"Expand", "OneHot", "Tile"}

_COUNTS = {"CumSum", "NonZero", "Range"}
"""Operators whose output counts the steps."""

_WIDE = (1, 6, 7, 11)  # ONNX's numbers of float, int32, int64 and double, which hold any size


class Dependence(enum.IntEnum):
    """What a tensor that no values of inputs are in depends on."""

    NOTHING = 0
    POSITION = 1
    """Each value along the steps on where it is from the begin, as a row of a table does."""

    SIZE = 2
    """A number that is linear in sizes."""

    ANY = 3
    """Sizes in another way, as where there is a bound of them, or a position from the end."""


class SizeDependence:
    """What the tensors of a graph depend on that are computed without values of its inputs."""

    def __init__(
        self, nodes: Iterable["NodeProto"], axes: TensorAxes, inputs: Collection[str]
    ) -> None:
        """Follow the sizes.

        Args:
            nodes: All of the graph, in the order of their runs.
            axes: What is along the axes of its tensors.
            inputs: Those of the graph.
        """
        self._nodes, self._axes = list(nodes), axes
        self._dependent = {*inputs}
        self._dependences: dict[str, Dependence] = {}
        for node in self._nodes:
            if node.op_type not in ("Shape", "Size") and self._dependent & {*node.input}:
                self._dependent.update(node.output)
            else:
                for name in node.output:
                    self._dependences[name] = self._follow(node, name)

    def is_linear(self, tensor: str) -> bool:
        """Return whether a tensor is constant or linear in sizes, so that runs show what it is."""
        linear = (Dependence.NOTHING, Dependence.SIZE)
        return tensor not in self._dependent and self._of(tensor) in linear

    def find(self, is_replaced: Callable[["NodeProto", int], bool]) -> tuple[str, bool]:
        """Return a node that computes with sizes, "" if there is none.

        Shapes do not count, but for copies whose number is not linear in sizes. The second value
        is whether it is the position of each step that is computed with, which is right for the
        whole of a sequence only.

        Args:
            is_replaced: Whether the sizes that an input of a node has as indices or lengths are
                replaced by those of each row.
        """
        positional = ""
        for node in self._nodes:
            if node.op_type in ("Shape", "Size") or not self._dependent & {*node.input}:
                continue
            shapes, indices = (one.get(node.op_type, ()) for one in (_SHAPES, _INDICES))
            for index, name in enumerate(node.input):
                if not name or name in self._dependent:
                    continue
                dependence = self._of(name)
                if index in shapes:
                    if dependence is Dependence.ANY and node.op_type in _COPIES:
                        return node_title(node), False
                elif index in indices:
                    if dependence is not Dependence.NOTHING and not is_replaced(node, index):
                        return node_title(node), False
                elif dependence is Dependence.POSITION and Axis.TIME in (
                    self._axes.find(name) or ()
                ):
                    positional = positional or node_title(node)
                elif dependence is not Dependence.NOTHING or self._varies(name):
                    return node_title(node), False
        return positional, True

    def _of(self, tensor: str) -> Dependence:
        return self._dependences.get(tensor, Dependence.NOTHING)

    def _follow(self, node: "NodeProto", output: str) -> Dependence:
        """Return what an output depends on, of a node that reads no values of the inputs."""
        operator = node.op_type
        if operator in ("Shape", "Size"):
            return self._judge(output)
        shapes = _SHAPES.get(operator, ())
        names = [name for index, name in enumerate(node.input) if name and index not in shapes]
        dependences = [self._of(name) for name in names]
        is_constant = max(dependences, default=Dependence.NOTHING) is Dependence.NOTHING
        if operator == "ConstantOfShape" or (is_constant and not any(map(self._is_free, names))):
            return Dependence.NOTHING
        if operator == "Slice":
            return self._follow_slice(node, output)
        if operator == "Gather":
            return self._follow_gather(dependences, output)
        if operator in _COUNTS:
            return _follow_count(node, dependences)
        return self._follow_linear(node, dependences, output)

    def _follow_linear(
        self, node: "NodeProto", dependences: Sequence[Dependence], output: str
    ) -> Dependence:
        operator, largest = node.op_type, max(dependences)
        joins_steps = operator == "Concat" and self._joins_steps(node)
        if joins_steps or operator not in BY_ELEMENT | MOVES | _LINEAR:
            return Dependence.ANY
        if largest is not Dependence.SIZE:
            return largest
        is_narrow = operator == "Cast" and find_attribute(node, "to", 0) not in _WIDE
        if operator == "Equal" and any(map(self._is_negative, node.input)):
            return Dependence.NOTHING  # as exporters ask which sizes of a shape are not given
        is_choice = operator == "Where" and dependences[0] is Dependence.NOTHING
        if (
            not (operator in _LINEAR or is_choice)
            or is_narrow
            or Dependence.POSITION in dependences
        ):
            return Dependence.ANY
        return self._judge(output)

    def _is_negative(self, tensor: str) -> bool:
        values = self._axes.values(tensor)
        is_constant = self._of(tensor) is Dependence.NOTHING
        return is_constant and bool(values) and all(bool(np.all(one < 0)) for one in values)

    def _judge(self, tensor: str) -> Dependence:
        """Return what a tensor is that is linear in sizes."""
        return Dependence.SIZE if self._varies(tensor) else Dependence.NOTHING

    def _follow_slice(self, node: "NodeProto", output: str) -> Dependence:
        data, *others = [self._of(name) for name in [*node.input, "", "", "", ""][:5]]
        if max(others) is Dependence.NOTHING and data in (Dependence.NOTHING, Dependence.SIZE):
            return self._judge(output)
        starts = self._axes.values(node.input[1]) if len(node.input) > 1 else ()
        steps = self._axes.values(node.input[4]) if len(node.input) > 4 else ()
        from_begin = others[0] is Dependence.NOTHING and all(np.all(one >= 0) for one in starts)
        forward = others[3] is Dependence.NOTHING and all(np.all(one > 0) for one in steps)
        is_table = data in (Dependence.NOTHING, Dependence.POSITION) and len(node.input) > 1
        return Dependence.POSITION if is_table and from_begin and forward else Dependence.ANY

    def _follow_gather(self, dependences: Sequence[Dependence], output: str) -> Dependence:
        data, indices = dependences
        if indices is Dependence.NOTHING and data is Dependence.SIZE:
            return self._judge(output)
        if data is Dependence.NOTHING and indices in (Dependence.NOTHING, Dependence.POSITION):
            return indices
        return Dependence.ANY

    def _is_free(self, tensor: str) -> bool:
        meanings = self._axes.find(tensor)
        return meanings is None or any(one is not Axis.FIXED for one in meanings)

    def _joins_steps(self, node: "NodeProto") -> bool:
        axis = int(find_attribute(node, "axis", 0))
        for name in node.input:
            meanings = self._axes.find(name)
            if meanings is None or meanings[axis] is not Axis.FIXED:
                return True
        return False

    def _varies(self, tensor: str) -> bool:
        """Return whether a tensor is another one for other numbers of rows or steps."""
        arrays, meanings = self._axes.values(tensor), self._axes.find(tensor)
        if arrays and all(array is arrays[0] for array in arrays):  # an initialiser
            return False
        if meanings is None:
            return True
        free = [axis for axis, meaning in enumerate(meanings) if meaning is not Axis.FIXED]
        parts = []
        for array in arrays:
            part = array
            for axis in free:
                first = part.take([0], axis)
                if not np.array_equal(np.broadcast_to(first, part.shape), part):
                    return True
                part = first
            parts.append(part)
        return any(not np.array_equal(part, parts[0]) for part in parts)


def _follow_count(node: "NodeProto", dependences: Sequence[Dependence]) -> Dependence:
    numbers = (
        [dependences[0], *dependences[2:]] if node.op_type == "Range" else dependences
    )  # whose limit is a size
    is_reverse = node.op_type == "CumSum" and find_attribute(node, "reverse", 0)
    is_from_begin = max(numbers) is Dependence.NOTHING and not is_reverse
    return Dependence.POSITION if is_from_begin else Dependence.ANY
