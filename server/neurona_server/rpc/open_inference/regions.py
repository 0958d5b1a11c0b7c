"""Regions of shared memory: which caller has registered which, and which are in use.

A region is memory that a caller shares with the server: a part of a memory object of the machine
(shared_memory.py), or memory of a GPU (cuda_shared_memory.py). It belongs to the caller that
registered it, by the name of its token: each caller has names of its own, for regions of both
kinds together, and sees, uses and unregisters only its own regions. Memory with regions belongs to
their owner too, or another caller could read and write it through a region of its own.
"""

import re
import threading
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from functools import partial

from neurona_server.batching.batcher import Defer
from neurona_server.errors import (
    AlreadyExistsError,
    InvalidArgumentError,
    NeuronaError,
    NotAllowedError,
    NotFoundError,
    PermissionDeniedError,
    quoted,
)
from neurona_server.rpc.submission import Responder
from neurona_server.rpc.worker_pool import WorkerPool
from neurona_server.telemetry.trace import CallTrace

MAX_REGIONS = 1024
"""Registered regions of all callers; each holds a file or a mapping of GPU memory open."""

MAX_REGIONS_OF_TOKEN = 256
"""Regions of one token, so that it leaves some to others."""

_NAME = re.compile(r"[^\x00-\x1f\x7f]{1,255}")


class RegionKind(Enum):
    """Where the memory of a region is."""

    SYSTEM = "system"
    CUDA = "CUDA"


class Region(ABC):
    """Memory that a caller has registered: `byte_size` bytes.

    It stays open until it is unregistered and the last request that uses it has ended.

    Attributes:
        name: The caller's name for it.
        byte_size: Its size.
        memory: Identifies the memory itself, whatever the caller calls it.
    """

    kind: RegionKind

    def __init__(self, name: str, byte_size: int, memory: Hashable) -> None:
        self.name = name
        self.byte_size = byte_size
        self.memory = memory
        self.is_unregistered = False

    @property
    @abstractmethod
    def description(self) -> str:
        """What the memory is, for errors."""

    @abstractmethod
    def close(self) -> None:
        """Give the memory back to the caller, which may free it as soon as this returns."""

    @abstractmethod
    def read(self, offset: int, size: int) -> bytes | memoryview:
        """Read bytes of the region.

        Raises:
            InvalidArgumentError: They cannot be read.
        """

    @abstractmethod
    def write(self, offset: int, data: bytes | memoryview) -> None:
        """Write bytes to the region; the caller can read them as soon as this returns.

        Raises:
            InvalidArgumentError: They cannot be written.
        """


@dataclass(frozen=True)
class RegionSlice:
    """The part of a region that holds one tensor."""

    region: Region
    offset: int
    byte_size: int


class Regions:
    """The registered regions, by owner and name. Thread-safe.

    An owner is the name of a token, or "" for every caller of a server without tokens. A region
    that is unregistered while requests use it is listed until the last of them has ended: until
    then the server may write to it. No other request can use it then, and its name is free.
    """

    def __init__(self, *, enabled: bool = True) -> None:
        """Make an empty set of regions; `enabled` is the server's option `shared_memory`."""
        self.enabled = enabled
        self.closing_workers: WorkerPool | None = None
        """Threads that close regions of CUDA memory."""

        self._regions: dict[str, dict[str, Region]] = {}
        self._users: Counter[Region] = Counter()
        self._unregistered: dict[str, dict[Region, None]] = {}  # those in use, in order
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return sum(map(len, self._regions.values()))

    def hold(self, regions: Sequence[Region]) -> None:
        """Count a request that uses regions.

        Raises:
            NotFoundError: One was unregistered since it was looked up, by another transport.
        """
        with self._lock:
            for region in regions:
                if region.is_unregistered:
                    raise _missing_region(region.name)
            self._users.update(regions)

    def release(self, regions: Iterable[Region], respond: Callable[[], None]) -> None:
        """Undo what `hold` did, and close those that are unregistered and no longer used.

        Then `respond` is called: after the response their memory may be freed.
        """
        unused: list[Region] = []
        with self._lock:
            for region in regions:
                self._users[region] -= 1
                if not self._users[region]:
                    del self._users[region]
                    for owner in [*self._unregistered]:
                        if region in self._unregistered[owner]:
                            del self._unregistered[owner][region]
                            unused.append(region)
                        if not self._unregistered[owner]:
                            del self._unregistered[owner]
        self.close(unused, respond)

    def close(self, regions: Sequence[Region], respond: Callable[[], None]) -> None:
        """Close regions and then call `respond`, in a worker's thread if a driver closes some."""
        workers = self.closing_workers
        if workers is None or all(region.kind is not RegionKind.CUDA for region in regions):
            _close(regions, respond)
        else:
            workers.submit(partial(_close, regions, respond))

    def check_enabled(self) -> None:
        """Raise NotAllowedError if the server's option `shared_memory` is off."""
        if not self.enabled:
            raise NotAllowedError(
                "shared memory is off; the server's option shared_memory enables it"
            )

    def check_new(self, owner: str, name: str) -> None:
        """Check that the owner may register a region of this name now.

        Raises:
            InvalidArgumentError: The name is invalid.
            AlreadyExistsError: A region of the owner has the name already.
            NotAllowedError: Shared memory is off, or there are MAX_REGIONS already, or
                MAX_REGIONS_OF_TOKEN of the owner.
        """
        self.check_enabled()
        if not _NAME.fullmatch(name):
            raise InvalidArgumentError(
                f"the region's name is {quoted(name)} (expected 1 to 255 characters)"
            )
        own = self._regions.get(owner, {})
        if name in own:
            raise AlreadyExistsError(f"shared memory region {quoted(name)} already in manager")
        if owner and len(own) >= MAX_REGIONS_OF_TOKEN:
            raise NotAllowedError(
                "too many shared memory regions of the token "
                f"(expected at most {MAX_REGIONS_OF_TOKEN})"
            )
        if len(self) >= MAX_REGIONS:
            raise NotAllowedError(
                f"too many shared memory regions (expected at most {MAX_REGIONS})"
            )

    def register(self, owner: str, name: str, open_region: Callable[[], Region]) -> None:
        """Register the region that `open_region` returns, which is called if the name is free.

        Raises:
            PermissionDeniedError: The memory has regions of another owner.
            NeuronaError: What `check_new` and `open_region` raise.
        """
        self.check_new(owner, name)
        region = open_region()
        try:
            with self._lock:
                self.check_new(owner, name)  # again: other threads register regions, too
                self._check_owner(owner, region)
                self._regions.setdefault(owner, {})[name] = region
        except NeuronaError:
            region.close()
            raise

    def unregister(self, owner: str, kind: RegionKind, name: str) -> list[Region]:
        """Unregister the owner's region of the name and kind if there is one.

        All of this kind are, if `name` is empty.

        Returns:
            Those that no request uses, for the caller to close.
        """
        with self._lock:
            own = self._regions.get(owner, {})
            names = [name] if name else [*own]
            names = [each for each in names if each in own and own[each].kind is kind]
            regions = [own.pop(each) for each in names]
            for region in regions:
                region.is_unregistered = True
            if not own:
                self._regions.pop(owner, None)
            in_use = [region for region in regions if self._users[region]]
            for region in in_use:
                self._unregistered.setdefault(owner, {})[region] = None
        return [region for region in regions if region not in in_use]

    def select(self, owner: str, kind: RegionKind, name: str) -> Mapping[str, Region]:
        """Return the owner's region of a name and kind, or all of the kind if `name` is empty.

        Those that are unregistered and still in use are among them.

        Raises:
            NotFoundError: There is no such region.
        """
        with self._lock:
            regions = {region.name: region for region in self._unregistered.get(owner, ())}
            regions |= self._regions.get(owner, {})
        if not name:
            return {each: region for each, region in regions.items() if region.kind is kind}
        region = regions.get(name)
        if region is None:
            raise NotFoundError(
                f"Unable to find {kind.value.lower()} shared memory region: {quoted(name)}"
            )
        if region.kind is not kind:
            raise NotFoundError(
                f"The region named {quoted(name)} is registered as {region.kind.value} shared "
                f"memory, not {kind.value} shared memory"
            )
        return {name: region}

    def slice_of(self, owner: str, name: str, offset: int, byte_size: int) -> RegionSlice:
        """Return a part of the owner's region of a name.

        Raises:
            NotFoundError: There is no such region.
            InvalidArgumentError: The part is not within the region.
        """
        region = self._regions.get(owner, {}).get(name)
        if region is None:
            raise _missing_region(name)
        if offset + byte_size > region.byte_size:
            invalid = "offset" if offset >= region.byte_size else "offset + byte size"
            raise InvalidArgumentError(
                f"Invalid {invalid} for shared memory region: {quoted(name)}: "
                f"{offset} + {byte_size} (expected at most {region.byte_size})"
            )
        return RegionSlice(region, offset, byte_size)

    def _check_owner(self, owner: str, region: Region) -> None:
        others = [
            one
            for other, regions in self._regions.items()
            if other != owner
            for one in regions.values()
        ]
        others += [
            one
            for other, regions in self._unregistered.items()
            if other != owner
            for one in regions
        ]
        if any(one.memory == region.memory for one in others):
            raise PermissionDeniedError(f"{region.description} has regions of another caller")


def _missing_region(name: str) -> NotFoundError:
    return NotFoundError(f"Unable to find shared memory region: {quoted(name)}")


def _close(regions: Iterable[Region], respond: Callable[[], None]) -> None:
    for region in regions:
        region.close()
    respond()


def empty_region_error(name: str) -> InvalidArgumentError:
    """Return the error of a region without bytes, in the words of Triton."""
    return InvalidArgumentError(
        f"failed to register shared memory region {quoted(name)}: invalid args: it has 0 bytes "
        "(expected at least 1)"
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
    def arrived(self) -> float:
        return self._responder.arrived

    @property
    def defer(self) -> Defer | None:
        return self._responder.defer

    def hold(self, slices: Iterable[RegionSlice | None]) -> None:
        """Hold the regions of some tensors; those not in shared memory have None."""
        regions = [one.region for one in slices if one is not None]
        self._regions.hold(regions)
        self._held += regions

    def reply(self, response: bytes) -> None:
        self._release(partial(self._responder.reply, response))

    def fail(self, error: Exception) -> None:
        self._release(partial(self._responder.fail, error))

    def on_cancel(self, callback: Callable[[], None]) -> None:
        self._responder.on_cancel(callback)

    def _release(self, respond: Callable[[], None]) -> None:
        """Release the regions before the response, so that the caller then finds them released."""
        held, self._held = self._held, []
        self._regions.release(held, respond)
