"""neurona.v1.Prediction: bytes to a request of a model, its outputs to bytes."""

from functools import partial
from weakref import WeakKeyDictionary

from google.protobuf.message import DecodeError

from neurona_protos.prediction_pb2 import PredictRequest, Priority, Task, Tensor
from neurona_protos.tensors import to_array
from neurona_server.batching.policy import Priority as Level
from neurona_server.errors import InvalidArgumentError, WrongTaskError, quoted
from neurona_server.models.lifecycle.registry import Registry
from neurona_server.models.model import Model
from neurona_server.models.signature import TensorType
from neurona_server.rpc.call import Call, Methods, StreamCall, Streaming, Unary
from neurona_server.rpc.fast_path import FastPath, InputSample
from neurona_server.rpc.limits import Limits
from neurona_server.rpc.security.access import Grant, Right, visible_models
from neurona_server.rpc.submission import ParsedRequest, Responder, submit
from neurona_server.rpc.v1.responses import PredictResponseWriter, ResponseEncoder
from neurona_server.rpc.v1.streaming import PredictionStream
from neurona_server.telemetry.metrics import Metrics

_DATA = (PredictRequest.INPUTS_FIELD_NUMBER, Tensor.DATA_FIELD_NUMBER)

PRIORITIES = {
    Priority.PRIORITY_HIGH: Level.HIGH,
    Priority.PRIORITY_NORMAL: Level.NORMAL,
    Priority.PRIORITY_LOW: Level.LOW,
}


class Prediction:
    def __init__(self, registry: Registry, metrics: Metrics, limits: Limits | None = None) -> None:
        self._registry = registry
        self._metrics = metrics
        self._limits = limits or Limits()
        self._fast_path = FastPath(PredictRequest.FromString, _DATA, registry.resolve)
        self._encoders: WeakKeyDictionary[Model, ResponseEncoder] = WeakKeyDictionary()

    def methods(self) -> Methods:
        path = "/neurona.v1.Prediction/"
        return {
            path + "Predict": Unary(self._unary, Right.PREDICT),
            path + "Classify": Unary(
                partial(self._unary, task=Task.TASK_CLASSIFICATION), Right.PREDICT
            ),
            path + "Regress": Unary(partial(self._unary, task=Task.TASK_REGRESSION), Right.PREDICT),
            path + "PredictStream": Streaming(self._stream, Right.PREDICT),
        }

    def submit_message(
        self, message: bytes, responder: Responder, grant: Grant, task: Task | None = None
    ) -> int:
        """Sends a request on its way; the receiver gets its answer or its error, exactly once.

        Given a `task`, a model that has another one is refused. Returns how many bytes the answer
        will have, as far as one can tell.
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
            self._limits.check_wire(message)
            parsed = PredictRequest.FromString(message)
        except InvalidArgumentError as error:
            self._metrics.unresolved["invalid"].inc()
            responder.fail(error)
            return 0
        except DecodeError:
            self._metrics.unresolved["invalid"].inc()
            responder.fail(InvalidArgumentError("the bytes are not a neurona.v1.PredictRequest"))
            return 0
        registry = visible_models(self._registry, grant)
        resolve = partial(registry.resolve, parsed.model, parsed.version, parsed.label)
        read = partial(self._read, parsed, len(message), responder.deadline, task)
        sent = submit(self._metrics, resolve, read, responder)
        if sent is None:
            return 0
        which = (parsed.model, parsed.version, parsed.label)
        inputs = [InputSample(t.name, t.dtype, tuple(t.shape), t.data) for t in parsed.inputs]
        self._fast_path.remember(message, parsed, which, inputs, sent)
        return sent.expected_bytes

    def _read(
        self,
        message: PredictRequest,
        nbytes: int,
        deadline: float,
        task: Task | None,
        model: Model,
    ) -> ParsedRequest:
        if task is not None and task != model.metadata.task:
            raise _wrong_task(model, task)
        if (priority := PRIORITIES.get(message.priority)) is None:
            raise InvalidArgumentError(f"the priority is {message.priority}; expected 0, 1 or 2")
        self._limits.check(message)
        return ParsedRequest(
            _described(message),
            lambda: {tensor.name: to_array(tensor) for tensor in message.inputs},
            self._answer(message, model),
            deadline,
            priority,
            nbytes,
            self._limits,
        )

    def _answer(self, message: PredictRequest, model: Model) -> PredictResponseWriter:
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


def _has_task(task: Task, model: Model) -> bool:
    return task == model.metadata.task


def _described(message: PredictRequest) -> dict[str, TensorType]:
    described: dict[str, TensorType] = {}
    for tensor in message.inputs:
        if tensor.name in described:
            raise InvalidArgumentError(
                f"input {quoted(tensor.name)} stands twice; expected it once"
            )
        described[tensor.name] = (tensor.dtype, tuple(tensor.shape))
    return described


def _wrong_task(model: Model, asked: Task) -> WrongTaskError:
    name = {
        Task.TASK_TENSORS: "tensors only (use Predict)",
        Task.TASK_CLASSIFICATION: "classification (use Predict or Classify)",
        Task.TASK_REGRESSION: "regression (use Predict or Regress)",
    }
    wanted = Task.Name(asked).removeprefix("TASK_").lower()
    return WrongTaskError(
        f"model {model.name!r} cannot answer with a {wanted}; its task is "
        f"{name[model.metadata.task]}"
    )
