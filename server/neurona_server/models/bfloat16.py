"""bfloat16, for which numpy has no dtype: arrays of its bits, as uint16."""

import ctypes
from collections.abc import Set
from typing import Any

import numpy as np

from neurona_protos.prediction_pb2 import DataType
from neurona_server.batching.request import Array, Inputs


def run(session: Any, inputs: Inputs, bfloat16: Set[str], options: Any, value: Any) -> list[Any]:
    """ONNX Runtime's `run` for a session of which the tensors named in `bfloat16` have it.

    `value` is its OrtValue. It takes their bits with the type said beside them, but has no way to
    give them back as numpy arrays: they are read from its memory.
    """
    feeds = {
        name: value.ortvalue_from_numpy_with_onnx_type(
            np.ascontiguousarray(array), DataType.DATA_TYPE_BFLOAT16
        )
        if name in bfloat16
        else value.ortvalue_from_numpy(array)
        for name, array in inputs.items()
    }
    names = [node.name for node in session.get_outputs()]
    outputs = session.run_with_ort_values(None, feeds, options)
    return [
        _bits(output) if name in bfloat16 else output.numpy()
        for name, output in zip(names, outputs, strict=True)
    ]


def _bits(output: Any) -> Array:
    size = output.tensor_size_in_bytes()
    return np.frombuffer(ctypes.string_at(output.data_ptr(), size), np.uint16).reshape(
        output.shape()
    )
