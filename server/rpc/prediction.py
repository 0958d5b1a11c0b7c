"""neurona.v1.Prediction: bytes to a request of a model, its outputs to bytes."""

import logging
from collections.abc import Callable
from functools import partial

from google.protobuf.message import DecodeError

from neurona_protos.prediction_pb2 import PredictRequest, PredictResponse, Priority, Task
from neurona_protos.tensors import to_array
from neurona_server.batching.policy import Priority as Level
from neurona_server.batching.request import Outputs, Request
from neurona_server.errors import (
    InvalidError,
    ModelFailedError,
    NeuronaError,
    WrongTaskError,
    quoted,
)
from neurona_server.metrics import Metrics
from neurona_server.models.model import Model
from neurona_server.models.registry import Registry
from neurona_server.models.signature import Described
from neurona_server.rpc.answers import answer
from neurona_server.rpc.call import Call, Methods, StreamCall, Streaming, Unary
from neurona_server.rpc.limits import Limits
from neurona_server.rpc.prediction_stream import PredictionStream
from neurona_server.rpc.rights import Grant, Right
from neurona_server.rpc.seen import seen
from neurona_server.rpc.submission import Asked, Defer, Track, cancel, submit

log = logging.getLogger(__name__)

Deliver = Callable[[PredictResponse | None, NeuronaError | None], None]

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

    def begin(
        self,
        message: PredictRequest,
        deadline: float,
        deliver: Deliver,
        track: Track,
        defer: Defer,
        *,
        grant: Grant,
        task: Task | None = None,
    ) -> None:
        """Sends a request on its way; `deliver` gets its answer or its error, exactly once.

        `track` gets the request before it is submitted, so that it can be cancelled; `defer`
        and `grant` are the call's. Given a `task`, a model that has another one is refused.
        """
        registry = seen(self._registry, grant)
        resolve = partial(registry.resolve, message.model, message.version, message.label)

        def read(model: Model) -> Asked[PredictResponse]:
            if task is not None and task != model.metadata.task:
                raise _wrong_task(model, task)
            if (priority := PRIORITIES.get(message.priority)) is None:
                raise InvalidError(f"the priority is {message.priority}; expected 0, 1 or 2")
            self._limits.check(message)
            return Asked(
                _described(message),
                lambda: {tensor.name: to_array(tensor) for tensor in message.inputs},
                _answer(model, message.top_k or 1, raw_outputs=message.raw_outputs),
                deadline,
                priority,
                message.ByteSize(),
                self._limits,
            )

        submit(self._metrics, resolve, read, deliver, track, defer)

    def _stream(self, call: StreamCall) -> PredictionStream:
        return PredictionStream(partial(self.begin, grant=call.grant), call, self._limits)

    def _unary(self, call: Call, task: Task | None = None) -> None:
        try:
            self._limits.check_wire(call.request)
            message = PredictRequest.FromString(call.request)
        except InvalidError as error:
            self._metrics.unresolved["invalid"].inc()
            call.fail(error)
            return
        except DecodeError:
            self._metrics.unresolved["invalid"].inc()
            call.fail(InvalidError("the bytes are not a neurona.v1.PredictRequest"))
            return

        def deliver(response: PredictResponse | None, error: NeuronaError | None) -> None:
            if response is None:
                call.fail(error or ModelFailedError())
                return
            try:
                body = response.SerializeToString()
            except Exception:  # larger than protobuf can say
                log.exception("an answer cannot be written")
                call.fail(ModelFailedError())
            else:
                call.reply(body)

        def track(request: Request) -> None:
            call.on_cancel(partial(cancel, request))

        self.begin(message, call.deadline, deliver, track, call.defer, grant=call.grant, task=task)


def _answer(model: Model, top_k: int, *, raw_outputs: bool) -> Callable[[Outputs], PredictResponse]:
    # A function of its own: it must not hold the message, which holds all its bytes.
    return lambda outputs: answer(model, outputs, top_k, raw_outputs=raw_outputs)


def _described(message: PredictRequest) -> dict[str, Described]:
    described: dict[str, Described] = {}
    for tensor in message.inputs:
        if tensor.name in described:
            raise InvalidError(f"input {quoted(tensor.name)} stands twice; expected it once")
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
