"""System shared memory: its regions, the methods that register them, and tensors in them.

A region is a part of a memory object of the machine (shm_open) that a caller has created. It
belongs to the caller that registered it, by the name of its token: each caller has names of its
own, and sees, uses and unregisters only its own regions. A memory object with regions belongs to
their owner too, or another caller could read and write it through a region of its own.
"""

import os
import re
import stat
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import NoReturn

from google.protobuf.message import Message

from neurona_protos import open_inference_pb2 as pb
from neurona_server.batching.batcher import Defer
from neurona_server.errors import (
    AlreadyExistsError,
    InvalidArgumentError,
    NotAllowedError,
    NotFoundError,
    PermissionDeniedError,
    UnsupportedError,
    quoted,
)
from neurona_server.rpc.call import Methods
from neurona_server.rpc.open_inference.messages import read_unsigned_parameter, unary_method
from neurona_server.rpc.security.access import Grant, Right
from neurona_server.rpc.submission import Responder
from neurona_server.telemetry.trace import CallTrace

FOLDER = "/dev/shm"  # noqa: S108  where Linux keeps what shm_open opens
MAX_REGIONS = 1024
"""Registered regions of all callers; each holds a file open."""

MAX_REGIONS_OF_TOKEN = 256
"""Regions of one token, so that it leaves some to others."""

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
    memory_object: tuple[int, int]
    """Device and inode: the object itself, whatever its key."""

    def __del__(self) -> None:
        os.close(self.file)  # not when it is unregistered: a response may still be written to it

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
    """The registered regions, by owner and name. Only the transport's thread registers them.

    An owner is the name of a token, or "" for every caller of a server without tokens. A region
    that is unregistered while requests use it is listed until the last of them has ended: until
    then the server may write to it. No other request can use it then, and its name is free.
    """

    def __init__(self) -> None:
        self._regions: dict[str, dict[str, Region]] = {}
        self._users: Counter[Region] = Counter()
        self._unregistered: dict[str, dict[Region, None]] = {}  # those in use, in order
        self._lock = threading.Lock()  # of the last two: requests end in any thread

    def __len__(self) -> int:
        return sum(map(len, self._regions.values()))

    def hold(self, regions: Iterable[Region]) -> None:
        """Count a request that uses regions."""
        with self._lock:
            self._users.update(regions)

    def release(self, regions: Iterable[Region]) -> None:
        """Undo what `hold` did. Thread-safe."""
        with self._lock:
            for region in regions:
                self._users[region] -= 1
                if not self._users[region]:
                    del self._users[region]
                    for owner in [*self._unregistered]:
                        self._unregistered[owner].pop(region, None)
                        if not self._unregistered[owner]:
                            del self._unregistered[owner]

    def register(self, owner: str, name: str, key: str, offset: int, byte_size: int) -> None:
        """Register a region of the memory object `key`.

        Raises:
            InvalidArgumentError: The name, key or size is invalid, or there is no such memory.
            AlreadyExistsError: A region of the owner has the name already.
            NotAllowedError: There are MAX_REGIONS already, or MAX_REGIONS_OF_TOKEN of the owner.
            PermissionDeniedError: The memory object has regions of another owner.
        """
        if not _NAME.fullmatch(name):
            raise InvalidArgumentError(
                f"the region's name is {quoted(name)} (expected 1 to 255 characters)"
            )
        own = self._regions.get(owner, {})
        if name in own:
            raise AlreadyExistsError(f"shared memory region {quoted(name)} already in manager")
        self._check_number(owner, len(own))
        if not _KEY.fullmatch(key):
            raise InvalidArgumentError(
                f"the region's key is {quoted(key)} (expected the name of a memory object: "
                "letters, digits, '.', '_' and '-', after an optional '/')"
            )
        if not byte_size:
            raise InvalidArgumentError(
                f"failed to register shared memory region {quoted(name)}: invalid args: it has 0 "
                "bytes (expected at least 1)"
            )
        file = _open_memory_object(key)
        try:
            state = os.fstat(file)
            if offset + byte_size > state.st_size:
                raise InvalidArgumentError(
                    f"failed to register shared memory region {quoted(name)}: invalid args: it "
                    f"ends at byte {offset + byte_size} (expected at most {state.st_size}, the "
                    f"size of the memory object {quoted(key)})"
                )
            memory_object = (state.st_dev, state.st_ino)
            self._check_owner(owner, key, memory_object)
        except BaseException:
            os.close(file)
            raise
        region = Region(name, key, offset, byte_size, file, memory_object)
        self._regions.setdefault(owner, own)[name] = region

    def unregister(self, owner: str, name: str) -> None:
        """Unregister the owner's region of the name if there is one, or all if `name` is empty."""
        own = self._regions.get(owner, {})
        names = [name] if name else [*own]
        regions = [own.pop(each) for each in names if each in own]
        if not own:
            self._regions.pop(owner, None)
        with self._lock:
            for region in regions:
                if self._users[region]:
                    self._unregistered.setdefault(owner, {})[region] = None

    def select(self, owner: str, name: str) -> Mapping[str, Region]:
        """Return the owner's region of a name, or all its regions if `name` is empty.

        Those that are unregistered and still in use are among them.

        Raises:
            NotFoundError: There is no such region.
        """
        with self._lock:
            unregistered = {region.name: region for region in self._unregistered.get(owner, ())}
        regions = unregistered | self._regions.get(owner, {})
        if not name:
            return regions
        if name not in regions:
            raise NotFoundError(f"Unable to find system shared memory region: {quoted(name)}")
        return {name: regions[name]}

    def slice_of(self, owner: str, name: str, offset: int, byte_size: int) -> RegionSlice:
        """Return a part of the owner's region of a name.

        Raises:
            NotFoundError: There is no such region.
            InvalidArgumentError: The part is not within the region.
        """
        region = self._find(owner, name)
        if offset + byte_size > region.byte_size:
            invalid = "offset" if offset >= region.byte_size else "offset + byte size"
            raise InvalidArgumentError(
                f"Invalid {invalid} for shared memory region: {quoted(name)}: "
                f"{offset} + {byte_size} (expected at most {region.byte_size})"
            )
        return RegionSlice(region, offset, byte_size)

    def _find(self, owner: str, name: str) -> Region:
        region = self._regions.get(owner, {}).get(name)
        if region is None:
            raise NotFoundError(f"Unable to find shared memory region: {quoted(name)}")
        return region

    def _check_number(self, owner: str, own_count: int) -> None:
        if owner and own_count >= MAX_REGIONS_OF_TOKEN:
            raise NotAllowedError(
                "too many shared memory regions of the token "
                f"(expected at most {MAX_REGIONS_OF_TOKEN})"
            )
        if len(self) >= MAX_REGIONS:
            raise NotAllowedError(
                f"too many shared memory regions (expected at most {MAX_REGIONS})"
            )

    def _check_owner(self, owner: str, key: str, memory_object: tuple[int, int]) -> None:
        with self._lock:
            used = [
                (other, region) for other, some in self._unregistered.items() for region in some
            ]
        used += [(other, one) for other, some in self._regions.items() for one in some.values()]
        if any(other != owner and region.memory_object == memory_object for other, region in used):
            raise PermissionDeniedError(
                f"the memory object {quoted(key)} has regions of another caller"
            )


class RegionUse:
    """The `Responder` of a request with tensors in regions, which it holds until it has ended."""

    def __init__(self, responder: Responder, regions: Regions) -> None:
        self._responder = responder
        self._regions = regions
        self._held: list[Region] = []

    @property
    def request_id(self) -> str:
        return self._responder.request_id

    @property
    def trace_id(self) -> str:
        return self._responder.trace_id

    @property
    def trace(self) -> CallTrace | None:
        return self._responder.trace

    @property
    def deadline(self) -> float:
        return self._responder.deadline

    @property
    def defer(self) -> Defer:
        return self._responder.defer

    def hold(self, slices: Iterable[RegionSlice | None]) -> None:
        """Hold the regions of some tensors; those not in shared memory have None."""
        regions = [one.region for one in slices if one is not None]
        self._regions.hold(regions)
        self._held += regions

    def reply(self, response: bytes) -> None:
        self._release()
        self._responder.reply(response)

    def fail(self, error: Exception) -> None:
        self._release()
        self._responder.fail(error)

    def on_cancel(self, callback: Callable[[], None]) -> None:
        self._responder.on_cancel(callback)

    def _release(self) -> None:
        """Before the response is sent, so that the caller then finds the regions released."""
        held, self._held = self._held, []
        self._regions.release(held)


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
                Right.CONTROL, pb.CudaSharedMemoryStatusRequest, _list_cuda
            ),
            prefix + "CudaSharedMemoryRegister": unary_method(
                Right.CONTROL, pb.CudaSharedMemoryRegisterRequest, _no_cuda
            ),
            prefix + "CudaSharedMemoryUnregister": unary_method(
                Right.CONTROL, pb.CudaSharedMemoryUnregisterRequest, _unregister_cuda
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
        self._check_enabled()
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
        for name, region in self.regions.select(grant.name, message.name).items():
            status = response.regions[name]
            status.name, status.key = name, region.key
            status.offset, status.byte_size = region.offset, region.byte_size
        return response

    def _register(
        self, message: pb.SystemSharedMemoryRegisterRequest, grant: Grant
    ) -> pb.SystemSharedMemoryRegisterResponse:
        self._check_enabled()
        self.regions.register(
            grant.name, message.name, message.key, message.offset, message.byte_size
        )
        return pb.SystemSharedMemoryRegisterResponse()

    def _unregister(
        self, message: pb.SystemSharedMemoryUnregisterRequest, grant: Grant
    ) -> pb.SystemSharedMemoryUnregisterResponse:
        self.regions.unregister(grant.name, message.name)
        return pb.SystemSharedMemoryUnregisterResponse()

    def _check_enabled(self) -> None:
        if not self.enabled:
            raise NotAllowedError(
                "shared memory is off; the server's option shared_memory enables it"
            )


def _no_cuda(_: Message, __: Grant) -> NoReturn:
    raise UnsupportedError("CUDA shared memory is not supported; system shared memory is")


def _list_cuda(
    message: pb.CudaSharedMemoryStatusRequest, _: Grant
) -> pb.CudaSharedMemoryStatusResponse:
    if message.name:
        raise NotFoundError(f"Unable to find cuda shared memory region: {quoted(message.name)}")
    return pb.CudaSharedMemoryStatusResponse()


def _unregister_cuda(
    message: pb.CudaSharedMemoryUnregisterRequest, grant: Grant
) -> pb.CudaSharedMemoryUnregisterResponse:
    # perf_analyzer unregisters all regions before it uses system shared memory: there are none.
    if message.name:
        _no_cuda(message, grant)
    return pb.CudaSharedMemoryUnregisterResponse()
