"""Rewrites a recurrent graph so that it takes lengths and states.

The rewritten graph has one more input for the steps of each row, wired into `sequence_lens` of
each recurrent node that has none. Nodes that read the last step of all rows, as Gather with the
index -1 does, read each row's own last step instead. Where all recurrent nodes read forward, the
graph has one more input and one more output for the states of all of them beside each other.
Whatever is written here is proved by runs before it is used: see proof.py.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from neurona_server.batching.request import Array
from neurona_server.sequences.form import LENGTHS, STATE
from neurona_server.sequences.graph import (
    LENGTHS_INPUT,
    READ_OUT_OPSET,
    STATE_COUNTS,
    NotRewrittenError,
    OldOperatorsError,
    find_attribute,
    find_opset,
    node_title,
    recurrent_nodes,
)
from neurona_server.sequences.operators import find_operator_across_steps, reads_first_step
from neurona_server.sequences.padding_masks import PaddingMasks
from neurona_server.sequences.size_dependence import SizeDependence
from neurona_server.sequences.tensor_axes import Axis, TensorAxes

if TYPE_CHECKING:
    from onnx import AttributeProto, ModelProto, NodeProto

NEXT_STATE = "neurona.next_state"
"""The output of a rewritten graph with the state after the last step of each row."""

_FLOATS = {np.dtype(np.float32): 1, np.dtype(np.float16): 10, np.dtype(np.float64): 11}
"""ONNX's numbers of element types."""


@dataclass(frozen=True)
class RewrittenGraph:
    """A graph that takes lengths and, perhaps, states.

    Attributes:
        content: The ONNX file.
        state_size: Numbers of the state of a row; 0 if it takes none.
        stateless_reason: Why it takes none.
    """

    content: bytes
    state_size: int
    stateless_reason: str


def rewrite(
    model: "ModelProto",
    axes: TensorAxes,
    inputs: Collection[str],
    lengths: Collection[str],
    *,
    with_state: bool = True,
) -> RewrittenGraph:
    """Return the model with inputs for lengths and, if its state can be opened, states.

    Args:
        model: The model; it is not changed.
        axes: What is along the axes of its tensors.
        inputs: The names of the inputs that callers send, also of those that they may leave out.
        lengths: Those of them in which callers send lengths.
        with_state: Whether to open the state if that is possible.

    Raises:
        OldOperatorsError: It must be converted before.
        NotRewrittenError: It cannot be rewritten.
    """
    import onnx

    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    rewriter = _Rewriter(copy, model.graph.node, axes, inputs, lengths)
    rewriter.add_lengths()
    across, masked = find_operator_across_steps(
        model, axes, find_opset(model), rewriter.checked_outputs, rewriter.find_masks()
    )
    if across:
        raise NotRewrittenError(f"its operator {across} may look across steps")
    node, is_position = rewriter.find_size_dependence()
    if node and not is_position:
        raise NotRewrittenError(f"its operator {node} depends on the number of steps")
    reason = rewriter.find_closed_state()
    if masked and not reason:
        reason = f"its operator {masked} looks at all steps of a sequence"
    if node and not reason:
        reason = f"its operator {node} depends on the position of a step"
    size = rewriter.open_state() if with_state and not reason else 0
    return RewrittenGraph(copy.SerializeToString(deterministic=True), size, reason)


class _Rewriter:
    """Rewrites a model in place."""

    def __init__(
        self,
        model: "ModelProto",
        original_nodes: Collection["NodeProto"],
        axes: TensorAxes,
        inputs: Collection[str],
        lengths: Collection[str],
    ) -> None:
        self._model, self._graph, self._axes, self._inputs = model, model.graph, axes, inputs
        self._lengths = {*lengths}
        self.checked_outputs: set[str] = set()
        """Outputs of the nodes that look for the end of the sequences, all of which know it."""

        self._nodes = recurrent_nodes(model.graph)
        self._original_nodes = original_nodes
        self._producers = {name: node for node in original_nodes for name in node.output if name}
        self._sizes = SizeDependence(original_nodes, axes, inputs)
        self._from_end: set[str] = set()
        """Outputs of nodes that reverse each row."""

        self._count = 0
        self._wide_lengths = ""

    def add_lengths(self) -> None:
        """Make all nodes that look for the end of the sequences read each row's own end."""
        from onnx import TensorProto, helper

        self._graph.input.append(
            helper.make_tensor_value_info(LENGTHS, TensorProto.INT32, ["neurona.rows"])
        )
        for node in self._nodes:
            meanings = self._axes.find(node.input[0])
            if meanings is None or meanings[:2] != (Axis.TIME, Axis.ROWS):
                raise NotRewrittenError(f"its layer {node_title(node)} reads the rows one by one")
            self.checked_outputs.update(node.output)
            _extend(node.input, LENGTHS_INPUT + 1)
            lengths = node.input[LENGTHS_INPUT]
            if not lengths or self._is_all_steps(lengths):
                node.input[LENGTHS_INPUT] = LENGTHS
        for node in list(self._graph.node):
            if node.domain not in ("", "ai.onnx"):
                continue
            if node.op_type == "Gather":
                self._read_own_step(node, self._gathered_last_step(node))
            elif node.op_type == "Slice":
                self._read_own_step(node, self._sliced_last_step(node), keeps_axis=True)
                self._reverse_own_steps(node)
            elif node.op_type == "ReverseSequence":
                if self._is_all_steps(node.input[1]):
                    node.input[1] = self._lengths_as_int64()
                elif not self._reads_lengths_of_callers(node.input[1]):
                    continue
                self.checked_outputs.update(node.output)
                self._from_end.update(node.output)

    def _reads_lengths_of_callers(self, tensor: str) -> bool:
        sources = self._sources(tensor)
        return bool(sources) and sources <= self._lengths

    def find_closed_state(self) -> str:
        """Return why the state cannot be opened, "" if it can."""
        for node in self._nodes:
            direction = find_attribute(node, "direction", b"forward")
            if direction != b"forward":
                return f"its layer {node_title(node)} reads sequences from their end"
            for name in self._initial_states(node):
                sources = self._sources(name) if name else ()
                if sources:
                    names = ", ".join(map(repr, sorted(sources)))
                    return (
                        f"the state of its layer {node_title(node)} begins with values of {names}"
                    )
                if name and not self._axes.values(name):
                    return f"the state of its layer {node_title(node)} begins with unknown values"
        return self._find_use_of_the_whole()

    def _find_use_of_the_whole(self) -> str:
        """Return what needs a whole sequence before the answer to a step of it, "" if nothing."""
        whole: set[str] = set()
        for node in self._original_nodes:
            outputs = [name for name in node.output if name]
            if self._from_end & {*outputs}:
                return f"its operator {node_title(node)} reads sequences from their end"
            if node.op_type == "Gather" and reads_first_step(node, self._axes):
                return f"its operator {node_title(node)} reads the first step"
            has_steps = any(Axis.TIME in (self._axes.find(name) or ()) for name in outputs)
            if whole & {*node.input} and has_steps:
                return f"its operator {node_title(node)} combines steps with what follows them"
            if node.op_type in STATE_COUNTS:
                whole.update(node.output[1:])
            elif whole & {*node.input} or self.checked_outputs & {*outputs}:
                whole.update(outputs)
        whole.discard("")
        return ""

    def find_masks(self) -> PaddingMasks | None:
        """Return what is behind the ends of rows, None if callers send no lengths."""
        if not self._lengths:
            return None
        return PaddingMasks(self._original_nodes, self._axes, self._lengths, self._sources)

    def find_size_dependence(self) -> tuple[str, bool]:
        """Return a node that computes with the number of steps or of rows, "" if there is none.

        See `SizeDependence.find`.
        """

        def is_replaced(node: "NodeProto", index: int) -> bool:
            if node.op_type in STATE_COUNTS:
                return index == LENGTHS_INPUT and self._is_all_steps(node.input[index])
            return bool(self.checked_outputs & {*node.output})

        return self._sizes.find(is_replaced)

    def open_state(self) -> int:
        """Make the states of all recurrent nodes an input and an output; return their size."""
        from onnx import TensorProto, helper

        parts: list[str] = []
        size = 0
        for node in self._nodes:
            hidden = self._hidden_size(node)
            element = _FLOATS[self._axes.values(node.input[0])[0].dtype]
            count = STATE_COUNTS[node.op_type]
            initial = self._initial_states(node)
            _extend(node.input, LENGTHS_INPUT + 1 + count)
            _extend(node.output, 1 + count)
            for number in range(count):
                state = self._constant(np.arange(size, size + hidden))
                state = self._insert(node, "Gather", [STATE, state], axis=1)
                state = self._cast(state, element, before=node)
                state = self._insert(
                    node, "Reshape", [state, self._constant(np.array([1, -1, hidden]))]
                )
                begin = initial[number]
                if begin and self._axes.is_constant(begin, 0):
                    begin = ""
                if begin:  # the state is what is added to it, so that zeros begin a sequence
                    state = self._insert(node, "Add", [begin, state])
                node.input[LENGTHS_INPUT + 1 + number] = state
                if not node.output[1 + number]:
                    node.output[1 + number] = self._name()
                after = node.output[1 + number]
                if begin:
                    after = self._append("Sub", [after, begin])
                after = self._append("Reshape", [after, self._constant(np.array([-1, hidden]))])
                if element != TensorProto.FLOAT:
                    after = self._append("Cast", [after], to=TensorProto.FLOAT)
                parts.append(after)
                size += hidden
        self._graph.node.append(helper.make_node("Concat", parts, [NEXT_STATE], axis=1))
        for tensors, name in ((self._graph.input, STATE), (self._graph.output, NEXT_STATE)):
            shape: list[str | int | None] = ["neurona.rows", size]
            tensors.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, shape))
        return size

    def _is_all_steps(self, tensor: str) -> bool:
        """Return whether lengths are computed from the shape of the sequences, as all steps."""
        return self._axes.is_steps(tensor) and self._sizes.is_linear(tensor)

    def _sources(self, tensor: str) -> set[str]:
        """Return the inputs of the model whose values, not only shapes, a tensor depends on."""
        sources: set[str] = set()
        visited: set[str] = set()
        names = [tensor]
        while names:
            name = names.pop()
            if not name or name in visited:
                continue
            visited.add(name)
            if name in self._inputs:
                sources.add(name)
            node = self._producers.get(name)
            if node is not None and node.op_type not in ("Shape", "Size"):
                names.extend(node.input)
        return sources

    def _initial_states(self, node: "NodeProto") -> list[str]:
        first = LENGTHS_INPUT + 1
        names = list(node.input[first : first + STATE_COUNTS[node.op_type]])
        return names + [""] * (STATE_COUNTS[node.op_type] - len(names))

    def _hidden_size(self, node: "NodeProto") -> int:
        size = find_attribute(node, "hidden_size", 0)
        return int(size or self._axes.values(node.input[2])[0].shape[-1])

    def _gathered_last_step(self, node: "NodeProto") -> int | None:
        """Return the axis of time if a Gather reads its last step, else None."""
        axis = self._time_axis(node.input[0], int(find_attribute(node, "axis", 0)))
        indices = node.input[1]
        shapes = {array.shape for array in self._axes.values(indices)}
        if axis is None or len(shapes) != 1 or not shapes <= {(), (1,)}:
            return None
        return axis if self._is_last(indices) else None

    def _sliced_last_step(self, node: "NodeProto") -> int | None:
        """Return the axis of time if a Slice reads its last step and nothing else, else None."""
        if len(node.input) < 3:  # before version 10 they are attributes
            starts, stops, sliced = (
                list(find_attribute(node, name, [])) for name in ("starts", "ends", "axes")
            )
            if starts == [-1] and stops[0] > 1 << 30 and self._opset < 10:
                axis = self._time_axis(node.input[0], (sliced or [0])[0])
                if axis is not None:
                    raise OldOperatorsError("it reads the last step with an old operator")
            return None
        names = [*node.input, "", ""][1:5]
        if not all(self._sizes.is_linear(name) for name in names if name):
            return None
        ends = self._axes.values(names[1])
        slices = self._axes.values(names[2]) if names[2] else [np.array([0])]
        if any(array.shape != (1,) for array in [*self._axes.values(names[0]), *ends, *slices]):
            return None
        if names[3] and not self._axes.is_constant(names[3], 1):
            return None
        axis = self._time_axis(node.input[0], int(slices[0][0]))
        reaches_end = self._axes.is_steps(names[1]) or all(array[0] > 1 << 30 for array in ends)
        return axis if axis is not None and self._is_last(names[0]) and reaches_end else None

    def _reverse_own_steps(self, node: "NodeProto") -> None:
        """Replace a Slice that reverses all steps by one that reverses each row's own."""
        if len(node.input) != 5 or not all(map(self._sizes.is_linear, node.input[1:])):
            return
        first, last, axis, step = (self._axes.values(name) for name in node.input[1:])
        meanings = self._axes.find(node.input[0])
        if meanings is None or any(array.shape != (1,) for array in (*first, *last, *axis, *step)):
            return
        time_axis = self._time_axis(node.input[0], int(axis[0][0]))
        is_reverse = self._axes.is_constant(node.input[4], -1) and self._is_last(node.input[1])
        if time_axis is None or not is_reverse or any(array[0] > -(1 << 30) for array in last):
            return
        rows_axis = meanings.index(Axis.ROWS)
        if {time_axis, rows_axis} != {0, 1}:
            raise NotRewrittenError(f"its {node.op_type} reverses steps along axis {time_axis}")
        del node.input[1:]
        node.op_type = "ReverseSequence"
        node.input.append(self._lengths_as_int64())
        for name, value in (("time_axis", time_axis), ("batch_axis", rows_axis)):
            node.attribute.append(_integer(name, value))
        self.checked_outputs.update(node.output)
        self._from_end.update(node.output)

    def _is_last(self, index: str) -> bool:
        is_last = self._axes.is_constant(index, -1) or self._axes.is_steps(index, -1)
        return is_last and self._sizes.is_linear(index)

    def _time_axis(self, tensor: str, axis: int) -> int | None:
        """Return an axis, not negative, if it has the steps of a tensor that has rows, too."""
        axes = self._axes.find(tensor)
        if axes is None or not -len(axes) <= axis < len(axes) or Axis.ROWS not in axes:
            return None
        return axis % len(axes) if axes[axis] is Axis.TIME else None

    def _read_own_step(
        self, node: "NodeProto", time_axis: int | None, *, keeps_axis: bool = False
    ) -> None:
        """Replace a node that reads the last step of all rows by one that reads their own."""
        if time_axis is None:
            return
        if self._opset < READ_OUT_OPSET:
            raise OldOperatorsError(f"its {node.op_type} reads the last step of all rows")
        data, output = node.input[0], node.output[0]
        self.checked_outputs.add(output)
        axes = self._axes.find(data) or ()
        rows_axis = axes.index(Axis.ROWS)
        keeps_axis = keeps_axis or self._axes.values(node.input[1])[0].shape == (1,)
        others = [axis for axis in range(len(axes)) if axis not in (rows_axis, time_axis)]
        order = [rows_axis, time_axis, *others]
        if order != sorted(order):
            data = self._insert(node, "Transpose", [data], perm=order)
        index = self._insert(node, "Sub", [self._lengths_as_int64(), self._constant(np.array([1]))])
        index = self._insert(node, "Unsqueeze", [index, self._constant(np.array([1]))])
        step = self._insert(node, "GatherND", [data, index], batch_dims=1)  # [rows, *others]
        without_time = sorted([rows_axis, *others])
        back = [[rows_axis, *others].index(axis) for axis in without_time]
        if back != sorted(back):
            step = self._insert(node, "Transpose", [step], perm=back)
        if keeps_axis:
            step = self._insert(node, "Unsqueeze", [step, self._constant(np.array([time_axis]))])
        del node.input[:], node.attribute[:]
        node.op_type = "Identity"
        node.input.append(step)
        node.output[0] = output

    def _lengths_as_int64(self) -> str:
        if not self._wide_lengths:
            from onnx import TensorProto, helper

            self._wide_lengths = self._name()
            cast = helper.make_node("Cast", [LENGTHS], [self._wide_lengths], to=TensorProto.INT64)
            self._graph.node.insert(0, cast)
        return self._wide_lengths

    def _cast(self, tensor: str, element: int, before: "NodeProto") -> str:
        from onnx import TensorProto

        if element == TensorProto.FLOAT:
            return tensor
        return self._insert(before, "Cast", [tensor], to=element)

    def _insert(
        self, before: "NodeProto", operator: str, inputs: Sequence[str], **attributes: Any
    ) -> str:
        """Add a node before another one, and return the name of its output."""
        from onnx import helper

        name = self._name()
        index = next(i for i, node in enumerate(self._graph.node) if node is before)
        self._graph.node.insert(index, helper.make_node(operator, inputs, [name], **attributes))
        return name

    def _append(self, operator: str, inputs: Sequence[str], **attributes: Any) -> str:
        from onnx import helper

        name = self._name()
        self._graph.node.append(helper.make_node(operator, inputs, [name], **attributes))
        return name

    def _constant(self, values: Array) -> str:
        from onnx import numpy_helper

        name = self._name()
        self._graph.initializer.append(numpy_helper.from_array(values.astype(np.int64), name))
        return name

    def _name(self) -> str:
        self._count += 1
        return f"neurona.tensor_{self._count}"

    @property
    def _opset(self) -> int:
        return find_opset(self._model)


def _integer(name: str, value: int) -> "AttributeProto":
    from onnx import helper

    return helper.make_attribute(name, value)


def _extend(names: Any, count: int) -> None:
    names.extend([""] * (count - len(names)))
