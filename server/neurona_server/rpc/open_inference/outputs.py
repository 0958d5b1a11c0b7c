"""From a model's outputs to the bytes of a ModelInferResponse, or part of it in shared memory."""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from neurona_protos.open_inference_pb2 import InferParameter, ModelInferRequest, ModelInferResponse
from neurona_protos.prediction_pb2 import DataType, Task
from neurona_protos.tensors import encode
from neurona_protos.wire_format import header
from neurona_server.batching.request import Array, Outputs
from neurona_server.errors import InvalidArgumentError, quoted
from neurona_server.models.model import Model
from neurona_server.models.signature import TensorSpec
from neurona_server.rpc.flow_control import ResponseSizeEstimate
from neurona_server.rpc.open_inference import shared_memory as shared
from neurona_server.rpc.open_inference.messages import NAMES, whole
from neurona_server.rpc.open_inference.shared_memory import RegionSlice, SharedMemoryService

MAX_CLASS_RESULTS = 100_000
"""Results of one output: each is a string that is written by itself, a microsecond or more, in
the thread that answers others too."""


def best_classes(
    name: str,
    array: Array,
    dtype: DataType,
    count: int,
    labels: Sequence[str],
    *,
    batched: bool,
) -> Array:
    """`"<value>:<index>[:<label>]"` of the `count` greatest values of each row, the greatest
    first; of equals, the first comes first, and NaN comes last.

    Shape (rows, count), or (count) without a batch axis; all other axes are one. A value is
    written with as many digits as tell it from every other one of its type.
    Raises InvalidArgumentError when there would be too many.
    """
    if dtype == DataType.DATA_TYPE_BFLOAT16:
        array = (array.astype(np.uint32) << 16).view(np.float32)
    size = math.prod(array.shape[1:]) if batched else array.size
    rows = array.reshape(array.shape[0] if batched else 1, size)
    count = min(count, size)
    if len(rows) * count > MAX_CLASS_RESULTS:
        raise InvalidArgumentError(
            f"output {name!r}: {len(rows)} times {count} classes; "
            f"expected at most {MAX_CLASS_RESULTS} results"
        )
    # Turned round without an overflow: unsigned numbers have no negative, a minimum neither.
    keys = -rows if rows.dtype.kind == "f" else ~rows
    order = np.argsort(keys, axis=1, kind="stable")[:, :count]
    texts = np.empty(order.shape, dtype=object)
    for row, indices in enumerate(order.tolist()):
        for column, index in enumerate(indices):
            text = f"{rows[row, index]!s}:{index}"
            texts[row, column] = text + f":{labels[index]}" if index < len(labels) else text
    return texts if batched else texts[0]


RAW = ModelInferResponse.DESCRIPTOR.fields_by_name["raw_output_contents"].number
MAX_MESSAGE_BYTES = 2**31 - 1
"""Bytes of a message, by protobuf's own rule."""

FINAL = "triton_final_response"


class Wanted(NamedTuple):
    """One output that the caller asked for."""

    position: int
    spec: TensorSpec
    classes: int = 0
    place: RegionSlice | None = None
    labels: Sequence[str] = ()
    """Of the classes, where the model gives some."""


def read_outputs(
    message: ModelInferRequest, model: Model, memory: SharedMemoryService
) -> Sequence[Wanted]:
    """All, if none is named. Raises InvalidArgumentError, and what `Memory.place` raises."""
    specs = model.signature.outputs
    if not message.outputs:
        return [Wanted(index, spec) for index, spec in enumerate(specs)]
    known = {spec.name: index for index, spec in enumerate(specs)}
    labelled = model.answer if model.metadata.task == Task.TASK_CLASSIFICATION else -1
    wanted: dict[str, Wanted] = {}
    for output in message.outputs:
        name = output.name
        if name not in known:
            names = ", ".join(repr(one) for one in known)
            raise InvalidArgumentError(
                f"unexpected inference output {quoted(name)} for model {model.name!r}; "
                f"it has {names}"
            )
        if name in wanted:
            raise InvalidArgumentError(
                f"output {name!r} is requested more than once; expected it once"
            )
        index = known[name]
        wanted[name] = Wanted(
            index,
            specs[index],
            _classes(output.parameters, specs[index]),
            memory.place(output.parameters, f"output {name!r}"),
            model.metadata.labels if index == labelled else (),
        )
    return list(wanted.values())


class InferAnswer(NamedTuple):
    """The `ResponseWriter` of a ModelInferRequest; in a stream, it marks a request's last
    response."""

    model_name: str
    model_version: str
    batched: bool
    wanted: Sequence[Wanted]
    request_id: str
    streamed: bool
    sizes: ResponseSizeEstimate

    def __call__(self, outputs: Outputs) -> bytes:
        response = _answer(self, outputs)
        self.sizes.learn(outputs, len(response))
        return response

    def expected(self, rows: int) -> int:
        return int(rows * self.sizes.row)


def _answer(answer: InferAnswer, outputs: Outputs) -> bytes:
    head = ModelInferResponse(
        model_name=answer.model_name, model_version=answer.model_version, id=answer.request_id
    )
    if answer.streamed:
        head.parameters[FINAL].bool_param = True
    pieces: list[bytes | memoryview] = []
    for one in answer.wanted:
        spec, array, dtype = one.spec, np.asarray(outputs[one.position]), one.spec.dtype
        if one.classes:
            array = best_classes(
                spec.name, array, dtype, one.classes, one.labels, batched=answer.batched
            )
            dtype = DataType.DATA_TYPE_STRING
        data = encode(spec.name, array, dtype)
        tensor = head.outputs.add(name=spec.name, datatype=NAMES[dtype], shape=array.shape)
        if one.place:
            _share(one.place, data, spec.name, tensor.parameters)
            data = b""
        pieces += [header(RAW, len(data)), data]
    # By hand, so that what is large is copied once: a message would copy it twice more.
    size = head.ByteSize() + sum([len(piece) for piece in pieces])
    if size > MAX_MESSAGE_BYTES:
        raise InvalidArgumentError(
            f"the answer has {size} bytes, more than the {MAX_MESSAGE_BYTES} of a message"
        )
    return b"".join([head.SerializeToString(), *pieces])


def _share(
    place: RegionSlice,
    data: bytes | memoryview,
    name: str,
    parameters: Mapping[str, InferParameter],
) -> None:
    if len(data) > place.byte_size:
        raise InvalidArgumentError(
            f"shared memory size specified with the request for output {name!r} "
            f"({place.byte_size} bytes) should be at least {len(data)} bytes to hold the results"
        )
    place.region.write(place.offset, data)
    parameters[shared.REGION].string_param = place.region.name
    parameters[shared.OFFSET].int64_param = place.offset
    parameters[shared.BYTE_SIZE].int64_param = len(data)


def _classes(parameters: Mapping[str, InferParameter], spec: TensorSpec) -> int:
    if "classification" not in parameters:
        return 0
    count = whole("classification", parameters["classification"])
    if not count:
        raise InvalidArgumentError("parameter 'classification' is 0; expected 1 or more")
    if spec.dtype in (DataType.DATA_TYPE_STRING, DataType.DATA_TYPE_BOOL):
        raise InvalidArgumentError(
            f"output {spec.name!r} is {NAMES[spec.dtype]}: its classes cannot be ranked"
        )
    return count
