"""The same model in fewer bytes, and what that costs on the test rows.

float16: all weights and all steps between input and output in half precision.
int8: the weights of large products in 8 bits; the other factor is quantised anew for every
    batch (dynamic quantisation), so no sample of the data is needed.

Inputs and outputs keep their types: a caller sees no difference but in the values.
"""

import contextlib
import logging
import tempfile
import warnings
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray

from neurona_protos import metadata
from neurona_protos.prediction_pb2 import ModelMetadata
from neurona_training.data import Dataset
from neurona_training.errors import ExportError
from neurona_training.export.parity import caller_inputs
from neurona_training.learning.evaluation import measure_predictions

_ROWS_AT_ONCE = 256
_FLOAT16_MAX = 65504.0
_FIRST_OPERATORS = {  # of scaling, missing values, dates, and the columns that they become
    *(
        "Sub",
        "Mul",
        "Div",
        "Add",
        "Floor",
        "Round",
        "Sin",
        "Cos",
        "IsNaN",
        "Where",
        "Equal",
        "Cast",
    ),
    *("Gather", "Slice", "Concat"),
    # of the linear part of a forecast
    *("Clip", "Exp", "Expand", "Log", "Max", "Pow", "ReduceMean", "ReduceSum", "Sqrt"),
    *("Transpose", "Unsqueeze"),
}
_LAST_OPERATORS = {"Add", "Clip", "Concat", "Exp", "Log", "Max", "Mul", "Pow", "Sqrt", "Sub"}


def make_variant(variant: str, model: bytes, data: Dataset) -> tuple[bytes, ModelMetadata]:
    """Makes a smaller file of a model and measures it on the test rows.

    Args:
        variant: "float16" or "int8".
        model: a file that `export_trained_network` returned.
        data: the test rows.

    Returns:
        The file, and its metadata with its own metrics and the float32 model's.

    Raises:
        ExportError: nothing in the network can be made smaller, ONNX Runtime cannot run the
            result, or a number is too large for float16.
    """
    original = onnx.load_from_string(model)
    try:
        with _quiet_converters():
            smaller = _to_float16(original) if variant == "float16" else _to_int8(original)
    except Exception as error:  # the converters raise whatever goes wrong in them
        raise _impossible(variant, error) from error
    if variant == "int8" and not _operators_differ(original, smaller):
        raise ExportError("variant int8 is not possible: no weights of large products")
    described = metadata.from_json(
        {item.key: item.value for item in original.metadata_props}[metadata.KEY]
    )
    try:
        outputs = run_model(smaller.SerializeToString(), data)
    except Exception as error:  # onnxruntime's exceptions have no common class of their own
        raise _impossible(variant, error) from error
    if not np.isfinite(outputs).all():
        raise ExportError(f"variant {variant} is not possible: an output is not finite")
    _update_metadata(described, variant, measure_predictions(outputs, data))
    onnx.helper.set_model_props(smaller, {metadata.KEY: metadata.to_json(described)})
    return smaller.SerializeToString(deterministic=True), described


def run_model(model: bytes, data: Dataset) -> NDArray[np.float32]:
    """Runs an ONNX file on the test rows, on the CPU.

    Returns:
        float32 of shape (rows, outputs).
    """
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors are raised as exceptions
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    outputs = []
    for start in range(0, len(data.test), _ROWS_AT_ONCE):
        arrays = tuple(array[start : start + _ROWS_AT_ONCE] for array in data.test.arrays)
        outputs.append(session.run(None, caller_inputs(arrays, data))[0])
    return np.concatenate(outputs)


def _to_float16(original: onnx.ModelProto) -> onnx.ModelProto:
    from onnxruntime.transformers.float16 import convert_float_to_float16
    from onnxruntime.transformers.onnx_model import OnnxModel

    kept_nodes = _scaling_nodes(original.graph)
    converted_inputs = {
        name for node in original.graph.node if node.name not in kept_nodes for name in node.input
    }
    for constant in original.graph.initializer:
        if constant.name not in converted_inputs or constant.data_type != onnx.TensorProto.FLOAT:
            continue
        # The converter would silently clip such a number.
        if np.abs(onnx.numpy_helper.to_array(constant)).max(initial=0) > _FLOAT16_MAX:
            raise ExportError(f"{constant.name!r} has a number beyond {_FLOAT16_MAX}")
    copied = onnx.ModelProto()
    copied.CopyFrom(original)  # the converter works in place
    # A constant with a noted shape would be cast once for each node that stays in float32, by
    # nodes of the same name.
    constants = {constant.name for constant in copied.graph.initializer}
    for noted in [one for one in copied.graph.value_info if one.name in constants]:
        copied.graph.value_info.remove(noted)
    converted: onnx.ModelProto = convert_float_to_float16(
        copied,
        keep_io_types=True,
        max_finite_val=_FLOAT16_MAX,
        node_block_list=kept_nodes,
    )
    _remove_round_trips(converted.graph, original.graph)
    del converted.graph.value_info[:]  # of float32
    OnnxModel(converted).topological_sort()  # the converter leaves its casts at the end
    return converted


def _remove_round_trips(graph: onnx.GraphProto, original: onnx.GraphProto) -> None:
    """Removes, in place, casts to float16 and back between two nodes that stay in float32.

    Casts of the original graph stay: what they read need not be float32.
    """
    own_casts = {node.output[0] for node in original.node if node.op_type == "Cast"}
    while True:
        casts = {
            node.output[0]: node
            for node in graph.node
            if node.op_type == "Cast" and node.output[0] not in own_casts
        }
        back = next(filter(lambda node: _is_round_trip(node, casts), casts.values()), None)
        if back is None:
            break
        source, full = casts[back.input[0]].input[0], back.output[0]
        graph.node.remove(back)
        is_graph_output = full in _names(graph.output)
        kept, dropped = (full, source) if is_graph_output else (source, full)
        for other in graph.node:
            other.input[:] = [kept if name == dropped else name for name in other.input]
            other.output[:] = [kept if name == dropped else name for name in other.output]
    used = {name for node in graph.node for name in node.input} | _names(graph.output)
    for output, node in casts.items():
        if output not in used:
            graph.node.remove(node)


def _is_round_trip(node: onnx.NodeProto, casts: Mapping[str, onnx.NodeProto]) -> bool:
    """Whether a cast gives the float32 that another one has made float16."""
    first = casts.get(node.input[0])
    to_full = node.attribute[0].i == onnx.TensorProto.FLOAT
    return to_full and first is not None and first.attribute[0].i == onnx.TensorProto.FLOAT16


def _names(tensors: Iterable[onnx.ValueInfoProto]) -> set[str]:
    return {tensor.name for tensor in tensors}


def _scaling_nodes(graph: onnx.GraphProto) -> list[str]:
    """Nodes between the caller's units and the network's own, which stay in float32.

    A caller's numbers may be too large for float16, or have too many digits.
    """
    nodes: list[str] = []
    tensors = {tensor.name for tensor in graph.input}
    for node in graph.node:
        if node.op_type in _FIRST_OPERATORS and tensors & set(node.input):
            nodes.append(node.name)
            tensors |= set(node.output)
    tensors = {tensor.name for tensor in graph.output}
    for node in reversed(graph.node):
        if node.op_type in _LAST_OPERATORS and tensors & set(node.output):
            nodes.append(node.name)
            tensors |= set(node.input)
    return list(dict.fromkeys(nodes))


def _to_int8(original: onnx.ModelProto) -> onnx.ModelProto:
    from onnxruntime.quantization import QuantType, quantize_dynamic

    copied = onnx.ModelProto()
    copied.CopyFrom(original)
    # The quantiser transposes matrices, so their noted shapes would be wrong.
    del copied.graph.value_info[:]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "int8.onnx"
        quantize_dynamic(copied, path, per_channel=True, weight_type=QuantType.QInt8)
        return onnx.load(path)


def _update_metadata(described: ModelMetadata, variant: str, metrics: dict[str, float]) -> None:
    """Replaces the test metrics by the variant's, in place; float32's get a prefix."""
    for name, value in metrics.items():
        described.figures[f"float32_{name}"] = described.figures[name]
        described.figures[name] = value
    for name in [one for one in described.figures if one.startswith("validation_")]:
        del described.figures[name]  # they are float32's
    described.provenance["variant"] = variant
    described.description = f"{described.description}; in {variant}"


def _operators_differ(one: onnx.ModelProto, other: onnx.ModelProto) -> bool:
    return [node.op_type for node in one.graph.node] != [n.op_type for n in other.graph.node]


def _impossible(variant: str, error: Exception) -> ExportError:
    reason = " ".join(str(error).split())[:300]
    return ExportError(f"variant {variant} is not possible: {reason or type(error).__name__}")


@contextlib.contextmanager
def _quiet_converters() -> Iterator[None]:
    """Suppresses the converters' advice on other models and on rounded numbers."""
    logger = logging.getLogger()
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
