"""The methods RepositoryIndex, RepositoryModelLoad and RepositoryModelUnload."""

import threading
from collections.abc import Callable, Mapping

from google.protobuf.message import Message

from neurona_protos import open_inference_pb2 as pb
from neurona_protos.prediction_pb2 import State
from neurona_server.errors import (
    NeuronaError,
    NotAllowedError,
    QueueFullError,
    UnsupportedError,
    quoted,
)
from neurona_server.models.lifecycle.reconciler import NOT_EXPLICIT, Control
from neurona_server.models.lifecycle.registry import Registry
from neurona_server.rpc.call import Call, Methods, Unary
from neurona_server.rpc.open_inference.messages import parse_message, unary_method
from neurona_server.rpc.security.access import Grant, Right, visible_models

STATES: Mapping[State, str] = {
    State.STATE_LOADING: "LOADING",
    State.STATE_READY: "READY",
    State.STATE_DRAINING: "UNLOADING",
    State.STATE_FAILED: "UNAVAILABLE",
    State.STATE_UNLOADED: "UNAVAILABLE",
}
MAX_PENDING = 64
"""Loads and unloads that may wait for the one that is running."""

RETRY_AFTER = 1.0  # seconds

Index = pb.RepositoryIndexResponse.ModelIndex


class RepositoryService:
    """The methods about the repository. Loads and unloads run one by one, in a worker thread."""

    def __init__(self, registry: Registry, control: Control | None) -> None:
        """Make the service; without a `control`, callers can neither load nor unload models."""
        self._registry = registry
        self._control = control
        self._pending: dict[Call, Callable[[], None]] = {}  # in the order of their arrival
        self._arrival = threading.Condition()
        self._worker: threading.Thread | None = None

    @property
    def pending_count(self) -> int:
        """The number of loads and unloads that have not started and are not cancelled."""
        return len(self._pending)

    def methods(self, prefix: str) -> Methods:
        return {
            prefix + "RepositoryIndex": unary_method(
                Right.DESCRIBE, pb.RepositoryIndexRequest, self._index
            ),
            prefix + "RepositoryModelLoad": Unary(self._load, Right.CONTROL),
            prefix + "RepositoryModelUnload": Unary(self._unload, Right.CONTROL),
        }

    def _index(
        self, message: pb.RepositoryIndexRequest, grant: Grant
    ) -> pb.RepositoryIndexResponse:
        _check_repository(message.repository_name)
        models = []
        registry = visible_models(self._registry, grant)
        for name in registry.names():
            for number, version in registry.entry(name).versions.items():
                if message.ready and version.state != State.STATE_READY:
                    continue
                state = STATES.get(version.state, "UNAVAILABLE")
                models.append(
                    Index(name=name, version=str(number), state=state, reason=version.reason)
                )
        return pb.RepositoryIndexResponse(models=models)

    def _load(self, call: Call) -> None:
        try:
            message = parse_message(pb.RepositoryModelLoadRequest, call.request)
            _check_repository(message.repository_name)
            control = self._require_control()
            call.grant.check_model(message.model_name, (message.model_name,))
            if message.parameters:
                name = quoted(min(message.parameters))
                raise UnsupportedError(
                    f"parameter {name}: a model is loaded with the settings and files of the "
                    "repository"
                )
        except NeuronaError as error:
            call.fail(error)
            return
        name = message.model_name
        self._run_in_worker(call, lambda: control.load(name), pb.RepositoryModelLoadResponse())

    def _unload(self, call: Call) -> None:
        try:
            message = parse_message(pb.RepositoryModelUnloadRequest, call.request)
            _check_repository(message.repository_name)
            control = self._require_control()
            call.grant.check_model(message.model_name, (message.model_name,))
            for parameter in message.parameters:
                if parameter != "unload_dependents":  # no model has any
                    raise UnsupportedError(f"unknown parameter {quoted(parameter)}")
        except NeuronaError as error:
            call.fail(error)
            return
        name = message.model_name
        self._run_in_worker(call, lambda: control.unload(name), pb.RepositoryModelUnloadResponse())

    def _require_control(self) -> Control:
        if self._control is None:
            raise NotAllowedError(f"model_control is not explicit: {NOT_EXPLICIT}")
        return self._control

    def _run_in_worker(self, call: Call, action: Callable[[], None], response: Message) -> None:
        """Run a load or unload and end the call; a call that is cancelled before never runs."""

        def task() -> None:
            try:
                action()
            except Exception as error:  # an unexpected one is logged, and INTERNAL
                call.fail(error)
            else:
                call.reply(response.SerializeToString())

        def remove() -> None:
            with self._arrival:
                self._pending.pop(call, None)

        with self._arrival:
            if len(self._pending) >= MAX_PENDING:
                message = f"{MAX_PENDING} loads and unloads are waiting"
                call.fail(QueueFullError(message, RETRY_AFTER))
                return
            self._pending[call] = task
            self._arrival.notify()
        call.on_cancel(remove)
        if self._worker is None:  # calls start in the transport's thread, so there is one worker
            self._worker = threading.Thread(target=self._run_tasks, name="control", daemon=True)
            self._worker.start()

    def _run_tasks(self) -> None:
        while True:
            with self._arrival:
                while not self._pending:
                    self._arrival.wait()
                task = self._pending.pop(next(iter(self._pending)))
            task()


def _check_repository(name: str) -> None:
    if name:
        raise UnsupportedError(
            f"repository_name is {quoted(name)}; 'repository_name' specification is not supported"
        )
