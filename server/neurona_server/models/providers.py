"""ONNX Runtime's execution providers by short names, and whether a model has the one it should.

`cuda` is CUDAExecutionProvider, and so on.
"""

import ctypes
import sys
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from neurona_server.errors import ConfigError

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


def missing_gpu(available: Collection[str], driver: bool) -> str:
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
