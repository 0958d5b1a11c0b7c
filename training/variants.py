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
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray

from neurona_protos import metadata
from neurona_protos.prediction_pb2 import ModelMetadata
from neurona_training.data import Dataset
from neurona_training.errors import ExportError
from neurona_training.evaluate import on_test
from neurona_training.parity import sent

_ROWS_AT_ONCE = 256  # as evaluate.py asks


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

    copied = onnx.ModelProto()
    copied.CopyFrom(whole)  # the converter works in place
    halved: onnx.ModelProto = convert_float_to_float16(copied, keep_io_types=True)
    return halved


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
