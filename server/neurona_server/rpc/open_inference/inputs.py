"""Reads the inputs of a ModelInferRequest: raw, typed, or in shared memory."""

import math
import re
from collections.abc import Collection, Mapping, Sequence

from neurona_protos.open_inference_pb2 import ModelInferRequest
from neurona_protos.prediction_pb2 import DataType
from neurona_protos.tensors import (
    NUMPY_DTYPES,
    TensorError,
    decode,
    decode_byte_strings,
    dtype_name,
)
from neurona_server.batching.request import Array, Inputs
from neurona_server.errors import InvalidArgumentError, quoted
from neurona_server.models.encoded_images import how_to_declare
from neurona_server.models.model import Model
from neurona_server.models.signature import Size, TensorType
from neurona_server.rpc.limits import SLOW_BYTES, SLOW_STRINGS, Limits
from neurona_server.rpc.open_inference.infer_message import InferMessage
from neurona_server.rpc.open_inference.messages import DATATYPE_NAMES, parse_datatype
from neurona_server.rpc.open_inference.regions import RegionKind, RegionSlice
from neurona_server.rpc.open_inference.shared_memory import BYTE_SIZE, SharedMemoryService
from neurona_server.rpc.open_inference.typed_contents import decode_byte_contents, decode_contents

_LENGTH_BYTES = 4
_DATATYPES_OF_V1 = {dtype_name(datatype): name for datatype, name in DATATYPE_NAMES.items()}
_DTYPE = re.compile(rf"\b({'|'.join(_DATATYPES_OF_V1)})(?= of (shape \[|any shape))")
"""A datatype in an error of a signature, which names it as neurona.v1 does."""

SLOW_CONTENTS = 64 << 10
"""Bytes of typed contents from which on decoding them takes too long for the transport's thread."""


def describe_inputs(message: ModelInferRequest, model: Model) -> dict[str, TensorType]:
    """Return the datatype and shape of each input.

    Raises:
        InvalidArgumentError: An input is a duplicate, or has an unknown datatype, or another one
            than the model's. The signature checks the latter too, but would name the datatype as
            neurona.v1 does.
    """
    signature = model.signature
    expected = {spec.name: spec.dtype for spec in (*signature.inputs, *signature.optional)}
    hidden = hidden_inputs(model)
    described: dict[str, TensorType] = {}
    for tensor in message.inputs:
        name = tensor.name
        if name in described:
            raise InvalidArgumentError(f"duplicate input {quoted(name)}")
        if name in hidden:
            raise InvalidArgumentError(
                f"unexpected inference input {quoted(name)} for model {model.name!r}: the server "
                "fills it in, for the steps of sequences"
            )
        datatype = parse_datatype(tensor.datatype, name)
        if datatype != expected.get(name, datatype):
            _check_encoded(name, datatype, model, expected[name])
        described[name] = (datatype, tuple(tensor.shape))
    return described


def _check_encoded(name: str, datatype: DataType, model: Model, expected: DataType) -> None:
    """Raise InvalidArgumentError unless an input may have this datatype for encoded images."""
    if datatype == DataType.DATA_TYPE_STRING and name in model.images:
        return
    hint = ""
    if datatype == DataType.DATA_TYPE_STRING:
        hint = f"; {how_to_declare(name)}"
    raise InvalidArgumentError(
        f"inference input {name!r} data-type is {DATATYPE_NAMES[datatype]!r}, but model "
        f"{model.name!r} expects {DATATYPE_NAMES[expected]!r}{hint}"
    )


def hidden_inputs(model: Model) -> frozenset[str]:
    """Return the inputs that the server fills in for steps of sequences; most models have none."""
    declared = model.settings.sequences
    return frozenset() if declared is None else declared.hidden_inputs


def describe_arrays(model: Model, arrays: Inputs) -> dict[str, TensorType]:
    """Return the datatype and shape of inputs that the server fills in, by name."""
    signature = model.signature
    return {
        spec.name: (spec.dtype, arrays[spec.name].shape)
        for spec in (*signature.inputs, *signature.optional)
        if spec.name in arrays
    }


def explain_mismatch(
    model: Model, described: Mapping[str, TensorType], error: InvalidArgumentError
) -> InvalidArgumentError:
    """Return the error of inputs that do not match the signature in the protocol's words.

    They are those of Triton, which its clients may look for, followed by the signature's own.
    `error` is the signature's.
    """
    signature = model.signature
    hidden = hidden_inputs(model)
    reason = _DTYPE.sub(lambda match: _DATATYPES_OF_V1[match[0]], str(error))
    required = [spec.name for spec in signature.inputs if spec.name not in hidden]
    names = [*described]
    missing = [name for name in required if name not in described]
    specs = {
        spec.name: spec
        for spec in (*signature.inputs, *signature.optional)
        if spec.name not in hidden
    }
    unknown = [name for name in names if name not in specs]
    if missing and not (unknown and len(required) <= len(names) <= len(specs)):
        return InvalidArgumentError(
            f"expected {_count_words(len(required), len(specs))} but got {len(names)} inputs for "
            f"model {model.name!r}. Got input(s) {_list_words(names)}, but missing required "
            f"input(s) {_list_words(missing)}. Please provide all required input(s).: {reason}"
        )
    if unknown:
        return InvalidArgumentError(
            f"unexpected inference input {quoted(unknown[0])} for model {model.name!r}: {reason}"
        )
    for name, (_, shape) in described.items():
        spec = specs[name]
        if spec.any_shape or _may_fit(shape, spec.shape):
            continue
        sizes = ",".join(str(size) if isinstance(size, int) else "-1" for size in spec.shape)
        return InvalidArgumentError(
            f"unexpected shape for input {name!r} for model {model.name!r}. Expected [{sizes}], "
            f"got [{','.join(map(str, shape))}]: {reason}"
        )
    if signature.batched and required:
        rows = described[required[0]][1][:1]
        for name in required:
            if described[name][1][:1] != rows:
                return InvalidArgumentError(
                    f"input {name!r} batch size does not match other inputs for {model.name!r}: "
                    f"{reason}"
                )
    return InvalidArgumentError(reason)


def _may_fit(shape: tuple[int, ...], expected: tuple[Size, ...]) -> bool:
    return len(shape) == len(expected) and all(
        size == wanted if isinstance(wanted, int) else size >= 0
        for size, wanted in zip(shape, expected, strict=True)
    )


def _count_words(required: int, most: int) -> str:
    if most > required:
        return f"number of inputs between {required} and {most}"
    return f"{required} inputs"


def _list_words(names: Sequence[str]) -> str:
    return f"[{','.join(map(quoted, names))}]"


def find_input_slices(
    message: ModelInferRequest, memory: SharedMemoryService, owner: str
) -> dict[str, RegionSlice]:
    """Return the parts of shared memory that hold inputs, by input.

    Only regions of `owner`, the caller, are read.

    Raises:
        InvalidArgumentError: A parameter is invalid.
        NotAllowedError, NotFoundError: See `SharedMemoryService.find_slice`.
    """
    slices = {
        tensor.name: memory.find_slice(owner, tensor.parameters, f"input {quoted(tensor.name)}")
        for tensor in message.inputs
    }
    return {name: one for name, one in slices.items() if one is not None}


def has_typed_contents(message: ModelInferRequest) -> bool:
    """Return whether the request has its inputs as typed contents."""
    return not message.raw_input_contents and any(
        tensor.HasField("contents") for tensor in message.inputs
    )


def count_shared_bytes(message: ModelInferRequest) -> int:
    """Return the bytes of the inputs that are said to be in shared memory."""
    size = 0
    for tensor in message.inputs:
        if tensor.parameters and BYTE_SIZE in tensor.parameters:
            size += max(0, tensor.parameters[BYTE_SIZE].int64_param)
    return size


def is_slow(
    infer_message: InferMessage,
    described: Mapping[str, TensorType],
    slices: Mapping[str, RegionSlice],
    limits: Limits,
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
    if any(one.region.kind is RegionKind.CUDA for one in slices.values()):
        return True  # the copy may wait for what else the device does
    if not infer_message.raw and infer_message.size >= SLOW_CONTENTS:
        return True
    copied = count_shared_bytes(infer_message.request)
    if strings or any(datatype == DataType.DATA_TYPE_BOOL for datatype, _ in described.values()):
        copied += infer_message.size
    return copied >= SLOW_BYTES


def read_inputs(
    infer_message: InferMessage,
    described: Mapping[str, TensorType],
    slices: Mapping[str, RegionSlice],
    max_bytes: int,
    limits: Limits,
    server_inputs: Inputs,
    encoded: Collection[str] = (),
) -> Inputs:
    """Return the arrays of inputs that fit the model's signature.

    Arrays of raw contents are read-only views; those of `encoded` images are of bytes. At most
    `max_bytes` are read from shared memory, for the inputs in `slices`. Those that the server fills
    in are among them.

    Raises:
        InvalidArgumentError: There is too little or too much data, or data in several places.
        TensorError: The data does not fit the shape.
    """
    arrays: dict[str, Array] = {}
    message, raw = infer_message.request, infer_message.raw
    raw_count = len(raw)
    raw_used = 0
    shared_bytes = 0
    for tensor in message.inputs:
        name = tensor.name
        region_slice = slices.get(name)
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
            # Before it is read, since a region may be large.
            _check_size(message, name, described[name], region_slice.byte_size)
            data = region_slice.region.read(region_slice.offset, region_slice.byte_size)
            arrays[name] = _decode(message, name, described[name], data, name in encoded)
        elif raw_count:
            if raw_used < raw_count:
                data = raw[raw_used]
                arrays[name] = _decode(message, name, described[name], data, name in encoded)
            raw_used += 1
        elif name in encoded:
            shape = described[name][1]
            arrays[name] = decode_byte_contents(name, shape, infer_message.contents_of(tensor))
        else:
            arrays[name] = decode_contents(
                name,
                *described[name],
                infer_message.contents_of(tensor),
                limits.max_message_bytes,
            )
    if raw_count and raw_used != raw_count:
        raise InvalidArgumentError(
            f"the request has {raw_count} raw_input_contents (expected {raw_used}, one for each "
            "input that is not in shared memory)"
        )
    arrays.update(server_inputs)
    return arrays


def _decode(
    message: ModelInferRequest,
    name: str,
    described: TensorType,
    data: bytes | memoryview,
    is_encoded: bool,
) -> Array:
    datatype, shape = described
    _check_size(message, name, described, len(data))
    try:
        if is_encoded:
            return decode_byte_strings(name, shape, data)
        return decode(name, datatype, shape, data)
    except TensorError as error:
        if datatype != DataType.DATA_TYPE_STRING:
            raise
        reason = _explain_strings(name, message.model_name, math.prod(shape), data)
        raise InvalidArgumentError(f"{reason}: {error}") from None


def _check_size(
    message: ModelInferRequest, name: str, described: TensorType, byte_size: int
) -> None:
    """Raise InvalidArgumentError unless a tensor of numbers has the bytes that its shape needs."""
    datatype, shape = described
    dtype = NUMPY_DTYPES[datatype]
    size = math.prod(shape) * dtype.itemsize
    if dtype.kind != "O" and byte_size != size:
        raise InvalidArgumentError(
            f"input byte size mismatch for input {name!r} for model {quoted(message.model_name)}. "
            f"Expected {size}, got {byte_size} ({DATATYPE_NAMES[datatype]} of shape {list(shape)})"
        )


def _explain_strings(name: str, model: str, count: int, data: bytes | memoryview) -> str:
    """Return why `data` are not `count` strings, in the words of Triton."""
    of_input = f"for inference input {name!r} for model {quoted(model)}"
    position = strings = 0
    while strings < count:
        rest = len(data) - position - _LENGTH_BYTES
        if rest == -_LENGTH_BYTES:
            break
        if rest < 0:
            return (
                f"incomplete string length indicator {of_input}, expecting {_LENGTH_BYTES} bytes "
                f"but only {rest + _LENGTH_BYTES} bytes available"
            )
        length = int.from_bytes(data[position : position + _LENGTH_BYTES], "little")
        if length > rest:
            return (
                f"incomplete string data {of_input}, expecting string of length {length} but only "
                f"{rest} bytes available"
            )
        position += _LENGTH_BYTES + length
        strings += 1
    if position < len(data):  # as Triton counts: up to the first one that is not expected
        strings += 1
    return f"unexpected number of string elements {strings} {of_input}, expecting {count}"
