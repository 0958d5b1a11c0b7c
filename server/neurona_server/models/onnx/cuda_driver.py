"""NVIDIA's driver library, called by ctypes: devices, page-locked and device memory, streams.

It is the library that each NVIDIA driver installs (libcuda.so.1, nvcuda.dll), so that no package of
CUDA is needed. Types, constants and the meaning of each call are from the CUDA driver API
(https://docs.nvidia.com/cuda/cuda-driver-api/), whose function each method names. Calls work in a
device's primary context, the one that ONNX Runtime uses too, and release the GIL. Written from the
specification and tested with a stand-in for the library; not run on a GPU yet. It is one file since
all of it is one library with one way to call it.
"""

import ctypes
import sys
import threading
import uuid as uuids
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np

LIBRARY = "nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1"

LIBRARY_MISSING = -1
"""Code of a CudaDriverError where the library cannot be loaded; CUDA's own are above zero."""

IPC_HANDLE_BYTES = 64
"""Size of a handle by which processes share device memory (CU_IPC_HANDLE_SIZE)."""

PinnedMemory = ctypes.Array[ctypes.c_ubyte]
"""Page-locked host memory: a writable buffer, as for numpy.frombuffer; `ctypes.addressof` is where.

It is freed when neither it nor an array over it is in use any more."""

HostBuffer = bytes | bytearray | memoryview | PinnedMemory | np.ndarray[Any, Any]
"""Contiguous memory of the host."""

_UUID_BYTES = 16
_NAME_BYTES = 256
_COMPUTE_CAPABILITY_MAJOR, _COMPUTE_CAPABILITY_MINOR = 75, 76  # CU_DEVICE_ATTRIBUTE_...
_PORTABLE = 1  # CU_MEMHOSTALLOC_PORTABLE: page-locked for the contexts of all devices
_LAZY_ENABLE_PEER_ACCESS = 1  # CU_IPC_MEM_LAZY_ENABLE_PEER_ACCESS, the only value allowed
_DEFAULT_STREAM = None
_NON_BLOCKING = 1  # CU_STREAM_NON_BLOCKING: does not wait for the default stream, nor that for it
_CAPTURE_RELAXED = 2  # CU_STREAM_CAPTURE_MODE_RELAXED

_INVALID_VALUE = 1  # CUDA_ERROR_INVALID_VALUE
_NOT_FOUND = 500  # CUDA_ERROR_NOT_FOUND: "named symbol not found"


class CudaDriverError(Exception):
    """A call of the driver failed.

    Attributes:
        code: CUDA's number (CUresult), or LIBRARY_MISSING.
        name: CUDA's name for it, as "CUDA_ERROR_NO_DEVICE".
        detail: What the driver or the loader of libraries says about it.
        function: The function that failed, or the library.
        version: CUDA version of the driver, where it can be had, as (13, 0).
    """

    def __init__(
        self,
        code: int,
        name: str,
        detail: str = "",
        function: str = "",
        version: tuple[int, int] | None = None,
    ) -> None:
        text = f"{function}: {name} ({code})" if function else f"{name} ({code})"
        super().__init__(f"{text}: {detail}" if detail else text)
        self.code = code
        self.name = name
        self.detail = detail
        self.function = function
        self.version = version


@dataclass(frozen=True)
class CudaDevice:
    """A device that this process may use."""

    number: int
    """As this process counts them: CUDA_VISIBLE_DEVICES hides and reorders devices."""

    name: str
    """As "NVIDIA H200"."""

    uuid: str
    """As "GPU-..." or, for a slice of a GPU, "MIG-..."; else as NVML and nvidia-smi have it."""

    total_bytes: int

    compute_capability: tuple[int, int]
    """As (9, 0): which kernels it can run."""


class _IpcHandle(ctypes.Structure):
    """CUipcMemHandle, which is passed by value."""

    _fields_ = (("reserved", ctypes.c_ubyte * IPC_HANDLE_BYTES),)


_Pointer = ctypes.c_uint64  # CUdeviceptr
_SIGNATURES: dict[str, tuple[Any, ...]] = {
    "cuInit": (ctypes.c_uint,),
    "cuDriverGetVersion": (ctypes.POINTER(ctypes.c_int),),
    "cuGetErrorName": (ctypes.c_int, ctypes.POINTER(ctypes.c_char_p)),
    "cuGetErrorString": (ctypes.c_int, ctypes.POINTER(ctypes.c_char_p)),
    "cuDeviceGetCount": (ctypes.POINTER(ctypes.c_int),),
    "cuDeviceGet": (ctypes.POINTER(ctypes.c_int), ctypes.c_int),
    "cuDeviceGetName": (ctypes.c_char_p, ctypes.c_int, ctypes.c_int),
    "cuDeviceGetUuid": (ctypes.c_char_p, ctypes.c_int),
    "cuDeviceGetUuid_v2": (ctypes.c_char_p, ctypes.c_int),
    "cuDeviceTotalMem_v2": (ctypes.POINTER(ctypes.c_size_t), ctypes.c_int),
    "cuDeviceGetAttribute": (ctypes.POINTER(ctypes.c_int), ctypes.c_int, ctypes.c_int),
    "cuDevicePrimaryCtxRetain": (ctypes.POINTER(ctypes.c_void_p), ctypes.c_int),
    "cuCtxPushCurrent_v2": (ctypes.c_void_p,),
    "cuCtxPopCurrent_v2": (ctypes.POINTER(ctypes.c_void_p),),
    "cuCtxSynchronize": (),
    "cuStreamCreate": (ctypes.POINTER(ctypes.c_void_p), ctypes.c_uint),
    "cuStreamDestroy_v2": (ctypes.c_void_p,),
    "cuStreamSynchronize": (ctypes.c_void_p,),
    "cuThreadExchangeStreamCaptureMode": (ctypes.POINTER(ctypes.c_int),),
    "cuMemGetInfo_v2": (ctypes.POINTER(ctypes.c_size_t), ctypes.POINTER(ctypes.c_size_t)),
    "cuMemAlloc_v2": (ctypes.POINTER(_Pointer), ctypes.c_size_t),
    "cuMemFree_v2": (_Pointer,),
    "cuMemHostAlloc": (ctypes.POINTER(ctypes.c_void_p), ctypes.c_size_t, ctypes.c_uint),
    "cuMemFreeHost": (ctypes.c_void_p,),
    "cuMemGetAddressRange_v2": (
        ctypes.POINTER(_Pointer),
        ctypes.POINTER(ctypes.c_size_t),
        _Pointer,
    ),
    "cuIpcGetMemHandle": (ctypes.POINTER(_IpcHandle), _Pointer),
    "cuIpcOpenMemHandle_v2": (ctypes.POINTER(_Pointer), _IpcHandle, ctypes.c_uint),
    "cuIpcCloseMemHandle": (_Pointer,),
    "cuMemcpyHtoD_v2": (_Pointer, ctypes.c_void_p, ctypes.c_size_t),
    "cuMemcpyDtoH_v2": (ctypes.c_void_p, _Pointer, ctypes.c_size_t),
    "cuMemcpyDtoD_v2": (_Pointer, _Pointer, ctypes.c_size_t),
    "cuMemcpyHtoDAsync_v2": (_Pointer, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_void_p),
    "cuMemcpyDtoHAsync_v2": (ctypes.c_void_p, _Pointer, ctypes.c_size_t, ctypes.c_void_p),
}


class DeviceMemory:
    """A range of memory on a device, given back by `close` or when it is collected."""

    def __init__(
        self,
        driver: "CudaDriver",
        number: int,
        address: int,
        nbytes: int,
        release: Callable[[], None],
    ) -> None:
        self.number = number
        """Of the device."""
        self.address = address
        self.nbytes = nbytes
        self.base = address
        """Where the allocation begins that this is in: small ones share one with others."""
        self._driver = driver
        self._release = weakref.finalize(self, release)
        # At exit the driver takes back everything itself, and its library may be unloaded by then.
        self._release.atexit = False

    @property
    def closed(self) -> bool:
        return not self._release.alive

    def close(self) -> None:
        """Give the memory back; a second call does nothing."""
        self._release()

    def read(self, offset: int, target: HostBuffer) -> None:
        """Copy the bytes from `offset` on into a writable host buffer, which they fill.

        Raises:
            ValueError: They are not all inside the memory, or it is closed.
            CudaDriverError: The copy failed.
        """
        self._check_range(offset, _as_bytes(target).size)
        self._driver.copy_to_host(self.number, target, self.address + offset)

    def write(self, offset: int, source: HostBuffer) -> None:
        """Copy a host buffer to `offset`.

        Raises:
            ValueError: It does not fit into the memory there, or that is closed.
            CudaDriverError: The copy failed.
        """
        self._check_range(offset, _as_bytes(source).size)
        self._driver.copy_from_host(self.number, self.address + offset, source)

    def _check_range(self, offset: int, nbytes: int) -> None:
        if self.closed:
            raise ValueError("device memory is closed")
        if offset < 0 or offset + nbytes > self.nbytes:
            raise ValueError(
                f"device memory of {self.nbytes} bytes has no {nbytes} bytes at offset {offset}"
            )


class CudaStream:
    """A queue of copies between the host and a device, beside what else the device does.

    For one thread at a time. It is given back when it is collected.
    """

    def __init__(
        self,
        driver: "CudaDriver",
        number: int,
        handle: ctypes.c_void_p,
        release: Callable[[], None],
    ) -> None:
        self._driver = driver
        self._number = number
        self._handle = handle
        weakref.finalize(self, release).atexit = False  # as in DeviceMemory

    def copy_in(self, copies: Sequence[tuple[int, np.ndarray[Any, Any]]]) -> None:
        """Copy contiguous arrays to addresses on the device; return when they are there."""
        self._copy(
            "cuMemcpyHtoDAsync_v2",
            [(address, array.ctypes.data, array.nbytes) for address, array in copies],
        )

    def copy_out(self, copies: Sequence[tuple[np.ndarray[Any, Any], int]]) -> None:
        """Fill contiguous arrays from addresses on the device; return when they are filled."""
        self._copy(
            "cuMemcpyDtoHAsync_v2",
            [(array.ctypes.data, address, array.nbytes) for array, address in copies],
        )

    def _copy(self, function: str, copies: Sequence[tuple[int, int, int]]) -> None:
        if not copies:
            return
        driver = self._driver
        with driver.context(self._number):
            try:
                for target, source, nbytes in copies:
                    driver._call(function, target, source, nbytes, self._handle)
            finally:  # after an error too: the arrays may be freed then
                driver._call("cuStreamSynchronize", self._handle)


class CudaDriver:
    """The driver; `load_driver` returns it. Its methods may be called in any thread.

    Devices are numbers from 0 to `device_count()` - 1. Every method raises CudaDriverError where
    the driver reports an error.
    """

    def __init__(self, library: ctypes.CDLL) -> None:
        self._library = library
        self._functions: dict[str, Any] = {}
        self._contexts: dict[int, ctypes.c_void_p] = {}
        self._thread = threading.local()

    @property
    def version(self) -> tuple[int, int]:
        """The newest CUDA version that the driver supports, as (13, 0) (cuDriverGetVersion)."""
        version = ctypes.c_int()
        self._call("cuDriverGetVersion", ctypes.byref(version))
        return version.value // 1000, version.value % 1000 // 10

    def initialize(self) -> None:
        """Start the driver for this process (cuInit); again does nothing."""
        self._call("cuInit", 0)

    def device_count(self) -> int:
        count = ctypes.c_int()
        self._call("cuDeviceGetCount", ctypes.byref(count))
        return count.value

    def device(self, number: int) -> CudaDevice:
        """Describe a device; makes no context, so it takes no memory on the device."""
        handle = self._handle(number)
        name = ctypes.create_string_buffer(_NAME_BYTES)
        self._call("cuDeviceGetName", name, _NAME_BYTES, handle)
        total = ctypes.c_size_t()
        self._call("cuDeviceTotalMem_v2", ctypes.byref(total), handle)
        capability = (
            self._attribute(_COMPUTE_CAPABILITY_MAJOR, handle),
            self._attribute(_COMPUTE_CAPABILITY_MINOR, handle),
        )
        text = name.value.decode(errors="replace")
        return CudaDevice(number, text, self._uuid(handle, text), total.value, capability)

    @contextmanager
    def context(self, number: int) -> Iterator[None]:
        """Make a device's primary context current in the calling thread, and then the one before.

        The first use of a device makes its context, which takes some hundred MB on it unless ONNX
        Runtime has made it already. It is kept until the process ends, as ONNX Runtime does.
        """
        self._call("cuCtxPushCurrent_v2", self._primary_context(number))
        try:
            self.relax_capture_mode()
            yield
        finally:
            # Its result says nothing new: after an error of the body, it may be that error again.
            function = self._function("cuCtxPopCurrent_v2")
            function(ctypes.byref(ctypes.c_void_p()))

    def relax_capture_mode(self) -> None:
        """Let the calling thread go on as usual while another one captures a CUDA graph.

        ONNX Runtime captures in the mode in which no other thread may allocate device memory, or
        copy on the default stream (CU_STREAM_CAPTURE_MODE_GLOBAL): such a call fails. In relaxed
        mode it does not, and is no part of the graph (cuThreadExchangeStreamCaptureMode). An error
        is left to the next call that is needed.
        """
        if getattr(self._thread, "relaxed", False):
            return
        function = self._function("cuThreadExchangeStreamCaptureMode")
        # CUDA 10.1 and later.
        if function is None or not function(ctypes.byref(ctypes.c_int(_CAPTURE_RELAXED))):
            self._thread.relaxed = True

    def synchronize(self, number: int) -> None:
        """Wait for all work on a device; an error of earlier work is raised here too.

        An error that destroyed the context ("sticky", as CUDA_ERROR_ILLEGAL_ADDRESS) is raised by
        this and every later call until the process ends.
        """
        with self.context(number):
            self._call("cuCtxSynchronize")

    def memory_info(self, number: int) -> tuple[int, int]:
        """Return the free bytes of a device, and all."""
        free, total = ctypes.c_size_t(), ctypes.c_size_t()
        with self.context(number):
            self._call("cuMemGetInfo_v2", ctypes.byref(free), ctypes.byref(total))
        return free.value, total.value

    def host_allocate(self, nbytes: int, number: int = 0) -> PinnedMemory:
        """Allocate page-locked host memory, which a device copies from and to by itself.

        Args:
            nbytes: Its size, above 0.
            number: A device that this process uses: the memory belongs to the device's context,
                and is page-locked for those of all other devices too (cuMemHostAlloc, portable).
        """
        address = ctypes.c_void_p()
        with self.context(number):
            self._call("cuMemHostAlloc", ctypes.byref(address), nbytes, _PORTABLE)
        memory = (ctypes.c_ubyte * nbytes).from_address(address.value or 0)
        release = weakref.finalize(memory, self._release, number, "cuMemFreeHost", address)
        release.atexit = False  # as in DeviceMemory
        return memory

    def device_allocate(self, number: int, nbytes: int) -> DeviceMemory:
        """Allocate memory on a device (cuMemAlloc)."""
        address = _Pointer()
        with self.context(number):
            self._call("cuMemAlloc_v2", ctypes.byref(address), nbytes)
        return self._memory(number, address.value, nbytes, "cuMemFree_v2")

    def new_stream(self, number: int) -> CudaStream:
        """Make a stream for copies that go on beside all other work (cuStreamCreate)."""
        handle = ctypes.c_void_p()
        with self.context(number):
            self._call("cuStreamCreate", ctypes.byref(handle), _NON_BLOCKING)
        return CudaStream(
            self, number, handle, lambda: self._release(number, "cuStreamDestroy_v2", handle)
        )

    def ipc_handle(self, memory: DeviceMemory) -> bytes:
        """Return the handle by which another process can open memory (cuIpcGetMemHandle)."""
        handle = _IpcHandle()
        with self.context(memory.number):
            self._call("cuIpcGetMemHandle", ctypes.byref(handle), memory.address)
        return bytes(handle.reserved)

    def ipc_open(self, number: int, handle: bytes) -> DeviceMemory:
        """Open device memory of another process; the process that allocated it cannot.

        Args:
            number: The device that the memory is on.
            handle: What cuIpcGetMemHandle returned there.

        Returns:
            The whole allocation: the handle says nothing of a part of it.
        """
        if len(handle) != IPC_HANDLE_BYTES:
            raise CudaDriverError(
                _INVALID_VALUE,
                "CUDA_ERROR_INVALID_VALUE",
                f"handle has {len(handle)} bytes (expected {IPC_HANDLE_BYTES})",
                "cuIpcOpenMemHandle",
            )
        address, base, nbytes = _Pointer(), _Pointer(), ctypes.c_size_t()
        with self.context(number):
            self._call(
                "cuIpcOpenMemHandle_v2",
                ctypes.byref(address),
                _IpcHandle.from_buffer_copy(handle),
                _LAZY_ENABLE_PEER_ACCESS,
            )
            memory = self._memory(number, address.value, 0, "cuIpcCloseMemHandle")
            try:
                self._call(
                    "cuMemGetAddressRange_v2",
                    ctypes.byref(base),
                    ctypes.byref(nbytes),
                    address.value,
                )
            except CudaDriverError:
                memory.close()
                raise
        memory.base, memory.nbytes = base.value, base.value + nbytes.value - address.value
        return memory

    def copy_to_host(self, number: int, target: HostBuffer, source: int) -> None:
        """Fill a writable, contiguous host buffer from an address on a device.

        Returns when the bytes are there. Nothing checks that the address is valid that far.
        """
        view = _as_bytes(target)
        if not view.flags.writeable:
            raise ValueError("buffer is read-only (expected a writable one)")
        if view.size:
            with self.context(number):
                self._call("cuMemcpyDtoH_v2", view.ctypes.data, source, view.size)

    def copy_from_host(self, number: int, target: int, source: HostBuffer) -> None:
        """Copy a contiguous host buffer to an address on a device.

        Returns when the bytes are there: the driver's own call only needs the buffer no more.
        """
        view = _as_bytes(source)
        if view.size:
            with self.context(number):
                self._call("cuMemcpyHtoD_v2", target, view.ctypes.data, view.size)
                self._call("cuStreamSynchronize", _DEFAULT_STREAM)

    def copy_on_device(self, number: int, target: int, source: int, nbytes: int) -> None:
        """Copy between two addresses on a device; returns when the bytes are there."""
        if nbytes:
            with self.context(number):
                self._call("cuMemcpyDtoD_v2", target, source, nbytes)
                self._call("cuStreamSynchronize", _DEFAULT_STREAM)

    def _memory(self, number: int, address: int, nbytes: int, function: str) -> DeviceMemory:
        pointer = _Pointer(address)
        return DeviceMemory(
            self, number, address, nbytes, lambda: self._release(number, function, pointer)
        )

    def _release(self, number: int, function: str, pointer: Any) -> None:
        try:
            with self.context(number):
                self._call(function, pointer)
        except CudaDriverError:
            pass  # the device is lost, and its memory with it

    def _primary_context(self, number: int) -> ctypes.c_void_p:
        # Without a lock: the driver has one context for each device, however many threads ask for
        # it, and may take long or never return where a device is broken.
        context = self._contexts.get(number)
        if context is None:
            context = ctypes.c_void_p()
            self._call("cuDevicePrimaryCtxRetain", ctypes.byref(context), self._handle(number))
            self._contexts[number] = context
        return context

    def _handle(self, number: int) -> int:
        handle = ctypes.c_int()
        self._call("cuDeviceGet", ctypes.byref(handle), number)
        return handle.value

    def _attribute(self, attribute: int, handle: int) -> int:
        value = ctypes.c_int()
        self._call("cuDeviceGetAttribute", ctypes.byref(value), attribute, handle)
        return value.value

    def _uuid(self, handle: int, name: str) -> str:
        content = ctypes.create_string_buffer(_UUID_BYTES)
        # The second version gives the uuid of a MIG slice, the first that of the whole GPU; drivers
        # before CUDA 11.4 have the first only.
        version = "_v2" if self._function("cuDeviceGetUuid_v2") else ""
        self._call(f"cuDeviceGetUuid{version}", content, handle)
        prefix = "MIG" if " MIG " in name else "GPU"  # as in "NVIDIA H200 MIG 1g.18gb"
        return f"{prefix}-{uuids.UUID(bytes=content.raw)}"

    def _call(self, name: str, *arguments: Any) -> None:
        function = self._function(name)
        if function is None:
            raise CudaDriverError(_NOT_FOUND, "CUDA_ERROR_NOT_FOUND", "driver too old", name)
        if code := function(*arguments):
            error, detail = self._explain(code)
            raise CudaDriverError(code, error, detail, name.partition("_v")[0])

    def _function(self, name: str) -> Any:
        try:
            return self._functions[name]
        except KeyError:
            function = getattr(self._library, name, None)
            if function is not None:
                function.argtypes = _SIGNATURES[name]
                function.restype = ctypes.c_int
            self._functions[name] = function
            return function

    def _explain(self, code: int) -> tuple[str, str]:
        texts = []
        for name in ("cuGetErrorName", "cuGetErrorString"):
            text = ctypes.c_char_p()
            function = self._function(name)
            if function is None or function(code, ctypes.byref(text)) or not text.value:
                texts.append("")
            else:
                texts.append(text.value.decode(errors="replace"))
        return texts[0] or "CUDA_ERROR", texts[1]


_drivers: dict[str, CudaDriver] = {}
_drivers_lock = threading.Lock()


def load_driver(path: str | None = None) -> CudaDriver:
    """Load and start NVIDIA's driver; the same object again for the same path.

    Args:
        path: The library; by default the system's own.

    Raises:
        CudaDriverError: There is none (code LIBRARY_MISSING), or it cannot be started: it finds no
            device (100), does not fit the kernel module (803), and so on. The error has the
            driver's version, where the driver tells it.
    """
    path = path or LIBRARY
    with _drivers_lock:
        driver = _drivers.get(path)
        if driver is None:
            try:
                driver = CudaDriver(ctypes.CDLL(path))
            except OSError as error:
                raise CudaDriverError(
                    LIBRARY_MISSING, "library missing", str(error), path
                ) from None
            _drivers[path] = driver
    try:
        driver.initialize()
    except CudaDriverError as error:
        try:
            error.version = driver.version
        except CudaDriverError:
            error.version = None
        raise
    return driver


def relax_capture_mode() -> None:
    """Call `CudaDriver.relax_capture_mode` of the system's driver, if it has been loaded."""
    if (driver := _drivers.get(LIBRARY)) is not None:
        driver.relax_capture_mode()


def _as_bytes(buffer: HostBuffer) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """Return a view of a contiguous buffer, which need not be writable."""
    if isinstance(buffer, np.ndarray) and buffer.flags.c_contiguous:
        return buffer.reshape(-1).view(np.uint8)  # also of types that have no buffer
    content: Any = buffer
    view = memoryview(content)
    return np.frombuffer(view, np.uint8) if view.nbytes else np.empty(0, np.uint8)
