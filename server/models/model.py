"""One version of one model, from its file to its last answer."""

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from neurona_protos import metadata as model_metadata
from neurona_protos.prediction_pb2 import ModelMetadata, State, Task
from neurona_protos.tensors import NUMPY_DTYPES
from neurona_server.batching.batcher import Batcher
from neurona_server.batching.policy import BatchPolicy
from neurona_server.batching.request import Request
from neurona_server.batching.share import DeviceShare
from neurona_server.errors import LoadError, StoppingError
from neurona_server.metrics import Metrics
from neurona_server.models.batch_proof import can_batch
from neurona_server.models.instance import Instance
from neurona_server.models.repository import Found
from neurona_server.models.samples import has_free_rows
from neurona_server.models.session import RuntimeOptions, Session
from neurona_server.models.signature import Signature, TensorSpec
from neurona_server.models.warm_up import warm_up

log = logging.getLogger(__name__)

DEFAULT_ANSWERS = {Task.TASK_CLASSIFICATION: "probabilities", Task.TASK_REGRESSION: "value"}
TERMINATION = 1.0  # seconds that a run has to heed that it is terminated
_RANKS = {Task.TASK_CLASSIFICATION: (2,), Task.TASK_REGRESSION: (1, 2)}


@dataclass(frozen=True)
class ModelOptions:
    policy: BatchPolicy = field(default_factory=BatchPolicy)
    runtime: RuntimeOptions = field(default_factory=RuntimeOptions)
    instances: int = 1


class Model:
    """Loaded and warmed up; `start` makes it serve, `drain` ends what it admitted.

    Raises LoadError when the file cannot be served, or its metadata contradict it.
    """

    def __init__(
        self,
        found: Found,
        options: ModelOptions,
        metrics: Metrics,
        share: DeviceShare | None = None,
    ) -> None:
        self.name = found.name
        self.version = found.version
        self.state = State.STATE_LOADING
        sessions = [Session(found.path, options.runtime) for _ in range(options.instances)]
        session = sessions[0]
        self.provider = session.provider
        batched = can_batch(session.inputs, session.outputs, session.run)
        if not batched and all(map(has_free_rows, [*session.inputs, *session.outputs])):
            log.info("%s: its rows change each other, so requests run one by one", found)
        self.signature = Signature(
            session.inputs, session.outputs, session.optional, batched=batched
        )
        self.metrics = metrics.model(found.name, found.version)
        self.batcher = Batcher(
            str(found), options.policy, self.metrics, batched=batched, share=share
        )
        self.batcher.admission.instances = len(sessions)
        self.instances = [
            Instance(number, session, self.batcher) for number, session in enumerate(sessions)
        ]
        if not all(warm_up(one.inputs, one.run, self.batcher) for one in sessions):
            log.info("%s: made-up inputs do not suit it, so it is not warmed up", found)
        self.metadata = _metadata(session)
        self.answer = _answer_index(self.metadata, session.outputs)

    def __str__(self) -> str:
        return f"{self.name}/{self.version}"

    def start(self) -> None:
        for instance in self.instances:
            instance.start()
        self.state = State.STATE_READY
        self.metrics.ready(Task.Name(self.metadata.task).removeprefix("TASK_"), self.provider)

    def submit(self, request: Request, defer: Callable[[Callable[[], None]], None]) -> None:
        """Never waits. Raises what `Batcher.submit` raises.

        A model with short runs is run in the caller's own thread, which `defer` has do it
        once it has read all that is there to read: that is the batch then.
        """
        if self.batcher.inline:
            self.batcher.submit(request, wake=False)
            defer(self._serve_waiting)
        else:
            self.batcher.submit(request)

    def drain(self, timeout: float) -> bool:
        """Takes no more and waits until all that was admitted is answered.

        False when `timeout` (seconds) was too short: what still waits or runs then ends with
        StoppingError, and runs are terminated; one that does not heed it is left behind.
        """
        self.state = State.STATE_DRAINING
        self.batcher.close()
        end = time.monotonic() + timeout
        if self._join(end):
            self.batcher.forget()
            return True
        error = StoppingError("the server stopped before the request's turn came")
        if lost := self.batcher.cancel_all(error):
            log.warning("%s: stopped with %d requests unanswered", self, lost)
        return self._join(time.monotonic() + TERMINATION)

    def _join(self, end: float) -> bool:
        return all(one.join(max(0.0, end - time.monotonic())) for one in self.instances)

    def _serve_waiting(self) -> None:
        self.batcher.serve_waiting(self.instances[0].session.new_run)


def _metadata(session: Session) -> ModelMetadata:
    text = session.properties.get(model_metadata.KEY)
    if text is None:
        return _metadata_of_zipmap(session)
    try:
        return model_metadata.from_json(text)
    except ValueError as error:
        raise LoadError(str(error)) from error


def _metadata_of_zipmap(session: Session) -> ModelMetadata:
    """What is known of a model that says nothing: a map by class is a classification."""
    for name, labels in session.class_labels.items():
        return ModelMetadata(task=Task.TASK_CLASSIFICATION, answer=name, labels=labels)
    return ModelMetadata()


def _answer_index(metadata: ModelMetadata, outputs: Sequence[TensorSpec]) -> int:
    """Which output holds the answer; -1 for a model without a task.

    Raises LoadError when the task cannot be answered from the outputs.
    """
    if metadata.task == Task.TASK_TENSORS:
        return -1
    if metadata.task not in DEFAULT_ANSWERS:
        raise LoadError(f"its metadata name the task {metadata.task}, which is not known")
    names = [spec.name for spec in outputs]
    answer = metadata.answer or DEFAULT_ANSWERS[metadata.task]
    if answer not in names:
        raise LoadError(f"its metadata name the answer {answer!r}; its outputs are {names}")
    index = names.index(answer)
    spec = outputs[index]
    if len(spec.shape) not in _RANKS[metadata.task]:
        task = Task.Name(metadata.task).removeprefix("TASK_").lower()
        raise LoadError(f"its answer {answer!r} is {spec}, which is not a {task}'s (rows, …)")
    kind = NUMPY_DTYPES[spec.dtype].kind
    if kind not in ("f" if metadata.task == Task.TASK_CLASSIFICATION else "fiu"):
        raise LoadError(f"its answer {answer!r} is {spec}, which holds no such numbers")
    described = metadata.labels or metadata.values
    width = spec.shape[1] if len(spec.shape) == 2 else 1
    if described and isinstance(width, int) and width != len(described):
        raise LoadError(f"its metadata describe {len(described)} columns of {answer!r} {spec}")
    return index
