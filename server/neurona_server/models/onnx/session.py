"""A session: one model file loaded in ONNX Runtime, and its runs.

It is one file since all ways to run a session share its state and its rules for errors.
"""

import logging
import re
import threading
import time
import weakref
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

from neurona_protos.prediction_pb2 import DataType
from neurona_protos.tensors import NUMPY_DTYPES
from neurona_server.batching.request import Array, Inputs, Outputs
from neurona_server.errors import (
    DeviceLostError,
    InvalidArgumentError,
    LoadError,
    NeuronaError,
    UnavailableError,
)
from neurona_server.models.load_cancellation import LoadCancellation
from neurona_server.models.onnx import byte_strings, loading, run_choice, run_failures, runtime
from neurona_server.models.onnx.bindings import find_memory
from neurona_server.models.onnx.class_ranker import ClassRanker
from neurona_server.models.onnx.cuda_driver import relax_capture_mode
from neurona_server.models.onnx.device_probe import probe_device
from neurona_server.models.onnx.devices import CPU_DEVICE, CUDA_SLOTS, Device
from neurona_server.models.onnx.engine_cache import EngineFolder
from neurona_server.models.onnx.gpu_facts import has_cuda_driver
from neurona_server.models.onnx.run_methods import MakeInputs, RunMethods, RunSlot
from neurona_server.models.onnx.runtime import CPU, Provider, RuntimeOptions
from neurona_server.models.onnx.sequence_session import SequenceAdapter, SequenceGraph
from neurona_server.models.signature import TensorSpec
from neurona_server.resources import available_cpus, trim_heap
from neurona_server.sequences.form import LENGTHS, STATE, SequenceForm
from neurona_server.telemetry.run_journal import JournalEntry

log = logging.getLogger(__name__)

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
_ZIPMAP_TYPES = ("seq(map(int64,tensor(float)))", "seq(map(string,tensor(float)))")
_SHRINK_ARENAS = "memory.enable_memory_arena_shrinkage"
_NO_ARENA = "Did not find an arena"
_WRONG_LENGTHS = re.compile(
    r"Invalid value/s in sequence_lens\..*|Invalid sequence length: -?\d+\. Value must be .*"
)


_open_sessions: "weakref.WeakSet[Session]" = weakref.WeakSet()
_open_sessions_lock = threading.Lock()

_abandoned_sessions: list[object] = []
"""What sessions on lost devices hold, which is kept until the process ends."""


class ArenaShrinker:
    """Decides when a session returns unused memory of its arena: once per interval, after runs.

    An arena keeps the memory of the largest batch that it ever ran: 200 MB more for a ResNet-50
    after one batch of 32. To return 600 MB took 60 ms, during which no other run can allocate; so
    `Session.shrink_arena`, which another thread calls, does that while no run is in flight. If one
    is, the next run does it at its end. An interval of 0 seconds means never.
    """

    def __init__(self, seconds: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._seconds = seconds
        self._clock = clock
        self._next = clock() + seconds
        self._used = self._postponed = False

    def is_due_in_run(self) -> bool:
        """Return whether the run that begins now is to shrink the arena."""
        self._used = True
        if not self._postponed:
            return False
        self._postponed = False
        return True

    def is_due(self, *, running: bool) -> bool:
        """Return True once per interval in which there were runs; if one is `running`, postpone it.

        For one thread only.
        """
        if not (self._seconds and self._used) or (now := self._clock()) < self._next:
            return False
        self._next = now + self._seconds
        self._postponed = running
        self._used = running
        return not running

    def stop(self) -> None:
        self._seconds = 0.0
        self._postponed = False


class Session:
    """One ONNX file, loaded on one device.

    Attributes:
        provider: The ONNX Runtime provider that runs the model.
        device: Where it runs: the one that it was to be loaded on, or the CPU.
        slots: Runs that it can have in flight at once. On a GPU the copies of one batch overlap the
            run of the other; on the CPU each run has all threads.
        placement: Number of nodes by provider, before some were fused; empty for versions of
            onnxruntime before 1.24, which do not report it.
        degraded: Why the model does not run where it should, or "".
        properties: The metadata of the file.
        outline: What the file contains.
        inputs: Specifications of the required inputs.
        optional: Specifications of the initialisers that a request may override.
        outputs: Specifications of the outputs.
        journal: Where runs are written, if the process has a supervisor.
        class_labels: For each output of class probabilities that was a map (ZipMap), its keys,
            as soon as it has run once.

    Raises:
        LoadError: The file is not a model, ONNX Runtime cannot load it, or an input or output
            is not a tensor.
    """

    def __init__(
        self,
        path: Path,
        options: RuntimeOptions,
        cancellation: LoadCancellation | None = None,
        device: Device | None = None,
    ) -> None:
        """Load the file.

        Args:
            path: The file.
            options: How it is run.
            cancellation: Ends this early.
            device: The CUDA device to load it on, if a provider uses one; None: the first.
        """
        device = device or Device("cuda")
        self.journal: JournalEntry | None = None
        self._methods: RunMethods | None = None
        relax_capture_mode()  # other models may capture CUDA graphs while this one is loaded
        self._path, self._options = path, options
        self._lost_error: DeviceLostError | None = None
        self._engines: EngineFolder | None = None
        self._release_threads: weakref.finalize[[int], Session] | None = None
        threads = self._threads = self._reserve_threads(path, options)
        session, outline, problem, self._engines = loading.load(
            path, options, threads, cancellation or LoadCancellation(), device.number
        )
        self._session: onnxruntime.InferenceSession | None = session
        # Otherwise a failing run on a GPU would silently create a session on the CPU.
        session.disable_fallback()
        self.properties: dict[str, str] = session.get_modelmeta().custom_metadata_map
        self.provider: str = session.get_providers()[0]
        self.device = device if self.provider in runtime.CUDA_PROVIDERS else CPU_DEVICE
        if self.device.kind != "cpu":
            self._give_up_threads()  # of a pool that it does not have
        self.slots = 1 if self.device.kind == "cpu" else CUDA_SLOTS
        self._prepare_thread = relax_capture_mode  # before each run on a GPU
        self._run_slots = [RunSlot() for _ in range(self.slots)]
        self.placement = _placement(session)
        self.degraded = _explain_degraded(options, session, self.placement, problem, device.number)
        if options.require_gpu and self.degraded and self.provider == CPU:
            raise LoadError(f"{self.degraded}, and require_gpu is set")
        unknown = outline.without_shape
        self._recurrent = outline.recurrent
        self.outline = outline
        self._sequences: SequenceAdapter | None = None
        # On a GPU, where the file's session has methods of its own for what it can run.
        self._sequence_session: onnxruntime.InferenceSession | None = None
        self.inputs = [_tensor_spec("input", node, unknown) for node in session.get_inputs()]
        self.optional = [
            _tensor_spec("input", node, ()) for node in session.get_overridable_initializers()
        ]
        nodes = session.get_outputs()
        self._zipmaps = {
            index: node.name for index, node in enumerate(nodes) if node.type in _ZIPMAP_TYPES
        }
        self.outputs = [
            TensorSpec(node.name, DataType.DATA_TYPE_FLOAT, (None, None))
            if index in self._zipmaps
            else _tensor_spec("output", node, unknown)
            for index, node in enumerate(nodes)
        ]
        self._bfloat16 = {
            spec.name
            for spec in [*self.inputs, *self.optional, *self.outputs]
            if spec.dtype == DataType.DATA_TYPE_BFLOAT16
        }
        self.class_labels: dict[str, tuple[str, ...]] = {}
        self._ranker: ClassRanker | None = None
        self._shrinker = ArenaShrinker(options.shrink_seconds if options.arena else 0.0)
        self._runs_in_flight: list[None] = []  # an element for each: append and pop are atomic
        self._arenas = "cpu:0" if self.provider == CPU else f"cpu:0;gpu:{self.device.number}"
        with _open_sessions_lock:
            _open_sessions.add(self)

    def run(self, inputs: Inputs) -> Outputs:
        """Return all outputs in the graph's order. Releases the GIL; any thread may call it."""
        return self.new_run()(inputs)

    def new_run(self) -> "SessionRun":
        """Return a run that another thread can terminate."""
        return SessionRun(self)

    def runs_of_slots(self) -> list[Callable[[], "SessionRun"]]:
        """Return, for each slot, what makes its runs; on a GPU one at a time may go on in each."""
        if self.device.kind == "cpu":
            return [self.new_run]
        return [partial(SlotRun, self, slot) for slot in self._run_slots]

    @property
    def run_method(self) -> str:
        """How batches run: "plain", or by the number of rows as `RunMethods.describe` returns."""
        methods = self._methods
        return "plain" if methods is None else methods.describe()

    @property
    def binds_inputs(self) -> bool:
        """Whether there may be memory that the inputs of a slot's run are to be joined in."""
        return self._methods is not None

    def choose_methods(
        self, sizes: Sequence[int], make_inputs: MakeInputs, cancellation: LoadCancellation
    ) -> None:
        """Measure in which way batches run fastest on a GPU, before serving.

        Args:
            sizes: The numbers of rows to measure, in ascending order.
            make_inputs: Makes inputs for them that the model accepts.
            cancellation: Ends this early.

        Raises:
            DeviceLostError: The device does not work any more.
            LoadError: It was cancelled.
        """
        session = self._session
        if self._options.run_method == "plain":
            return
        if session is None or (memory := find_memory(self.device)) is None:
            return
        if self._sequences is not None and self._sequence_session is None:
            return  # a rewritten graph has inputs that methods do not know
        self._prepare_thread = memory.prepare_thread
        zipmaps = self._zipmaps.values()
        candidate = run_choice.Candidate(
            session=session,
            path=self._path,
            options=self._options,
            device=self.device,
            specs=[spec for spec in (*self.inputs, *self.outputs) if spec.name not in zipmaps],
            plain=self.run_with_options,
            slots=self._run_slots,
        )
        with self._explain_failures():
            self._methods = run_choice.choose(candidate, memory, sizes, make_inputs, cancellation)

    def reserve_inputs(self, slot: RunSlot, shapes: Mapping[str, tuple[int, ...]]) -> Inputs | None:
        """Return arrays to write the inputs of the slot's next run into; None if any will do."""
        if (methods := self._methods) is None or self._lost_error is not None:
            return None
        try:
            return methods.reserve(slot, shapes)
        except Exception as error:  # the run itself shows whether the device is to blame
            log.debug("inputs are joined in other memory: %s", error)
            return None

    def run_in_slot(
        self,
        slot: RunSlot,
        inputs: Inputs,
        options: onnxruntime.RunOptions,
        ranked_count: int = 0,
    ) -> Outputs:
        """Run as `run_with_options` does, on a GPU, in the fastest way that is possible."""
        with self._explain_failures():
            return self._run_in_slot(slot, inputs, options, ranked_count)

    def _run_in_slot(
        self,
        slot: RunSlot,
        inputs: Inputs,
        options: onnxruntime.RunOptions,
        ranked_count: int,
    ) -> Outputs:
        self._prepare_thread()
        methods = self._methods
        ranker = self._ranker if ranked_count else None  # of outputs that ONNX Runtime allocates
        if (
            methods is None
            or (ranker is not None and not ranker.failed)
            or self._session is None
            or self._lost_error is not None
            or (self._sequences is not None and (LENGTHS in inputs or STATE in inputs))
        ):
            return self.run_with_options(inputs, options, ranked_count)
        if self._recurrent:
            _check_not_empty(inputs)
        if self._shrinker.is_due_in_run():  # at the end of a run in the ordinary way
            options.add_run_config_entry(_SHRINK_ARENAS, self._arenas)
            return self.run_with_options(inputs, options)
        self._runs_in_flight.append(None)
        try:
            return methods.run(slot, inputs, options)
        finally:
            self._runs_in_flight.pop()

    @property
    def runs_sequences(self) -> bool:
        """Whether runs accept LENGTHS and STATE: see `use_sequence_graph`."""
        return self._sequences is not None

    def open_trace(
        self, content: bytes, cancellation: LoadCancellation
    ) -> Callable[[Inputs], Outputs]:
        """Load a graph that was made of the file on the CPU, and return what runs it.

        Its nodes are run as they are, so that the outputs of all of them can be asked for.

        Raises:
            LoadError: It was cancelled.
            Exception: ONNX Runtime cannot load it.
        """
        options = replace(self._options, providers=("cpu",))
        session = loading.load_content(
            self._path, content, self.outline, options, 1, cancellation, [CPU], optimised=False
        )

        def run(inputs: Inputs) -> Outputs:
            outputs: Outputs = session.run(None, inputs, runtime.quiet_options())
            return outputs

        return run

    def open_sequence_graph(
        self,
        content: bytes,
        form: SequenceForm,
        cancellation: LoadCancellation,
        *,
        on_cpu: bool = False,
    ) -> SequenceGraph:
        """Load a graph that the file was rewritten to.

        Args:
            content: The graph.
            form: What it takes.
            cancellation: Ends this early.
            on_cpu: Whether to load it on the CPU, and not on the session's device.

        Raises:
            LoadError: It was cancelled.
            Exception: ONNX Runtime cannot load it.
        """
        options, providers = self._options, list[Provider]([CPU])
        if on_cpu:
            options = replace(options, providers=("cpu",))
        elif self.provider != CPU:
            providers = [
                one
                for one in runtime.usable_providers(options, self.device.number)
                if runtime.full_name(one) in (self.provider, CPU)
            ]
        session = loading.load_content(
            self._path, content, self.outline, options, self._threads, cancellation, providers
        )
        return SequenceGraph(session, form)

    def use_sequence_graph(
        self,
        content: bytes,
        form: SequenceForm,
        opened: SequenceGraph | None = None,
        cancellation: LoadCancellation | None = None,
    ) -> None:
        """Run a graph that the file was rewritten to in place of the file's, whose memory is freed.

        On a GPU the file's graph stays, for runs that the rewritten one is not needed for: its
        buffers and CUDA graphs make short runs faster. From then on runs also accept LENGTHS and
        STATE as inputs; with STATE they return the next state as one more output, the last.

        Args:
            content: The graph, which runs have proved to give the same answers.
            form: What it takes.
            opened: The same from `open_sequence_graph`, if it is loaded already.
            cancellation: Ends this early.

        Raises:
            UnavailableError: The session is closed.
            LoadError: It was cancelled.
            Exception: ONNX Runtime cannot load it.
        """
        if self._session is None:
            raise self._lost_error or UnavailableError("the model has been unloaded")
        if opened is None:
            opened = self.open_sequence_graph(content, form, cancellation or LoadCancellation())
        if self.device.kind == "cpu":
            self._session = opened.session
        else:
            self._sequence_session = opened.session
        self._sequences = opened.adapter
        trim_heap()

    def open_ranker(self, index: int, *, logits: bool) -> None:
        """Make runs able to rank the output at an index on the device.

        Raises:
            LoadError: The device does not.
            Exception: What ONNX Runtime raises.
        """
        dtype, number = self.outputs[index].dtype, self.device.number
        if self.provider == CPU:
            self._ranker = ClassRanker(index, dtype, CPU, "cpu", 0, logits=logits)
            return
        options = {"device_id": str(number), "arena_extend_strategy": "kSameAsRequested"}
        provider = (runtime.CUDA, options)  # whichever of CUDA's providers runs the model
        self._ranker = ClassRanker(index, dtype, provider, "cuda", number, logits=logits)

    def close_ranker(self) -> None:
        """Undo what `open_ranker` did."""
        self._ranker = None

    def run_with_options(
        self, inputs: Inputs, options: onnxruntime.RunOptions, ranked_count: int = 0
    ) -> Outputs:
        """Run as `run` does, with options of ONNX Runtime.

        With a `ranked_count`, the output that `open_ranker` was called for may be RankedRows with
        so many classes.

        Raises:
            DeviceMemoryError: The device has too little memory for the run.
            DeviceLostError: The device does not work any more.
            InvalidArgumentError: The model has recurrent nodes, and an input no values or
                impossible lengths.
            UnavailableError: The session is closed.
        """
        session = self._session
        if session is None:
            raise self._lost_error or UnavailableError("the model has been unloaded")
        if self._recurrent:
            _check_not_empty(inputs)
        if self._shrinker.is_due_in_run():
            options.add_run_config_entry(_SHRINK_ARENAS, self._arenas)
        self._runs_in_flight.append(None)
        try:
            outputs = self._run(session, inputs, options, ranked_count)
        except Exception as error:
            if problem := _WRONG_LENGTHS.search(str(error)):
                raise InvalidArgumentError(
                    f"the model failed on the lengths of sequences: {problem[0]}"
                ) from error
            # Raised before the run, by providers without an arena.
            if _NO_ARENA not in str(error):
                if failure := self._device_failure(error):
                    raise failure from error
                raise
            self._shrinker.stop()
            options.add_run_config_entry(_SHRINK_ARENAS, "")
            outputs = self._run(session, inputs, options, ranked_count)
        finally:
            self._runs_in_flight.pop()
        for index, name in self._zipmaps.items():
            self.class_labels[name], outputs[index] = _unzip(outputs[index])
        return outputs

    def shrink_arena(self) -> bool:
        """Return unused memory of the arena to the system if that is due and no run is in flight.

        For one thread only, other than those that run the model.

        Returns:
            Whether memory may have been returned.
        """
        if self._session is None or not self._shrinker.is_due(running=bool(self._runs_in_flight)):
            return False
        return self.free_memory()

    def free_memory(self) -> bool:
        """Return unused memory of the arena to the system now. Any thread may call it.

        Runs that are in flight wait with their allocations meanwhile.

        Returns:
            Whether memory may have been returned.
        """
        session = self._session
        if session is None:
            return False
        relax_capture_mode()  # memory of the device is freed, perhaps beside a capture
        # ONNX Runtime shrinks arenas at the end of a run only. A run that is terminated before it
        # begins ends at once, whatever the model and its inputs are.
        options = runtime.quiet_options()
        options.add_run_config_entry(_SHRINK_ARENAS, self._arenas)
        options.terminate = True
        zeros = {spec.name: _zeros(spec) for spec in self.inputs}
        try:
            self._run(session, zeros, options)
        except Exception as error:
            if _NO_ARENA in str(error):
                self._shrinker.stop()
                return False
        if (other := self._sequence_session) is not None and self._sequences is not None:
            with suppress(Exception):
                self._sequences.run(other, zeros, options)
        return True

    def free_device_memory(self) -> None:
        """Return unused memory of the arenas of all models on this session's device."""
        with _open_sessions_lock:
            sessions = [one for one in _open_sessions if one.device == self.device]
        for session in sessions:
            session.free_memory()
        trim_heap()

    def close(self) -> None:
        """Free the model; may be called again.

        A run that is in flight completes, and its memory is freed after it.
        """
        relax_capture_mode()  # memory of the device is freed, perhaps beside a capture
        # Freed, unless they were abandoned.
        self._session = self._sequence_session = self._methods = self._ranker = None
        if self._lost_error is None:
            for slot in self._run_slots:
                slot.buffers.clear()
        self._give_up_threads()
        self.keep_engines()
        trim_heap()

    def keep_engines(self) -> None:
        """Keep what the provider has compiled in the runs so far for later loads."""
        if self._engines is not None:
            self._engines.seal()

    def _give_up_threads(self) -> None:
        if self._release_threads is not None:
            self._release_threads()

    def abandon(self, error: DeviceLostError) -> None:
        """Never use or free the session again, whose device is lost; runs raise `error`.

        ONNX Runtime's destructors call CUDA, which may hang or end the process after such an error.
        """
        if self._session is None:
            return
        _abandoned_sessions.append(dict(vars(self)))
        self._lost_error = error
        self._session = None

    @contextmanager
    def _explain_failures(self) -> Iterator[None]:
        """Raise what the device is to blame for as the error of a run that says so."""
        try:
            yield
        except NeuronaError:
            raise
        except Exception as error:
            if failure := self._device_failure(error):
                raise failure from error
            raise

    def _device_failure(self, error: Exception) -> NeuronaError | None:
        """Return the error of a run that failed because of the device, else None."""
        device = self.device
        if device.kind == "cuda":
            return run_failures.device_failure(error, device.label, partial(probe_device, device))
        if self.provider == CPU:
            return run_failures.memory_failure(error, device.label)
        return run_failures.device_failure(error, runtime.short_name(self.provider))

    def _reserve_threads(self, path: Path, options: RuntimeOptions) -> int:
        wanted = options.threads or available_cpus()
        if not options.pool_threads:
            return wanted
        budget = runtime.thread_budget(options.pool_threads)
        threads = budget.reserve(wanted)
        # Also if loading fails, and for sessions that are not closed.
        self._release_threads = weakref.finalize(self, budget.release, threads)
        if threads < wanted:
            log.info(
                "%s: %d CPU threads instead of %d: other models use the rest",
                path,
                threads,
                wanted,
            )
        return threads

    def _run(
        self,
        session: onnxruntime.InferenceSession,
        inputs: Inputs,
        options: onnxruntime.RunOptions,
        ranked_count: int = 0,
    ) -> list[Any]:
        if (sequences := self._sequences) is not None:
            if (own_session := self._sequence_session) is None:
                return sequences.run(session, inputs, options)
            if LENGTHS in inputs or STATE in inputs:
                return sequences.run(own_session, inputs, options)
        if ranked_count and (ranker := self._ranker) is not None and not ranker.failed:
            return ranker.run(session, inputs, options, ranked_count)
        if self._bfloat16:
            return self._run_with_values(session, inputs, options)
        try:
            outputs: list[Any] = session.run(None, inputs, options)
        except UnicodeError:  # strings that are not UTF-8, in the inputs or in the outputs
            return self._run_with_any_strings(session, inputs, options)
        return outputs

    def _run_with_any_strings(
        self,
        session: onnxruntime.InferenceSession,
        inputs: Inputs,
        options: onnxruntime.RunOptions,
    ) -> list[Any]:
        """Run a session with strings that are not UTF-8.

        Raises:
            InvalidArgumentError: ONNX Runtime or the model does not take them.
        """
        names = [name for name, array in inputs.items() if array.dtype.kind == "O"]
        try:
            if byte_strings.can_read_strings() and not self._zipmaps:
                return self._run_with_values(session, inputs, options)
            fixed = {name: byte_strings.strings_to_fixed_bytes(inputs[name]) for name in names}
            if all(array is not None for array in fixed.values()):
                outputs: list[Any] = session.run(None, {**inputs, **fixed}, options)
                return outputs
        except Exception as error:
            if options.terminate or not names:
                raise
            raise InvalidArgumentError(
                f"the model failed on strings that are not UTF-8, of {', '.join(map(repr, names))} "
                "(expected UTF-8 for its operators)"
            ) from error
        raise InvalidArgumentError(
            f"strings of {', '.join(map(repr, names))} are not UTF-8 and have NUL bytes, which "
            "ONNX Runtime does not take for this model (expected UTF-8)"
        )

    def _run_with_values(
        self,
        session: onnxruntime.InferenceSession,
        inputs: Inputs,
        options: onnxruntime.RunOptions,
    ) -> list[Any]:
        """Run a session whose tensors do not all go in and out as numpy arrays.

        ONNX Runtime takes the bits of BFLOAT16 together with the type, but cannot return them as
        numpy arrays: they are read from the memory of its values.
        """
        feeds = {name: self._to_value(name, array) for name, array in inputs.items()}
        outputs = session.run_with_ort_values(None, feeds, options)
        return [
            self._to_array(spec, output) for spec, output in zip(self.outputs, outputs, strict=True)
        ]

    def _to_value(self, name: str, array: Array) -> onnxruntime.OrtValue:
        if name in self._bfloat16:
            return onnxruntime.OrtValue.ortvalue_from_numpy_with_onnx_type(
                np.ascontiguousarray(array), DataType.DATA_TYPE_BFLOAT16
            )
        if array.dtype.kind == "O":
            return byte_strings.strings_to_value(array)
        return onnxruntime.OrtValue.ortvalue_from_numpy(array)

    def _to_array(self, spec: TensorSpec, value: onnxruntime.OrtValue) -> Array:
        if spec.name in self._bfloat16:
            return _copy_bits(value)
        if spec.dtype == DataType.DATA_TYPE_STRING and byte_strings.can_read_strings():
            return byte_strings.value_to_strings(value)
        return np.asarray(value.numpy())


def abandon_sessions(device: str, error: DeviceLostError) -> None:
    """Abandon all open sessions on a device that is lost, by its label: see `Session.abandon`."""
    with _open_sessions_lock:
        sessions = [session for session in _open_sessions if session.device.label == device]
    for session in sessions:
        session.abandon(error)


def has_abandoned_sessions() -> bool:
    """Return whether the process must end without freeing what it holds of ONNX Runtime."""
    return bool(_abandoned_sessions)


class SessionRun:
    """One run that another thread can terminate; ONNX Runtime checks for that between nodes."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._ranked_count = 0
        self._options = runtime.quiet_options()

    def __call__(self, inputs: Inputs) -> Outputs:
        journal = self._session.journal
        return self._run(inputs) if journal is None else journal.run(self._run, inputs)

    def terminate(self) -> None:
        self._options.terminate = True

    def rank(self, count: int) -> None:
        """See `RankingRun.rank`."""
        self._ranked_count = count

    def _run(self, inputs: Inputs) -> Outputs:
        return self._session.run_with_options(inputs, self._options, self._ranked_count)


class SlotRun(SessionRun):
    """One run in a slot of a GPU, whose buffers it uses."""

    def __init__(self, session: Session, slot: RunSlot) -> None:
        super().__init__(session)
        self._slot = slot

    def reserve_inputs(self, shapes: Mapping[str, tuple[int, ...]]) -> Inputs | None:
        """Return arrays of these shapes to join the inputs in; None if any will do."""
        return self._session.reserve_inputs(self._slot, shapes)

    def _run(self, inputs: Inputs) -> Outputs:
        return self._session.run_in_slot(self._slot, inputs, self._options, self._ranked_count)


def _check_not_empty(inputs: Inputs) -> None:
    for name, array in inputs.items():
        if not array.size:
            raise InvalidArgumentError(
                f"input {name!r} has shape {[*array.shape]}, without values (expected some: "
                "ONNX Runtime cannot run this model's LSTM or GRU without)"
            )


def _copy_bits(value: Any) -> Array:
    content = byte_strings.read_memory(value.data_ptr(), value.tensor_size_in_bytes())
    return np.frombuffer(content, np.uint16).reshape(value.shape())


def _unzip(rows: Sequence[Mapping[int | str, float]]) -> tuple[tuple[str, ...], Array]:
    """Convert a ZipMap node's output to labels, and float32 probabilities [rows, classes].

    Every row has the same keys in the same order: the labels that the node was made with.
    """
    labels = tuple(rows[0]) if rows else ()
    values = np.array([list(row.values()) for row in rows], np.float32)
    return tuple(map(str, labels)), values.reshape(len(rows), len(labels))


def _placement(session: onnxruntime.InferenceSession) -> dict[str, int]:
    get_assignment = getattr(session, "get_provider_graph_assignment_info", None)
    if get_assignment is None:
        return {}
    nodes: Counter[str] = Counter()
    for subgraph in get_assignment():
        nodes[subgraph.ep_name] += len(subgraph.get_nodes())
    return dict(nodes)


def _operators_on_cpu(session: onnxruntime.InferenceSession) -> list[str]:
    get_assignment = getattr(session, "get_provider_graph_assignment_info", list)
    return [
        node.op_type
        for subgraph in get_assignment()
        if subgraph.ep_name == CPU
        for node in subgraph.get_nodes()
    ]


def _explain_degraded(
    options: RuntimeOptions,
    session: onnxruntime.InferenceSession,
    placement: dict[str, int],
    problem: str,
    device: int,
) -> str:
    """Return why a model does not run where it should, "" if it does.

    Args:
        options: Its options.
        session: The session that runs it.
        placement: Number of nodes by provider.
        problem: Why the first of its providers does not run it, if that was tried.
        device: Number of the CUDA device that it was to run on.
    """
    wanted, provider = options.providers[0], session.get_providers()[0]
    on_cpu = provider == CPU and runtime.needs_gpu([wanted])
    expected = options.gpu_expected or options.require_gpu or has_cuda_driver()
    missing = runtime.missing_gpu_reason(options, device) if on_cpu and expected else ""
    return runtime.explain_degraded(
        options.providers,
        runtime.short_name(provider),
        {runtime.short_name(name): count for name, count in placement.items()},
        missing or problem,
        expected,
        () if provider == CPU else _operators_on_cpu(session),
    )


def _zeros(spec: TensorSpec) -> Array:
    """Return the smallest input that fits: zeros or empty strings."""
    shape = [size if isinstance(size, int) else 1 for size in spec.shape]
    if spec.dtype == DataType.DATA_TYPE_STRING:
        return np.full(shape, "", object)
    return np.zeros(shape, NUMPY_DTYPES[spec.dtype])


def _tensor_spec(
    role: str, node: onnxruntime.NodeArg, without_shape: Collection[str]
) -> TensorSpec:
    """Return the specification of an input or output; ONNX Runtime gives no shape the shape ()."""
    element_type = node.type.removeprefix("tensor(").removesuffix(")")
    if f"tensor({element_type})" != node.type or element_type not in _ELEMENT_TYPES:
        raise LoadError(f"{role} {node.name!r} is {node.type} (expected a tensor)")
    shape = tuple(size if isinstance(size, int | str) else None for size in node.shape)
    any_shape = not shape and node.name in without_shape
    return TensorSpec(node.name, _ELEMENT_TYPES[element_type], shape, any_shape=any_shape)
