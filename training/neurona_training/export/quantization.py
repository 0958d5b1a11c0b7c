"""The same model in fewer bytes, and what that costs on the test rows.

float16: every weight and every step between input and output in half precision.
int8: the weights of the large products as bytes; what they are multiplied by is brought to
    bytes anew for every batch (dynamic quantisation), so no sample of the data is needed.

Inputs and outputs stay as they are: a caller sees no difference but the answers'.
"""

import contextlib
import logging
import tempfile
import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray

from neurona_protos import metadata
from neurona_protos.prediction_pb2 import ModelMetadata
from neurona_training.data import Dataset
from neurona_training.errors import ExportError
from neurona_training.export.parity import sent
from neurona_training.learning.evaluation import on_test

_ROWS_AT_ONCE = 256  # as evaluate.py asks
_LARGEST_HALF = 65504.0  # of float16


def made(variant: str, model: bytes, data: Dataset) -> tuple[bytes, ModelMetadata]:
    """The file of the variant, and its metadata, with the figures that it reaches itself.

    model: a file that `export` has given. Raises ExportError where the network does not
    allow it: none of its steps would be another, or ONNX Runtime cannot run them.
    """
    whole = onnx.load_from_string(model)
    try:
        with _quiet():
            smaller = _halved(whole) if variant == "float16" else _in_bytes(whole)
    except Exception as error:  # the converters let through whatever goes wrong in them
        raise _refused(variant, error) from error
    if variant == "int8" and not _differ(whole, smaller):
        raise ExportError("the variant int8 is not possible: none of its steps has such weights")
    described = metadata.from_json(
        {item.key: item.value for item in whole.metadata_props}[metadata.KEY]
    )
    try:
        answered = asked(smaller.SerializeToString(), data)
    except Exception as error:  # onnxruntime's exceptions have no common class of their own
        raise _refused(variant, error) from error
    if not np.isfinite(answered).all():
        raise ExportError(
            f"the variant {variant} is not possible: an answer is beyond its largest number"
        )
    _describe(described, variant, on_test(answered, data))
    onnx.helper.set_model_props(smaller, {metadata.KEY: metadata.to_json(described)})
    return smaller.SerializeToString(deterministic=True), described


def asked(model: bytes, data: Dataset) -> NDArray[np.float32]:
    """What ONNX Runtime answers to the test rows, (rows, outputs)."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # what goes wrong comes back as an exception
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    answers = []
    for start in range(0, len(data.test), _ROWS_AT_ONCE):
        some = tuple(array[start : start + _ROWS_AT_ONCE] for array in data.test.arrays)
        answers.append(session.run(None, sent(some, data))[0])
    return np.concatenate(answers)


def _halved(whole: onnx.ModelProto) -> onnx.ModelProto:
    from onnxruntime.transformers.float16 import convert_float_to_float16
    from onnxruntime.transformers.onnx_model import OnnxModel

    kept = _in_users_units(whole.graph)
    halved_inputs = {
        name for node in whole.graph.node if node.name not in kept for name in node.input
    }
    for constant in whole.graph.initializer:
        if constant.name not in halved_inputs:
            continue
        # The converter would cut such a number off without a word.
        if np.abs(onnx.numpy_helper.to_array(constant)).max(initial=0) > _LARGEST_HALF:
            raise ExportError(f"{constant.name!r} has a number beyond its largest, {_LARGEST_HALF}")
    copied = onnx.ModelProto()
    copied.CopyFrom(whole)  # the converter works in place
    halved: onnx.ModelProto = convert_float_to_float16(
        copied,
        keep_io_types=True,
        max_finite_val=_LARGEST_HALF,
        node_block_list=kept,
    )
    _without_detours(halved.graph)
    del halved.graph.value_info[:]  # of float32
    OnnxModel(halved).topological_sort()  # it leaves its casts at the end
    return halved


def _without_detours(graph: onnx.GraphProto) -> None:
    """Takes out, in place, casts to float16 and back, between two steps that stay in float32."""
    casts = [node for node in graph.node if node.op_type == "Cast"]
    to = {node.output[0]: node.attribute[0].i for node in casts}
    source = {node.output[0]: node.input[0] for node in casts}
    for node in casts:
        half, whole = node.input[0], node.output[0]
        if to[whole] != onnx.TensorProto.FLOAT or to.get(half) != onnx.TensorProto.FLOAT16:
            continue
        start = source[half]
        given, wanted = (start, whole) if whole not in _names(graph.output) else (whole, start)
        for other in graph.node:  # who took the one takes the other
            other.input[:] = [given if name == wanted else name for name in other.input]
            other.output[:] = [given if name == wanted else name for name in other.output]
        graph.node.remove(node)
    used = {name for node in graph.node for name in node.input} | _names(graph.output)
    for node in casts:
        if node.output[0] not in used and node in graph.node:
            graph.node.remove(node)


def _names(tensors: Iterable[onnx.ValueInfoProto]) -> set[str]:
    return {tensor.name for tensor in tensors}


def _in_users_units(graph: onnx.GraphProto) -> list[str]:
    """The nodes into and out of the network's own units, which stay as they are.

    A user's numbers may be too large for float16 or have too many digits for it.
    """
    steps: list[str] = []
    given = {tensor.name for tensor in graph.input}
    for node in graph.node:
        if node.op_type in ("Sub", "Mul") and given & set(node.input):
            steps.append(node.name)
            given |= set(node.output)
    wanted = {tensor.name for tensor in graph.output}
    for node in reversed(graph.node):
        if node.op_type in ("Add", "Mul") and wanted & set(node.output):
            steps.append(node.name)
            wanted |= set(node.input)
    return steps


def _in_bytes(whole: onnx.ModelProto) -> onnx.ModelProto:
    from onnxruntime.quantization import QuantType, quantize_dynamic

    weights = onnx.ModelProto()
    weights.CopyFrom(whole)
    del weights.graph.value_info[
        :
    ]  # the quantiser turns matrices round, and their shapes with them
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "int8.onnx"
        quantize_dynamic(weights, path, per_channel=True, weight_type=QuantType.QInt8)
        return onnx.load(path)


def _describe(described: ModelMetadata, variant: str, measured: dict[str, float]) -> None:
    """In place: the variant's figures for the test rows, and how far they are from float32's."""
    for name, value in measured.items():
        described.figures[f"float32_{name}"] = described.figures[name]
        described.figures[name] = value
    for name in [one for one in described.figures if one.startswith("validation_")]:
        del described.figures[name]  # they are float32's
    described.provenance["variant"] = variant
    described.description = f"{described.description}; in {variant}"


def _differ(one: onnx.ModelProto, other: onnx.ModelProto) -> bool:
    return [node.op_type for node in one.graph.node] != [n.op_type for n in other.graph.node]


def _refused(variant: str, error: Exception) -> ExportError:
    reason = " ".join(str(error).split())[:300]
    return ExportError(f"the variant {variant} is not possible: {reason or type(error).__name__}")


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Advice of the converters about models of other makers, and of numbers they round."""
    logger = logging.getLogger()
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
