"""grpc.health.v1: whether the server, a service or a model serves.

Names: "" is the server; "neurona.v1.Prediction" and the like are its services; "lenet5" and
"lenet5/1" are a model and a version of it. Source: github.com/grpc/grpc-proto, health.proto.
"""

import threading
from collections.abc import Mapping
from typing import Any

from google.protobuf.descriptor import FileDescriptor
from google.protobuf.descriptor_pb2 import FieldDescriptorProto, FileDescriptorProto
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message import DecodeError
from google.protobuf.message_factory import GetMessageClass
from grpc_health.v1 import health_pb2
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse

from neurona_server.errors import InvalidArgumentError, NotFoundError, quoted
from neurona_server.rpc.call import Call, Methods, StreamCall, Streaming, Unary
from neurona_server.rpc.security.access import Right

SERVING: int = HealthCheckResponse.SERVING
NOT_SERVING: int = HealthCheckResponse.NOT_SERVING
_UNKNOWN: int = HealthCheckResponse.SERVICE_UNKNOWN

_PACKAGE = ".grpc.health.v1."


def _with_list(file: FileDescriptor) -> FileDescriptor:
    """Add the method List to the file of grpcio-health-checking, which has it from 1.85 on."""
    if "HealthListResponse" in file.message_types_by_name:
        return file
    proto = FileDescriptorProto()
    file.CopyToProto(proto)
    proto.message_type.add(name="HealthListRequest")
    response = proto.message_type.add(name="HealthListResponse")
    # map<string, HealthCheckResponse> statuses = 1: a list of pairs on the wire.
    entry = response.nested_type.add(name="StatusesEntry")
    entry.options.map_entry = True
    optional, repeated = FieldDescriptorProto.LABEL_OPTIONAL, FieldDescriptorProto.LABEL_REPEATED
    text, message = FieldDescriptorProto.TYPE_STRING, FieldDescriptorProto.TYPE_MESSAGE
    entry.field.add(name="key", number=1, label=optional, type=text)
    entry.field.add(
        name="value",
        number=2,
        label=optional,
        type=message,
        type_name=_PACKAGE + "HealthCheckResponse",
    )
    response.field.add(
        name="statuses",
        number=1,
        label=repeated,
        type=message,
        type_name=_PACKAGE + "HealthListResponse.StatusesEntry",
    )
    proto.service[0].method.add(
        name="List",
        input_type=_PACKAGE + "HealthListRequest",
        output_type=_PACKAGE + "HealthListResponse",
    )
    pool = DescriptorPool()
    pool.Add(proto)
    return pool.FindFileByName(proto.name)


FILE = _with_list(health_pb2.DESCRIPTOR)
"""The service's file, for reflection."""

HealthListRequest: Any = GetMessageClass(FILE.message_types_by_name["HealthListRequest"])
HealthListResponse: Any = GetMessageClass(FILE.message_types_by_name["HealthListResponse"])


class Health:
    """The service: the state of every name, and the callers that watch it. Thread-safe."""

    def __init__(self) -> None:
        self._states: dict[str, int] = {}
        self._hung = False
        self._watchers: set[_Watch] = set()
        self._lock = threading.Lock()

    def methods(self) -> Methods:
        path = "/grpc.health.v1.Health/"
        return {
            path + "Check": Unary(self._check, None),
            path + "List": Unary(self._list, Right.DESCRIBE),
            path + "Watch": Streaming(lambda call: _Watch(self, call), None),
        }

    def set(self, serving: Mapping[str, bool]) -> None:
        """Change the state of names; all others keep theirs."""
        with self._lock:
            for name, is_serving in serving.items():
                self._states[name] = SERVING if is_serving else NOT_SERVING
            watchers = list(self._watchers)
        for watcher in watchers:
            watcher.notify()

    def replace(self, serving: Mapping[str, bool]) -> None:
        """Set the states of these names and remove all other names.

        Removed names become NOT_FOUND, and SERVICE_UNKNOWN for callers that watch them.
        """
        with self._lock:
            self._states = {
                name: SERVING if is_serving else NOT_SERVING for name, is_serving in serving.items()
            }
            watchers = list(self._watchers)
        for watcher in watchers:
            watcher.notify()

    def stop(self) -> None:
        """Set all names to NOT_SERVING."""
        self.set(dict.fromkeys(list(self._states), False))

    def set_hung(self, *, hung: bool) -> None:
        """Have all names NOT_SERVING while the transport is hung; they keep their own states."""
        with self._lock:
            self._hung = hung
            watchers = list(self._watchers)
        for watcher in watchers:
            watcher.notify()

    def state(self, name: str) -> int:
        """Return the state of a name; SERVICE_UNKNOWN if there is none."""
        if self._hung and name in self._states:
            return NOT_SERVING
        return self._states.get(name, _UNKNOWN)

    def watch(self, watcher: "_Watch") -> None:
        """Notify `watcher` of every change."""
        with self._lock:
            self._watchers.add(watcher)

    def unwatch(self, watcher: "_Watch") -> None:
        with self._lock:
            self._watchers.discard(watcher)

    def _check(self, call: Call) -> None:
        try:
            name = _parse_request(call.request).service
        except InvalidArgumentError as error:
            call.fail(error)
            return
        state = self.state(name)
        if state == _UNKNOWN:
            call.fail(NotFoundError(f"unknown service or model {quoted(name)}"))
        else:
            call.reply(HealthCheckResponse(status=state).SerializeToString())

    def _list(self, call: Call) -> None:
        """Respond with the states of all names; of models, only those that the token allows."""
        try:
            HealthListRequest.FromString(call.request)
        except DecodeError:
            call.fail(InvalidArgumentError("the bytes are not a grpc.health.v1.HealthListRequest"))
            return
        with self._lock:
            states = {name: self.state(name) for name in self._states}
        response = HealthListResponse()
        for name, state in states.items():
            if not name or call.grant.allows_model(name.partition("/")[0]):
                response.statuses[name].status = state
        call.reply(response.SerializeToString(deterministic=True))


class _Watch:
    """A `Stream` that sends the state of a name now and whenever it changes."""

    def __init__(self, health: Health, call: StreamCall) -> None:
        self._health = health
        self._call = call
        self._name: str | None = None
        self._last_state: int | None = None
        self._draining = False

    def receive(self, message: bytes) -> None:
        self._name = _parse_request(message).service
        self._health.watch(self)
        self._call.wake()

    def notify(self) -> None:
        """Send the state again if it has changed. Thread-safe."""
        self._call.wake()

    def half_close(self) -> None:
        """Do nothing: the watch lasts until the caller cancels."""

    def take_message(self) -> bytes | None:
        if self._name is None:
            return None
        state = self._health.state(self._name)
        if state == self._last_state:
            return None
        self._last_state = state
        message: bytes = HealthCheckResponse(status=state).SerializeToString()
        return message

    @property
    def congested(self) -> bool:
        return False

    @property
    def buffered_bytes(self) -> int:
        return 0

    @property
    def finished(self) -> bool:
        return self._draining

    def drain(self) -> None:
        self._draining = True

    def cancel(self) -> None:
        self._health.unwatch(self)


def _parse_request(message: bytes) -> HealthCheckRequest:
    try:
        return HealthCheckRequest.FromString(message)
    except DecodeError:
        raise InvalidArgumentError(
            "the bytes are not a grpc.health.v1.HealthCheckRequest"
        ) from None
