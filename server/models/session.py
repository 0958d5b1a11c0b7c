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
from neurona_server.models import bfloat16
from neurona_server.models.cpus import available_cpus
from neurona_server.models.signature import TensorSpec
from neurona_server.models.zipmap import is_zipped, unzip

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
    "bfloat16": DataType.DATA_TYPE_BFLOAT16,
    "double": DataType.DATA_TYPE_DOUBLE,
    "uint32": DataType.DATA_TYPE_UINT32,
    "uint64": DataType.DATA_TYPE_UINT64,
}


_NOISE = (
    re.compile(r"^\[ONNXRuntimeError\] : \d+ : \w+ : "),
    re.compile(r"^Load model from .+? failed: ?"),
    re.compile(r"^\S+\.(?:cc|h):\d+ .*?\)(?: const)? (?=[A-Z])"),
)
_PATH = re.compile(r"(?:[A-Za-z]:)?(?:[^\s\"'/\\]*[/\\])+(?=[^\s\"'/\\])")


@dataclass(frozen=True)
class RuntimeOptions:
    threads: int = 0
    """CPU threads of one run; 0 means the CPUs that this process may use."""

    providers: tuple[str, ...] = ("cuda", "cpu")
    """What may run it, by preference; what this machine does not have is passed over."""


class Session:
    """One ONNX file, loaded on one device.

    Raises LoadError when ONNX Runtime cannot load it or a tensor cannot carry what it
    takes or gives. `provider` is the ONNX Runtime provider that really runs it.
    """

    def __init__(self, path: Path, options: RuntimeOptions) -> None:
        providers = usable_providers(options.providers)
        settings = onnxruntime.SessionOptions()
        settings.log_severity_level = 3  # errors
        settings.intra_op_num_threads = options.threads or available_cpus()
        # A thread that spins for work after a run takes the CPU from the door's thread.
        settings.add_session_config_entry("session.intra_op.allow_spinning", "0")
        try:
            self._session = onnxruntime.InferenceSession(
                os.fspath(path), sess_options=settings, providers=providers
            )
            self.properties: dict[str, str] = self._session.get_modelmeta().custom_metadata_map
        except Exception as error:  # ONNX Runtime raises a class of its own for each status
            log.info("%s: %s", path, error)
            raise LoadError(f"ONNX Runtime cannot load it: {_reason(error)}") from error
        # Without this, a failing GPU run would silently go on with a CPU session.
        self._session.disable_fallback()
        self.provider: str = self._session.get_providers()[0]
        self.inputs = [_spec("input", node) for node in self._session.get_inputs()]
        # Initialisers that are inputs too: they have a value unless a request brings another.
        self.optional = [
            _spec("input", node) for node in self._session.get_overridable_initializers()
        ]
        nodes = self._session.get_outputs()
        self._zipped = {
            index: node.name for index, node in enumerate(nodes) if is_zipped(node.type)
        }
        self.outputs = [
            TensorSpec(node.name, DataType.DATA_TYPE_FLOAT, (None, None))
            if index in self._zipped
            else _spec("output", node)
            for index, node in enumerate(nodes)
        ]
        self._bfloat16 = {
            spec.name
            for spec in [*self.inputs, *self.optional, *self.outputs]
            if spec.dtype == DataType.DATA_TYPE_BFLOAT16
        }
        self.class_labels: dict[str, tuple[str, ...]] = {}
        """By output of class probabilities that were a map: its keys, known once it has run."""

    def close(self) -> None:
        del self._session

    def run(self, inputs: Inputs) -> Outputs:
        """All outputs in the graph's order. Releases the GIL; any thread may call it."""
        return self.new_run()(inputs)

    def new_run(self) -> "SessionRun":
        return SessionRun(self)

    def run_with(self, inputs: Inputs, options: onnxruntime.RunOptions) -> Outputs:
        if not hasattr(self, "_session"):
            raise RuntimeError("the session is closed")
        if self._bfloat16:
            outputs = bfloat16.run(
                self._session, inputs, self._bfloat16, options, onnxruntime.OrtValue
            )
        else:
            outputs = self._session.run(None, inputs, options)
        for index, name in self._zipped.items():
            self.class_labels[name], outputs[index] = unzip(outputs[index])
        return outputs


class SessionRun:
    """One run that another thread can terminate: ONNX Runtime looks between two nodes."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._options = onnxruntime.RunOptions()

    def __call__(self, inputs: Inputs) -> Outputs:
        return self._session.run_with(inputs, self._options)

    def terminate(self) -> None:
        self._options.terminate = True


def usable_providers(names: Sequence[str]) -> Sequence[str]:
    """CUDA where the wheel has it and the machine has a driver; the CPU always.

    Raises LoadError when nothing of `names` is there.
    """
    usable = {"cpu": CPU}
    if "cuda" in names and CUDA in onnxruntime.get_available_providers() and _has_cuda_driver():
        onnxruntime.preload_dlls()  # CUDA and cuDNN from the nvidia-* wheels
        usable["cuda"] = CUDA
    if not (chosen := [usable[name] for name in names if name in usable]):
        raise LoadError(f"none of its providers is here: {', '.join(names)}")
    return chosen


def _has_cuda_driver() -> bool:
    try:
        ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
    except OSError:
        return False
    return True


def _reason(error: Exception) -> str:
    """What ONNX Runtime says, for a caller: without its own source lines, and without paths, so
    that who asks what is served learns no folder of the server."""
    text = str(error).strip().partition("\n")[0]
    for noise in _NOISE:
        text = noise.sub("", text)
    return _PATH.sub("…/", text)[:300]


def _spec(role: str, node: onnxruntime.NodeArg) -> TensorSpec:
    kind = node.type.removeprefix("tensor(").removesuffix(")")
    if f"tensor({kind})" != node.type or kind not in _ELEMENT_TYPES:
        raise LoadError(f"{role} {node.name!r} is {node.type}, which a tensor cannot carry")
    shape = tuple(size if isinstance(size, int | str) else None for size in node.shape)
    return TensorSpec(node.name, _ELEMENT_TYPES[kind], shape)
