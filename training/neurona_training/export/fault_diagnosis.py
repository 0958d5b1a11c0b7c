"""Why an exported graph differs from its reference, where the fault is a known one.

Each known fault of exporters has a sign in the graph; where it can be, the suspected fault is
corrected in a copy of the graph, which then has to pass.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np
import onnx
from onnx import helper, numpy_helper

from neurona_training.errors import ExportError
from neurona_training.export.check_inputs import BATCH
from neurona_training.export.graph_check import CheckResult, RunnableGraph
from neurona_training.export.tensor_comparison import Array, Tolerance, find_difference

_RANDOM = {"Bernoulli", "Multinomial", "RandomNormal", "RandomNormalLike", "RandomUniform"}
_RANDOM |= {"RandomUniformLike"}
_FROZEN = {"Reshape", "Expand"}  # operators whose constant shape freezes an axis
_INDEXES = {"ArgMax", "ArgMin"}
_PASSING = {"Cast", "Flatten", "Identity", "Reshape", "Squeeze", "Unsqueeze"}
_LEAST_STEPS = 3  # of a loop that was unrolled

Passes = Callable[[onnx.ModelProto], bool]  # whether a graph gives the expected outputs


def diagnose(
    model: onnx.ModelProto,
    failed: CheckResult,
    expected: Mapping[str, Array],
    passes: Passes,
    frozen: Sequence[str],
) -> str:
    """Returns the likely cause of a difference; empty if it is none of the known kinds.

    Args:
        model: the graph.
        failed: what differs.
        expected: the reference's outputs for that case.
        passes: tells of a changed graph whether it passes the case.
        frozen: descriptions of axes that the file has in one size and the reference in any, and
            of those whose other sizes fail.
    """
    causes = (
        _training_mode(model),
        _double_precision(model, failed),
        _reset_gate(model, passes),
        _ties(model, failed, expected),
        _frozen_axes(model, failed, frozen),
        _dependent_rows(model, failed),
    )
    return next(filter(None, causes), "")


def nodes_of(graph: onnx.GraphProto) -> Iterator[onnx.NodeProto]:
    """Yields all nodes, those in the bodies of loops and branches too."""
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.GRAPH:
                yield from nodes_of(attribute.g)


def unrolled_steps(model: onnx.ModelProto) -> int:
    """How many steps of a sequence the graph takes one by one; 0 if it has no such chain."""
    constants = _constants(model)
    sources: dict[str, set[int]] = {}
    for node in nodes_of(model.graph):
        position = {"Gather": 1, "SequenceAt": 1, "Slice": 1}.get(node.op_type)
        if position is None or len(node.input) <= position:
            continue
        index = constants.get(node.input[position])
        if index is not None and index.size == 1:
            sources.setdefault(node.input[0], set()).add(int(index.reshape(-1)[0]))
    for node in nodes_of(model.graph):
        if node.op_type == "Split" and len(node.output) >= _LEAST_STEPS:
            sources.setdefault(node.input[0], set()).update(range(len(node.output)))
    steps = [len(indices) for indices in sources.values() if indices >= {*range(_LEAST_STEPS)}]
    return max(steps, default=0)


def _name(node: onnx.NodeProto) -> str:
    return f"{node.op_type} node {node.name or node.output[0]!r}"


def _constants(model: onnx.ModelProto) -> dict[str, Array]:
    constants: dict[str, Array] = {
        one.name: numpy_helper.to_array(one)
        for one in model.graph.initializer
        if one.data_location != onnx.TensorProto.EXTERNAL
    }
    for node in nodes_of(model.graph):
        if node.op_type == "Constant":
            value = helper.get_attribute_value(node.attribute[0])
            is_tensor = isinstance(value, onnx.TensorProto)
            constants[node.output[0]] = (
                numpy_helper.to_array(value) if is_tensor else np.asarray(value)
            )
    return constants


def _attribute(node: onnx.NodeProto, name: str, default: int) -> int:
    return next((int(one.i) for one in node.attribute if one.name == name), default)


def _training_mode(model: onnx.ModelProto) -> str:
    constants = _constants(model)
    for node in nodes_of(model.graph):
        if node.op_type == "BatchNormalization" and _attribute(node, "training_mode", 0):
            return (
                f"{_name(node)} is in training mode: it normalises by the rows of the batch "
                "(expected an export after module.eval())"
            )
        is_dropout = node.op_type == "Dropout" and len(node.input) > 2 and node.input[2]
        if node.op_type in _RANDOM or (is_dropout and constants.get(node.input[2], np.True_).any()):
            return (
                f"{_name(node)} draws random numbers, as a dropout in training mode does "
                "(expected an export after module.eval())"
            )
    return ""


def _double_precision(model: onnx.ModelProto, failed: CheckResult) -> str:
    fault = failed.fault
    if "float64 (expected float32)" not in fault and not (
        "tensor(double)" in fault and "tensor(float)" in fault
    ):
        return ""
    doubles = [name for name, value in _constants(model).items() if value.dtype == np.float64]
    where = f": {', '.join(map(repr, doubles[:3]))}" if doubles else ""
    return (
        f"float64 constants in a float32 graph{where} (expected float32 ones, as from "
        "torch.tensor of Python's numbers, not of numpy's)"
    )


def _reset_gate(model: onnx.ModelProto, passes: Passes) -> str:
    changed = onnx.ModelProto()
    changed.CopyFrom(model)
    names = []
    for node in nodes_of(changed.graph):
        if node.op_type == "GRU" and not _attribute(node, "linear_before_reset", 0):
            kept = [one for one in node.attribute if one.name != "linear_before_reset"]
            del node.attribute[:]
            node.attribute.extend([*kept, helper.make_attribute("linear_before_reset", 1)])
            names.append(_name(node))
    if not names or not passes(changed):
        return ""
    return (
        f"{names[0]} has linear_before_reset = 0, another formula of the reset gate than torch's; "
        "with 1 the outputs are equal (pytorch #189225)"
    )


def _ties(model: onnx.ModelProto, failed: CheckResult, expected: Mapping[str, Array]) -> str:
    producers = {name: node for node in model.graph.node for name in node.output}
    for output, wanted in expected.items():
        node = producers.get(output)
        while node is not None and node.op_type in _PASSING:
            node = producers.get(node.input[0])
        if node is None or node.op_type not in _INDEXES or f"{output!r}" not in failed.fault:
            continue
        exposed = onnx.ModelProto()
        exposed.CopyFrom(model)
        scores_name = node.input[0]
        if scores_name not in {one.name for one in (*model.graph.output, *model.graph.input)}:
            exposed.graph.output.append(helper.make_empty_tensor_value_info(scores_name))
        graph = RunnableGraph(exposed.SerializeToString())
        outputs = dict(zip(graph.outputs, graph.run(failed.case.arrays), strict=True))
        scores = outputs.get(scores_name, failed.case.arrays.get(scores_name))
        axis = _attribute(node, "axis", 0)
        if scores is not None and _are_equal_scores(scores, outputs[output], wanted, axis):
            return (
                f"equal scores: where {_name(node)} and the reference take different indices, "
                "both have the same score, and ONNX and the reference choose another of equals"
            )
    return ""


def _are_equal_scores(scores: Array, actual: Array, expected: Array, axis: int) -> bool:
    shape = list(scores.shape)
    shape[axis] = 1
    if actual.size != np.prod(shape) or expected.size != actual.size:
        return False
    taken = [
        np.take_along_axis(scores, index.reshape(shape).astype(np.int64), axis)
        for index in (actual, expected)
    ]
    return find_difference("", taken[0], taken[1], Tolerance()) is None


def _frozen_axes(model: onnx.ModelProto, failed: CheckResult, frozen: Sequence[str]) -> str:
    if not frozen:
        return ""
    where = "; ".join(frozen)
    steps = unrolled_steps(model)
    if steps and not all(one.startswith(f"axis '{BATCH}'") for one in frozen):
        return (
            f"{where}: the graph is unrolled, with the {steps} steps of the example one after the "
            "other, as torch's exporter writes nn.RNN (expected an RNN, GRU or LSTM operator; "
            "neurona_training.export.export emits them)"
        )
    if (named := re.search(r"running (\w+) node\. Name:'([^']*)'", failed.fault)) is not None:
        where += f": {named[1]} node {named[2]!r} takes no other size"
    sizes = {int(size) for size in re.findall(r"(?:frozen at|file takes) (\d+)", "; ".join(frozen))}
    constants = _constants(model)
    for node in nodes_of(model.graph):
        if node.op_type in _FROZEN and len(node.input) > 1 and node.input[1] in constants:
            shape = constants[node.input[1]].tolist()
            if isinstance(shape, list) and sizes & {*shape}:
                return f"{where}: {_name(node)} has the constant shape {shape}"
    return where


def _dependent_rows(model: onnx.ModelProto, failed: CheckResult) -> str:
    """Whether the graph's rows change each other, as in a batch normalisation in training."""
    rows = failed.case.sizes.get(BATCH, 0)
    arrays = failed.case.arrays
    if rows < 2 or any(not array.ndim or len(array) != rows for array in arrays.values()):
        return ""
    try:
        graph = RunnableGraph(model.SerializeToString())
        together = graph.run(arrays)
        alone = graph.run({name: array[:1] for name, array in arrays.items()})
    except ExportError:
        return ""
    for name, all_rows, first in zip(graph.outputs, together, alone, strict=True):
        if len(all_rows) == rows and find_difference(name, all_rows[:1], first, Tolerance()):
            return (
                "the rows of a batch change each other, as in a batch normalisation in training "
                "mode (expected an export after module.eval())"
            )
    return ""
