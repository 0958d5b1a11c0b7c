"""RepositoryIndex, and the calls that load and unload models."""

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
from neurona_server.rpc.open_inference.messages import parse, unary_method
from neurona_server.rpc.security.access import Grant, Right, seen

STATES: Mapping[State, str] = {
    State.STATE_LOADING: "LOADING",
    State.STATE_READY: "READY",
    State.STATE_DRAINING: "UNLOADING",
    State.STATE_FAILED: "UNAVAILABLE",
    State.STATE_UNLOADED: "UNAVAILABLE",
}
MOST_WAITING = 64
"""Loads and unloads that may wait for the one that is under way."""

RETRY_AFTER = 1.0  # seconds

Index = pb.RepositoryIndexResponse.ModelIndex


class Repository:
    """Without a control, models are not loaded and unloaded by callers."""

    def __init__(self, registry: Registry, control: Control | None) -> None:
        self._registry = registry
        self._control = control
        self._errands: dict[object, Callable[[], None]] = {}  # in the order in which they came
        self._changed = threading.Condition()
        self._worker: threading.Thread | None = None

    @property
    def waiting(self) -> int:
        """Loads and unloads that have not begun, and that somebody still wants."""
        return len(self._errands)

    def methods(self, path: str) -> Methods:
        return {
            path + "RepositoryIndex": unary_method(
                Right.DESCRIBE, pb.RepositoryIndexRequest, self._index
            ),
            path + "RepositoryModelLoad": Unary(self._load, Right.CONTROL),
            path + "RepositoryModelUnload": Unary(self._unload, Right.CONTROL),
        }

    def _index(
        self, message: pb.RepositoryIndexRequest, grant: Grant
    ) -> pb.RepositoryIndexResponse:
        _check_repository(message.repository_name)
        models = []
        registry = seen(self._registry, grant)
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
            message = parse(pb.RepositoryModelLoadRequest, call.request)
            _check_repository(message.repository_name)
            control = self._checked()
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
        self._run(call, lambda: control.load(name), pb.RepositoryModelLoadResponse())

    def _unload(self, call: Call) -> None:
        try:
            message = parse(pb.RepositoryModelUnloadRequest, call.request)
            _check_repository(message.repository_name)
            control = self._checked()
            call.grant.check_model(message.model_name, (message.model_name,))
            for parameter in message.parameters:
                if parameter != "unload_dependents":  # no model has any
                    raise UnsupportedError(f"parameter {quoted(parameter)} is not known")
        except NeuronaError as error:
            call.fail(error)
            return
        name = message.model_name
        self._run(call, lambda: control.unload(name), pb.RepositoryModelUnloadResponse())

    def _checked(self) -> Control:
        if self._control is None:
            raise NotAllowedError(f"model_control is not explicit: {NOT_EXPLICIT}")
        return self._control

    def _run(self, call: Call, action: Callable[[], None], response: Message) -> None:
        """In the worker's thread; what has not begun when the caller goes away never does."""

        def errand() -> None:
            try:
                action()
            except Exception as error:  # an unknown one is logged, and INTERNAL
                call.fail(error)
            else:
                call.reply(response.SerializeToString())

        def forget() -> None:
            with self._changed:
                self._errands.pop(call, None)

        with self._changed:
            if len(self._errands) >= MOST_WAITING:
                call.fail(QueueFullError(f"{MOST_WAITING} loads and unloads wait", RETRY_AFTER))
                return
            self._errands[call] = errand
            self._changed.notify()
        call.on_cancel(forget)
        if self._worker is None:  # calls start in the transport's thread, so there is but one
            self._worker = threading.Thread(target=self._work, name="control", daemon=True)
            self._worker.start()

    def _work(self) -> None:
        while True:
            with self._changed:
                while not self._errands:
                    self._changed.wait()
                errand = self._errands.pop(next(iter(self._errands)))
            errand()


def _check_repository(name: str) -> None:
    if name:
        raise UnsupportedError(
            f"repository_name is {quoted(name)}; 'repository_name' specification is not supported"
        )
