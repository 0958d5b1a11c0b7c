"""A request that is nothing but the binary data of its model's only input.

Its shape follows from the number of bytes. Texts are a single one, without its length. The file is
alone because it needs the model before there is a message.
"""

import math

from neurona_protos.open_inference_pb2 import ModelInferRequest
from neurona_protos.prediction_pb2 import DataType
from neurona_protos.tensors import NUMPY_DTYPES
from neurona_protos.wire_format import header
from neurona_server.errors import InvalidArgumentError, quoted
from neurona_server.models.model import Model
from neurona_server.models.signature import TensorSpec
from neurona_server.rpc.open_inference.messages import DATATYPE_NAMES


def read_raw_tensor(model: Model, version: str, body: bytes) -> bytes:
    """Return the serialized ModelInferRequest of a body that is a tensor's data.

    Args:
        model: The model.
        version: Its version or label, as the request has it.
        body: The data.

    Raises:
        InvalidArgumentError: The model has several inputs, or the shape cannot be told.
    """
    inputs = model.signature.inputs
    if len(inputs) != 1:
        names = ", ".join(quoted(spec.name) for spec in inputs)
        raise InvalidArgumentError(
            f"a body of binary data only is for models with one input; {quoted(model.name)} has "
            f"{names} (expected JSON that names them, and its length in the header "
            "Inference-Header-Content-Length)"
        )
    (spec,) = inputs
    shape = _shape_of(spec, len(body), batched=model.has_batch_axis)
    message = ModelInferRequest(model_name=model.name, model_version=version)
    message.inputs.add(name=spec.name, datatype=DATATYPE_NAMES[spec.dtype], shape=shape)
    length = b""
    if spec.dtype == DataType.DATA_TYPE_STRING:
        length = len(body).to_bytes(4, "little")
    field = header(ModelInferRequest.RAW_INPUT_CONTENTS_FIELD_NUMBER, len(length) + len(body))
    return b"".join((message.SerializeToString(), field, length, body))


def _shape_of(spec: TensorSpec, size: int, *, batched: bool) -> list[int]:
    """Return the shape of `size` bytes. A request has one row if another axis is of free size.

    Raises InvalidArgumentError.
    """
    sizes = [length if isinstance(length, int) else -1 for length in spec.shape]
    if spec.dtype == DataType.DATA_TYPE_STRING:
        if any(length not in (1, -1) for length in sizes):
            raise InvalidArgumentError(
                f"a body of binary data only is a single text; input {quoted(spec.name)} is {spec}"
            )
        return [1] * len(sizes)
    if batched and sizes.count(-1) > 1:
        sizes[0] = 1
    free = sizes.count(-1)
    row_bytes = (
        math.prod(length for length in sizes if length > 0) * NUMPY_DTYPES[spec.dtype].itemsize
    )
    if free > 1 or spec.any_shape:
        raise InvalidArgumentError(
            f"the shape of input {quoted(spec.name)} cannot be told from the bytes of the body: it "
            f"is {spec} (expected JSON with the shape)"
        )
    if size % row_bytes or (not free and size != row_bytes):
        raise InvalidArgumentError(
            f"input {quoted(spec.name)} has {size} bytes (expected {'a multiple of ' * free}"
            f"{row_bytes}: it is {spec})"
        )
    return [size // row_bytes if length == -1 else length for length in sizes]
