"""CUDA shared memory: regions in the memory of a GPU, and the methods that register them.

A caller allocates the memory (cudaMalloc) and registers it by the handle that cudaIpcGetMemHandle
returns; the server opens it with NVIDIA's driver and copies tensors from and to it. A batch is
joined in the host's memory, so that this saves the caller a copy and the message its data, and not
the copies between host and device. Errors of the driver's calls are from the CUDA driver API.

The driver may wait for the device's other work, so no call of it is made in the transport's thread.
Written from the specification and tested with a stand-in for the driver; not run on a GPU yet.
"""

import logging
from functools import partial

import numpy as np

from neurona_protos import open_inference_pb2 as pb
from neurona_server.batching.request import Array
from neurona_server.errors import (
    DeviceMemoryError,
    InvalidArgumentError,
    NeuronaError,
    UnavailableError,
    UnsupportedError,
    quoted,
)
from neurona_server.models.onnx.bindings import CudaMemory, OutputPool
from neurona_server.models.onnx.cuda_driver import (
    IPC_HANDLE_BYTES,
    LIBRARY_MISSING,
    CudaDriver,
    CudaDriverError,
    DeviceMemory,
    load_driver,
)
from neurona_server.models.onnx.device_probe import probe_device
from neurona_server.models.onnx.devices import Device
from neurona_server.rpc.call import Call, Methods, Unary
from neurona_server.rpc.open_inference.messages import parse_message, unary_method
from neurona_server.rpc.open_inference.regions import (
    Region,
    RegionKind,
    Regions,
    empty_region_error,
)
from neurona_server.rpc.security.access import Grant, Right
from neurona_server.rpc.worker_pool import WorkerPool

log = logging.getLogger(__name__)

MIN_PINNED_BYTES = 64 << 10
"""Bytes from which on a tensor is read into page-locked memory, which the device copies to itself:
the driver copies less through a buffer of its own."""

_INVALID_VALUE = 1  # CUDA_ERROR_INVALID_VALUE: also of a copy whose memory is no longer there
_OUT_OF_MEMORY = 2  # CUDA_ERROR_OUT_OF_MEMORY
_INVALID_HANDLE = 400  # CUDA_ERROR_INVALID_HANDLE


class CudaRegion(Region):
    """Memory of a GPU that another process has allocated: its first `byte_size` bytes."""

    kind = RegionKind.CUDA

    def __init__(self, name: str, byte_size: int, memory: DeviceMemory, pool: OutputPool) -> None:
        """Make a region of `memory`, which is copied to host memory of the `pool`."""
        # The driver maps an allocation to one address, however often it is opened.
        super().__init__(name, byte_size, (memory.number, memory.base))
        self._memory = memory
        self._pool = pool
        self.device_id = memory.number

    @property
    def description(self) -> str:
        return f"the GPU memory of {quoted(self.name)}"

    @property
    def is_closed(self) -> bool:
        return self._memory.closed

    def close(self) -> None:
        self._memory.close()

    def read(self, offset: int, size: int) -> memoryview:
        """Read bytes of the region.

        Raises:
            InvalidArgumentError: The caller has freed the memory.
            UnavailableError: The device fails.
        """
        content = self._allocate(size)
        try:
            self._memory.read(offset, content)
        except CudaDriverError as error:
            raise self._explain("read", error) from error
        return content.data

    def write(self, offset: int, data: bytes | memoryview) -> None:
        """Write bytes to the region; the caller can read them as soon as this returns.

        Raises:
            InvalidArgumentError: The caller has freed the memory.
            UnavailableError: The device fails.
        """
        try:
            self._memory.write(offset, data)
        except CudaDriverError as error:
            raise self._explain("written", error) from error

    def _allocate(self, size: int) -> Array:
        if size >= MIN_PINNED_BYTES:
            try:
                return self._pool.take((size,), np.dtype(np.uint8))
            except CudaDriverError as error:
                log.debug("no page-locked memory: %s", error)
        return np.empty(size, np.uint8)

    def _explain(self, done: str, error: CudaDriverError) -> NeuronaError:
        text = f"shared memory region {quoted(self.name)} cannot be {done}: {error.name}"
        if error.code in (_INVALID_VALUE, _INVALID_HANDLE):
            return InvalidArgumentError(f"{text} (expected memory that is still allocated)")
        return UnavailableError(f"{text}: device {self.device_id} fails")


class CudaSharedMemory:
    """The methods about CUDA shared memory."""

    def __init__(self, regions: Regions) -> None:
        """Load the driver if shared memory is enabled; `regions` has the regions of all kinds."""
        self._regions = regions
        self._driver: CudaDriver | None = None
        self._device_count = 0
        self._missing = ""
        self._pools: dict[int, OutputPool] = {}  # by device
        self.workers: WorkerPool | None = None
        """Threads for the calls of the driver, and for requests that make some, if there is one.

        They serve nothing else, since a call may take until the device has ended its work, or
        never return once the device is lost."""

        if not regions.enabled:
            return
        try:
            driver = load_driver()
            self._device_count = driver.device_count()
        except CudaDriverError as error:
            if error.code == LIBRARY_MISSING:
                self._missing = "this machine has no NVIDIA driver"
            else:
                self._missing = f"the NVIDIA driver reports {error.name} ({error.code})"
                log.info("CUDA shared memory cannot be used: %s", error)
        else:
            self._driver = driver
            self.workers = regions.closing_workers = WorkerPool()

    @property
    def is_available(self) -> bool:
        """Whether callers can register regions."""
        return self._driver is not None

    def methods(self, prefix: str) -> Methods:
        return {
            prefix + "CudaSharedMemoryStatus": unary_method(
                Right.CONTROL, pb.CudaSharedMemoryStatusRequest, self._status
            ),
            prefix + "CudaSharedMemoryRegister": Unary(self._register, Right.CONTROL),
            prefix + "CudaSharedMemoryUnregister": Unary(self._unregister, Right.CONTROL),
        }

    def _status(
        self, message: pb.CudaSharedMemoryStatusRequest, grant: Grant
    ) -> pb.CudaSharedMemoryStatusResponse:
        response = pb.CudaSharedMemoryStatusResponse()
        regions = self._regions.select(grant.name, RegionKind.CUDA, message.name)
        for name, region in regions.items():
            assert isinstance(region, CudaRegion)  # noqa: S101  for the type checker
            status = response.regions[name]
            status.name = name
            status.device_id, status.byte_size = region.device_id, region.byte_size
        return response

    def _register(self, call: Call) -> None:
        try:
            message = parse_message(pb.CudaSharedMemoryRegisterRequest, call.request)
            self._regions.check_enabled()
            driver, workers = self._driver, self.workers
            if driver is None or workers is None:
                raise UnsupportedError(
                    f"CUDA shared memory is not supported: {self._missing}; system shared memory is"
                )
            self._regions.check_new(call.grant.name, message.name)
            self._check_message(message)
        except NeuronaError as error:
            call.fail(error)
        else:
            workers.submit(partial(self._register_now, driver, message, call))

    def _register_now(
        self, driver: CudaDriver, message: pb.CudaSharedMemoryRegisterRequest, call: Call
    ) -> None:
        """Open and register a region, in a worker's thread."""
        try:
            self._regions.register(
                call.grant.name, message.name, lambda: self._open_region(driver, message)
            )
        except NeuronaError as error:
            call.fail(error)
        except Exception as error:  # a bug: the caller must get an error, not wait in vain
            call.fail(error)
            raise
        else:
            call.reply(pb.CudaSharedMemoryRegisterResponse().SerializeToString())

    def _unregister(self, call: Call) -> None:
        # perf_analyzer unregisters all regions, also where there can be none.
        try:
            message = parse_message(pb.CudaSharedMemoryUnregisterRequest, call.request)
        except NeuronaError as error:
            call.fail(error)
            return
        regions = self._regions.unregister(call.grant.name, RegionKind.CUDA, message.name)
        # The caller may free its memory as soon as it has the response.
        response = pb.CudaSharedMemoryUnregisterResponse().SerializeToString()
        self._regions.close(regions, partial(call.reply, response))

    def _open_region(
        self, driver: CudaDriver, message: pb.CudaSharedMemoryRegisterRequest
    ) -> CudaRegion:
        failure = f"failed to register shared memory region {quoted(message.name)}: invalid args"
        try:
            memory = driver.ipc_open(message.device_id, message.raw_handle)
        except CudaDriverError as error:
            log.info("%s: %s", failure, error)
            device = Device("cuda", message.device_id)
            if error.code == _OUT_OF_MEMORY:  # of the context: a handle needs none
                raise DeviceMemoryError(device.label) from error
            if reason := probe_device(device):
                raise UnavailableError(
                    f"shared memory region {quoted(message.name)} cannot be opened: device "
                    f"{device.number} fails: {reason}"
                ) from error
            raise InvalidArgumentError(
                f"{failure}: its raw_handle cannot be opened: {error.name} (expected one that "
                f"cudaIpcGetMemHandle returned in another process, for memory of device "
                f"{message.device_id})"
            ) from error
        if message.byte_size > memory.nbytes:
            memory.close()  # now: the caller may free it once it has the error
            raise InvalidArgumentError(
                f"{failure}: it has {message.byte_size} bytes (expected at most {memory.nbytes}, "
                "the size of the allocation)"
            )
        number = memory.number
        pool = self._pools.setdefault(number, OutputPool(CudaMemory(driver, number)))
        return CudaRegion(message.name, message.byte_size, memory, pool)

    def _check_message(self, message: pb.CudaSharedMemoryRegisterRequest) -> None:
        name = quoted(message.name)
        if not message.byte_size:
            raise empty_region_error(message.name)
        if len(message.raw_handle) != IPC_HANDLE_BYTES:
            raise InvalidArgumentError(
                f"failed to register shared memory region {name}: invalid args: its raw_handle has "
                f"{len(message.raw_handle)} bytes (expected {IPC_HANDLE_BYTES}, a "
                "cudaIpcMemHandle_t)"
            )
        if not 0 <= message.device_id < self._device_count:
            raise InvalidArgumentError(
                f"failed to register shared memory region {name}: invalid args: its device_id is "
                f"{message.device_id} (expected 0 to {self._device_count - 1}, as the server "
                "counts its devices)"
            )
