"""One model in ONNX Runtime: this file, loading.py and runtime.py are all that imports it."""

import ctypes
import logging
import time
import weakref
from collections import Counter
from collections.abc import Callable, Mapping, Sequence, Set
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

from neurona_protos.prediction_pb2 import DataType
from neurona_server.batching.request import Array, Inputs, Outputs
from neurona_server.errors import LoadError, UnavailableError
from neurona_server.models.onnx import loading, runtime
from neurona_server.models.onnx.runtime import CPU, CUDA, RuntimeOptions
from neurona_server.models.signature import TensorSpec
from neurona_server.resources import available_cpus

log = logging.getLogger(__name__)


def run(session: Any, inputs: Inputs, bfloat16: Set[str], options: Any, value: Any) -> list[Any]:
    """ONNX Runtime's `run` for a session of which the tensors named in `bfloat16` have it.

    `value` is its OrtValue. It takes their bits with the type said beside them, but has no way to
    give them back as numpy arrays: they are read from its memory.
    """
    feeds = {
        name: value.ortvalue_from_numpy_with_onnx_type(
            np.ascontiguousarray(array), DataType.DATA_TYPE_BFLOAT16
        )
        if name in bfloat16
        else value.ortvalue_from_numpy(array)
        for name, array in inputs.items()
    }
    names = [node.name for node in session.get_outputs()]
    outputs = session.run_with_ort_values(None, feeds, options)
    return [
        _bits(output) if name in bfloat16 else output.numpy()
        for name, output in zip(names, outputs, strict=True)
    ]


def _bits(output: Any) -> Array:
    size = output.tensor_size_in_bytes()
    return np.frombuffer(ctypes.string_at(output.data_ptr(), size), np.uint16).reshape(
        output.shape()
    )


TYPES = ("seq(map(int64,tensor(float)))", "seq(map(string,tensor(float)))")


def is_zipped(kind: str) -> bool:
    """Whether an output of this ONNX type is what a ZipMap node gives."""
    return kind in TYPES


def unzip(rows: Sequence[Mapping[int | str, float]]) -> tuple[tuple[str, ...], Array]:
    """The labels, and the probabilities as float32 of shape (rows, classes).

    Every row has the same keys in the same order: the labels that the node was made with.
    """
    labels = tuple(rows[0]) if rows else ()
    values = np.array([list(row.values()) for row in rows], np.float32)
    return tuple(map(str, labels)), values.reshape(len(rows), len(labels))


class ArenaShrinker:
    """When a run should give back what its arena has too much of: at most once in `seconds`.

    An arena keeps the memory of the largest batch it ever ran: 200 MB more for a ResNet-50 after
    one batch of 32. A run that shrinks it took 85 ms in place of 75 ms, and the next one is as
    quick as ever. 0 seconds: never.
    """

    def __init__(self, seconds: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._seconds = seconds
        self._clock = clock
        self._next = clock() + seconds

    def due(self) -> bool:
        """True at most once in the time. Two threads that ask at once may both hear it."""
        if not self._seconds or (now := self._clock()) < self._next:
            return False
        self._next = now + self._seconds
        return True

    def stop(self) -> None:
        self._seconds = 0.0


def give_back() -> None:
    """Has the C library return what is free inside its heap, where it can.

    glibc keeps it: after unloading a transformer of 38 MB, 50 MB stayed. Takes milliseconds,
    without the GIL.
    """
    if _trim is not None:
        _trim(0)


def _find_trim() -> Callable[[int], int] | None:
    try:
        return ctypes.CDLL(None).malloc_trim
    except (AttributeError, OSError, TypeError):  # not glibc; or Windows
        return None


_trim = _find_trim()

__all__ = ["CPU", "CUDA", "RuntimeOptions", "Session", "SessionRun"]


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
_FATAL = 4
_SHRINK = "memory.enable_memory_arena_shrinkage"


class Session:
    """One ONNX file, loaded on one device.

    Raises LoadError when it is no model, when ONNX Runtime cannot load it, or when a tensor
    cannot carry what it takes or gives. `provider` is the ONNX Runtime provider that really runs
    it, `placement` how many nodes it gave to each (before it fused some; empty before onnxruntime
    1.24, which does not tell), `degraded` why that is not what should be, or "".
    """

    def __init__(self, path: Path, options: RuntimeOptions) -> None:
        self._give_back: weakref.finalize[[int], Session] | None = None
        threads = self._take_threads(path, options)
        session = loading.load(path, options, threads)
        self._session: onnxruntime.InferenceSession | None = session
        # Without this, a failing GPU run would silently go on with a CPU session.
        session.disable_fallback()
        self.properties: dict[str, str] = session.get_modelmeta().custom_metadata_map
        self.provider: str = session.get_providers()[0]
        self.placement = _placement(session)
        self.degraded = _degraded(options, self.provider, self.placement)
        if options.require_gpu and self.degraded and self.provider == CPU:
            raise LoadError(f"{self.degraded}, and require_gpu is set")
        self.inputs = [_spec("input", node) for node in session.get_inputs()]
        # Initialisers that are inputs too: they have a value unless a request brings another.
        self.optional = [_spec("input", node) for node in session.get_overridable_initializers()]
        nodes = session.get_outputs()
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
        self._shrinking = ArenaShrinker(options.shrink_seconds if options.arena else 0.0)
        self._arenas = "cpu:0" if self.provider == CPU else "cpu:0;gpu:0"

    def run(self, inputs: Inputs) -> Outputs:
        """All outputs in the graph's order. Releases the GIL; any thread may call it."""
        return self.new_run()(inputs)

    def new_run(self) -> "SessionRun":
        return SessionRun(self)

    def run_with_options(self, inputs: Inputs, options: onnxruntime.RunOptions) -> Outputs:
        """Raises UnavailableError after `close`."""
        session = self._session
        if session is None:
            raise UnavailableError("the model has been unloaded")
        if self._shrinking.due():
            options.add_run_config_entry(_SHRINK, self._arenas)
        try:
            outputs = self._run(session, inputs, options)
        except Exception as error:
            # Said before anything ran. Not every provider has an arena.
            if "Did not find an arena" not in str(error):
                raise
            self._shrinking.stop()
            options.add_run_config_entry(_SHRINK, "")
            outputs = self._run(session, inputs, options)
        for index, name in self._zipped.items():
            self.class_labels[name], outputs[index] = unzip(outputs[index])
        return outputs

    def _take_threads(self, path: Path, options: RuntimeOptions) -> int:
        wanted = options.threads or available_cpus()
        if not options.pool_threads:
            return wanted
        budget = runtime.thread_budget(options.pool_threads)
        threads = budget.take(wanted)
        # Also when loading fails, and for who forgets to close.
        self._give_back = weakref.finalize(self, budget.give_back, threads)
        if threads < wanted:
            log.info(
                "%s: %d CPU threads, not %d: other models have the rest", path, threads, wanted
            )
        return threads

    def _run(
        self,
        session: onnxruntime.InferenceSession,
        inputs: Inputs,
        options: onnxruntime.RunOptions,
    ) -> list[Any]:
        if self._bfloat16:
            return run(session, inputs, self._bfloat16, options, onnxruntime.OrtValue)
        outputs: list[Any] = session.run(None, inputs, options)
        return outputs

    def close(self) -> None:
        """Frees the model; may be called again. A run that is under way ends well, and its memory
        is freed after it; later ones raise UnavailableError."""
        self._session = None
        if self._give_back is not None:
            self._give_back()
        give_back()


class SessionRun:
    """One run that another thread can terminate: ONNX Runtime looks between two nodes."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._options = onnxruntime.RunOptions()
        # What fails is raised, with the same words; a line for each would be a caller's to fill
        # the log with.
        self._options.log_severity_level = _FATAL

    def __call__(self, inputs: Inputs) -> Outputs:
        return self._session.run_with_options(inputs, self._options)

    def terminate(self) -> None:
        self._options.terminate = True


def _placement(session: onnxruntime.InferenceSession) -> dict[str, int]:
    tell = getattr(session, "get_provider_graph_assignment_info", None)
    if tell is None:
        return {}
    nodes: Counter[str] = Counter()
    for subgraph in tell():
        nodes[subgraph.ep_name] += len(subgraph.get_nodes())
    return dict(nodes)


def _degraded(options: RuntimeOptions, provider: str, placement: dict[str, int]) -> str:
    missing = runtime.missing_gpu()
    return runtime.degraded(
        options.providers,
        runtime.short(provider),
        {runtime.short(name): count for name, count in placement.items()},
        missing,
        options.gpu_expected or options.require_gpu or runtime.has_driver(),
    )


def _spec(role: str, node: onnxruntime.NodeArg) -> TensorSpec:
    kind = node.type.removeprefix("tensor(").removesuffix(")")
    if f"tensor({kind})" != node.type or kind not in _ELEMENT_TYPES:
        raise LoadError(f"{role} {node.name!r} is {node.type}, which a tensor cannot carry")
    shape = tuple(size if isinstance(size, int | str) else None for size in node.shape)
    return TensorSpec(node.name, _ELEMENT_TYPES[kind], shape)
