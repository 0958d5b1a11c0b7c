"""ONNX Runtime: the only file that imports it."""

import ctypes
import logging
import os
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import onnxruntime

from neurona_protos.prediction_pb2 import DataType
from neurona_server.batching.request import Inputs, Outputs
from neurona_server.errors import LoadError
from neurona_server.models.signature import TensorSpec

log = logging.getLogger(__name__)

CUDA = "CUDAExecutionProvider"
CPU = "CPUExecutionProvider"

_ELEMENT_TYPES = {
    "float": DataType.DATA_TYPE_FLOAT,
    "uint8": DataType.DATA_TYPE_UINT8,
    "int8": DataType.DATA_TYPE_INT8,
    "uint16": DataType.DATA_TYPE_UINT16,
    "int16": DataType.DATA_TYPE_INT16,
    "int32": DataType.DATA_TYPE_INT32,
    "int64": DataType.DATA_TYPE_INT64,
    "string": DataType.DATA_TYPE_STRING,
    "bool": DataType.DATA_TYPE_BOOL,
    "float16": DataType.DATA_TYPE_FLOAT16,
    "double": DataType.DATA_TYPE_DOUBLE,
    "uint32": DataType.DATA_TYPE_UINT32,
    "uint64": DataType.DATA_TYPE_UINT64,
}


_PATH = re.compile(r"(?:[A-Za-z]:)?(?:[^\s\"'/\\]*[/\\])+(?=[^\s\"'/\\])")


@dataclass(frozen=True)
class RuntimeOptions:
    threads: int = 0
    """CPU threads of one run; 0 means the CPUs that this process may use."""


class Session:
    """One ONNX file, loaded on one device.

    Raises LoadError when ONNX Runtime cannot load it or a tensor cannot carry what it
    takes or gives. `provider` is the ONNX Runtime provider that really runs it.
    """

    def __init__(self, path: Path, options: RuntimeOptions) -> None:
        settings = onnxruntime.SessionOptions()
        settings.log_severity_level = 3  # errors
        settings.intra_op_num_threads = options.threads or available_cpus()
        # A thread that spins for work after a run takes the CPU from the door's thread.
        settings.add_session_config_entry("session.intra_op.allow_spinning", "0")
        try:
            self._session = onnxruntime.InferenceSession(
                os.fspath(path), sess_options=settings, providers=usable_providers()
            )
            self.properties: dict[str, str] = self._session.get_modelmeta().custom_metadata_map
        except Exception as error:  # ONNX Runtime raises a class of its own for each status
            log.info("%s: %s", path, error)
            raise LoadError(f"ONNX Runtime cannot load it: {_without_paths(error)}") from error
        # Without this, a failing GPU run would silently go on with a CPU session.
        self._session.disable_fallback()
        self.provider: str = self._session.get_providers()[0]
        self.inputs = [_spec("input", node) for node in self._session.get_inputs()]
        self.outputs = [_spec("output", node) for node in self._session.get_outputs()]

    def run(self, inputs: Inputs) -> Outputs:
        """All outputs in the graph's order. Releases the GIL; any thread may call it."""
        outputs: Outputs = self._session.run(None, inputs)
        return outputs

    def new_run(self) -> "SessionRun":
        return SessionRun(self._session)


class SessionRun:
    """One run that another thread can terminate: ONNX Runtime looks between two nodes."""

    def __init__(self, session: onnxruntime.InferenceSession) -> None:
        self._session = session
        self._options = onnxruntime.RunOptions()

    def __call__(self, inputs: Inputs) -> Outputs:
        outputs: Outputs = self._session.run(None, inputs, self._options)
        return outputs

    def terminate(self) -> None:
        self._options.terminate = True


def available_cpus() -> int:
    """The CPUs this process may run on, which under an affinity mask are not the machine's."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def usable_providers() -> Sequence[str]:
    """CUDA first where the wheel has it and the machine has a driver, then the CPU."""
    if CUDA in onnxruntime.get_available_providers() and _has_cuda_driver():
        onnxruntime.preload_dlls()  # CUDA and cuDNN from the nvidia-* wheels
        return [CUDA, CPU]
    return [CPU]


def _has_cuda_driver() -> bool:
    try:
        ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
    except OSError:
        return False
    return True


def _without_paths(error: Exception) -> str:
    """Its first line, for a caller: who asks what is served learns no folder of the server."""
    return _PATH.sub("…/", str(error).strip().partition("\n")[0])[:300]


def _spec(role: str, node: onnxruntime.NodeArg) -> TensorSpec:
    kind = node.type.removeprefix("tensor(").removesuffix(")")
    if f"tensor({kind})" != node.type or kind not in _ELEMENT_TYPES:
        raise LoadError(f"{role} {node.name!r} is {node.type}, which a tensor cannot carry")
    shape = tuple(size if isinstance(size, int | str) else None for size in node.shape)
    return TensorSpec(node.name, _ELEMENT_TYPES[kind], shape)
