"""Says in one sentence what keeps this process from using a GPU.

A GPU needs a driver that is new enough and works, a device that this process may see, the libraries
that onnxruntime-gpu was built for, and kernels for the device. ONNX Runtime reports most of what is
missing on standard error only and then runs on the CPU. Here the facts are gathered first
(gpu_facts.py) and explained; if nothing is in the way, a small model must run on the device.

Numbers of errors are those of the CUDA driver API (CUresult) and of the runtime API (cudaError),
which are the same where both have one. Versions are from NVIDIA's CUDA Toolkit Release Notes
(minimum drivers, compute capabilities) and from the onnxruntime-gpu packages. Written from these
and from messages of the real libraries on a machine without a GPU; not run on a GPU yet.
"""

import ctypes
import platform
import re
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from enum import IntEnum
from pathlib import Path

import numpy as np
import onnxruntime

from neurona_server.models.onnx.cuda_driver import (
    LIBRARY,
    LIBRARY_MISSING,
    CudaDevice,
    CudaDriverError,
)
from neurona_server.models.onnx.cuda_libraries import CudaLibrary, cuda_libraries, cudnn_version
from neurona_server.models.onnx.gpu_facts import (
    CUDA_PROVIDER,
    MIN_DRIVERS,
    InstallationFacts,
    gather_facts,
)

MIN_CAPABILITIES = {12: (5, 0), 13: (7, 5)}
"""The oldest compute capability that each major version of CUDA has libraries for."""

RECHECK_SECONDS = 60.0
"""How long a GPU that cannot be used is not tried again: memory that others hold may be freed."""


class CudaStatus(IntEnum):
    """Numbers of CUDA's errors, with its names."""

    OUT_OF_MEMORY = 2
    STUB_LIBRARY = 34
    INSUFFICIENT_DRIVER = 35
    CALL_REQUIRES_NEWER_DRIVER = 36
    DEVICE_UNAVAILABLE = 46
    NO_DEVICE = 100
    NO_BINARY_FOR_GPU = 209
    UNSUPPORTED_PTX_VERSION = 222
    OPERATING_SYSTEM = 304
    SYSTEM_NOT_READY = 802
    SYSTEM_DRIVER_MISMATCH = 803
    COMPAT_NOT_SUPPORTED_ON_DEVICE = 804
    UNKNOWN = 999


_ENABLE_GPU = (
    "expected docker run --gpus all with NVIDIA's container toolkit, or in Kubernetes its device "
    "plugin and a limit for nvidia.com/gpu"
)
_CUDA_FAILURE = re.compile(r"CUDA failure (\d+): (.+?) ;")
_KERNEL_FAILURE = re.compile(r"CUDA error (cudaError\w+): ?(.+)")
_OUT_OF_MEMORY = "Failed to allocate memory for requested buffer"  # of ONNX Runtime's arena
_MISSING_LIBRARY = re.compile(r"(lib\S+\.so[.\d]*): cannot open shared object file")
_MAX_DETAIL = 300

_RUNTIME_ERRORS = {
    "cudaErrorMemoryAllocation": CudaStatus.OUT_OF_MEMORY,
    "cudaErrorInsufficientDriver": CudaStatus.INSUFFICIENT_DRIVER,
    "cudaErrorCallRequiresNewerDriver": CudaStatus.CALL_REQUIRES_NEWER_DRIVER,
    "cudaErrorDevicesUnavailable": CudaStatus.DEVICE_UNAVAILABLE,
    "cudaErrorNoKernelImageForDevice": CudaStatus.NO_BINARY_FOR_GPU,
    "cudaErrorUnsupportedPtxVersion": CudaStatus.UNSUPPORTED_PTX_VERSION,
}
"""Errors that kernels report by the names of CUDA's runtime API alone."""

_ERRORS = 3  # severity of ONNX Runtime's log

# y = -x for one float, as ONNX (opset 13): the smallest model that a device must run.
PROBE_MODEL = (
    b'\x08\x07:2\n\x0b\n\x01x\x12\x01y"\x03Neg\x12\x01g'
    b"Z\x0f\n\x01x\x12\n\n\x08\x08\x01\x12\x04\n\x02\x08\x01"
    b"b\x0f\n\x01y\x12\n\n\x08\x08\x01\x12\x04\n\x02\x08\x01B\x04\n\x00\x10\r"
)


def explain_build(available: Iterable[str], packages: Sequence[str], machine: str = "") -> str:
    """Return why this ONNX Runtime has no CUDA, "" if it has.

    Args:
        available: Its providers.
        packages: Those that `runtime_packages` returns.
        machine: As platform.machine() returns it; by default this machine's.
    """
    if CUDA_PROVIDER in available:
        return ""
    if len(packages) > 1:
        names = " and ".join(packages)
        return (
            f"{names} are installed over each other, and the files are those of one without CUDA "
            f"(expected onnxruntime-gpu alone: pip uninstall {' '.join(packages)}, then "
            "pip install onnxruntime-gpu)"
        )
    machine = machine or platform.machine()
    if machine.lower() not in ("x86_64", "amd64"):
        return (
            "this onnxruntime is built without CUDA, and PyPI has no onnxruntime-gpu for "
            f"{machine} (expected an onnxruntime that is built with CUDA for it)"
        )
    return (
        "this onnxruntime is built without CUDA (expected onnxruntime-gpu in its place: "
        "pip uninstall onnxruntime, then pip install onnxruntime-gpu)"
    )


def explain_facts(facts: InstallationFacts, *, needs_cudnn: bool = True) -> str:
    """Return why no GPU can be used, "" if nothing is known to be in the way.

    Args:
        facts: What `gather_facts` returned.
        needs_cudnn: Whether a missing cuDNN is in the way. Without it, only models without
            convolutions and recurrent layers run, and ONNX Runtime's option enable_cudnn must be 0.
    """
    error = facts.driver_error
    if error is not None and error.code == LIBRARY_MISSING:
        return _explain_missing_driver(facts, error)
    if error is not None:
        return _explain_code(error.code, error.detail or error.name, facts)
    build = facts.cuda_build
    if build is None:
        return ""
    if facts.driver_version is not None and facts.driver_version[0] < build[0]:
        return _explain_old_driver(facts)
    too_old = [explain_device(device, build) for device in facts.devices]
    if too_old and all(too_old):
        return too_old[0]
    return _explain_libraries(facts, build[0], needs_cudnn=needs_cudnn)


def explain_device(device: CudaDevice, build: tuple[int, int]) -> str:
    """Return why a CUDA of this version cannot run on a device, "" if nothing is in the way."""
    oldest = MIN_CAPABILITIES.get(build[0])
    if oldest is None or device.compute_capability >= oldest:
        return ""
    return (
        f"{device.name} is too old: it has compute capability {_dotted(device.compute_capability)} "
        f"(expected {_dotted(oldest)} or newer, as CUDA {build[0]} needs, or an onnxruntime-gpu "
        f"for CUDA {build[0] - 1})"
    )


def explain_failure(text: str, facts: InstallationFacts, device: int = 0) -> str:
    """Return what a failed start of ONNX Runtime's CUDA provider means.

    Args:
        text: Its message.
        facts: What `gather_facts` returned.
        device: The number of the device.
    """
    code, detail = _read_error(text)
    if code:
        return _explain_code(code, detail, facts, device)
    if (match := _MISSING_LIBRARY.search(text)) and facts.cuda_build:
        by_file = {library.file: library for library in cuda_libraries(facts.cuda_build[0])}
        if library := by_file.get(match[1]):
            return _explain_missing_libraries([library], facts.cuda_build[0])
        return f"CUDA could not be started: {match[1]} is missing"
    if re.search("undefined symbol: cu[A-Z]", text):  # the driver's are named so
        return _explain_old_driver(facts)
    line = text.strip().partition("\n")[0]
    return f"CUDA could not be started: {line[:_MAX_DETAIL]}"


def _read_error(text: str) -> tuple[int, str]:
    """Return the number of CUDA's error in a message of ONNX Runtime, 0 if it has none, and text.

    Calls of CUDA report a number, kernels a name, and the arena that it has got no more memory.
    """
    if match := _CUDA_FAILURE.search(text):
        return int(match[1]), match[2]
    if match := _KERNEL_FAILURE.search(text):
        return _RUNTIME_ERRORS.get(match[1], 0), match[2]
    return CudaStatus.OUT_OF_MEMORY if _OUT_OF_MEMORY in text else 0, text


def _explain_missing_driver(facts: InstallationFacts, error: CudaDriverError) -> str:
    if error.detail and "cannot open shared object file" not in error.detail:
        return f"the NVIDIA driver's library cannot be loaded: {error.detail[:_MAX_DETAIL]}"
    if facts.container and facts.device_files:
        return (
            f"this container has the device files of a GPU, but not the driver's library {LIBRARY} "
            "(expected NVIDIA_DRIVER_CAPABILITIES=compute,utility when it is started)"
        )
    if facts.container and (facts.kernel_module or facts.hardware):
        return f"this container was started without the machine's GPU ({_ENABLE_GPU})"
    if facts.kernel_module:
        return (
            f"the NVIDIA driver's library {LIBRARY} cannot be loaded, although its kernel module "
            f"{facts.kernel_module} is (expected the library of that version in the system's path)"
        )
    if facts.hardware:
        return f"this machine has an NVIDIA GPU but no driver (expected {_driver_needed(facts)})"
    return f"this machine has no NVIDIA driver ({LIBRARY} cannot be loaded)"


def _explain_code(  # noqa: PLR0911  a case each
    code: int, detail: str, facts: InstallationFacts, device: int = 0
) -> str:
    match code:
        case CudaStatus.NO_DEVICE:
            return _explain_no_device(facts)
        case CudaStatus.SYSTEM_DRIVER_MISMATCH:
            library = f" {facts.driver_library}" if facts.driver_library else ""
            module = f" {facts.kernel_module}" if facts.kernel_module else ""
            return (
                f"the NVIDIA driver's library{library} does not fit the kernel module{module}: it "
                "was updated (expected a restart of the machine, or of the container if only the "
                "machine was restarted)"
            )
        case CudaStatus.COMPAT_NOT_SUPPORTED_ON_DEVICE:
            return (
                "CUDA's compatibility library (cuda-compat) does not support this GPU (expected "
                f"the driver's own {LIBRARY} in its place, and {_driver_needed(facts)})"
            )
        case CudaStatus.SYSTEM_NOT_READY:
            return (
                "the GPUs are not ready: this machine's NVLink switches are not set up (expected "
                "the service nvidia-fabricmanager, of the driver's version, to run)"
            )
        case CudaStatus.STUB_LIBRARY:
            return (
                f"{LIBRARY} is the CUDA toolkit's stub, not the driver (expected no folder `stubs` "
                "in LD_LIBRARY_PATH)"
            )
        case (
            CudaStatus.INSUFFICIENT_DRIVER
            | CudaStatus.CALL_REQUIRES_NEWER_DRIVER
            | CudaStatus.UNSUPPORTED_PTX_VERSION
        ):
            return _explain_old_driver(facts)
        case CudaStatus.NO_BINARY_FOR_GPU:
            return _explain_no_kernels(facts, device)
        case CudaStatus.OUT_OF_MEMORY:
            return (
                f"GPU {device} has no memory left to start CUDA: other processes use it "
                "(nvidia-smi shows them)"
            )
        case CudaStatus.DEVICE_UNAVAILABLE:
            return (
                f"GPU {device} is in use by another process and is not shared (expected nvidia-smi "
                "-c DEFAULT, the compute mode in which processes share it)"
            )
        case CudaStatus.OPERATING_SYSTEM | CudaStatus.UNKNOWN:
            hint = "read and write access to /dev/nvidia*, and the kernel module nvidia_uvm"
            return f"the NVIDIA driver does not start: {detail} (expected {hint})"
    return f"CUDA could not be started: {detail} (CUDA error {code})"


def _explain_no_device(facts: InstallationFacts) -> str:
    visible = facts.visible_devices
    if visible is not None and visible.strip() in ("", "-1", "NoDevFiles"):
        return (
            f"CUDA_VISIBLE_DEVICES is {visible!r} and hides all GPUs (expected it unset, or "
            'numbers or uuids of GPUs; to serve on the CPU on purpose, set providers = "cpu")'
        )
    if visible is not None:
        return (
            f"CUDA_VISIBLE_DEVICES is {visible!r}, which names no GPU that this process has "
            "(expected numbers or uuids that nvidia-smi -L lists)"
        )
    if facts.container and not facts.device_files:
        return f"this container was started without a GPU: it has no /dev/nvidia0 ({_ENABLE_GPU})"
    if facts.hardware and not facts.device_files:
        return (
            "this process sees no /dev/nvidia0, although the machine has an NVIDIA GPU (expected "
            "its device files: no PrivateDevices=yes in systemd's unit, or nvidia-modprobe, which "
            "makes them)"
        )
    if not facts.hardware and not facts.device_files:
        return (
            "this machine has an NVIDIA driver but no GPU (to serve on the CPU on purpose, set "
            'providers = "cpu")'
        )
    return (
        "the NVIDIA driver finds no GPU that works (expected nvidia-smi -L to list one; the "
        "kernel's log has messages that begin with NVRM)"
    )


def _explain_old_driver(facts: InstallationFacts) -> str:
    build = facts.cuda_build or (0, 0)
    has = f" {facts.kernel_module}" if facts.kernel_module else ""
    supports = f" supports CUDA {_dotted(facts.driver_version)}" if facts.driver_version else ""
    return (
        f"the NVIDIA driver{has}{supports or ' does not fit'}, and onnxruntime-gpu "
        f"{onnxruntime.__version__} needs CUDA {_dotted(build)} (expected {_driver_needed(facts)})"
    )


def _explain_no_kernels(facts: InstallationFacts, device: int) -> str:
    build = facts.cuda_build or (0, 0)
    match = next((one for one in facts.devices if one.number == device), None)
    name = match.name if match else f"GPU {device}"
    capability = f" {_dotted(match.compute_capability)}" if match else ""
    return (
        f"onnxruntime-gpu {onnxruntime.__version__} has no kernels for the compute capability"
        f"{capability} of {name} (expected an onnxruntime-gpu that is built for it; this one is "
        f"built with CUDA {_dotted(build)})"
    )


def _explain_libraries(facts: InstallationFacts, major: int, *, needs_cudnn: bool) -> str:
    missing = [
        library
        for library in facts.missing_libraries
        if not library.optional and (needs_cudnn or "cudnn" not in library.file)
    ]
    if missing:
        return _explain_missing_libraries(missing, major)
    cudnn = facts.cudnn_cuda_major
    if not needs_cudnn or cudnn in (0, major):
        return ""
    return (
        f"cuDNN is built for CUDA {cudnn}, and onnxruntime-gpu {onnxruntime.__version__} needs it "
        f"for CUDA {major} (expected pip uninstall nvidia-cudnn-cu{cudnn}, then pip install "
        f"--force-reinstall --no-deps nvidia-cudnn-cu{major}: both have the same folder)"
    )


def _explain_missing_libraries(missing: Sequence[CudaLibrary], major: int) -> str:
    files = [library.file for library in missing]
    packages = list(dict.fromkeys(library.package for library in missing))
    cudnn = any("cudnn" in file for file in files)
    needed = [f"CUDA {major}"] * (len(packages) > cudnn)
    needed += [f"cuDNN 9 for CUDA {major}"] * cudnn
    return (
        f"{_enumerate(files)} cannot be found (expected {_enumerate(needed)}: pip install "
        f"{' '.join(packages)})"
    )


def _driver_needed(facts: InstallationFacts) -> str:
    major = facts.cuda_build[0] if facts.cuda_build else max(MIN_DRIVERS)
    if major in MIN_DRIVERS:
        return f"NVIDIA driver {MIN_DRIVERS[major]} or newer"
    return f"a driver for CUDA {major}" if major else "a newer NVIDIA driver"


def _dotted(version: tuple[int, int]) -> str:
    return f"{version[0]}.{version[1]}"


def _enumerate(items: Sequence[str]) -> str:
    if len(items) < 2:
        return "".join(items)
    return f"{', '.join(items[:-1])} and {items[-1]}"


def probe_device(number: int, facts: InstallationFacts) -> str:
    """Run a model on a device; return why that fails, "" if it works."""
    # Otherwise it warns about each session on a device that no plugin provides it (1.26 and later).
    onnxruntime.set_default_logger_severity(_ERRORS)
    try:
        settings = onnxruntime.SessionOptions()
        settings.intra_op_num_threads = 1
        options = {"device_id": str(number)}
        if any("cudnn" in library.file for library in facts.missing_libraries):
            options["enable_cudnn"] = "0"  # without it, the provider does not start
        provider = (CUDA_PROVIDER, options)
        session = onnxruntime.InferenceSession(PROBE_MODEL, settings, [provider], enable_fallback=0)
        if session.get_providers()[0] != CUDA_PROVIDER:
            return explain_failure(_provider_library_error(), facts, number)
        session.disable_fallback()
        (result,) = session.run(None, {"x": np.array([3], np.float32)})
    except Exception as error:  # ONNX Runtime raises a class of its own for each status
        return explain_failure(str(error), facts, number)
    if result.tolist() != [-3]:
        return f"GPU {number} computes wrong results: -3 is {result.tolist()} there"
    return ""


def _provider_library_error() -> str:
    """Return why the CUDA provider's library cannot be loaded, once ONNX Runtime has failed to.

    Not before: loaded first by another than ONNX Runtime, the library would lack its services.
    """
    folder = Path(onnxruntime.__file__).parent / "capi"
    try:
        ctypes.CDLL(str(folder / "libonnxruntime_providers_cuda.so"))
    except OSError as error:
        return str(error)
    return "see ONNX Runtime's message in the log"


class InstallationCheck:
    """Remembers whether this process can use a GPU; looks again after a while if it cannot."""

    def __init__(
        self,
        gather: Callable[[], InstallationFacts] = gather_facts,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._gather = gather
        self._clock = clock
        self._lock = threading.Lock()
        self._facts: InstallationFacts | None = None
        self._checked = -RECHECK_SECONDS
        self._probed: dict[int, str] = {}

    def facts(self) -> InstallationFacts:
        """Return what is known; gathers it at the first call."""
        with self._lock:
            return self._get_facts()

    def problem(self, device: int | None = None, *, needs_cudnn: bool = True) -> str:
        """Return why a GPU cannot be used, "" if it can; `explain_build` is the other half.

        Args:
            device: Its number: if ONNX Runtime has CUDA, a model has run on it then. None: of any
                one, and none is tried: that takes some hundred MB of its memory.
            needs_cudnn: As for `explain_facts`.
        """
        with self._lock:
            facts = self._get_facts()
            if reason := explain_facts(facts, needs_cudnn=needs_cudnn):
                return reason
            if not facts.devices:
                return _explain_no_device(facts)
            if device is None:
                return ""
            match = next((one for one in facts.devices if one.number == device), None)
            if match is None:
                return f"there is no GPU {device}"
            return self._probe(match, facts) if facts.cuda_build is not None else ""

    def _get_facts(self) -> InstallationFacts:
        failed = self._facts is not None and (
            bool(explain_facts(self._facts)) or any(self._probed.values())
        )
        if self._facts is None or (failed and self._clock() - self._checked >= RECHECK_SECONDS):
            self._facts = self._gather()
            self._probed = {number: "" for number, text in self._probed.items() if not text}
            self._checked = self._clock()
        return self._facts

    def _probe(self, device: CudaDevice, facts: InstallationFacts) -> str:
        if device.number not in self._probed:
            too_old = explain_device(device, facts.cuda_build or (0, 0))
            self._probed[device.number] = too_old or probe_device(device.number, facts)
        return self._probed[device.number]


CHECK = InstallationCheck()
"""Of this process."""


def describe_gpus() -> str:
    """Return the GPUs, the driver and cuDNN in one line."""
    facts = CHECK.facts()
    names = [
        f"{device.number}: {device.name} (compute capability "
        f"{_dotted(device.compute_capability)}, {device.total_bytes / 2**30:.1f} GiB)"
        for device in facts.devices
    ]
    driver = _dotted(facts.driver_version) if facts.driver_version else "unknown"
    build = _dotted(facts.cuda_build) if facts.cuda_build else "none"
    return (
        f"GPUs {'; '.join(names)}; CUDA {driver} in the driver, {build} in onnxruntime "
        f"{onnxruntime.__version__}, cuDNN {cudnn_version() or 'missing'}"
    )
