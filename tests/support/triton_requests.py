"""Makes ModelInferRequests with raw inputs, and reads the arrays of their responses."""

import struct
from typing import Any

import numpy as np

from neurona_protos.open_inference_pb2 import ModelInferRequest, ModelInferResponse

DTYPES: dict[str, Any] = {
    "BOOL": "?",
    "UINT8": "u1",
    "UINT16": "<u2",
    "UINT32": "<u4",
    "UINT64": "<u8",
    "INT8": "i1",
    "INT16": "<i2",
    "INT32": "<i4",
    "INT64": "<i8",
    "FP16": "<f2",
    "FP32": "<f4",
    "FP64": "<f8",
    "BF16": "<u2",
}


def request(model: str, version: str = "", **inputs: tuple[str, Any]) -> ModelInferRequest:
    """Make a request; an input is its datatype and the values of its array."""
    message = ModelInferRequest(model_name=model, model_version=version)
    for name, (datatype, values) in inputs.items():
        array = np.array(values, DTYPES.get(datatype, object))
        message.inputs.add(name=name, datatype=datatype, shape=array.shape)
        message.raw_input_contents.append(raw(array))
    return message


def raw(array: np.ndarray[Any, Any]) -> bytes:
    """Return the array as raw_input_contents have it."""
    if array.dtype != object:
        return array.tobytes()
    return b"".join(struct.pack("<I", len(text)) + text for text in array.ravel())


def arrays(response: ModelInferResponse) -> dict[str, np.ndarray[Any, Any]]:
    """Return the outputs by name, BYTES as arrays of byte strings."""
    assert len(response.outputs) == len(response.raw_output_contents)
    outputs = {}
    for tensor, data in zip(response.outputs, response.raw_output_contents, strict=True):
        assert not tensor.HasField("contents")
        if tensor.datatype == "BYTES":
            array = np.array(_parse_strings(data), object)
        else:
            array = np.frombuffer(data, DTYPES[tensor.datatype])
        outputs[tensor.name] = array.reshape(tuple(tensor.shape))
    return outputs


def _parse_strings(data: bytes) -> list[bytes]:
    texts = []
    while data:
        (length,) = struct.unpack_from("<I", data)
        texts.append(data[4 : 4 + length])
        data = data[4 + length :]
    return texts
