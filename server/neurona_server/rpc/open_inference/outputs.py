"""Writes a model's outputs as a ModelInferResponse, or part of them to shared memory."""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from neurona_protos.open_inference_pb2 import (
    InferParameter,
    ModelInferRequest,
    ModelInferResponse,
    ModelStreamInferResponse,
)
from neurona_protos.prediction_pb2 import DataType, Task
from neurona_protos.tensors import encode
from neurona_protos.wire_format import header
from neurona_server.batching.ranking import RankedRows, rank_rows
from neurona_server.batching.request import Array, Outputs
from neurona_server.errors import InvalidArgumentError, quoted
from neurona_server.models.model import Model
from neurona_server.models.signature import TensorSpec
from neurona_server.rpc.flow_control import ResponseSizeEstimate
from neurona_server.rpc.open_inference import shared_memory
from neurona_server.rpc.open_inference.messages import (
    DATATYPE_NAMES,
    FINAL_RESPONSE,
    read_unsigned_parameter,
)
from neurona_server.rpc.open_inference.regions import RegionKind, RegionSlice
from neurona_server.rpc.open_inference.shared_memory import SharedMemoryService
from neurona_server.rpc.open_inference.typed_contents import CONTENTS, set_contents

MAX_CLASS_RESULTS = 100_000
"""Classification results of one output: each is a string, formatted in a microsecond or more on the
thread that serves other requests too."""

MAX_MESSAGE_BYTES = 2**31 - 1
"""Protobuf's limit."""

_INFER_RESPONSE = ModelStreamInferResponse.DESCRIPTOR.fields_by_name["infer_response"].number
_RAW_OUTPUT_CONTENTS = ModelInferResponse.DESCRIPTOR.fields_by_name["raw_output_contents"].number


class RequestedOutput(NamedTuple):
    """An output that the caller wants to have."""

    position: int
    """Index in the model's outputs."""

    spec: TensorSpec
    class_count: int = 0
    """Classes to return for each row in place of the values; 0 returns the values."""

    region_slice: RegionSlice | None = None
    """The shared memory to write the output to."""

    labels: Sequence[str] = ()
    """Names of the classes, if the model has them."""

    @property
    def is_on_device(self) -> bool:
        """Whether the output is written to the memory of a GPU."""
        return self.region_slice is not None and self.region_slice.region.kind is RegionKind.CUDA


def read_requested_outputs(
    message: ModelInferRequest, model: Model, memory: SharedMemoryService, owner: str
) -> Sequence[RequestedOutput]:
    """Return the outputs that a request names, or all of the model's if it names none.

    Only regions of `owner`, the caller, are written to.

    Raises:
        InvalidArgumentError: An output is unknown or a duplicate, or its parameters are invalid.
        NotAllowedError, NotFoundError: See `SharedMemoryService.find_slice`.
    """
    specs = model.signature.outputs
    indices = {spec.name: index for index, spec in enumerate(specs)}
    if (declared := model.settings.sequences) is not None:
        for name in declared.hidden_outputs:
            del indices[name]
    if not message.outputs:
        return [RequestedOutput(index, specs[index]) for index in indices.values()]
    requested: dict[str, RequestedOutput] = {}
    for output in message.outputs:
        name = output.name
        if name not in indices:
            names = ", ".join(map(repr, indices))
            raise InvalidArgumentError(
                f"unexpected inference output {quoted(name)} for model {model.name!r} "
                f"(expected {names})"
            )
        if name in requested:
            raise InvalidArgumentError(f"duplicate output {name!r}")
        index = indices[name]
        requested[name] = RequestedOutput(
            index,
            specs[index],
            _read_class_count(output.parameters, specs[index]),
            memory.find_slice(owner, output.parameters, f"output {name!r}"),
            _labels_of(model, index),
        )
    return list(requested.values())


def _labels_of(model: Model, index: int) -> Sequence[str]:
    """Return the names of the classes in an output, "" for a class without one."""
    name = model.signature.outputs[index].name
    labels: Sequence[str] | None = model.settings.output_labels.get(name)
    if labels is None and model.metadata.task == Task.TASK_CLASSIFICATION and index == model.answer:
        labels = model.metadata.labels
    return labels or ()


class InferResponseWriter(NamedTuple):
    """The `ResponseWriter` of a ModelInferRequest.

    In a stream it marks the response as final, and writes it as a ModelStreamInferResponse.
    """

    model_name: str
    model_version: str
    has_batch_axis: bool
    requested: Sequence[RequestedOutput]
    request_id: str
    streamed: bool
    size_estimate: ResponseSizeEstimate
    typed: bool = False
    """Whether the outputs are typed contents, if all of their datatypes have a type of these."""

    def __call__(self, outputs: Outputs) -> bytes:
        response = _write_response(self, outputs)
        self.size_estimate.observe(outputs, len(response))
        return response

    def expected_bytes(self, rows: int) -> int:
        return int(rows * self.size_estimate.row_bytes)

    def ranked_classes(self, answer: int) -> int:
        for output in self.requested:
            if output.position == answer:
                return output.class_count
        return 1  # it is not requested


def _write_response(writer: InferResponseWriter, outputs: Outputs) -> bytes:
    head = ModelInferResponse(
        model_name=writer.model_name, model_version=writer.model_version, id=writer.request_id
    )
    if writer.streamed:
        head.parameters[FINAL_RESPONSE].bool_param = True
    pieces: list[bytes | memoryview] = []
    typed = writer.typed and all(_has_typed_contents(output) for output in writer.requested)
    for output in writer.requested:
        spec, dtype = output.spec, output.spec.dtype
        if output.class_count:
            array = rank_classes(
                spec.name,
                outputs[output.position],
                dtype,
                output.class_count,
                output.labels,
                has_batch_axis=writer.has_batch_axis,
            )
            dtype = DataType.DATA_TYPE_STRING
        else:
            array = np.asarray(outputs[output.position])
        tensor = head.outputs.add(name=spec.name, datatype=DATATYPE_NAMES[dtype], shape=array.shape)
        if typed and not output.region_slice:
            set_contents(tensor.contents, array, dtype)
            continue
        data = encode(spec.name, array, dtype)
        if output.region_slice:
            _write_to_shared_memory(output.region_slice, data, spec.name, tensor.parameters)
            data = b""
        if not typed:
            pieces += [header(_RAW_OUTPUT_CONTENTS, len(data)), data]
    # Joined here, so that large outputs are copied once: a message would copy them twice more.
    size = head.ByteSize() + sum([len(piece) for piece in pieces])
    if size > MAX_MESSAGE_BYTES:
        raise InvalidArgumentError(
            f"the response has {size} bytes (expected at most {MAX_MESSAGE_BYTES} in a message)"
        )
    before = header(_INFER_RESPONSE, size) if writer.streamed else b""
    return b"".join([before, head.SerializeToString(), *pieces])


def _has_typed_contents(output: RequestedOutput) -> bool:
    return bool(output.class_count) or output.spec.dtype in CONTENTS


def _write_to_shared_memory(
    region_slice: RegionSlice,
    data: bytes | memoryview,
    name: str,
    parameters: Mapping[str, InferParameter],
) -> None:
    if len(data) > region_slice.byte_size:
        raise InvalidArgumentError(
            f"shared memory size specified with the request for output {name!r} "
            f"({region_slice.byte_size} bytes) should be at least {len(data)} bytes to hold the "
            "results"
        )
    region_slice.region.write(region_slice.offset, data)
    parameters[shared_memory.REGION].string_param = region_slice.region.name
    parameters[shared_memory.OFFSET].int64_param = region_slice.offset
    parameters[shared_memory.BYTE_SIZE].int64_param = len(data)


def _read_class_count(parameters: Mapping[str, InferParameter], spec: TensorSpec) -> int:
    if "classification" not in parameters:
        return 0
    count = read_unsigned_parameter("classification", parameters["classification"])
    if not count:
        raise InvalidArgumentError("parameter 'classification' is 0 (expected 1 or more)")
    if spec.dtype in (DataType.DATA_TYPE_STRING, DataType.DATA_TYPE_BOOL):
        raise InvalidArgumentError(
            "class result not available for output due to unsupported type "
            f"{DATATYPE_NAMES[spec.dtype]!r}: output {spec.name!r} (expected numbers for parameter "
            "'classification')"
        )
    return count


def rank_classes(
    name: str,
    array: Array | RankedRows,
    dtype: DataType,
    count: int,
    labels: Sequence[str],
    *,
    has_batch_axis: bool,
) -> Array:
    """Return `"<value>:<index>[:<label>]"` for the `count` greatest values of each row.

    The greatest value comes first; equal values are in the order of their indices, and NaN comes
    last. A value is written with as many digits as distinguish it from all others of its dtype.

    Args:
        name: The output's name, for errors.
        array: The output; all axes behind the batch axis are flattened. Or its best classes.
        dtype: The output's datatype.
        count: Classes for each row.
        labels: The name of each class, as far as they have one.
        has_batch_axis: Whether the first axis is the batch.

    Returns:
        Strings, shape (rows, count), or (count) without a batch axis.

    Raises:
        InvalidArgumentError: There would be more than MAX_CLASS_RESULTS.
    """
    if isinstance(array, RankedRows):
        best = array.indices[:, :count]
        _check_results(name, *best.shape)
        return _format_classes(best, array.values, labels)
    array = np.asarray(array)
    if dtype == DataType.DATA_TYPE_BFLOAT16:
        array = (array.astype(np.uint32) << 16).view(np.float32)
    has_rows = has_batch_axis and array.ndim > 0
    size = math.prod(array.shape[1:]) if has_rows else array.size
    rows = array.reshape(array.shape[0] if has_rows else 1, size)
    count = min(count, size)
    _check_results(name, len(rows), count)
    # For integers ~x reverses the order without an overflow, unlike -x.
    keys = -rows if rows.dtype.kind == "f" else ~rows
    order = rank_rows(keys, count)
    texts = _format_classes(order, np.take_along_axis(rows, order, axis=1), labels)
    return texts if has_rows else texts[0]


def _check_results(name: str, rows: int, count: int) -> None:
    if rows * count > MAX_CLASS_RESULTS:
        raise InvalidArgumentError(
            f"output {name!r} has {rows} rows of {count} classes "
            f"(expected at most {MAX_CLASS_RESULTS} results)"
        )


def _format_classes(classes: Array, values: Array, labels: Sequence[str]) -> Array:
    texts = np.empty(classes.shape, dtype=object)
    for row, indices in enumerate(classes.tolist()):
        for column, index in enumerate(indices):
            text = f"{values[row, column]!s}:{index}"
            label = labels[index] if index < len(labels) else ""
            texts[row, column] = f"{text}:{label}" if label else text
    return texts
