"""grpc.health.v1: whether the server, a service or a model answers.

Names: "" is the server; "neurona.v1.Prediction" and so on its services; "lenet5" and
"lenet5/1" a model and one version of it.
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

_PACKAGE = ".grpc.health.v1."


def _completed(package: FileDescriptor) -> FileDescriptor:
    if "HealthListResponse" in package.message_types_by_name:
        return package
    file = FileDescriptorProto()
    package.CopyToProto(file)
    file.message_type.add(name="HealthListRequest")
    response = file.message_type.add(name="HealthListResponse")
    # map<string, HealthCheckResponse> statuses = 1, which is a list of pairs on the wire.
    entry = response.nested_type.add(name="StatusesEntry")
    entry.options.map_entry = True
    one, many = FieldDescriptorProto.LABEL_OPTIONAL, FieldDescriptorProto.LABEL_REPEATED
    text, message = FieldDescriptorProto.TYPE_STRING, FieldDescriptorProto.TYPE_MESSAGE
    entry.field.add(name="key", number=1, label=one, type=text)
    checked, pair = "HealthCheckResponse", "HealthListResponse.StatusesEntry"
    entry.field.add(name="value", number=2, label=one, type=message, type_name=_PACKAGE + checked)
    response.field.add(
        name="statuses", number=1, label=many, type=message, type_name=_PACKAGE + pair
    )
    file.service[0].method.add(
        name="List",
        input_type=_PACKAGE + "HealthListRequest",
        output_type=_PACKAGE + "HealthListResponse",
    )
    pool = DescriptorPool()
    pool.Add(file)
    return pool.FindFileByName(file.name)


FILE = _completed(health_pb2.DESCRIPTOR)
HealthListRequest: Any = GetMessageClass(FILE.message_types_by_name["HealthListRequest"])
HealthListResponse: Any = GetMessageClass(FILE.message_types_by_name["HealthListResponse"])


def listed(states: Mapping[str, int]) -> bytes:
    """A HealthListResponse with the state of every name."""
    response = HealthListResponse()
    for name, state in states.items():
        response.statuses[name].status = state
    serialized: bytes = response.SerializeToString(deterministic=True)
    return serialized


SERVING: int = HealthCheckResponse.SERVING
NOT_SERVING: int = HealthCheckResponse.NOT_SERVING
_UNKNOWN: int = HealthCheckResponse.SERVICE_UNKNOWN


class Health:
    """The state of every name, and those who watch it. Any thread may change it."""

    def __init__(self) -> None:
        self._states: dict[str, int] = {}
        self._watchers: set[_Watch] = set()
        self._changing = threading.Lock()

    def methods(self) -> Methods:
        path = "/grpc.health.v1.Health/"
        return {
            path + "Check": Unary(self._check, None),
            path + "List": Unary(self._list, Right.DESCRIBE),
            path + "Watch": Streaming(lambda call: _Watch(self, call), None),
        }

    def set(self, serving: Mapping[str, bool]) -> None:
        """Names that are not in `serving` keep their state."""
        with self._changing:
            for name, is_serving in serving.items():
                self._states[name] = SERVING if is_serving else NOT_SERVING
            watchers = list(self._watchers)
        for watcher in watchers:
            watcher.changed()

    def replace(self, serving: Mapping[str, bool]) -> None:
        """Names that are not in `serving` are gone: NOT_FOUND, and SERVICE_UNKNOWN for those
        who watch them."""
        with self._changing:
            self._states = {
                name: SERVING if is_serving else NOT_SERVING for name, is_serving in serving.items()
            }
            watchers = list(self._watchers)
        for watcher in watchers:
            watcher.changed()

    def stop(self) -> None:
        """Everything is NOT_SERVING."""
        self.set(dict.fromkeys(list(self._states), False))

    def state(self, name: str) -> "int":
        return self._states.get(name, _UNKNOWN)

    def watch(self, watcher: "_Watch") -> None:
        with self._changing:
            self._watchers.add(watcher)

    def unwatch(self, watcher: "_Watch") -> None:
        with self._changing:
            self._watchers.discard(watcher)

    def _check(self, call: Call) -> None:
        try:
            name = _request(call.request).service
        except InvalidArgumentError as error:
            call.fail(error)
            return
        state = self.state(name)
        if state == _UNKNOWN:
            call.fail(NotFoundError(f"nothing called {quoted(name)} is served"))
        else:
            call.reply(HealthCheckResponse(status=state).SerializeToString())

    def _list(self, call: Call) -> None:
        """Of models, only those that the caller's token sees."""
        try:
            HealthListRequest.FromString(call.request)
        except DecodeError:
            call.fail(InvalidArgumentError("the bytes are not a grpc.health.v1.HealthListRequest"))
            return
        with self._changing:
            states = dict(self._states)
        seen = {n: s for n, s in states.items() if not n or call.grant.sees(n.partition("/")[0])}
        call.reply(listed(seen))


class _Watch:
    """A `Stream` that sends a name's state now and whenever it changes."""

    def __init__(self, health: Health, call: StreamCall) -> None:
        self._health = health
        self._call = call
        self._name: str | None = None
        self._sent: int | None = None
        self._draining = False

    def receive(self, message: bytes) -> None:
        self._name = _request(message).service
        self._health.watch(self)
        self._call.wake()

    def changed(self) -> None:
        self._call.wake()

    def half_close(self) -> None:
        """Watching goes on until the caller cancels."""

    def take_message(self) -> bytes | None:
        if self._name is None:
            return None
        state = self._health.state(self._name)
        if state == self._sent:
            return None
        self._sent = state
        message: bytes = HealthCheckResponse(status=state).SerializeToString()
        return message

    @property
    def congested(self) -> bool:
        return False

    @property
    def finished(self) -> bool:
        return self._draining

    def drain(self) -> None:
        self._draining = True

    def cancel(self) -> None:
        self._health.unwatch(self)


def _request(message: bytes) -> HealthCheckRequest:
    try:
        return HealthCheckRequest.FromString(message)
    except DecodeError:
        raise InvalidArgumentError(
            "the bytes are not a grpc.health.v1.HealthCheckRequest"
        ) from None
