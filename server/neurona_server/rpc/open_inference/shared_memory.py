"""The calls about shared memory, and where a tensor's parameters say that it is."""

import os
import re
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NoReturn

from google.protobuf.message import Message

from neurona_protos import open_inference_pb2 as pb
from neurona_server.errors import (
    AlreadyExistsError,
    InvalidArgumentError,
    NotAllowedError,
    NotFoundError,
    UnsupportedError,
    quoted,
)
from neurona_server.rpc.call import Methods
from neurona_server.rpc.open_inference.messages import unary_method, whole
from neurona_server.rpc.security.access import Grant, Right

FOLDER = "/dev/shm"  # noqa: S108  where Linux keeps what shm_open opens
MAX_REGIONS = 1024
"""Regions; each holds a file open."""

_KEY = re.compile(r"/?[A-Za-z0-9_-][A-Za-z0-9._-]{0,253}")
_NAME = re.compile(r"[^\x00-\x1f\x7f]{1,255}")


@dataclass(frozen=True, eq=False)
class Region:
    """`byte_size` bytes of a memory object, from `offset` on."""

    name: str
    key: str
    offset: int
    byte_size: int
    file: int

    def __del__(self) -> None:
        # Not at unregistering: an answer may still be on its way into it.
        os.close(self.file)

    def read(self, offset: int, size: int) -> bytes:
        """Raises InvalidArgumentError when the memory has become too short."""
        parts = []
        position = self.offset + offset
        while size:
            part = os.pread(self.file, size, position)
            if not part:
                raise InvalidArgumentError(
                    f"shared memory region {quoted(self.name)} was shortened"
                )
            parts.append(part)
            position += len(part)
            size -= len(part)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def write(self, offset: int, data: bytes | memoryview) -> None:
        """Raises InvalidArgumentError when the memory has become too short, or there is no more of
        it."""
        position = self.offset + offset
        rest = memoryview(data)
        if os.fstat(self.file).st_size < position + len(rest):
            raise InvalidArgumentError(f"shared memory region {quoted(self.name)} was shortened")
        while rest:
            try:
                written = os.pwrite(self.file, rest, position)
            except OSError as error:
                raise InvalidArgumentError(
                    f"shared memory region {quoted(self.name)} cannot be written: {error.strerror}"
                ) from error
            rest = rest[written:]
            position += written


@dataclass(frozen=True)
class RegionSlice:
    """Part of a region, for one tensor."""

    region: Region
    offset: int
    byte_size: int


class Regions:
    """Regions by name. Changed in the transport's thread alone."""

    def __init__(self) -> None:
        self._regions: dict[str, Region] = {}

    def __len__(self) -> int:
        return len(self._regions)

    def register(self, name: str, key: str, offset: int, byte_size: int) -> None:
        """Raises InvalidArgumentError, AlreadyExistsError when the name is taken, NotAllowedError
        when there
        are too many."""
        if not _NAME.fullmatch(name):
            raise InvalidArgumentError(
                f"the region's name is {quoted(name)}; expected 1 to 255 characters"
            )
        if name in self._regions:
            raise AlreadyExistsError(f"shared memory region {quoted(name)} already in manager")
        if len(self._regions) >= MAX_REGIONS:
            raise NotAllowedError(f"{MAX_REGIONS} shared memory regions are registered already")
        if not _KEY.fullmatch(key):
            raise InvalidArgumentError(
                f"the region's key is {quoted(key)}; expected the name of a memory object: "
                "letters, digits, '.', '_' and '-', with one '/' before them or none"
            )
        if not byte_size:
            raise InvalidArgumentError("the region has 0 bytes; expected at least 1")
        file = _open(key)
        try:
            size = os.fstat(file).st_size
            if offset + byte_size > size:
                raise InvalidArgumentError(
                    f"the region is {byte_size} bytes from {offset} on, but the memory object "
                    f"{quoted(key)} has {size} bytes"
                )
        except BaseException:
            os.close(file)
            raise
        self._regions[name] = Region(name, key, offset, byte_size, file)

    def unregister(self, name: str) -> None:
        """One, or all if `name` is empty; it is no error if there is none."""
        if name:
            self._regions.pop(name, None)
        else:
            self._regions.clear()

    def status(self, name: str) -> Mapping[str, Region]:
        """One, or all if `name` is empty. Raises NotFoundError."""
        return {name: self._find(name)} if name else dict(self._regions)

    def place(self, name: str, offset: int, byte_size: int) -> RegionSlice:
        """Raises NotFoundError, and InvalidArgumentError when it is not within the region."""
        region = self._find(name)
        if offset + byte_size > region.byte_size:
            raise InvalidArgumentError(
                f"Invalid offset + byte size for shared memory region: {quoted(name)}: "
                f"{offset} + {byte_size} came, it has {region.byte_size} bytes"
            )
        return RegionSlice(region, offset, byte_size)

    def _find(self, name: str) -> Region:
        region = self._regions.get(name)
        if region is None:
            raise NotFoundError(f"Unable to find shared memory region: {quoted(name)}")
        return region


def _open(key: str) -> int:
    """Raises InvalidArgumentError."""
    flags = os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
    try:
        file = os.open(os.path.join(FOLDER, key.removeprefix("/")), flags)
    except OSError as error:
        raise InvalidArgumentError(
            f"Unable to open shared memory region: {quoted(key)}: {error.strerror}"
        ) from None
    if not stat.S_ISREG(os.fstat(file).st_mode):
        os.close(file)
        raise InvalidArgumentError(
            f"Unable to open shared memory region: {quoted(key)}: it is no memory object"
        )
    return file


REGION = "shared_memory_region"
OFFSET = "shared_memory_offset"
BYTE_SIZE = "shared_memory_byte_size"


class SharedMemoryService:
    """`enabled` is the server's option `shared_memory`."""

    def __init__(self, *, enabled: bool) -> None:
        self.enabled = enabled
        self.regions = Regions()

    def methods(self, path: str) -> Methods:
        return {
            path + "SystemSharedMemoryStatus": unary_method(
                Right.CONTROL, pb.SystemSharedMemoryStatusRequest, self._status
            ),
            path + "SystemSharedMemoryRegister": unary_method(
                Right.CONTROL, pb.SystemSharedMemoryRegisterRequest, self._register
            ),
            path + "SystemSharedMemoryUnregister": unary_method(
                Right.CONTROL, pb.SystemSharedMemoryUnregisterRequest, self._unregister
            ),
            path + "CudaSharedMemoryStatus": unary_method(
                Right.CONTROL, pb.CudaSharedMemoryStatusRequest, _no_cuda
            ),
            path + "CudaSharedMemoryRegister": unary_method(
                Right.CONTROL, pb.CudaSharedMemoryRegisterRequest, _no_cuda
            ),
            path + "CudaSharedMemoryUnregister": unary_method(
                Right.CONTROL, pb.CudaSharedMemoryUnregisterRequest, _unregister_cuda
            ),
        }

    def place(self, parameters: Mapping[str, pb.InferParameter], tensor: str) -> RegionSlice | None:
        """Where a tensor is; None if not in shared memory.

        Raises NotAllowedError if that is off, NotFoundError and InvalidArgumentError as Regions
        does.
        """
        if not parameters or REGION not in parameters:
            return None
        self._check_enabled()
        if parameters[REGION].WhichOneof("parameter_choice") != "string_param":
            raise InvalidArgumentError(f"parameter {REGION!r} of {tensor}: expected string_param")
        if BYTE_SIZE not in parameters:
            raise InvalidArgumentError(
                f"{tensor} has the parameter {REGION!r}, but no {BYTE_SIZE!r}"
            )
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
