"""grpc.reflection.v1 and v1alpha: the services of the server and their messages, for tools.

Only the files of the services that the transport serves are exposed, and the files that these
import. Source: github.com/grpc/grpc/blob/master/doc/server-reflection.md.
"""

from collections import deque
from collections.abc import Iterable
from contextlib import suppress
from functools import partial

from google.protobuf import descriptor_pool
from google.protobuf.descriptor import FileDescriptor
from google.protobuf.descriptor_pb2 import FileDescriptorProto
from google.protobuf.descriptor_pool import DescriptorPool
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
"""Responses of one stream that wait for the reader; beyond that no further requests are read."""


class Reflection:
    """The service; `methods` are the paths of all other services' methods."""

    def __init__(self, methods: Iterable[str]) -> None:
        services = {path.split("/")[1] for path in methods}
        services |= {f"{package}.{SERVICE}" for package in PACKAGES}
        self._services = sorted(services)
        self._files: dict[str, FileDescriptorProto] = {}
        self._pool = DescriptorPool()  # a private one: it finds the symbols of these files only
        for service in self._services:
            self._add(_file_of(service))

    def methods(self) -> Methods:
        stream = Streaming(partial(_ReflectionStream, self), Right.DESCRIBE)
        return {f"/{package}.{SERVICE}/ServerReflectionInfo": stream for package in PACKAGES}

    def respond(self, request: ServerReflectionRequest) -> ServerReflectionResponse:
        """Return the response to a request; an error is a response too."""
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
                files = self._with_imports(request.file_by_filename)
                response.file_descriptor_response.CopyFrom(files)
            case "file_containing_symbol":
                files = self._with_imports(self._file_declaring(request.file_containing_symbol))
                response.file_descriptor_response.CopyFrom(files)
            case "file_containing_extension":
                extension = request.file_containing_extension
                self._file_declaring(extension.containing_type)
                # proto3 allows extensions of options only, and no file here has one.
                raise NotFoundError(
                    f"{quoted(extension.containing_type)} has no extension "
                    f"{extension.extension_number}"
                )
            case "all_extension_numbers_of_type":
                name = request.all_extension_numbers_of_type
                self._file_declaring(name)
                numbers = ExtensionNumberResponse(base_type_name=name)
                response.all_extension_numbers_response.CopyFrom(numbers)
            case _:
                raise InvalidArgumentError(
                    "the reflection request is empty (expected one of its five fields)"
                )

    def _file_declaring(self, symbol: str) -> str:
        """Return the name of the file that declares `symbol`. Raises NotFoundError."""
        with suppress(KeyError):
            return self._pool.FindFileContainingSymbol(symbol).name
        service, _, method = symbol.rpartition(".")  # protobuf's C library finds no methods
        with suppress(KeyError):
            descriptor = self._pool.FindServiceByName(service)
            return descriptor.methods_by_name[method].containing_service.file.name
        raise NotFoundError(f"unknown symbol {quoted(symbol)}")

    def _with_imports(self, name: str) -> FileDescriptorResponse:
        """Return the file, then all files that it imports, each once. Raises NotFoundError."""
        if name not in self._files:
            raise NotFoundError(f"unknown file {quoted(name)}")
        names = [name]
        for each in names:  # grows during the iteration
            names += [n for n in self._files[each].dependency if n not in names]
        files = [self._files[each].SerializeToString() for each in names]
        return FileDescriptorResponse(file_descriptor_proto=files)

    def _add(self, file: FileDescriptorProto) -> None:
        """Add a file after the files that it imports."""
        if file.name in self._files:
            return
        for name in file.dependency:
            self._add(_to_proto(descriptor_pool.Default().FindFileByName(name)))
        self._files[file.name] = file
        self._pool.Add(file)


class _ReflectionStream:
    """A `Stream` with a response for each request, in order."""

    def __init__(self, reflection: Reflection, call: StreamCall) -> None:
        self._reflection = reflection
        self._call = call
        self._responses: deque[bytes] = deque()
        self._half_closed = False

    def receive(self, message: bytes) -> None:
        try:
            request = ServerReflectionRequest.FromString(message)
        except DecodeError:
            raise InvalidArgumentError("the bytes are not a ServerReflectionRequest") from None
        self._responses.append(self._reflection.respond(request).SerializeToString())
        self._call.wake()

    def half_close(self) -> None:
        self._half_closed = True

    def take_message(self) -> bytes | None:
        return self._responses.popleft() if self._responses else None

    @property
    def congested(self) -> bool:
        return len(self._responses) >= MAX_WAITING

    @property
    def buffered_bytes(self) -> int:
        return sum(map(len, self._responses))

    @property
    def finished(self) -> bool:
        return self._half_closed and not self._responses

    def drain(self) -> None:
        self._half_closed = True

    def cancel(self) -> None:
        self._responses.clear()


def _file_of(service: str) -> FileDescriptorProto:
    """Return the file that declares a service."""
    package = service.rpartition(".")[0]
    if package == health.FILE.package:
        return _to_proto(health.FILE)
    if package == PACKAGES[0]:
        return _to_proto(reflection_pb2.DESCRIPTOR)
    if package == PACKAGES[1]:
        return _to_alpha(_to_proto(reflection_pb2.DESCRIPTOR))
    return _to_proto(descriptor_pool.Default().FindServiceByName(service).file)


def _to_alpha(file: FileDescriptorProto) -> FileDescriptorProto:
    """Rename v1 to v1alpha, whose messages are the same."""
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


def _to_proto(file: FileDescriptor) -> FileDescriptorProto:
    proto = FileDescriptorProto()
    file.CopyToProto(proto)
    return proto
