"""ONNX Runtime as a whole: what all sessions of the process share or must agree on.

Providers are ONNX Runtime's execution providers. Options and messages use short names, as "cuda"
for CUDAExecutionProvider.
"""

import logging
import threading
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import onnxruntime

from neurona_server.errors import ConfigError
from neurona_server.models.onnx import devices, gpu_installation
from neurona_server.models.onnx.device_shares import DeviceShare
from neurona_server.models.onnx.devices import CPU_DEVICE, FIRST, Device, choose_devices
from neurona_server.models.onnx.gpu_facts import CUDA_PROVIDER, has_cuda_driver, runtime_packages
from neurona_server.models.onnx.gpu_installation import explain_build
from neurona_server.models.onnx.plugin_providers import plugin_names
from neurona_server.models.onnx.provider_options import ProviderOptions, cuda_options

log = logging.getLogger(__name__)

CUDA = CUDA_PROVIDER
CPU = "CPUExecutionProvider"
DEFAULT_PROVIDERS = ("cuda", "cpu")

THREADS_PER_CPU = 16
"""Threads in the pools of all models: they do not spin, so all but a few sleep."""

Provider = str | tuple[str, dict[str, Any]]
"""A provider as ONNX Runtime takes it: its name, or its name and options."""

_SUFFIX = "ExecutionProvider"
_FATAL = 4  # log_severity_level
COMPILING_PROVIDERS = {"tensorrt", "nvtensorrtrtx"}
"""Short names of those that compile a model for the shapes that it will get."""

_NEED_CUDA = ("cuda", "tensorrt", "nvtensorrtrtx")
CUDA_PROVIDERS = (CUDA, "TensorrtExecutionProvider", "NvTensorRTRTXExecutionProvider")
"""The providers that run models on a CUDA device."""

_SAME_AS_REQUESTED = 1  # arena_extend_strategy: grow by what is needed, not by doubling


@dataclass(frozen=True)
class RuntimeOptions:
    """How models are run. Sizes in bytes, times in seconds."""

    threads: int = 0
    """CPU threads of one run; 0: one for each CPU that this process may use."""

    pool_threads: int = 0
    """Threads of all sessions together, without the threads that call them; 0: no limit."""

    spinning: bool = False
    """Whether threads busy-wait for a while after a run, to be faster at the next."""

    providers: tuple[str, ...] = DEFAULT_PROVIDERS
    """Short names; a node runs on the first provider that supports it."""

    gpu_expected: bool = False
    """Whether a model that runs on the CPU is degraded even if there is no driver."""

    provider_options: ProviderOptions = field(default_factory=dict)
    """Values by the provider's short name and key, checked by `provider_options`."""

    require_gpu: bool = False
    """Whether such a model is rejected."""

    devices: str = FIRST
    """The CUDA devices that a model is loaded on: "all", or numbers or UUIDs, with commas."""

    device_share: DeviceShare = field(default_factory=DeviceShare)
    """Which of these devices this process uses."""

    gpu_memory_bytes: int = 0
    """Limit for each session on its GPU; 0: no limit."""

    arena: bool = True
    """Whether memory is kept between runs."""

    shrink_seconds: float = 60.0
    """Interval in which unused memory of arenas is freed; 0: never."""

    cpu_memory_bytes: int = 0
    """Limit for the runs of all sessions together on the CPU, without weights; 0: no limit.

    With a limit, they share one arena whatever `arena` says."""

    gpu_threads: int = 1
    """CPU threads of one run on a GPU: they only start kernels, one after the other."""

    run_method: str = "auto"
    """How batches may run on a GPU: "auto", "bound" (no CUDA graphs) or "plain"."""

    max_rows: int = 0
    """Rows of the largest batch, for providers that compile; 0: requests do not share runs."""

    cache: Path | None = None
    """Folder of optimised graphs, and of what providers compile."""


def runtime_version() -> str:
    version: str = onnxruntime.__version__
    return version


def describe_runtime() -> tuple[str, ...]:
    """Return what ONNX Runtime's behaviour may depend on: version, build and providers."""
    providers = onnxruntime.get_available_providers()
    return runtime_version(), onnxruntime.get_build_info(), ",".join(providers)


def quiet_options() -> onnxruntime.RunOptions:
    """Return options of a run whose errors are raised only.

    Logging each too, with the same text, would let callers flood the log.
    """
    options = onnxruntime.RunOptions()
    options.log_severity_level = _FATAL
    return options


def check_options(options: RuntimeOptions) -> None:
    """Check that this ONNX Runtime and this machine support the options.

    Raises:
        ConfigError: They do not.
    """
    existing = onnxruntime.get_all_providers()
    check_provider_names(options.providers, existing)
    check_provider_names([*options.provider_options], existing, "provider_options")
    if options.cpu_memory_bytes:
        limit_cpu_memory(options.cpu_memory_bytes)
    find_devices(options)
    if options.require_gpu and (reason := missing_gpu_reason(options)):
        raise ConfigError(f"option require_gpu is set, but {reason}")


def full_name(provider: Provider) -> str:
    return provider if isinstance(provider, str) else provider[0]


def options_of(provider: Provider) -> dict[str, str]:
    return {} if isinstance(provider, str) else dict(provider[1])


def short_name(provider: str) -> str:
    return provider.removesuffix(_SUFFIX).lower()


def check_provider_names(
    names: Sequence[str], providers: Collection[str], option: str = "providers"
) -> None:
    """Raise ConfigError for a short name of none of `providers`."""
    short_names = sorted(map(short_name, providers))
    for name in names:
        if name not in short_names:
            raise ConfigError(
                f"option {option} has {name!r} (expected some of {', '.join(short_names)})"
            )


def usable_providers(options: RuntimeOptions, device: int = 0) -> list[Provider]:
    """Return the providers for a session; the libraries that they need are loaded then.

    `device` is the number of the CUDA device that it is loaded on.
    """
    installed = _installed_providers(options)
    return choose_providers(options, installed, _can_use_gpu(options, device), device)


def find_devices(options: RuntimeOptions) -> tuple[Device, ...]:
    """Return the devices to load a model on: CUDA devices if a provider uses them, else the CPU.

    Of "all", those are left out that ONNX Runtime cannot run on, unless that is true of all.

    Raises:
        ConfigError: The options name a device that there is not.
    """
    providers = choose_providers(options, _installed_providers(options), _can_use_gpu(options))
    if not any(full_name(provider) in CUDA_PROVIDERS for provider in providers):
        return (CPU_DEVICE,)
    # Without any, ONNX Runtime says why when it loads the model.
    table = devices.DEVICES
    available = table.devices()
    if not available:
        return (Device("cuda"),)
    if options.devices == devices.ALL:
        working = [
            one
            for one in available
            if one.label in table.lost or not _device_problem(options, one.number)
        ]
        available = tuple(working) or available
    return options.device_share.choose(choose_devices(options.devices, available))


def choose_providers(
    options: RuntimeOptions, available: Collection[str], driver: bool, device: int = 0
) -> list[Provider]:
    """Return those of the options that are available, and whose driver works.

    Those that need CUDA use the CUDA device with the number `device`.
    """
    by_name = {short_name(provider): provider for provider in available}
    providers: list[Provider] = []
    for name in dict.fromkeys(options.providers):
        if name not in by_name or (name in _NEED_CUDA and not driver):
            continue
        values = _session_options(name, options, device)
        providers.append((by_name[name], values) if values else by_name[name])
    return providers


def missing_gpu_reason(options: RuntimeOptions | None = None, device: int | None = None) -> str:
    """Return why this process cannot use a GPU, "" if a model has run on it.

    Args:
        options: How models are run; None: the defaults.
        device: Number of the CUDA device; None: any one of the options.

    Raises:
        ConfigError: The options name a device that there is not.
    """
    options = options or RuntimeOptions()
    installed = [short_name(provider) for provider in _installed_providers(options)]
    if not needs_gpu([name for name in options.providers if name in installed]) and (
        reason := explain_build(onnxruntime.get_available_providers(), runtime_packages())
    ):
        return reason
    if reason := _device_problem(options, None):
        return reason
    if device is None:
        numbers = [one.number for one in find_devices(options) if one.kind == "cuda"]
    else:
        numbers = [device]
    reasons = []
    for number in numbers:
        if not (reason := _device_problem(options, number)):
            return ""
        reasons.append(reason)
    return reasons[0] if reasons else ""


def report_gpu(options: RuntimeOptions) -> None:
    """Log once which GPUs there are or why none can be used, if the options let models use one."""
    if not needs_gpu(options.providers[:1]):
        return
    reason = missing_gpu_reason(options)
    if not reason:
        log.info("%s", gpu_installation.describe_gpus())
        _warn_of_devices(options)
    elif options.gpu_expected or options.require_gpu or has_cuda_driver():
        log.warning("no GPU can be used: %s", reason)
    else:
        facts = gpu_installation.CHECK.facts()
        present = facts.hardware or facts.kernel_module
        log.log(logging.INFO if present else logging.DEBUG, "no GPU is used: %s", reason)


def _warn_of_devices(options: RuntimeOptions) -> None:
    """Log which of the devices that the options name cannot be used, if others can."""
    usable = devices.DEVICES.usable()
    for device in choose_devices(options.devices, usable) if usable else ():
        if reason := _device_problem(options, device.number):
            log.warning("%s is not used: %s", device.label, reason)


def needs_gpu(names: Sequence[str]) -> bool:
    """Return whether one of these providers, by short names, runs on NVIDIA's GPUs."""
    return any(name in _NEED_CUDA for name in names)


SHAPE_OPERATORS = frozenset(
    {
        *("Add", "And", "Cast", "Ceil", "Clip", "Concat", "Constant", "ConstantOfShape", "Div"),
        *("Equal", "Expand", "Floor", "Gather", "Greater", "Identity", "Less", "Max", "Min"),
        *("Mod", "Mul", "Not", "Or", "Range", "ReduceProd", "Reshape", "Shape", "Size", "Slice"),
        *("Split", "Squeeze", "Sub", "Unsqueeze", "Where"),
    }
)
"""Operators that compute sizes from sizes: ONNX Runtime runs those on the CPU on purpose, where
their few numbers are needed (GetCpuPreferredNodes in fallback_cpu_capability.cc)."""


def explain_degraded(
    names: Sequence[str],
    provider: str,
    placement: Mapping[str, int],
    missing: str,
    expected: bool,
    cpu_operators: Sequence[str] = (),
) -> str:
    """Return why a model does not run where it should, "" if it does.

    Args:
        names: Short names of the providers that the options ask for.
        provider: Short name of the provider that runs the model.
        placement: Number of nodes by short name of the provider that runs them.
        missing: Why no GPU can be used, or "".
        expected: Whether a GPU was asked for, or exists.
        cpu_operators: The operators of the nodes that run on the CPU, if they are known.
    """
    if not names or names[0] == "cpu":
        return ""
    if provider == "cpu":
        reason = missing or f"{names[0]} could not be started; see the server's log"
        return f"runs on the CPU: {reason}" if expected else ""
    if provider != names[0]:
        return f"runs on {provider}: {missing or f'{names[0]} could not be started'}"
    on_cpu = placement.get("cpu", 0)
    operators = sorted({*cpu_operators} - SHAPE_OPERATORS)
    if not on_cpu or (cpu_operators and not operators):
        return ""
    shown = f" ({', '.join(operators[:5])}{', ...' if len(operators) > 5 else ''})"
    return (
        f"{on_cpu} of its {sum(placement.values())} nodes run on the CPU"
        f"{shown if operators else ''}"
    )


class ThreadBudget:
    """Limit for the number of threads in the pools of all sessions.

    Each session has a pool of its own. ONNX Runtime can share one among all, but Python cannot
    keep that one from spinning: its threads burn 45 ms of CPU after each run (measured with 1.31
    on two CPUs: 5.4 ms of CPU for a run of 10 us, 100 times a second, where a pool of its own that
    does not spin takes 0.1 ms), which the transports' threads then lack. So the number of threads
    is limited: models that are loaded last run on their caller's thread alone.
    """

    def __init__(self, limit: int) -> None:
        self._remaining = limit
        self._lock = threading.Lock()

    def reserve(self, wanted: int) -> int:
        """Return the number of threads for one more session, 1 to `wanted`.

        The first of them is the caller's own and costs nothing.
        """
        with self._lock:
            granted = max(1, min(wanted, 1 + self._remaining))
            self._remaining -= granted - 1
        return granted

    def release(self, granted: int) -> None:
        with self._lock:
            self._remaining += granted - 1


_budgets: dict[int, ThreadBudget] = {}
_cpu_memory_limit = 0
_lock = threading.Lock()


def thread_budget(limit: int) -> ThreadBudget:
    """Return the budget that all sessions with this limit share."""
    with _lock:
        return _budgets.setdefault(limit, ThreadBudget(limit))


def limit_cpu_memory(size: int) -> None:
    """Make later sessions with `session.use_env_allocators` share an arena of `size` bytes.

    Raises:
        ConfigError: The process has a different limit already.
    """
    global _cpu_memory_limit  # noqa: PLW0603  ONNX Runtime's arena is one per process, too
    with _lock:
        if _cpu_memory_limit not in (0, size):
            raise ConfigError(
                f"option cpu_memory_bytes is {size} (expected {_cpu_memory_limit}, the limit that "
                "this process already has)"
            )
        if not _cpu_memory_limit:
            onnxruntime.create_and_register_allocator(
                onnxruntime.OrtMemoryInfo(
                    "Cpu",
                    onnxruntime.OrtAllocatorType.ORT_ARENA_ALLOCATOR,
                    0,
                    onnxruntime.OrtMemType.DEFAULT,
                ),
                onnxruntime.OrtArenaCfg(
                    {"max_mem": size, "arena_extend_strategy": _SAME_AS_REQUESTED}
                ),
            )
            _cpu_memory_limit = size


def _can_use_gpu(options: RuntimeOptions, device: int | None = None) -> bool:
    return needs_gpu(options.providers) and not _device_problem(options, device)


def _device_problem(options: RuntimeOptions, device: int | None) -> str:
    needs_cudnn = options.provider_options.get("cuda", {}).get("enable_cudnn", "1") != "0"
    return gpu_installation.CHECK.problem(device, needs_cudnn=needs_cudnn)


def _installed_providers(options: RuntimeOptions) -> list[str]:
    available = onnxruntime.get_available_providers()
    return [*available, *plugin_names(options.providers, available)]


def _session_options(name: str, options: RuntimeOptions, device: int) -> dict[str, str]:
    if name == "cuda":
        return cuda_options(options.provider_options, device, options.gpu_memory_bytes)
    values = dict(options.provider_options.get(name, {}))
    return values | ({"device_id": str(device)} if name in _NEED_CUDA else {})
