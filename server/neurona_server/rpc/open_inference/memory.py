"""The calls about shared memory, and where a tensor's parameters say that it is."""

from collections.abc import Mapping
from typing import NoReturn

from google.protobuf.message import Message

from neurona_protos import open_inference_pb2 as pb
from neurona_server.errors import InvalidError, NotAllowedError, UnsupportedError
from neurona_server.rpc.call import Methods
from neurona_server.rpc.open_inference.immediate import immediate
from neurona_server.rpc.open_inference.regions import Place, Regions
from neurona_server.rpc.open_inference.terms import whole
from neurona_server.rpc.rights import Grant, Right

REGION = "shared_memory_region"
OFFSET = "shared_memory_offset"
BYTE_SIZE = "shared_memory_byte_size"


class Memory:
    """`enabled` is the server's option `shared_memory`."""

    def __init__(self, *, enabled: bool) -> None:
        self.enabled = enabled
        self.regions = Regions()

    def methods(self, path: str) -> Methods:
        return {
            path + "SystemSharedMemoryStatus": immediate(
                Right.CONTROL, pb.SystemSharedMemoryStatusRequest, self._status
            ),
            path + "SystemSharedMemoryRegister": immediate(
                Right.CONTROL, pb.SystemSharedMemoryRegisterRequest, self._register
            ),
            path + "SystemSharedMemoryUnregister": immediate(
                Right.CONTROL, pb.SystemSharedMemoryUnregisterRequest, self._unregister
            ),
            path + "CudaSharedMemoryStatus": immediate(
                Right.CONTROL, pb.CudaSharedMemoryStatusRequest, _no_cuda
            ),
            path + "CudaSharedMemoryRegister": immediate(
                Right.CONTROL, pb.CudaSharedMemoryRegisterRequest, _no_cuda
            ),
            path + "CudaSharedMemoryUnregister": immediate(
                Right.CONTROL, pb.CudaSharedMemoryUnregisterRequest, _unregister_cuda
            ),
        }

    def place(self, parameters: Mapping[str, pb.InferParameter], tensor: str) -> Place | None:
        """Where a tensor is; None if not in shared memory.

        Raises NotAllowedError if that is off, NotFoundError and InvalidError as Regions does.
        """
        if not parameters or REGION not in parameters:
            return None
        self._check_enabled()
        if parameters[REGION].WhichOneof("parameter_choice") != "string_param":
            raise InvalidError(f"parameter {REGION!r} of {tensor}: expected string_param")
        if BYTE_SIZE not in parameters:
            raise InvalidError(f"{tensor} has the parameter {REGION!r}, but no {BYTE_SIZE!r}")
        byte_size = whole(BYTE_SIZE, parameters[BYTE_SIZE])
        offset = whole(OFFSET, parameters[OFFSET]) if OFFSET in parameters else 0
        return self.regions.place(parameters[REGION].string_param, offset, byte_size)

    def _status(
        self, message: pb.SystemSharedMemoryStatusRequest, _: Grant
    ) -> pb.SystemSharedMemoryStatusResponse:
        self._check_enabled()
        response = pb.SystemSharedMemoryStatusResponse()
        for name, region in self.regions.status(message.name).items():
            status = response.regions[name]
            status.name, status.key = name, region.key
            status.offset, status.byte_size = region.offset, region.byte_size
        return response

    def _register(
        self, message: pb.SystemSharedMemoryRegisterRequest, _: Grant
    ) -> pb.SystemSharedMemoryRegisterResponse:
        self._check_enabled()
        self.regions.register(message.name, message.key, message.offset, message.byte_size)
        return pb.SystemSharedMemoryRegisterResponse()

    def _unregister(
        self, message: pb.SystemSharedMemoryUnregisterRequest, _: Grant
    ) -> pb.SystemSharedMemoryUnregisterResponse:
        self._check_enabled()
        self.regions.unregister(message.name)
        return pb.SystemSharedMemoryUnregisterResponse()

    def _check_enabled(self) -> None:
        if not self.enabled:
            raise NotAllowedError(
                "shared memory is off; the server's option shared_memory allows it"
            )


def _no_cuda(_: Message, __: Grant) -> NoReturn:
    raise UnsupportedError("CUDA shared memory is not supported; system shared memory is")


def _unregister_cuda(
    message: pb.CudaSharedMemoryUnregisterRequest, grant: Grant
) -> pb.CudaSharedMemoryUnregisterResponse:
    # perf_analyzer asks for all to be unregistered before it uses the other kind: none is all.
    if message.name:
        _no_cuda(message, grant)
    return pb.CudaSharedMemoryUnregisterResponse()
