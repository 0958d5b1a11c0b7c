"""Reads the inputs of a ModelInferRequest: raw, typed, or in shared memory."""

import math
from collections.abc import Mapping

from neurona_protos.open_inference_pb2 import ModelInferRequest
from neurona_protos.prediction_pb2 import DataType
from neurona_protos.tensors import NUMPY_DTYPES, decode
from neurona_server.batching.request import Array, Inputs
from neurona_server.errors import InvalidArgumentError, quoted
from neurona_server.models.signature import Signature, TensorType
from neurona_server.rpc.limits import SLOW_BYTES, SLOW_STRINGS, Limits
from neurona_server.rpc.open_inference.infer_message import InferMessage
from neurona_server.rpc.open_inference.messages import DATATYPE_NAMES, parse_datatype
from neurona_server.rpc.open_inference.shared_memory import (
    BYTE_SIZE,
    RegionSlice,
    SharedMemoryService,
)
from neurona_server.rpc.open_inference.typed_contents import decode_contents

SLOW_CONTENTS = 64 << 10
"""Bytes of typed contents from which on decoding them takes too long for the transport's thread."""


def describe_inputs(message: ModelInferRequest, signature: Signature) -> dict[str, TensorType]:
    """Return the datatype and shape of each input.

    Raises:
        InvalidArgumentError: An input is a duplicate, or has an unknown datatype, or another one
            than the model's. The signature checks the latter too, but would name the datatype as
            neurona.v1 does.
    """
    expected = {spec.name: spec.dtype for spec in (*signature.inputs, *signature.optional)}
    described: dict[str, TensorType] = {}
    for tensor in message.inputs:
        name = tensor.name
        if name in described:
            raise InvalidArgumentError(f"duplicate input {quoted(name)}")
        datatype = parse_datatype(tensor.datatype, name)
        if datatype != expected.get(name, datatype):
            raise InvalidArgumentError(
                f"inference input {name!r} data-type is {tensor.datatype!r}, but model "
                f"{message.model_name!r} expects {DATATYPE_NAMES[expected[name]]!r}"
            )
        described[name] = (datatype, tuple(tensor.shape))
    return described


def count_shared_bytes(message: ModelInferRequest) -> int:
    """Return the bytes of the inputs that are said to be in shared memory."""
    size = 0
    for tensor in message.inputs:
        if tensor.parameters and BYTE_SIZE in tensor.parameters:
            size += max(0, tensor.parameters[BYTE_SIZE].int64_param)
    return size


def is_slow(
    infer_message: InferMessage, described: Mapping[str, TensorType], limits: Limits
) -> bool:
    """Return whether reading the inputs takes too long for the transport's thread.

    Raises:
        InvalidArgumentError: There are too many strings.
    """
    strings = limits.check_strings(
        math.prod(shape)
        for datatype, shape in described.values()
        if datatype == DataType.DATA_TYPE_STRING
    )
    if strings >= SLOW_STRINGS:
        return True
    if not infer_message.raw and infer_message.size >= SLOW_CONTENTS:
        return True
    copied = count_shared_bytes(infer_message.request)
    if strings or any(datatype == DataType.DATA_TYPE_BOOL for datatype, _ in described.values()):
        copied += infer_message.size
    return copied >= SLOW_BYTES


def read_inputs(
    infer_message: InferMessage,
    described: Mapping[str, TensorType],
    memory: SharedMemoryService,
    owner: str,
    max_bytes: int,
    limits: Limits,
) -> Inputs:
    """Return the arrays of inputs that fit the model's signature.

    Arrays of raw contents are read-only views. At most `max_bytes` are read from shared memory,
    from regions of `owner`, the caller.

    Raises:
        InvalidArgumentError: There is too little or too much data, or data in several places.
        TensorError: The data does not fit the shape.
        NotAllowedError, NotFoundError: See `SharedMemoryService.find_slice`.
    """
    arrays: dict[str, Array] = {}
    message, raw = infer_message.request, infer_message.raw
    raw_count = len(raw)
    raw_used = 0
    shared_bytes = 0
    for tensor in message.inputs:
        name = tensor.name
        datatype, shape = described[name]
        region_slice = None
        if tensor.parameters:
            region_slice = memory.find_slice(owner, tensor.parameters, f"input {name!r}")
        if tensor.HasField("contents"):
            if raw_count:
                raise InvalidArgumentError(
                    "contents field must not be specified when using raw_input_contents for "
                    f"{name!r} for model {message.model_name!r}"
                )
            if region_slice:
                raise InvalidArgumentError(
                    f"input {name!r} has both contents and a shared memory region"
                )
        if region_slice:
            shared_bytes += region_slice.byte_size
            if shared_bytes > max_bytes:
                raise InvalidArgumentError(
                    f"the inputs in shared memory have {shared_bytes} bytes or more "
                    f"(expected at most {max_bytes})"
                )
            _check_slice_size(name, described[name], region_slice)
            data = region_slice.region.read(region_slice.offset, region_slice.byte_size)
            arrays[name] = decode(name, datatype, shape, data)
        elif raw_count:
            if raw_used < raw_count:
                arrays[name] = decode(name, datatype, shape, raw[raw_used])
            raw_used += 1
        else:
            arrays[name] = decode_contents(
                name,
                datatype,
                shape,
                infer_message.contents_of(tensor),
                limits.max_message_bytes,
            )
    if raw_count and raw_used != raw_count:
        raise InvalidArgumentError(
            f"the request has {raw_count} raw_input_contents (expected {raw_used}, one for each "
            "input that is not in shared memory)"
        )
    return arrays


def _check_slice_size(name: str, described: TensorType, region_slice: RegionSlice) -> None:
    """Check the size before the slice is read, since a region may be large."""
    datatype, shape = described
    dtype = NUMPY_DTYPES[datatype]
    size = math.prod(shape) * dtype.itemsize
    if dtype.kind != "O" and region_slice.byte_size != size:
        raise InvalidArgumentError(
            f"input {name!r} has {region_slice.byte_size} bytes in shared memory "
            f"(expected {size} for shape {list(shape)})"
        )
