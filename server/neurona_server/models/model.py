"""One version of one model: loading, serving and draining.

It is one file since what is found out at load is what the version has while it serves.
"""

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial

from neurona_protos.prediction_pb2 import DataType, SequenceMethod, State, Task
from neurona_server.batching.batcher import Batcher, NewRun
from neurona_server.batching.cost_model import CostModel
from neurona_server.batching.device_scheduler import DeviceScheduler
from neurona_server.batching.request import Inputs, Outputs, Request
from neurona_server.batching.watchdog import RunWatchdog
from neurona_server.errors import ConfigError, DeviceLostError, LoadError, UnavailableError
from neurona_server.models.batching_check import Run, decide_batching
from neurona_server.models.class_outputs import find_scored_classes
from neurona_server.models.device_ranking import find_ranking
from neurona_server.models.encoded_images import ImageInput, find_image_inputs
from neurona_server.models.input_bounds import find_answer_bounds, find_input_bounds
from neurona_server.models.load_cancellation import LoadCancellation
from neurona_server.models.model_options import ModelOptions, options_for
from neurona_server.models.onnx import device_loss
from neurona_server.models.onnx.content_digest import content_digest
from neurona_server.models.onnx.devices import Device
from neurona_server.models.onnx.runtime import find_devices
from neurona_server.models.onnx.sequence_lengths import LengthsInput, find_lengths_inputs
from neurona_server.models.onnx.session import Session
from neurona_server.models.onnx.value_dependence import time_depends_on_values
from neurona_server.models.open_sessions import OpenSessions
from neurona_server.models.output_shapes import (
    ShapeRecorder,
    find_independent_names,
    without_sizes,
)
from neurona_server.models.repository.scanner import ModelSource
from neurona_server.models.repository.settings import ModelSettings
from neurona_server.models.reshape import Reshape, find_reshapes, reshape_runs
from neurona_server.models.sequence_choice import choose_sequence_batching
from neurona_server.models.sequence_loading import (
    batch_sequences,
    complete_lengths,
    find_sequences,
    round_steps,
)
from neurona_server.models.signature import (
    Signature,
    TensorSpec,
    apply_declared_tensors,
    check_names,
    name_axes,
)
from neurona_server.models.task import find_task, states_task
from neurona_server.models.warm_up import choose_run_methods, run_samples, warm_up
from neurona_server.sequences.cost import SequenceCostModel
from neurona_server.sequences.form import SequenceForm
from neurona_server.sequences.state_bytes import StateCodec
from neurona_server.telemetry.metrics import Metrics
from neurona_server.telemetry.run_journal import JournalEntry

log = logging.getLogger(__name__)

TERMINATION = 1.0  # seconds that a terminated run has to end


class Model:
    """A model version that is loaded and warmed up.

    `start` makes it serve, `drain` finishes the requests that it has admitted.

    Raises:
        LoadError: The file cannot be served, or its metadata contradict it.
    """

    def __init__(
        self,
        source: ModelSource,
        options: ModelOptions,
        metrics: Metrics,
        share: DeviceScheduler | None = None,
        watchdog: RunWatchdog | None = None,
        cancellation: LoadCancellation | None = None,
        journal: JournalEntry | None = None,
    ) -> None:
        """Load the file and run it for the first time.

        Args:
            source: The file and its settings.
            options: The server's options.
            metrics: Where the version gets series of its own.
            share: The scheduler of the devices, if other models run on them, too.
            watchdog: Finds its runs that take too long.
            cancellation: Ends this early.
            journal: Where runs are written, if the process has a supervisor.
        """
        self.name = source.name
        self.version = source.version
        self.state = State.STATE_LOADING
        self.settings = source.settings
        options = options_for(self.settings, options)
        if self.settings.ignored:
            ignored = ", ".join(self.settings.ignored)
            log.info(
                "%s: ignored fields of config.pbtxt: %s",
                source,
                ignored,
                extra=self.log_fields,
            )
        self.on_answer: Callable[[Request, Outputs], None] | None = None
        """Called with each request and its outputs after its response: a shadow version gets its
        copies from it. It must not raise."""

        self.copies: set[Request] = set()
        """The unfinished requests that this version has as a shadow: no caller waits for them."""

        self.open_sessions = OpenSessions()
        """The sessions that have begun with this version, and stay on it."""

        self.state_codec: StateCodec | None = None
        """Writes and reads the states of its sessions; None if it has no state."""

        self.lost_reason = ""
        """Why it has no device any more, "" if it has one."""

        self.metrics = metrics.for_version(source.name, source.version)
        self._journal = journal
        self.sequences: SequenceForm | None = None
        """How it reads sequences, None if it is not recurrent."""

        self.sequence_method = SequenceMethod.SEQUENCE_METHOD_EQUAL_LENGTHS
        """How requests of different lengths share runs; chosen when it is loaded."""

        self.sequence_reason = ""
        """Why it is that method, other than the reasons in `sequences`."""

        self.has_run = False
        """Whether it has run with synthetic inputs; False if it rejected all of them."""

        self.chunk_steps = 0
        """Steps of one run, for SEQUENCE_METHOD_CELLULAR."""

        self.images: Mapping[str, ImageInput] = {}
        """The inputs that take encoded images, by name."""

        self.sessions: list[Session] = []
        """On each device, one session for each instance."""

        try:
            self._load_without_lost_devices(
                source, options, share, watchdog, cancellation or LoadCancellation()
            )
        except BaseException:
            self.close()
            raise

    def _load_without_lost_devices(
        self,
        source: ModelSource,
        options: ModelOptions,
        share: DeviceScheduler | None,
        watchdog: RunWatchdog | None,
        cancellation: LoadCancellation,
    ) -> None:
        """Load the file, again on other devices if one is lost meanwhile."""
        while True:
            lost_before = {} if share is None else share.lost_devices
            try:
                self._load(source, options, share, watchdog, cancellation)
            except DeviceLostError as error:
                if share is None or error.device in lost_before:
                    raise LoadError(str(error)) from error
                share.mark_lost(error.device, error.reason)  # unless another model did so meanwhile
            else:
                lost = share.lost_devices if share is not None else {}
                if not lost or all(one.label not in lost for one in self.devices):
                    return
            for session in self.sessions:
                session.close()
            self.sessions = []

    def _load(
        self,
        source: ModelSource,
        options: ModelOptions,
        share: DeviceScheduler | None,
        watchdog: RunWatchdog | None,
        cancellation: LoadCancellation,
    ) -> None:
        self._load_sessions(source, options, cancellation)
        session = self.sessions[0]
        graph_inputs = [*session.inputs, *session.optional]
        reshapes = {
            role: find_reshapes(self.settings.declared, role, specs)
            for role, specs in (("input", graph_inputs), ("output", session.outputs))
        }
        new_runs = [
            (
                one.device.label,
                reshape_runs(new_run, reshapes["input"], reshapes["output"], session.outputs),
            )
            for one in self.sessions
            for new_run in one.runs_of_slots()
        ]
        recorder = ShapeRecorder()
        runs = [recorder.wrap(_cancellable_run(new_run, cancellation)) for _, new_run in new_runs]
        self.provider = session.provider
        self.devices = tuple(dict.fromkeys(one.device for one in self.sessions))
        self.instances = options.instances  # on each device
        self.placement = session.placement
        self.signature = _signature(str(source), session, self.settings, reshapes["input"], runs[0])
        batched = self.signature.batched
        lengths = _find_lengths(source, [*self.signature.inputs, *self.signature.optional])
        self.sequences = find_sequences(
            str(source),
            source.path,
            self.sessions,
            self.signature,
            lengths,
            is_reshaped=any(reshapes.values()),
            cancellation=cancellation,
        )
        lengths = complete_lengths(lengths, self.sequences)
        has_steps = self.sequences is not None and bool(self.sequences.time_axes)
        tracer, policy = options.tracer, options.policy
        if policy.inline is not False and time_depends_on_values(source.path):
            policy = replace(policy, inline=False)  # no measurement predicts its next run
        self.batcher = Batcher(
            str(source),
            policy,
            self.metrics,
            new_runs,
            batched=batched,
            scheduler=share,
            watchdog=watchdog,
            tracer=None if tracer is None else tracer(self.name, self.version, self.provider),
            new_cost_model=SequenceCostModel if has_steps else CostModel,
        )
        if has_steps and self.sequences is not None:
            self.sequence_method = batch_sequences(
                self.batcher, self.sequences, self.signature, self.metrics
            )
        # No method of the model: with a cycle, its memory would wait for the garbage collector.
        self.batcher.free_memory = partial(_free_device_memory, self.sessions)
        inputs = self.signature.inputs
        all_inputs = [*inputs, *self.signature.optional]
        started = time.monotonic()
        self._warm_up(source, runs, lengths, cancellation)
        self._choose_sequence_batching(source, options, runs[0])
        self.signature = _correct_signature(
            session, self.settings, reshapes["output"], self.signature, recorder, runs[0]
        )
        cancellation.raise_if_cancelled()
        self.metrics.record_warm_up(time.monotonic() - started)
        outputs = self.signature.outputs
        self.has_run = recorder.has_runs
        is_stated = states_task(session.properties, self.settings)
        class_labels = find_scored_classes(
            source.path,
            outputs,
            self.signature,
            runs[0],
            session.class_labels,
            is_stated=is_stated,
        )
        answer = find_task(
            session.properties,
            class_labels,
            [*inputs, *self.signature.optional],
            outputs if recorder.has_runs else without_sizes(outputs),
            self.settings,
        )
        self.metadata, self.answer, self.softmax = answer.metadata, answer.index, answer.softmax
        self.images = find_image_inputs(self.metadata, all_inputs)
        plain = options.runtime.run_method == "plain"
        if not any(reshapes.values()) and not session.runs_sequences and not plain:
            self.batcher.ranking = find_ranking(
                str(source),
                self.sessions,
                self.signature,
                answer,
                self.batcher.cost_model.batch_sizes,
                cancellation,
            )
        bounds = find_input_bounds(
            self.metadata,
            all_inputs,
            lengths,
            reshapes["input"],
            min_length=1 if has_steps else 0,
        )
        self.batcher.check_inputs = bounds.checker if bounds else None
        self.batcher.answer_bounds = find_answer_bounds(
            self.answer, self.settings.inputs, finite=answer.finite
        )
        self._open_for_sessions(source, cancellation)
        self.metrics.record_placement(session.placement, bool(self.degraded))
        if self.degraded:
            log.warning("%s: degraded: %s", source, self.degraded, extra=self.log_fields)

    def _open_for_sessions(self, source: ModelSource, cancellation: LoadCancellation) -> None:
        """Let sessions begin, if the model has a state."""
        if (form := self.sequences) is not None and form.has_state:
            digest = content_digest(source.path, cancellation)
            self.state_codec = StateCodec(self.name, self.version, digest, form.state_size)
            self.metrics.sessions  # noqa: B018  its series exist before the first session

    def _warm_up(
        self,
        source: ModelSource,
        runs: Sequence[Run],
        lengths: Sequence[LengthsInput],
        cancellation: LoadCancellation,
    ) -> None:
        """Run the model for the first time, and measure its runs."""
        for one in self.sessions:
            if one.device.kind != "cpu":
                sizes = self.batcher.cost_model.batch_sizes
                choose_run_methods(one, sizes, lengths, cancellation)
        self.batcher.joins_in_place = any(one.binds_inputs for one in self.sessions)
        time_axes = self.sequences.time_axes if self.sequences is not None else {}
        if not all(warm_up(self.signature, run, self.batcher, lengths, time_axes) for run in runs):
            log.info(
                "%s: warm-up skipped: the model rejected synthetic inputs",
                source,
                extra=self.log_fields,
            )
        round_steps(self.batcher)
        for run in runs:
            run_samples(str(source), self.settings.warm_up, self.signature, run)
        for one in self.sessions:
            one.keep_engines()

    def _choose_sequence_batching(
        self, source: ModelSource, options: ModelOptions, run: Run
    ) -> None:
        """Choose how sequences share runs, if the model is recurrent."""
        if self.sequences is None:
            return
        choice = choose_sequence_batching(
            self.batcher,
            self.sequences,
            self.signature,
            self.metrics,
            options.sequence_batching,
            run,
        )
        self.sequence_method, self.sequence_reason = choice.method, choice.reason
        self.chunk_steps = choice.chunk_steps
        log.info("%s: batches of sequences: %s", source, choice, extra=self.log_fields)

    def _load_sessions(
        self, source: ModelSource, options: ModelOptions, cancellation: LoadCancellation
    ) -> None:
        """Load the sessions on their devices, or on the CPU if no device takes them."""

        def load(device: Device) -> Session:
            session = Session(source.path, placement.options, cancellation, device)
            session.journal = self._journal
            self.sessions.append(session)
            return session

        try:
            devices = find_devices(options.runtime)[: options.max_devices]
        except ConfigError as error:
            raise LoadError(str(error)) from error
        placement = device_loss.place(options.runtime, devices)
        devices = placement.devices
        for device in devices:
            for _ in range(options.instances_by_gpu.get(device.number, options.instances)):
                if load(device).device != device:  # but the CPU
                    break
        placed = [session for session in self.sessions if session.device in devices]
        on_cpu = [session for session in self.sessions if session.device not in devices]
        for session in on_cpu if placed else on_cpu[1:]:
            session.close()
        self.sessions = placed or on_cpu[:1]
        while not placed and len(self.sessions) < options.instances:
            load(devices[0])
        missing = {device.label for device in devices} - {one.device.label for one in placed}
        self.degraded = self.sessions[0].degraded
        if placed and missing:
            self.degraded = f"does not run on {', '.join(sorted(missing))}; see the server's log"
        self.degraded = placement.degraded or self.degraded

    def __str__(self) -> str:
        return f"{self.name}/{self.version}"

    @property
    def has_batch_axis(self) -> bool:
        """Whether axis 0 is the batch axis: by its config.pbtxt, or since its runs are shared."""
        return self.signature.batched or self.settings.has_batch_axis

    @property
    def run_methods(self) -> Mapping[str, str]:
        """How batches run, by the label of the device: see `Session.run_method`."""
        return {one.device.label: one.run_method for one in reversed(self.sessions)}

    @property
    def run_method(self) -> str:
        """The same in one text; with the devices, if they differ."""
        methods = self.run_methods
        text = "; ".join(f"{device}: {method}" for device, method in sorted(methods.items()))
        if len({*methods.values()}) == 1:
            text = next(iter(methods.values()))
        ranking = self.batcher.ranking
        return text if ranking is None else f"{text}, classes ranked from {ranking.min_rows} rows"

    @property
    def log_fields(self) -> Mapping[str, str | int]:
        """The fields of log records about this version."""
        return {"model": self.name, "version": self.version}

    def start(self) -> None:
        """Start to serve."""
        batcher = self.batcher
        self.metrics.watch_batching(batcher.queue, batcher.cost_model)
        self.metrics.set_objective(batcher.policy.latency_objective)
        # A function, not a value: the version that it replaces shares the series and still sets it.
        self.metrics.inline.set_function(lambda: batcher.inline)
        self.metrics.overdue_runs.set_function(lambda: batcher.overdue_runs)
        batcher.start()
        self.state = State.STATE_READY
        self.metrics.set_model_info(
            Task.Name(self.metadata.task).removeprefix("TASK_"), self.provider
        )
        self.metrics.set_run_methods(self.run_methods)
        if self.sequences is not None:
            method = SequenceMethod.Name(self.sequence_method).removeprefix("SEQUENCE_METHOD_")
            self.metrics.set_sequence_info(
                method,
                self.sequence_reason or self.sequences.ragged_reason,
                self.sequences.stateless_reason,
            )

    def lose_device(self, device: str, reason: str) -> bool:
        """Note that a device is lost, by its label.

        Returns:
            Whether it was the last one: then all requests fail until the version is loaded again.
        """
        if all(one.label != device for one in self.devices):
            return False
        self.devices = tuple(one for one in self.devices if one.label != device)
        self.degraded = f"{device} is lost ({reason})"
        self.metrics.record_placement(self.placement, degraded=True)
        log.error("%s: degraded: %s", self, self.degraded, extra=self.log_fields)
        if self.devices:
            return False
        self.lost_reason = self.degraded
        if self.state == State.STATE_READY:
            self.state = State.STATE_FAILED
        return True

    def drain_sessions(self, timeout: float) -> None:
        """Accept no more sessions, and wait until the open ones have ended, or `timeout` seconds.

        Their steps are still served, but those of a version that has lost its device.
        """
        self.state = State.STATE_DRAINING
        if len(self.open_sessions) and not self.lost_reason:
            log.info(
                "%s: waiting for %d sessions", self, len(self.open_sessions), extra=self.log_fields
            )
            self.open_sessions.wait(timeout)

    def drain(self, timeout: float) -> bool:
        """Accept no more requests and wait until all admitted ones are finished.

        Returns False if `timeout` (seconds) was too short: the remaining requests then fail with
        UnavailableError, and their runs are terminated; a run that still continues is abandoned.
        """
        self.state = State.STATE_DRAINING
        self.open_sessions.end_all(f"session ended: {self} is unloaded")
        self.batcher.close()
        for request in self.copies.copy():
            request.cancel(UnavailableError("shadow version is draining"))
        end = time.monotonic() + timeout
        if self.batcher.join(end):
            self.batcher.stop_watching()
            return True
        error = UnavailableError("model shut down before the request could run")
        if unfinished := self.batcher.cancel_all(error):
            log.warning(
                "%s: shut down with %d unfinished requests", self, unfinished, extra=self.log_fields
            )
        drained = self.batcher.join(time.monotonic() + TERMINATION)
        if drained:
            self.batcher.stop_watching()
        return drained

    def wait(self) -> None:
        """Wait without a limit until the last run has ended, after `drain`."""
        self.batcher.join()
        self.batcher.stop_watching()

    def close(self) -> None:
        """Free the memory and remove the series from the metrics, after `drain`."""
        for session in self.sessions:
            session.close()
        if self._journal is not None:
            self._journal.close()
        self.metrics.release()


def _free_device_memory(sessions: Sequence[Session]) -> None:
    """Return unused memory of the arenas of all models on the devices of these sessions."""
    for session in {session.device: session for session in sessions}.values():
        session.free_device_memory()


def _cancellable_run(new_run: NewRun, cancellation: LoadCancellation) -> Run:
    def run(inputs: Inputs) -> Outputs:
        graph_run = new_run()
        with cancellation.interrupting(graph_run.terminate):
            return graph_run(inputs)

    return run


def _find_lengths(source: ModelSource, inputs: Sequence[TensorSpec]) -> Sequence[LengthsInput]:
    """Return the inputs that hold lengths of sequences, of a graph that may have some."""
    is_candidate = any(
        spec.dtype in (DataType.DATA_TYPE_INT32, DataType.DATA_TYPE_INT64) for spec in inputs
    )
    return find_lengths_inputs(source.path) if is_candidate else ()


def _signature(
    model: str,
    session: Session,
    settings: ModelSettings,
    reshapes: Mapping[str, Reshape],
    run: Run,
) -> Signature:
    """Return the signature of the graph with the declarations of the settings. Raises LoadError."""
    check_names("input", [*session.inputs, *session.optional], settings.inputs)
    check_names("output", session.outputs, settings.outputs)
    specs = _declared_inputs([*session.inputs, *session.optional], settings, reshapes)
    inputs, optional = specs[: len(session.inputs)], specs[len(session.inputs) :]
    batched = decide_batching(model, inputs, session.outputs, settings, run)
    return Signature(inputs, session.outputs, optional, batched=batched)


def _correct_signature(
    session: Session,
    settings: ModelSettings,
    reshapes: Mapping[str, Reshape],
    signature: Signature,
    recorder: ShapeRecorder,
    run: Run,
) -> Signature:
    """Return the signature with what the runs before serving have shown. Raises LoadError.

    The settings of outputs are compared with that, and not with what the graph declares.
    """
    batched, declared = signature.batched, settings.declared
    names = find_independent_names(signature.inputs, run, batched=batched)
    if not recorder.has_runs:
        in_graph = {name: reshape.in_graph for name, reshape in reshapes.items()}
        apply_declared_tensors(
            [tensor for tensor in declared if tensor.name in reshapes],
            "output",
            session.outputs,
            in_graph,
        )
    outputs = [
        TensorSpec(spec.name, spec.dtype, reshapes[spec.name].free_sizes)
        if spec.name in reshapes
        else spec
        for spec in session.outputs
    ]
    outputs = recorder.correct(outputs, signature.inputs, run)
    evident = outputs if recorder.has_runs else without_sizes(outputs)
    in_settings = {tensor.name for tensor in declared if tensor.role == "output"}
    corrected = apply_declared_tensors(declared, "output", evident)
    outputs = [
        new if new.name in in_settings else old for old, new in zip(outputs, corrected, strict=True)
    ]
    outputs = name_axes("output", outputs, settings.outputs)
    corrected_signature = Signature(
        signature.inputs, outputs, signature.optional, batched=batched, independent_names=names
    )
    corrected_signature.group_sequences = signature.group_sequences
    return corrected_signature


def _declared_inputs(
    specs: Sequence[TensorSpec],
    settings: ModelSettings,
    reshapes: Mapping[str, Reshape],
) -> Sequence[TensorSpec]:
    """Return the inputs of the graph as the settings declare them to callers."""
    graph_shapes = {name: reshape.in_graph for name, reshape in reshapes.items()}
    specs = apply_declared_tensors(settings.declared, "input", specs, graph_shapes)
    specs = [
        reshapes[spec.name].spec_in_request(spec) if spec.name in reshapes else spec
        for spec in specs
    ]
    return name_axes("input", specs, settings.inputs)
