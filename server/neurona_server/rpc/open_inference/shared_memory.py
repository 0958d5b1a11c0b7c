"""Shared memory: the methods that register regions of the system's, and tensors in any region.

A region of system shared memory is a part of a memory object of the machine (shm_open) that a
caller has created. See regions.py for whose regions are whose, and cuda_shared_memory.py for
memory of GPUs.
"""

import os
import re
import stat
from collections.abc import Mapping

from neurona_protos import open_inference_pb2 as pb
from neurona_server.errors import InvalidArgumentError, quoted
from neurona_server.rpc.call import Methods
from neurona_server.rpc.open_inference.messages import read_unsigned_parameter, unary_method
from neurona_server.rpc.open_inference.regions import (
    Region,
    RegionKind,
    Regions,
    RegionSlice,
    empty_region_error,
)
from neurona_server.rpc.security.access import Grant, Right

FOLDER = "/dev/shm"  # noqa: S108  where Linux keeps what shm_open opens

REGION = "shared_memory_region"
OFFSET = "shared_memory_offset"
BYTE_SIZE = "shared_memory_byte_size"
"""Parameters of a tensor that is in shared memory."""

_KEY = re.compile(r"/?[A-Za-z0-9_-][A-Za-z0-9._-]{0,253}")


class SystemRegion(Region):
    """A part of a memory object: `byte_size` bytes from `start` on."""

    kind = RegionKind.SYSTEM

    def __init__(self, name: str, key: str, start: int, byte_size: int, file: int) -> None:
        """Make a region of the memory object `key`; its descriptor is `file`."""
        self._file = file
        state = os.fstat(file)
        super().__init__(name, byte_size, (state.st_dev, state.st_ino))
        self.key = key
        self.start = start
        self.object_size = state.st_size

    def __del__(self) -> None:
        os.close(self._file)

    def close(self) -> None:
        """Do nothing: what the caller has unlinked is freed once the last reference is gone."""

    @property
    def description(self) -> str:
        return f"the memory object {quoted(self.key)}"

    def read(self, offset: int, size: int) -> bytes:
        """Read bytes of the region.

        Raises:
            InvalidArgumentError: The memory object has become too short.
        """
        parts = []
        position = self.start + offset
        while size:
            part = os.pread(self._file, size, position)
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
        position = self.start + offset
        rest = memoryview(data)
        if os.fstat(self._file).st_size < position + len(rest):
            raise InvalidArgumentError(f"shared memory region {quoted(self.name)} was shortened")
        while rest:
            try:
                count = os.pwrite(self._file, rest, position)
            except OSError as error:
                raise InvalidArgumentError(
                    f"shared memory region {quoted(self.name)} cannot be written: {error.strerror}"
                ) from error
            rest = rest[count:]
            position += count


def open_region(name: str, key: str, start: int, byte_size: int) -> SystemRegion:
    """Open a part of the memory object `key`, from byte `start` on.

    Raises:
        InvalidArgumentError: The key or the size is invalid, or there is no such memory.
    """
    if not _KEY.fullmatch(key):
        raise InvalidArgumentError(
            f"the region's key is {quoted(key)} (expected the name of a memory object: "
            "letters, digits, '.', '_' and '-', after an optional '/')"
        )
    if not byte_size:
        raise empty_region_error(name)
    region = SystemRegion(name, key, start, byte_size, _open_memory_object(key))
    if start + byte_size > region.object_size:
        raise InvalidArgumentError(
            f"failed to register shared memory region {quoted(name)}: invalid args: it ends at "
            f"byte {start + byte_size} (expected at most {region.object_size}, the size of the "
            f"memory object {quoted(key)})"
        )
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
    """The methods about system shared memory, and the lookup of tensors in regions."""

    def __init__(self, regions: Regions) -> None:
        self.regions = regions

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
        }

    def find_slice(
        self, owner: str, parameters: Mapping[str, pb.InferParameter], tensor: str
    ) -> RegionSlice | None:
        """Return the part of a region that a tensor's parameters name; None if they name none.

        Args:
            owner: The caller's name, see `Regions`.
            parameters: The tensor's parameters.
            tensor: The tensor, for error messages.

        Raises:
            NotAllowedError: Shared memory is off.
            NotFoundError: There is no such region.
            InvalidArgumentError: A parameter is invalid, or the part is not within the region.
        """
        if not parameters or REGION not in parameters:
            return None
        self.regions.check_enabled()
        if parameters[REGION].WhichOneof("parameter_choice") != "string_param":
            raise InvalidArgumentError(f"parameter {REGION!r} of {tensor}: expected string_param")
        if BYTE_SIZE not in parameters:
            raise InvalidArgumentError(
                f"{tensor} has the parameter {REGION!r} without {BYTE_SIZE!r}"
            )
        byte_size = read_unsigned_parameter(BYTE_SIZE, parameters[BYTE_SIZE])
        offset = read_unsigned_parameter(OFFSET, parameters[OFFSET]) if OFFSET in parameters else 0
        return self.regions.slice_of(owner, parameters[REGION].string_param, offset, byte_size)

    def _status(
        self, message: pb.SystemSharedMemoryStatusRequest, grant: Grant
    ) -> pb.SystemSharedMemoryStatusResponse:
        response = pb.SystemSharedMemoryStatusResponse()
        regions = self.regions.select(grant.name, RegionKind.SYSTEM, message.name)
        for name, region in regions.items():
            assert isinstance(region, SystemRegion)  # noqa: S101  for the type checker
            status = response.regions[name]
            status.name, status.key = name, region.key
            status.offset, status.byte_size = region.start, region.byte_size
        return response

    def _register(
        self, message: pb.SystemSharedMemoryRegisterRequest, grant: Grant
    ) -> pb.SystemSharedMemoryRegisterResponse:
        self.regions.register(
            grant.name,
            message.name,
            lambda: open_region(message.name, message.key, message.offset, message.byte_size),
        )
        return pb.SystemSharedMemoryRegisterResponse()

    def _unregister(
        self, message: pb.SystemSharedMemoryUnregisterRequest, grant: Grant
    ) -> pb.SystemSharedMemoryUnregisterResponse:
        self.regions.unregister(grant.name, RegionKind.SYSTEM, message.name)
        return pb.SystemSharedMemoryUnregisterResponse()
