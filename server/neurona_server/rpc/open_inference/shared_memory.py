"""System shared memory: its regions, the methods that register them, and tensors in them.

A region is a part of a memory object of the machine (shm_open) that a caller has created.
"""

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
from neurona_server.rpc.open_inference.messages import read_unsigned_parameter, unary_method
from neurona_server.rpc.security.access import Grant, Right

FOLDER = "/dev/shm"  # noqa: S108  where Linux keeps what shm_open opens
MAX_REGIONS = 1024
"""Registered regions; each holds a file open."""

REGION = "shared_memory_region"
OFFSET = "shared_memory_offset"
BYTE_SIZE = "shared_memory_byte_size"
"""Parameters of a tensor that is in shared memory."""

_KEY = re.compile(r"/?[A-Za-z0-9_-][A-Za-z0-9._-]{0,253}")
_NAME = re.compile(r"[^\x00-\x1f\x7f]{1,255}")


@dataclass(frozen=True, eq=False)
class Region:
    """A registered part of a memory object: `byte_size` bytes from `offset` on."""

    name: str
    key: str
    offset: int
    byte_size: int
    file: int

    def __del__(self) -> None:
        # Not when it is unregistered: a response may still be written to it.
        os.close(self.file)

    def read(self, offset: int, size: int) -> bytes:
        """Read bytes of the region.

        Raises:
            InvalidArgumentError: The memory object has become too short.
        """
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
        """Write bytes to the region.

        Raises:
            InvalidArgumentError: The memory object has become too short, or the system has no
                more memory for it.
        """
        position = self.offset + offset
        rest = memoryview(data)
        if os.fstat(self.file).st_size < position + len(rest):
            raise InvalidArgumentError(f"shared memory region {quoted(self.name)} was shortened")
        while rest:
            try:
                count = os.pwrite(self.file, rest, position)
            except OSError as error:
                raise InvalidArgumentError(
                    f"shared memory region {quoted(self.name)} cannot be written: {error.strerror}"
                ) from error
            rest = rest[count:]
            position += count


@dataclass(frozen=True)
class RegionSlice:
    """The part of a region that holds one tensor."""

    region: Region
    offset: int
    byte_size: int


class Regions:
    """The registered regions, by name. Only the transport's thread changes them."""

    def __init__(self) -> None:
        self._regions: dict[str, Region] = {}

    def __len__(self) -> int:
        return len(self._regions)

    def register(self, name: str, key: str, offset: int, byte_size: int) -> None:
        """Register a region of the memory object `key`.

        Raises:
            InvalidArgumentError: The name, key or size is invalid, or there is no such memory.
            AlreadyExistsError: A region has the name already.
            NotAllowedError: There are MAX_REGIONS already.
        """
        if not _NAME.fullmatch(name):
            raise InvalidArgumentError(
                f"the region's name is {quoted(name)} (expected 1 to 255 characters)"
            )
        if name in self._regions:
            raise AlreadyExistsError(f"shared memory region {quoted(name)} already in manager")
        if len(self._regions) >= MAX_REGIONS:
            raise NotAllowedError(
                f"too many shared memory regions (expected at most {MAX_REGIONS})"
            )
        if not _KEY.fullmatch(key):
            raise InvalidArgumentError(
                f"the region's key is {quoted(key)} (expected the name of a memory object: "
                "letters, digits, '.', '_' and '-', after an optional '/')"
            )
        if not byte_size:
            raise InvalidArgumentError("the region has 0 bytes (expected at least 1)")
        file = _open_memory_object(key)
        try:
            size = os.fstat(file).st_size
            if offset + byte_size > size:
                raise InvalidArgumentError(
                    f"the region ends at byte {offset + byte_size} (expected at most {size}, the "
                    f"size of the memory object {quoted(key)})"
                )
        except BaseException:
            os.close(file)
            raise
        self._regions[name] = Region(name, key, offset, byte_size, file)

    def unregister(self, name: str) -> None:
        """Unregister a region if there is one of the name, or all if `name` is empty."""
        if name:
            self._regions.pop(name, None)
        else:
            self._regions.clear()

    def select(self, name: str) -> Mapping[str, Region]:
        """Return the region of a name, or all if `name` is empty.

        Raises:
            NotFoundError: There is no such region.
        """
        return {name: self._find(name)} if name else dict(self._regions)

    def slice_of(self, name: str, offset: int, byte_size: int) -> RegionSlice:
        """Return a part of a region.

        Raises:
            NotFoundError: There is no such region.
            InvalidArgumentError: The part is not within the region.
        """
        region = self._find(name)
        if offset + byte_size > region.byte_size:
            raise InvalidArgumentError(
                f"Invalid offset + byte size for shared memory region: {quoted(name)}: "
                f"{offset} + {byte_size} (expected at most {region.byte_size})"
            )
        return RegionSlice(region, offset, byte_size)

    def _find(self, name: str) -> Region:
        region = self._regions.get(name)
        if region is None:
            raise NotFoundError(f"Unable to find shared memory region: {quoted(name)}")
        return region


def _open_memory_object(key: str) -> int:
    """Return the file descriptor of a memory object.

    Raises:
        InvalidArgumentError: It cannot be opened.
    """
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
            f"Unable to open shared memory region: {quoted(key)}: not a memory object"
        )
    return file


class SharedMemoryService:
    """The methods about shared memory, and the lookup of tensors in it."""

    def __init__(self, *, enabled: bool) -> None:
        """Make the service; `enabled` is the server's option `shared_memory`."""
        self.enabled = enabled
        self.regions = Regions()

    def methods(self, prefix: str) -> Methods:
        return {
            prefix + "SystemSharedMemoryStatus": unary_method(
                Right.CONTROL, pb.SystemSharedMemoryStatusRequest, self._status
            ),
            prefix + "SystemSharedMemoryRegister": unary_method(
                Right.CONTROL, pb.SystemSharedMemoryRegisterRequest, self._register
            ),
            prefix + "SystemSharedMemoryUnregister": unary_method(
                Right.CONTROL, pb.SystemSharedMemoryUnregisterRequest, self._unregister
            ),
            prefix + "CudaSharedMemoryStatus": unary_method(
                Right.CONTROL, pb.CudaSharedMemoryStatusRequest, _no_cuda
            ),
            prefix + "CudaSharedMemoryRegister": unary_method(
                Right.CONTROL, pb.CudaSharedMemoryRegisterRequest, _no_cuda
            ),
            prefix + "CudaSharedMemoryUnregister": unary_method(
                Right.CONTROL, pb.CudaSharedMemoryUnregisterRequest, _unregister_cuda
            ),
        }

    def find_slice(
        self, parameters: Mapping[str, pb.InferParameter], tensor: str
    ) -> RegionSlice | None:
        """Return the part of a region that a tensor's parameters name; None if they name none.

        Raises:
            NotAllowedError: Shared memory is off.
            NotFoundError: There is no such region.
            InvalidArgumentError: A parameter is invalid, or the part is not within the region.
        """
        if not parameters or REGION not in parameters:
            return None
        self._check_enabled()
        if parameters[REGION].WhichOneof("parameter_choice") != "string_param":
            raise InvalidArgumentError(f"parameter {REGION!r} of {tensor}: expected string_param")
        if BYTE_SIZE not in parameters:
            raise InvalidArgumentError(
                f"{tensor} has the parameter {REGION!r} without {BYTE_SIZE!r}"
            )
        byte_size = read_unsigned_parameter(BYTE_SIZE, parameters[BYTE_SIZE])
        offset = read_unsigned_parameter(OFFSET, parameters[OFFSET]) if OFFSET in parameters else 0
        return self.regions.slice_of(parameters[REGION].string_param, offset, byte_size)

    def _status(
        self, message: pb.SystemSharedMemoryStatusRequest, _: Grant
    ) -> pb.SystemSharedMemoryStatusResponse:
        self._check_enabled()
        response = pb.SystemSharedMemoryStatusResponse()
        for name, region in self.regions.select(message.name).items():
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
                "shared memory is off; the server's option shared_memory enables it"
            )


def _no_cuda(_: Message, __: Grant) -> NoReturn:
    raise UnsupportedError("CUDA shared memory is not supported; system shared memory is")


def _unregister_cuda(
    message: pb.CudaSharedMemoryUnregisterRequest, grant: Grant
) -> pb.CudaSharedMemoryUnregisterResponse:
    # perf_analyzer unregisters all regions before it uses system shared memory: there are none.
    if message.name:
        _no_cuda(message, grant)
    return pb.CudaSharedMemoryUnregisterResponse()
