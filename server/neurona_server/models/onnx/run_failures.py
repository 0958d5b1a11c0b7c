"""What a failed run says about its device: too little memory, a lost device, or nothing.

ONNX Runtime has no error codes for these: its exceptions differ in their text only. The texts here
are those of onnxruntime-gpu 1.31.1 (core/providers/cuda/cuda_call.cc, core/framework/bfc_arena.cc)
and of the libraries that it quotes; the numbers are those of the CUDA runtime API (cudaError_t),
which HIP shares. A CUDA error that destroys the context of the process ("sticky") makes all later
calls on that device fail, from all sessions. Written from these sources: on a GPU, no device has
been lost to it yet.

An allocation of ONNX Runtime's arena that fails after such an error is reported as too little
memory, and cuBLAS and cuDNN report either as an internal error. So the driver is asked as well
whether the device still works.
"""

import re
from collections.abc import Callable
from enum import Enum, auto

from neurona_server.errors import DeviceLostError, DeviceMemoryError, NeuronaError
from neurona_server.models.onnx.cuda_driver import CudaDriverError

MAX_REASON_LENGTH = 120
"""Characters of an error's text that callers see."""

ProbeDevice = Callable[[], str]
"""Asks the driver whether a device still works: returns why it does not, "" if it does."""


class FailureKind(Enum):
    """What an exception of a run says about the run's device."""

    OUT_OF_MEMORY = auto()
    DEVICE_LOST = auto()
    DEVICE_ERROR = auto()
    """A library of the device failed: only the driver knows whether the device is lost."""


_OUT_OF_MEMORY_CODES = frozenset({2})  # cudaErrorMemoryAllocation

_LOST_CODES = frozenset(
    {
        46,  # cudaErrorDevicesUnavailable
        100,  # cudaErrorNoDevice
        101,  # cudaErrorInvalidDevice
        214,  # cudaErrorECCUncorrectable
        220,  # cudaErrorNvlinkUncorrectable
        226,  # cudaErrorContained
        700,  # cudaErrorIllegalAddress
        702,  # cudaErrorLaunchTimeout
        709,  # cudaErrorContextIsDestroyed
        710,  # cudaErrorAssert
        714,  # cudaErrorHardwareStackError
        715,  # cudaErrorIllegalInstruction
        716,  # cudaErrorMisalignedAddress
        717,  # cudaErrorInvalidAddressSpace
        718,  # cudaErrorInvalidPc
        719,  # cudaErrorLaunchFailure
        721,  # cudaErrorTensorMemoryLeak
        805,  # cudaErrorMpsConnectionFailed
        806,  # cudaErrorMpsRpcFailure
        810,  # cudaErrorMpsClientTerminated
        999,  # cudaErrorUnknown: also a GPU that has fallen off its bus
    }
)

_LIBRARY_FAILURE = re.compile(r"\b([A-Z][A-Z_]+) failure (\d+): ([^;]*)")
"""Library, number and name of an error, as "CUBLAS failure 3: CUBLAS_STATUS_ALLOC_FAILED ; ..."."""

_RUNTIMES = ("CUDA", "HIP")

_NUMBER_OF_ERROR = re.compile(
    r"\bcuda error (\d+)|cudaMallocFromPoolAsync failed[^(]*\((\d+)\)", re.IGNORECASE
)

_OUT_OF_MEMORY = re.compile(
    "|".join(
        (
            # ONNX Runtime's arena.
            "Failed to allocate memory for requested buffer of size",
            r"Available memory of \d+ is smaller than requested bytes",
            "Failed to find a free memory block despite calling Extend",
            r"\bbad[_ ]alloc",
            # TensorRT, OpenVINO on OpenCL and Level Zero, DirectML (E_OUTOFMEMORY).
            "OutOfMemory",
            r"(?i:\bout of (?:device |gpu |host )?memory\b)",
            "out of GPU resources",
            "CL_OUT_OF_(?:RESOURCES|HOST_MEMORY)",
            "CL_MEM_OBJECT_ALLOCATION_FAILURE",
            "ZE_RESULT_ERROR_OUT_OF_(?:DEVICE|HOST)_MEMORY",
            r"\b8007000E\b",
        )
    )
)

_LOST = re.compile(
    "|".join(
        (
            # cudaGetErrorString, where no number stands beside it.
            "an illegal memory access was encountered",
            "an illegal instruction was encountered",
            "unspecified launch failure",
            "uncorrectable ECC error encountered",
            "uncorrectable NVLink error",
            "device-side assert triggered",
            "ZE_RESULT_ERROR_DEVICE_LOST",
            # DXGI_ERROR_DEVICE_REMOVED, _HUNG, _RESET and _DRIVER_INTERNAL_ERROR.
            r"\b887A00(?:05|06|07|20)\b",
        )
    )
)

_DEVICE_ERROR = re.compile(
    "|".join(
        (
            "EP execution context enqueue failed",  # TensorRT and TensorRT for RTX
            "CL_(?:DEVICE_NOT_AVAILABLE|INVALID_CONTEXT|INVALID_COMMAND_QUEUE)",
        )
    )
)

_STATUS = "Status Message: "


def classify_failure(error: BaseException) -> FailureKind | None:
    """Return what an exception of ONNX Runtime or of numpy says about the device of the run.

    Args:
        error: What the run has raised.

    Returns:
        None if it says nothing about the device: the run's inputs or the model are at fault.
    """
    if isinstance(error, MemoryError):
        return FailureKind.OUT_OF_MEMORY
    if isinstance(error, CudaDriverError):  # of copies to and from the device's memory
        return _kind_of_number(error.code)
    if type(error).__name__ == "InvalidArgument":  # it quotes names and shapes of the caller
        return None
    # What stands before it has the names of nodes, which the maker of the model has chosen.
    text = str(error).rpartition(_STATUS)[2]
    kinds = {_kind_of_library(*match.groups()) for match in _LIBRARY_FAILURE.finditer(text)}
    kinds |= {
        _kind_of_number(int(match.group(1) or match.group(2)))
        for match in _NUMBER_OF_ERROR.finditer(text)
    }
    for kind, pattern in (
        (FailureKind.DEVICE_LOST, _LOST),
        (FailureKind.OUT_OF_MEMORY, _OUT_OF_MEMORY),
        (FailureKind.DEVICE_ERROR, _DEVICE_ERROR),
    ):
        if kind in kinds or pattern.search(text):
            return kind
    return None


def device_failure(
    error: BaseException, device: str, probe: ProbeDevice = lambda: ""
) -> NeuronaError | None:
    """Return the error of the server for an exception of a run, if the device is to blame.

    Args:
        error: What the run has raised.
        device: Label of the device that it ran on.
        probe: Asks the driver whether that device still works; called only if `error` leaves that
            open.

    Returns:
        A DeviceMemoryError, a DeviceLostError, or None if the device is not to blame.
    """
    kind = classify_failure(error)
    if kind is None:
        return None
    if kind is FailureKind.DEVICE_LOST:
        return DeviceLostError(device, _short_reason(error))
    if reason := probe():
        return DeviceLostError(device, reason)
    return DeviceMemoryError(device) if kind is FailureKind.OUT_OF_MEMORY else None


def memory_failure(error: BaseException, device: str) -> DeviceMemoryError | None:
    """Return the error for an exception of a run on a device that cannot be lost: the CPU."""
    out_of_memory = classify_failure(error) is FailureKind.OUT_OF_MEMORY
    return DeviceMemoryError(device) if out_of_memory else None


def is_sticky_code(code: int) -> bool:
    """Return whether an error of the CUDA driver or runtime API means that the device is lost.

    Both number these errors alike. Of the process's calls on that device none succeeds after it.
    """
    return code in _LOST_CODES


def _kind_of_library(library: str, number: str, name: str) -> FailureKind:
    if library in _RUNTIMES:
        return _kind_of_number(int(number))
    # CUBLAS_STATUS_ALLOC_FAILED, CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED and alike.
    return FailureKind.OUT_OF_MEMORY if "ALLOC" in name else FailureKind.DEVICE_ERROR


def _kind_of_number(code: int) -> FailureKind:
    if code in _OUT_OF_MEMORY_CODES:
        return FailureKind.OUT_OF_MEMORY
    return FailureKind.DEVICE_LOST if is_sticky_code(code) else FailureKind.DEVICE_ERROR


def _short_reason(error: BaseException) -> str:
    """Return the part of an error's text that names what happened to the device."""
    text = str(error).rpartition(_STATUS)[2]
    if isinstance(error, CudaDriverError):
        return f"{error.name} ({error.code})"
    if (match := _LIBRARY_FAILURE.search(text)) is not None:
        library, number, name = match.groups()
        return f"{library} error {number}: {name.strip()}"[:MAX_REASON_LENGTH]
    if (match := _LOST.search(text)) is not None:
        return match.group()
    return text.strip().partition("\n")[0][:MAX_REASON_LENGTH]
