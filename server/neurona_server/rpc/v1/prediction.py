"""The service neurona.v1.Prediction: single requests, and streams of them."""

import math
from collections.abc import Collection, Sequence
from functools import partial
from weakref import WeakKeyDictionary

from google.protobuf.message import DecodeError

from neurona_protos.prediction_pb2 import (
    DataType,
    PredictRequest,
    Priority,
    SessionRequest,
    Task,
    Tensor,
)
from neurona_protos.tensors import decode, decode_byte_strings
from neurona_server.batching.policy import Priority as Level
from neurona_server.batching.request import Inputs
from neurona_server.errors import InvalidArgumentError, WrongTaskError, quoted
from neurona_server.models.lifecycle.registry import Registry
from neurona_server.models.model import Model
from neurona_server.models.signature import TensorType
from neurona_server.rpc.call import (
    ANY_MESSAGE_BYTES,
    Call,
    Methods,
    StreamCall,
    Streaming,
    Unary,
)
from neurona_server.rpc.detached_data import bytes_index, read_bytes_index
from neurona_server.rpc.fast_path import DataFields, FastPath, InputSample
from neurona_server.rpc.limits import LARGE_MESSAGE, SLOW_BYTES, SLOW_STRINGS, Limits
from neurona_server.rpc.security.access import Grant, Right, visible_models
from neurona_server.rpc.submission import ParsedRequest, Responder, submit
from neurona_server.rpc.v1.responses import PredictResponseWriter, ResponseEncoder
from neurona_server.rpc.v1.streaming import PredictionStream
from neurona_server.rpc.worker_pool import WorkerPool
from neurona_server.telemetry.metrics import Metrics


def _data_indices(rest: bytes) -> list[int | None]:
    return [read_bytes_index(tensor.data) for tensor in PredictRequest.FromString(rest).inputs]


PREDICT_DATA = DataFields(
    {PredictRequest.INPUTS_FIELD_NUMBER: {Tensor.DATA_FIELD_NUMBER: bytes_index}}, _data_indices
)
"""Where a request has the data of its tensors."""

COPIED_DTYPES = {DataType.DATA_TYPE_STRING, DataType.DATA_TYPE_BOOL}
"""Those whose arrays are no views of the message: many elements take long."""

PRIORITIES = {
    Priority.PRIORITY_HIGH: Level.HIGH,
    Priority.PRIORITY_NORMAL: Level.NORMAL,
    Priority.PRIORITY_LOW: Level.LOW,
}


class Prediction:
    """Serves Predict, Classify, Regress and PredictStream."""

    def __init__(
        self,
        registry: Registry,
        metrics: Metrics,
        limits: Limits | None = None,
        workers: WorkerPool | None = None,
    ) -> None:
        self._registry = registry
        self._metrics = metrics
        self._limits = limits or Limits()
        self._workers = workers or WorkerPool()
        self._fast_path = FastPath(PREDICT_DATA, registry.resolve, self._workers)
        self._encoders: WeakKeyDictionary[Model, ResponseEncoder] = WeakKeyDictionary()

    def methods(self) -> Methods:
        path = "/neurona.v1.Prediction/"
        return {
            path + "Predict": self._method(),
            path + "Classify": self._method(Task.TASK_CLASSIFICATION),
            path + "Regress": self._method(Task.TASK_REGRESSION),
            path + "PredictStream": Streaming(self._stream, Right.PREDICT, ANY_MESSAGE_BYTES),
        }

    def _method(self, task: Task | None = None) -> Unary:
        start = self._unary if task is None else partial(self._unary, task=task)
        return Unary(start, Right.PREDICT, ANY_MESSAGE_BYTES, self._registry.longest_objective)

    def submit_message(
        self, message: bytes, responder: Responder, grant: Grant, task: Task | None = None
    ) -> int:
        """Submit a serialized PredictRequest; the responder gets the response or the error.

        With a `task`, a request of a model with another task is rejected. Returns the expected
        bytes of the response.
        """
        if grant.models is None:
            expected = self._fast_path.send(
                message,
                responder,
                partial(self.submit_message, message, responder, grant, task),
                None if task is None else partial(_has_task, task),
            )
            if expected is not None:
                return expected
        try:
            parsed, data = self._parse(message)
        except InvalidArgumentError as error:
            self._metrics.unresolved["invalid"].inc()
            responder.fail(error)
            return 0
        except DecodeError:
            self._metrics.unresolved["invalid"].inc()
            responder.fail(InvalidArgumentError("message is not a neurona.v1.PredictRequest"))
            return 0
        registry = visible_models(self._registry, grant)
        resolve = partial(registry.resolve, parsed.model, parsed.version, parsed.label)
        read = partial(self._read, parsed, data, len(message), responder.deadline, task)
        accepted = submit(self._metrics, resolve, read, responder, self._workers)
        if accepted is None:
            return 0
        model_key = (parsed.model, parsed.version, parsed.label)
        inputs = [InputSample(t.name, t.dtype, tuple(t.shape)) for t in parsed.inputs]
        self._fast_path.remember(message, model_key, inputs, accepted)
        return accepted.expected_bytes

    def _parse(self, message: bytes) -> tuple[PredictRequest, Sequence[memoryview]]:
        """Return the request and, unless it has them itself, the data of its tensors.

        Raises InvalidArgumentError and DecodeError.
        """
        if len(message) < LARGE_MESSAGE:
            return PredictRequest.FromString(message), ()
        detached = self._limits.detach_data(message, PREDICT_DATA.paths)
        view = memoryview(message)
        data = [view[start:stop] for start, stop in detached.spans]
        return PredictRequest.FromString(detached.rest), data

    def _read(
        self,
        message: PredictRequest,
        data: Sequence[memoryview],
        nbytes: int,
        deadline: float,
        task: Task | None,
        model: Model,
    ) -> ParsedRequest:
        if task is not None and task != model.metadata.task:
            raise _wrong_task(model, task)
        if (priority := PRIORITIES.get(message.priority)) is None:
            raise InvalidArgumentError(f"priority is {message.priority} (expected 0, 1 or 2)")
        self._limits.check(message)
        return ParsedRequest(
            input_types(message),
            partial(decode_inputs, message, data),
            self._response_writer(message, model),
            deadline,
            priority,
            nbytes,
            self._limits,
            partial(is_slow, message, nbytes, self._limits),
        )

    def _response_writer(self, message: PredictRequest, model: Model) -> PredictResponseWriter:
        encoder = self._encoders.get(model)
        if encoder is None:
            encoder = self._encoders[model] = ResponseEncoder(model)
        return PredictResponseWriter(encoder, message.top_k or 1, message.raw_outputs)

    def _stream(self, call: StreamCall) -> PredictionStream:
        submit_message = partial(self.submit_message, grant=call.grant)
        # Each request of a traced stream has a span of its own, so it is not coalesced.
        coalesced = call.grant.models is None and call.trace is None
        fast_path = self._fast_path if coalesced else None
        return PredictionStream(
            call, submit_message, fast_path, self._limits, self._metrics.open_streams
        )

    def _unary(self, call: Call, task: Task | None = None) -> None:
        self.submit_message(call.request, call, call.grant, task)


def decode_inputs(
    message: PredictRequest | SessionRequest,
    data: Sequence[memoryview],
    encoded: Collection[str] = (),
) -> Inputs:
    """Return the arrays of the inputs, whose data are in the message if there are no `data`.

    Those of `encoded` images are of bytes.
    """
    if encoded:
        return _decode_bytes(message, data, encoded)
    if not data:
        return {
            tensor.name: decode(tensor.name, tensor.dtype, tuple(tensor.shape), tensor.data)
            for tensor in message.inputs
        }
    inputs = {}
    for tensor in message.inputs:
        index = read_bytes_index(tensor.data)
        own = b"" if index is None else data[index]
        inputs[tensor.name] = decode(tensor.name, tensor.dtype, tuple(tensor.shape), own)
    return inputs


def _decode_bytes(
    message: PredictRequest | SessionRequest, data: Sequence[memoryview], encoded: Collection[str]
) -> Inputs:
    inputs = {}
    for tensor in message.inputs:
        own: bytes | memoryview = tensor.data
        if data:
            index = read_bytes_index(tensor.data)
            own = b"" if index is None else data[index]
        shape = tuple(tensor.shape)
        if tensor.name in encoded:
            inputs[tensor.name] = decode_byte_strings(tensor.name, shape, own)
        else:
            inputs[tensor.name] = decode(tensor.name, tensor.dtype, shape, own)
    return inputs


def is_slow(message: PredictRequest | SessionRequest, nbytes: int, limits: Limits) -> bool:
    """Return whether decoding the inputs takes long. Raises InvalidArgumentError."""
    dtypes = {tensor.dtype for tensor in message.inputs}
    if dtypes.isdisjoint(COPIED_DTYPES):
        return False
    strings = limits.check_strings(
        math.prod(tensor.shape)
        for tensor in message.inputs
        if tensor.dtype == DataType.DATA_TYPE_STRING
    )
    return strings >= SLOW_STRINGS or nbytes >= SLOW_BYTES


def _has_task(task: Task, model: Model) -> bool:
    return task == model.metadata.task


def input_types(message: PredictRequest | SessionRequest) -> dict[str, TensorType]:
    """Return the dtype and shape of each input. Raises InvalidArgumentError."""
    types: dict[str, TensorType] = {}
    for tensor in message.inputs:
        if tensor.name in types:
            raise InvalidArgumentError(f"duplicate input {quoted(tensor.name)}")
        types[tensor.name] = (tensor.dtype, tuple(tensor.shape))
    return types


def _wrong_task(model: Model, requested: Task) -> WrongTaskError:
    descriptions = {
        Task.TASK_TENSORS: "tensors only (use Predict)",
        Task.TASK_CLASSIFICATION: "classification (use Predict or Classify)",
        Task.TASK_REGRESSION: "regression (use Predict or Regress)",
    }
    name = Task.Name(requested).removeprefix("TASK_").lower()
    return WrongTaskError(
        f"model {model.name!r} has no {name} output: its task is "
        f"{descriptions[model.metadata.task]}"
    )
