"""neurona.v1.Prediction: bytes to a request of a model, its outputs to bytes."""

import logging
import time
from collections.abc import Callable
from functools import partial

from google.protobuf.message import DecodeError

from neurona_protos.prediction_pb2 import PredictRequest, PredictResponse, Priority, Task
from neurona_protos.tensors import TensorError, to_array
from neurona_server.batching.policy import Priority as Level
from neurona_server.batching.request import Outputs, Request
from neurona_server.errors import (
    CancelledError,
    ExpiredError,
    InvalidError,
    ModelFailedError,
    NeuronaError,
    StoppingError,
    WrongTaskError,
    quoted,
)
from neurona_server.metrics import Metrics
from neurona_server.models.model import Model
from neurona_server.models.registry import Registry
from neurona_server.models.signature import Described
from neurona_server.rpc.answers import answer
from neurona_server.rpc.call import Call, Methods, Streaming, Unary
from neurona_server.rpc.prediction_stream import PredictionStream

log = logging.getLogger(__name__)

CLOCKS_APART = 0.05
"""Seconds by which a caller may have seen a deadline pass before we do: ours began to count
when the request had reached us."""

Deliver = Callable[[PredictResponse | None, NeuronaError | None], None]
Track = Callable[[Request], None]
Defer = Callable[[Callable[[], None]], None]

PRIORITIES = {
    Priority.PRIORITY_HIGH: Level.HIGH,
    Priority.PRIORITY_NORMAL: Level.NORMAL,
    Priority.PRIORITY_LOW: Level.LOW,
}


class Prediction:
    def __init__(self, registry: Registry, metrics: Metrics) -> None:
        self._registry = registry
        self._metrics = metrics

    def methods(self) -> Methods:
        path = "/neurona.v1.Prediction/"
        return {
            path + "Predict": Unary(self._unary),
            path + "Classify": Unary(partial(self._unary, task=Task.TASK_CLASSIFICATION)),
            path + "Regress": Unary(partial(self._unary, task=Task.TASK_REGRESSION)),
            path + "PredictStream": Streaming(partial(PredictionStream, self.begin)),
        }

    def begin(
        self,
        message: PredictRequest,
        deadline: float,
        deliver: Deliver,
        track: Track,
        defer: Defer,
        *,
        task: Task | None = None,
        swaps: int = 3,
    ) -> None:
        """Sends a request on its way; `deliver` gets its answer or its error, exactly once.

        `track` gets the request before it is submitted, so that it can be cancelled; `defer`
        is the call's. Given a `task`, a model that has another one is refused.
        """
        started = time.monotonic()
        outcomes = self._metrics.unresolved
        try:
            model = self._registry.resolve(message.model, message.version, message.label)
            outcomes = model.metrics.outcomes
            if task is not None and task != model.metadata.task:
                raise _wrong_task(model, task)
            if (priority := PRIORITIES.get(message.priority)) is None:
                raise InvalidError(f"the priority is {message.priority}; expected 0, 1 or 2")
            described = _described(message)
            rows = model.signature.check(described)
            inputs = {tensor.name: to_array(tensor) for tensor in message.inputs}
        except TensorError as error:
            outcomes["invalid"].inc()
            deliver(None, InvalidError(str(error)))
            return
        except NeuronaError as error:
            outcomes[error.outcome].inc()
            deliver(None, error)
            return

        # Not the message itself: it holds all its bytes.
        top_k, raw_outputs = message.top_k or 1, message.raw_outputs

        def done(request: Request, outputs: Outputs | None, error: NeuronaError | None) -> None:
            response = None
            if outputs is not None:
                try:
                    response = answer(model, outputs, top_k, raw_outputs=raw_outputs)
                except Exception:
                    # Whatever is wrong with one answer, its caller hears of it.
                    log.exception("%s: an answer cannot be written", model)
                    error = ModelFailedError()
            if error is None:
                model.metrics.request_seconds.observe(time.monotonic() - started)
            outcomes["ok" if error is None else error.outcome].inc()
            deliver(response, error)
            if outputs is not None and model.shadow is not None:
                model.shadow.send(request, outputs)

        group = model.signature.group(described)
        size = message.ByteSize()
        request = Request(inputs, rows, group, done, deadline, priority, size)
        track(request)
        try:
            model.submit(request, defer)
        except NeuronaError as error:
            if isinstance(error, StoppingError) and swaps and self._is_replaced(message, model):
                self.begin(message, deadline, deliver, track, defer, task=task, swaps=swaps - 1)
            else:
                request.fail(error)

    def _is_replaced(self, message: PredictRequest, model: Model) -> bool:
        """Whether another version has taken its place since it was resolved."""
        try:
            now = self._registry.resolve(message.model, message.version, message.label)
        except NeuronaError:
            return False
        return now is not model

    def _unary(self, call: Call, task: Task | None = None) -> None:
        try:
            message = PredictRequest.FromString(call.request)
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

        self.begin(message, call.deadline, deliver, track, call.defer, task=task)


def cancel(request: Request) -> None:
    """Ends a request whose caller is gone, or whose deadline made it go."""
    if time.monotonic() >= request.deadline - CLOCKS_APART:
        request.cancel(ExpiredError("the deadline passed before the answer was there"))
    else:
        request.cancel(CancelledError("the caller cancelled the request"))


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
