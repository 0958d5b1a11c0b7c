"""grpc.reflection.v1 and v1alpha: what services there are and what their messages look like.

Only files of the services that the transport has are shown, and what these import.
"""

from collections import deque
from collections.abc import Iterable, Iterator
from functools import partial

from google.protobuf import descriptor_pool
from google.protobuf.descriptor import FileDescriptor
from google.protobuf.descriptor_pb2 import DescriptorProto, EnumDescriptorProto, FileDescriptorProto
from google.protobuf.message import DecodeError

from neurona_protos import reflection_pb2
from neurona_protos.reflection_pb2 import (
    ErrorResponse,
    ExtensionNumberResponse,
    FileDescriptorResponse,
    ListServiceResponse,
    ServerReflectionRequest,
    ServerReflectionResponse,
    ServiceResponse,
)
from neurona_server.errors import InvalidArgumentError, NeuronaError, NotFoundError, quoted
from neurona_server.rpc import health
from neurona_server.rpc.call import Methods, StreamCall, Streaming
from neurona_server.rpc.security.access import Right
from neurona_server.rpc.status import status_of

SERVICE = "ServerReflection"
PACKAGES = ("grpc.reflection.v1", "grpc.reflection.v1alpha")
MAX_WAITING = 64
"""Answers of one stream that wait for the reader: then no more requests are read."""


class Reflection:
    """`methods` are those of all the other services."""

    def __init__(self, methods: Iterable[str]) -> None:
        services = {path.split("/")[1] for path in methods}
        services |= {f"{package}.{SERVICE}" for package in PACKAGES}
        self._services = sorted(services)
        self._files: dict[str, FileDescriptorProto] = {}
        for service in self._services:
            self._add(_file_of(service))
        self._symbols = {
            symbol: file.name for file in self._files.values() for symbol in _symbols(file)
        }

    def methods(self) -> Methods:
        stream = Streaming(partial(_ReflectionStream, self), Right.DESCRIBE)
        return {f"/{package}.{SERVICE}/ServerReflectionInfo": stream for package in PACKAGES}

    def answer(self, request: ServerReflectionRequest) -> ServerReflectionResponse:
        response = ServerReflectionResponse(valid_host=request.host, original_request=request)
        try:
            self._fill(response, request)
        except NeuronaError as error:
            status = status_of(error)
            failure = ErrorResponse(error_code=status.number, error_message=status.message)
            response.error_response.CopyFrom(failure)
        return response

    def _fill(self, response: ServerReflectionResponse, request: ServerReflectionRequest) -> None:
        match request.WhichOneof("message_request"):
            case "list_services":
                services = [ServiceResponse(name=name) for name in self._services]
                response.list_services_response.CopyFrom(ListServiceResponse(service=services))
            case "file_by_filename":
                response.file_descriptor_response.CopyFrom(self._file(request.file_by_filename))
            case "file_containing_symbol":
                file = self._declaring(request.file_containing_symbol)
                response.file_descriptor_response.CopyFrom(self._file(file))
            case "file_containing_extension":
                extended = request.file_containing_extension
                self._declaring(extended.containing_type)
                # proto3 has extensions of options only, and no file of ours has one.
                raise NotFoundError(
                    f"{quoted(extended.containing_type)} has no extension "
                    f"{extended.extension_number}"
                )
            case "all_extension_numbers_of_type":
                name = request.all_extension_numbers_of_type
                self._declaring(name)
                numbers = ExtensionNumberResponse(base_type_name=name)
                response.all_extension_numbers_response.CopyFrom(numbers)
            case _:
                raise InvalidArgumentError(
                    "the request asks for nothing; expected one of its five fields"
                )

    def _declaring(self, symbol: str) -> str:
        """The name of the file that declares it."""
        try:
            return self._symbols[symbol]
        except KeyError:
            raise NotFoundError(f"there is no symbol {quoted(symbol)}") from None

    def _file(self, name: str) -> FileDescriptorResponse:
        """The file, then all that it imports, each once."""
        if name not in self._files:
            raise NotFoundError(f"there is no file {quoted(name)}")
        names = [name]
        for each in names:  # grows while it is read
            names += [n for n in self._files[each].dependency if n not in names]
        files = [self._files[each].SerializeToString() for each in names]
        return FileDescriptorResponse(file_descriptor_proto=files)

    def _add(self, file: FileDescriptorProto) -> None:
        self._files[file.name] = file
        for name in file.dependency:
            if name not in self._files:
                self._add(_proto(descriptor_pool.Default().FindFileByName(name)))


class _ReflectionStream:
    """A `Stream`: an answer for each request, in order."""

    def __init__(self, reflection: Reflection, call: StreamCall) -> None:
        self._reflection = reflection
        self._call = call
        self._answers: deque[bytes] = deque()
        self._half_closed = False

    def receive(self, message: bytes) -> None:
        try:
            request = ServerReflectionRequest.FromString(message)
        except DecodeError:
            raise InvalidArgumentError("the bytes are not a ServerReflectionRequest") from None
        self._answers.append(self._reflection.answer(request).SerializeToString())
        self._call.wake()

    def half_close(self) -> None:
        self._half_closed = True

    def take_message(self) -> bytes | None:
        return self._answers.popleft() if self._answers else None

    @property
    def congested(self) -> bool:
        return len(self._answers) >= MAX_WAITING

    @property
    def finished(self) -> bool:
        return self._half_closed and not self._answers

    def drain(self) -> None:
        self._half_closed = True

    def cancel(self) -> None:
        self._answers.clear()


def _file_of(service: str) -> FileDescriptorProto:
    package = service.rpartition(".")[0]
    if package == health.FILE.package:
        return _proto(health.FILE)
    if package == PACKAGES[0]:
        return _proto(reflection_pb2.DESCRIPTOR)
    if package == PACKAGES[1]:
        return _alpha(_proto(reflection_pb2.DESCRIPTOR))
    return _proto(descriptor_pool.Default().FindServiceByName(service).file)


def _alpha(file: FileDescriptorProto) -> FileDescriptorProto:
    """v1 under the name of v1alpha, whose messages are the same."""
    file.name = file.name.replace(".proto", "_alpha.proto")
    file.package = PACKAGES[1]
    v1, alpha = (f".{package}." for package in PACKAGES)
    for message in file.message_type:
        for field in message.field:
            if field.type_name:
                field.type_name = field.type_name.replace(v1, alpha)
    for method in file.service[0].method:
        method.input_type = method.input_type.replace(v1, alpha)
        method.output_type = method.output_type.replace(v1, alpha)
    return file


def _proto(file: FileDescriptor) -> FileDescriptorProto:
    proto = FileDescriptorProto()
    file.CopyToProto(proto)
    return proto


def _symbols(file: FileDescriptorProto) -> Iterator[str]:
    """The full name of all that a file declares."""
    prefix = f"{file.package}." if file.package else ""
    for service in file.service:
        yield prefix + service.name
        yield from (f"{prefix}{service.name}.{method.name}" for method in service.method)
    for enum in file.enum_type:
        yield from _enum_symbols(prefix, enum)
    for message in file.message_type:
        yield from _message_symbols(prefix, message)


def _message_symbols(prefix: str, message: DescriptorProto) -> Iterator[str]:
    name = prefix + message.name
    yield name
    yield from (f"{name}.{field.name}" for field in message.field)
    yield from (f"{name}.{oneof.name}" for oneof in message.oneof_decl)
    for enum in message.enum_type:
        yield from _enum_symbols(name + ".", enum)
    for nested in message.nested_type:
        yield from _message_symbols(name + ".", nested)


def _enum_symbols(prefix: str, enum: EnumDescriptorProto) -> Iterator[str]:
    yield prefix + enum.name
    yield from (prefix + value.name for value in enum.value)  # beside their enum, as in C++
