"""The methods RepositoryIndex, RepositoryModelLoad and RepositoryModelUnload."""

from collections.abc import Mapping
from functools import partial

from neurona_protos import open_inference_pb2 as pb
from neurona_protos.prediction_pb2 import State
from neurona_server.errors import (
    InvalidArgumentError,
    NeuronaError,
    NotAllowedError,
    NotFoundError,
    NotLoadedError,
    UnsupportedError,
    quoted,
)
from neurona_server.models.lifecycle.reconciler import NOT_EXPLICIT
from neurona_server.models.lifecycle.registry import ModelEntry, Registry
from neurona_server.models.repository.override import ModelOverride, make_override
from neurona_server.rpc.call import ANY_MESSAGE_BYTES, Call, Methods, Unary
from neurona_server.rpc.control_calls import ControlCalls
from neurona_server.rpc.detached_data import DataPaths, bytes_index, read_bytes_index
from neurona_server.rpc.limits import LARGE_MESSAGE, Limits
from neurona_server.rpc.open_inference.messages import parse_message, unary_method
from neurona_server.rpc.security.access import Grant, Right

UNAVAILABLE = "UNAVAILABLE"
CONFIG, FILE_PREFIX = "config", "file:"
"""Parameters of a load."""

_VALUE_OF_ENTRY = 2
"""The number of a map entry's value."""

_FILES: DataPaths = {
    pb.RepositoryModelLoadRequest.PARAMETERS_FIELD_NUMBER: {
        _VALUE_OF_ENTRY: {pb.ModelRepositoryParameter.BYTES_PARAM_FIELD_NUMBER: bytes_index}
    }
}
"""Where the request of a load has the contents of files."""

STATES: Mapping[State, str] = {
    State.STATE_LOADING: "LOADING",
    State.STATE_READY: "READY",
    State.STATE_DRAINING: "UNLOADING",
    State.STATE_FAILED: UNAVAILABLE,
    State.STATE_UNLOADED: UNAVAILABLE,
}
Index = pb.RepositoryIndexResponse.ModelIndex


class RepositoryService:
    """The methods about the repository."""

    def __init__(self, registry: Registry, control: ControlCalls | None, limits: Limits) -> None:
        """Make the service; without a `control`, callers can neither load nor unload models."""
        self._registry = registry
        self._limits = limits
        self._control = control

    def methods(self, prefix: str) -> Methods:
        return {
            prefix + "RepositoryIndex": unary_method(
                Right.DESCRIBE, pb.RepositoryIndexRequest, self._index
            ),
            prefix + "RepositoryModelLoad": Unary(self._load, Right.CONTROL, ANY_MESSAGE_BYTES),
            prefix + "RepositoryModelUnload": Unary(self._unload, Right.CONTROL),
        }

    def _index(
        self, message: pb.RepositoryIndexRequest, grant: Grant
    ) -> pb.RepositoryIndexResponse:
        _check_repository(message.repository_name)
        models = [
            one
            for name, entry in self._registry.entries().items()
            if grant.allows_model(name)
            for one in _index_of(name, entry)
            if one.state == STATES[State.STATE_READY] or not message.ready
        ]
        return pb.RepositoryIndexResponse(models=models)

    def _load(self, call: Call) -> None:
        try:
            message = _parse_load(call.request, self._limits)
            name, response = message.model_name, pb.RepositoryModelLoadResponse()
            if message.repository_name and not name:  # a request of KServe
                name = message.repository_name
                response = pb.RepositoryModelLoadResponse(model_name=name, isLoaded=True)
            else:
                _check_repository(message.repository_name)
            control = self._require_control()
            call.grant.check_model(name, (name,))
            override = _read_override(name, message)
        except NeuronaError as error:
            call.fail(error)
            return
        explain = partial(_explain_load, name)
        control.load(name, call, response.SerializeToString, override, explain)

    def _unload(self, call: Call) -> None:
        try:
            message = parse_message(pb.RepositoryModelUnloadRequest, call.request)
            name, response = message.model_name, pb.RepositoryModelUnloadResponse()
            if message.repository_name and not name:  # a request of KServe
                name = message.repository_name
                response = pb.RepositoryModelUnloadResponse(model_name=name, isUnloaded=True)
            else:
                _check_repository(message.repository_name)
            control = self._require_control()
            call.grant.check_model(name, (name,))
            for parameter in message.parameters:
                if parameter != "unload_dependents":  # no model has any
                    raise UnsupportedError(f"unknown parameter {quoted(parameter)}")
        except NeuronaError as error:
            call.fail(error)
            return
        control.unload_if_loaded(name, call, response.SerializeToString)

    def _require_control(self) -> ControlCalls:
        if self._control is None:
            raise NotAllowedError(f"model_control is not explicit: {NOT_EXPLICIT}")
        return self._control


def _parse_load(data: bytes, limits: Limits) -> pb.RepositoryModelLoadRequest:
    """Parse the request of a load; a large one within the limits of all messages with data.

    Raises:
        InvalidArgumentError: The bytes are not such a message, or exceed a limit.
    """
    if len(data) < LARGE_MESSAGE:
        return parse_message(pb.RepositoryModelLoadRequest, data)
    rest, spans = limits.detach_data(data, _FILES)
    message = parse_message(pb.RepositoryModelLoadRequest, rest)
    for value in message.parameters.values():
        index = read_bytes_index(value.bytes_param)
        if index is not None:
            start, stop = spans[index]
            value.bytes_param = data[start:stop]
    return message


def _read_override(model: str, message: pb.RepositoryModelLoadRequest) -> ModelOverride | None:
    """Return what the parameters say in place of the repository, None if there are none."""
    config, files = None, {}
    for name, value in message.parameters.items():
        kind = value.WhichOneof("parameter_choice")
        if name == CONFIG:
            if kind != "string_param":
                raise InvalidArgumentError(
                    f"parameter 'config' is {kind or 'empty'} (expected string_param with JSON)"
                )
            config = value.string_param
        elif name.startswith(FILE_PREFIX):
            if kind != "bytes_param":
                raise InvalidArgumentError(
                    f"parameter {quoted(name)} is {kind or 'empty'} (expected bytes_param)"
                )
            files[name.removeprefix(FILE_PREFIX)] = value.bytes_param
        else:
            raise UnsupportedError(
                f"unknown parameter {quoted(name)} (expected 'config' or 'file:' and a path)"
            )
    if not message.parameters:
        return None
    return make_override(model, config, files)


def _explain_load(name: str, error: Exception) -> Exception:
    """Return the error of a load in the words of Triton, which its clients look for, and ours."""
    if isinstance(error, NotFoundError):
        words = f"failed to load {quoted(name)}, failed to poll from model repository: "
    elif isinstance(error, NotLoadedError):
        words = f"load failed for model {quoted(name)}: "
    else:
        return error
    return error if str(error).startswith(words) else type(error)(words + str(error))


def _index_of(name: str, entry: ModelEntry) -> list[Index]:
    """Return the rows of one model, as Triton has them.

    That is the versions that its policy chooses, and others that are still in memory. A model of
    which nothing is loaded has those that calls have unloaded or, without any, a row without a
    version.
    """
    rows = [
        Index(
            name=name,
            version=str(number),
            state=STATES.get(version.state, UNAVAILABLE),
            reason=version.reason,
        )
        for number, version in entry.versions.items()
        if version.state != State.STATE_UNLOADED
    ]
    rows += [
        Index(name=name, version=folder, state=UNAVAILABLE, reason=reason)
        for folder, reason in entry.unusable.items()
    ]
    return (
        rows
        or [
            Index(name=name, version=str(number), state=UNAVAILABLE, reason="unloaded")
            for number, version in entry.versions.items()
            if version.has_served
        ]
        or [Index(name=name, state=UNAVAILABLE)]
    )


def _check_repository(name: str) -> None:
    if name:
        raise UnsupportedError(
            f"repository_name is {quoted(name)}; 'repository_name' specification is not supported"
        )
