"""ONNX Runtime as a whole: what all sessions of the process share or must agree on."""

import ctypes
import logging
import sys
import threading
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import onnxruntime

from neurona_server.errors import ConfigError

THREADS_PER_CPU = 16  # in the pools of all models: they do not spin, so all but a few sleep


log = logging.getLogger(__name__)

_SUFFIX = "ExecutionProvider"
_NEED_CUDA = ("cuda", "tensorrt", "nvtensorrtrtx")

Provider = str | tuple[str, dict[str, Any]]


def short(provider: str) -> str:
    return provider.removesuffix(_SUFFIX).lower()


def check_names(names: Sequence[str], known: Collection[str]) -> None:
    """Raises ConfigError for a name that is none of `known`, ONNX Runtime's own names."""
    shorts = sorted(map(short, known))
    for name in names:
        if name not in shorts:
            raise ConfigError(
                f"option providers has {name!r}: expected some of {', '.join(shorts)}"
            )


def choose(
    names: Sequence[str], available: Collection[str], driver: bool, gpu_memory: int
) -> list[Provider]:
    """What ONNX Runtime is given: those of `names` that it has been built with, and that can run
    here as far as can be seen from outside."""
    by_name = {short(provider): provider for provider in available}
    chosen: list[Provider] = []
    for name in dict.fromkeys(names):
        if name not in by_name or (name in _NEED_CUDA and not driver):
            continue
        options = _cuda_options(gpu_memory) if name == "cuda" else {}
        chosen.append((by_name[name], options) if options else by_name[name])
    return chosen


def _cuda_options(gpu_memory: int) -> dict[str, Any]:
    options = {
        # The default measures every algorithm anew for each shape that comes: seconds, in the
        # middle of serving.
        "cudnn_conv_algo_search": "HEURISTIC",
        # The default doubles the arena each time it grows, and never gives that back.
        "arena_extend_strategy": "kSameAsRequested",
    }
    return options | ({"gpu_mem_limit": str(gpu_memory)} if gpu_memory else {})


def explain_missing_gpu(available: Collection[str], driver: bool) -> str:
    """Why no GPU can be used, as far as can be seen from outside; "" if one could."""
    if "cuda" not in map(short, available):
        return "this onnxruntime is built without CUDA: install onnxruntime-gpu"
    if not driver:
        return "this machine has no NVIDIA driver (libcuda cannot be loaded)"
    return ""


def degraded(
    names: Sequence[str], provider: str, placement: Mapping[str, int], missing: str, expected: bool
) -> str:
    """Why a model does not run where it should; "" if it does.

    `provider` and the keys of `placement` are short names. `expected`: a GPU was asked for, or
    there is one.
    """
    if not names or names[0] == "cpu":
        return ""
    if provider == "cpu":
        why = missing if names[0] in _NEED_CUDA else ""
        reason = why or f"{names[0]} could not be started; the server's log says why"
        return f"runs on the CPU: {reason}" if expected else ""
    if on_cpu := placement.get("cpu", 0):
        return f"{on_cpu} of its {sum(placement.values())} nodes run on the CPU"
    return ""


def has_cuda_driver() -> bool:
    try:
        ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
    except OSError:
        return False
    return True


CUDA = "CUDAExecutionProvider"
CPU = "CPUExecutionProvider"
DEFAULT_PROVIDERS = ("cuda", "cpu")

_SAME_AS_REQUESTED = 1  # arena_extend_strategy: grow by what is needed, not by doubling
# y = -x for one float, as ONNX (opset 13): the smallest model that a device must run.
_PROBE = (
    b'\x08\x07:2\n\x0b\n\x01x\x12\x01y"\x03Neg\x12\x01g'
    b"Z\x0f\n\x01x\x12\n\n\x08\x08\x01\x12\x04\n\x02\x08\x01"
    b"b\x0f\n\x01y\x12\n\n\x08\x08\x01\x12\x04\n\x02\x08\x01B\x04\n\x00\x10\r"
)


@dataclass(frozen=True)
class RuntimeOptions:
    """How models are run. Sizes in bytes, times in seconds."""

    threads: int = 0
    """CPU threads of one run; 0 means the CPUs that this process may use."""
    pool_threads: int = 0
    """Threads of all sessions together, those that call them not counted; 0: no limit."""
    spinning: bool = False
    """Whether threads burn CPU for a while after a run, to be quicker at the next."""
    providers: tuple[str, ...] = DEFAULT_PROVIDERS
    """Short names of ONNX Runtime's providers; a node runs on the first that can run it."""
    gpu_expected: bool = False
    """Whether a model that runs on the CPU is degraded even where there is no driver."""
    require_gpu: bool = False
    """Whether such a model is refused."""
    gpu_memory_bytes: int = 0
    """Of each session on its GPU; 0: no limit."""
    arena: bool = True
    """Whether memory is kept between runs."""
    shrink_seconds: float = 60.0
    """How often what is kept too much is given back; 0: never."""
    cpu_memory_bytes: int = 0
    """Of the runs of all sessions together on the CPU, weights not counted, in one arena whatever
    `arena` says; 0: no limit."""
    cache: Path | None = None
    """Folder of optimised graphs."""


def runtime_version() -> str:
    version: str = onnxruntime.__version__
    return version


def check_options(options: RuntimeOptions) -> None:
    """Raises ConfigError when this ONNX Runtime, or this machine, cannot do what they say."""
    check_names(options.providers, onnxruntime.get_all_providers())
    if options.cpu_memory_bytes:
        limit_cpu_memory(options.cpu_memory_bytes)
    if options.require_gpu and (reason := probe_gpu()):
        raise ConfigError(f"option require_gpu is set, but {reason}")


def usable_providers(options: RuntimeOptions) -> list[Provider]:
    available = onnxruntime.get_available_providers()
    chosen = choose(options.providers, available, has_driver(), options.gpu_memory_bytes)
    if any(name != CPU for name in map(_name, chosen)):
        _preload_libraries()
    return chosen


def missing_gpu() -> str:
    """Why no GPU can be used, as far as can be seen from outside; "" if one could."""
    return explain_missing_gpu(onnxruntime.get_available_providers(), has_driver())


def probe_gpu() -> str:
    """Why none can be used, found out by using it; "" if one can."""
    if reason := missing_gpu():
        return reason
    _preload_libraries()
    try:
        session = onnxruntime.InferenceSession(_PROBE, providers=[CUDA, CPU], enable_fallback=0)
    except Exception as error:  # ONNX Runtime raises a class of its own for each status
        return f"CUDA could not be started: {str(error).strip().partition(chr(10))[0][:300]}"
    if session.get_providers()[0] != CUDA:
        return "CUDA could not be started: what ONNX Runtime wrote to the log says why"
    return ""


@cache
def has_driver() -> bool:
    return has_cuda_driver()


class ThreadBudget:
    """How many threads the pools of all sessions may have together.

    Each session has a pool of its own. ONNX Runtime can share one between all, but Python cannot
    keep that one from spinning: its threads burn 45 ms of CPU after each run (measured with 1.31
    on two CPUs: 5.4 ms of CPU for a run of 10 us, 100 times a second, where a pool of its own
    that does not spin takes 0.1 ms), which the transports' threads then lack. So pools are bounded
    in
    number of threads: the models that are loaded last run on their caller's thread alone.
    """

    def __init__(self, limit: int) -> None:
        self._left = limit
        self._lock = threading.Lock()

    def take(self, wanted: int) -> int:
        """Threads for one more session, 1 to `wanted`. The first of them is its caller's own, and
        costs nothing."""
        with self._lock:
            granted = max(1, min(wanted, 1 + self._left))
            self._left -= granted - 1
        return granted

    def give_back(self, granted: int) -> None:
        with self._lock:
            self._left += granted - 1


_budgets: dict[int, ThreadBudget] = {}
_sharing = threading.Lock()


def thread_budget(limit: int) -> ThreadBudget:
    """The one that all sessions with this limit share."""
    with _sharing:
        return _budgets.setdefault(limit, ThreadBudget(limit))


_limit = 0


def limit_cpu_memory(size: int) -> None:
    """Has sessions made from now on with `session.use_env_allocators` share one arena.

    Only the first call of a process counts. Raises ConfigError when a later one says otherwise.
    """
    global _limit  # noqa: PLW0603  ONNX Runtime's arena is one for the process, too
    with _sharing:
        if _limit not in (0, size):
            raise ConfigError(f"option cpu_memory_bytes is {size}, and was {_limit} before")
        if not _limit:
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
            _limit = size


@cache
def _preload_libraries() -> None:
    onnxruntime.preload_dlls()  # CUDA and cuDNN from the nvidia-* wheels


def _name(provider: Provider) -> str:
    return provider if isinstance(provider, str) else provider[0]
