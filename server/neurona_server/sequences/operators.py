"""Which nodes of a recurrent graph may look across steps, so that padding could change answers.

Runs show most of that, but not what depends on values: whether any step is above a bound, say. So
nodes other than the recurrent ones must be of operators that are known to handle each step by
itself (https://onnx.ai/onnx/operators/), along the axes that they work on.
"""

from collections.abc import Callable, Collection, Iterable, Mapping
from typing import TYPE_CHECKING, Any

from neurona_server.sequences.graph import KNOWN_DOMAINS, find_attribute, node_title
from neurona_server.sequences.padding_masks import PaddingMasks
from neurona_server.sequences.tensor_axes import Axis, TensorAxes

if TYPE_CHECKING:
    from onnx import ModelProto, NodeProto

_STEPS = {Axis.TIME, Axis.ROWS_AND_TIME}

BY_ELEMENT = {
    *("Abs", "Acos", "Acosh", "Add", "And", "Asin", "Asinh", "Atan", "Atanh", "BitShift", "Cast"),
    *("CastLike", "Ceil", "Celu", "Clip", "Cos", "Cosh", "DequantizeLinear", "Div", "Dropout"),
    *("Elu", "Equal", "Erf", "Exp", "Floor", "Gelu", "Greater", "GreaterOrEqual", "HardSigmoid"),
    *("HardSwish", "Identity", "IsInf", "IsNaN", "LabelEncoder", "LeakyRelu", "Less"),
    *("LessOrEqual", "Log", "Max", "Mean", "Min", "Mish", "Mod", "Mul", "Neg", "Not", "OneHot"),
    *("Or", "PRelu", "Pow", "QuantizeLinear", "Reciprocal", "Relu", "Round", "Selu", "Shrink"),
    *("Sigmoid", "Sign", "Sin", "Sinh", "Softplus", "Softsign", "Sqrt", "Sub", "Sum", "Swish"),
    *("Tan", "Tanh", "ThresholdedRelu", "Where", "Xor", "ZipMap"),
    *("BatchNormalization",),  # with constant mean and variance
    *("BiasGelu", "FastGelu", "QuickGelu"),  # of com.microsoft
}
"""Operators that compute each element of the output from one of each input."""

MOVES = {"Expand", "Flatten", "Reshape", "Squeeze", "Tile", "Transpose", "Unsqueeze"}
"""Operators that move elements only."""

_SHAPES = {"ConstantOfShape", "Range", "Shape", "Size"}
"""Operators that read sizes only."""

_FLATTENED = {"Hardmax", "LogSoftmax", "Softmax"}
_FLATTENED_BEFORE = 13
"""Version before which they work on all axes from one on, by default 1."""


Attributes = dict[str, Any]
_Check = Callable[["NodeProto", TensorAxes, Attributes], bool]


def find_operator_across_steps(
    model: "ModelProto",
    axes: TensorAxes,
    opset: int,
    exempt: Collection[str],
    masks: PaddingMasks | None = None,
) -> tuple[str, str]:
    """Return the operators of nodes that may look across steps, "" if there are none.

    Args:
        model: The model.
        axes: What is along the axes of its tensors.
        opset: The version of its operators.
        exempt: Outputs of the nodes that need not be looked at: the recurrent ones, and those that
            a rewrite replaces.
        masks: What is behind the ends of the rows, if callers send lengths.

    Returns:
        One that may look at what is behind the end of a row, and one that looks at all steps of a
        row and no others.
    """
    masked = ""
    for node in model.graph.node:
        if {*exempt} & {*node.output} or not any(_has_steps(axes, name) for name in node.input):
            continue
        if _handles_each_step(node, axes, opset):
            continue
        if masks is None or not masks.leave_out_padding(node):
            return node_title(node), ""
        masked = masked or node_title(node)
    return "", masked


def _has_steps(axes: TensorAxes, tensor: str) -> bool:
    meanings = axes.find(tensor) if tensor else ()
    return meanings is None or bool(_STEPS & {*meanings})


def _handles_each_step(node: "NodeProto", axes: TensorAxes, opset: int) -> bool:
    from onnx import helper

    operator = node.op_type
    if operator in _SHAPES or node.domain not in KNOWN_DOMAINS:
        return node.domain in KNOWN_DOMAINS
    outputs = [axes.find(name) for name in node.output if name]
    if any(meanings is None or Axis.OTHER in meanings for meanings in outputs):
        return False
    attributes = {one.name: helper.get_attribute_value(one) for one in node.attribute}
    if operator == "Gather" and reads_first_step(node, axes):
        return True
    # An operator that reads all steps leaves no axis of them, or one of size 1.
    if not all(_STEPS & {*(meanings or ())} for meanings in outputs):
        return False
    if operator in BY_ELEMENT or operator in MOVES:
        return not attributes.get("training_mode")
    if operator in _FLATTENED and opset < _FLATTENED_BEFORE:
        attributes.setdefault("axis", 1)
        check: _Check | None = _check_last_axes
    else:
        check = _ACROSS_AXES.get(operator)
    return check is not None and check(node, axes, attributes)


def reads_first_step(node: "NodeProto", axes: TensorAxes) -> bool:
    """Return whether a Gather reads step 0, which each row has."""
    meanings = axes.find(node.input[0]) or ()
    axis = int(find_attribute(node, "axis", 0))
    is_time = -len(meanings) <= axis < len(meanings) and meanings[axis] is Axis.TIME
    return is_time and axes.is_constant(node.input[1], 0)


def _along(axes: TensorAxes, tensor: str, numbers: Iterable[int]) -> bool:
    """Return whether none of these axes of a tensor has steps."""
    meanings = axes.find(tensor)
    if meanings is None:
        return False
    numbers = list(numbers)
    if any(not -len(meanings) <= number < len(meanings) for number in numbers):
        return False
    return not any(meanings[number] in _STEPS for number in numbers)


def _check_one_axis(default: int) -> _Check:
    def check(node: "NodeProto", axes: TensorAxes, attributes: Attributes) -> bool:
        axis = int(attributes.get("axis", default))
        return all(_along(axes, name, [axis]) for name in node.input[:1])

    return check


def _check_axis_of_all(node: "NodeProto", axes: TensorAxes, attributes: Attributes) -> bool:
    axis = int(attributes.get("axis", 0))
    return all(_along(axes, name, [axis]) for name in node.input)


def _check_last_axes(node: "NodeProto", axes: TensorAxes, attributes: Attributes) -> bool:
    """Check an operator that works on all axes from one on."""
    rank = len(axes.find(node.input[0]) or ())
    axis = int(attributes.get("axis", -1))
    return bool(rank) and _along(axes, node.input[0], range(axis % rank, rank))


def _check_axes(node: "NodeProto", axes: TensorAxes, attributes: Attributes) -> bool:
    """Check an operator whose axes are an attribute or its input 1; without them, all are."""
    numbers = attributes.get("axes")
    if numbers is None and len(node.input) > 1 and node.input[1]:
        values = axes.values(node.input[1])
        numbers = values[0].ravel().tolist() if values else None
    return _along(axes, node.input[0], numbers) if numbers else False


def _check_axis_input(node: "NodeProto", axes: TensorAxes, _: Attributes) -> bool:
    values = axes.values(node.input[1]) if len(node.input) > 1 else ()
    return bool(values) and _along(axes, node.input[0], values[0].ravel().tolist())


def _check_slice(node: "NodeProto", axes: TensorAxes, attributes: Attributes) -> bool:
    numbers = attributes.get("axes")
    if numbers is None and len(node.input) > 3 and node.input[3]:
        values = axes.values(node.input[3])
        numbers = values[0].tolist() if values else None
    return numbers is not None and _along(axes, node.input[0], numbers)


def _check_gather(node: "NodeProto", axes: TensorAxes, attributes: Attributes) -> bool:
    axis = int(attributes.get("axis", 0))
    if _has_steps(axes, node.input[0]) and _has_steps(axes, node.input[1]):
        return False
    return _along(axes, node.input[0], [axis])


def _check_product(node: "NodeProto", axes: TensorAxes, attributes: Attributes) -> bool:
    """Check a product of matrices: the axis that is summed over, and steps of one factor only."""
    first, second = axes.find(node.input[0]), axes.find(node.input[1])
    if attributes.get("transBatchA") or attributes.get("transBatchB"):
        return False
    if not first or not second or bool(_STEPS & {*first}) == bool(_STEPS & {*second}):
        return False
    first_axis = -2 if attributes.get("transA") else -1
    second_axis = -1 if attributes.get("transB") else -2
    return _along(axes, node.input[0], [first_axis]) and (
        len(second) == 1 or _along(axes, node.input[1], [second_axis])
    )


def _check_batch_axis(node: "NodeProto", axes: TensorAxes, _: Attributes) -> bool:
    """Check a convolution or pooling, which handles each element of axis 0 by itself."""
    meanings = axes.find(node.input[0])
    # The indices that a pooling returns are those in all of axis 0.
    return meanings is not None and not _STEPS & {*meanings[1:]} and len(node.output) == 1


_ACROSS_AXES: Mapping[str, _Check] = {
    **dict.fromkeys(("ArgMax", "ArgMin", "GatherElements", "Split"), _check_one_axis(0)),
    **dict.fromkeys(("LpNormalization", "TopK", *_FLATTENED), _check_one_axis(-1)),
    "Concat": _check_axis_of_all,
    **dict.fromkeys(("LayerNormalization", "RMSNormalization"), _check_last_axes),
    **dict.fromkeys(
        (
            *("ReduceL1", "ReduceL2", "ReduceLogSum", "ReduceLogSumExp", "ReduceMax", "ReduceMean"),
            *("ReduceMin", "ReduceProd", "ReduceSum", "ReduceSumSquare"),
        ),
        _check_axes,
    ),
    "CumSum": _check_axis_input,
    "Slice": _check_slice,
    "Gather": _check_gather,
    **dict.fromkeys(("MatMul", "Gemm", "FusedMatMul"), _check_product),
    **dict.fromkeys(
        (
            *("AveragePool", "Conv", "GlobalAveragePool", "GlobalMaxPool", "MaxPool"),
            *("ConvTranspose",),
        ),
        _check_batch_axis,
    ),
}
"""Operators that work along some axes, and what checks these."""
