"""Finds how a model that is loaded reads sequences, and makes its sessions serve them so."""

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from neurona_protos.prediction_pb2 import DataType, SequenceMethod
from neurona_server.batching.batcher import Batcher
from neurona_server.batching.device_scheduler import CPU
from neurona_server.batching.request import Array, Inputs, Outputs
from neurona_server.errors import DeviceLostError, LoadError
from neurona_server.models.load_cancellation import LoadCancellation
from neurona_server.models.onnx.external_data import find_external, read_external
from neurona_server.models.onnx.sequence_lengths import LengthsInput
from neurona_server.models.onnx.sequence_session import SequenceGraph
from neurona_server.models.onnx.session import Session
from neurona_server.models.signature import Signature, TensorSpec, means_unknown_size
from neurona_server.models.synthetic_inputs import make_inputs
from neurona_server.sequences.analysis import (
    Comparison,
    RecurrentSource,
    SequenceAnalysis,
    analyse,
    without_lengths,
)
from neurona_server.sequences.form import SequenceForm
from neurona_server.sequences.graph import with_external_data
from neurona_server.sequences.merging import LengthMerger
from neurona_server.sequences.ragged import LengthGrouper, RaggedJoiner
from neurona_server.sequences.tensor_axes import FreeAxis
from neurona_server.telemetry.metrics import ModelMetrics

log = logging.getLogger(__name__)

MAX_BYTES = 1 << 28
"""Of a model with its external data: the rewritten graph is a copy of it in memory, and at load
both are loaded beside copies that are not: up to 8 times this size."""

GPU_TOLERANCE = 0.01
"""Relative to the largest value: a GPU multiplies with TF32, and sums in another order for another
number of rows."""

_PROVIDERS = ("CPUExecutionProvider", "CUDAExecutionProvider")
"""Others compile graphs, and cannot be trusted to do so for any length."""

_FREE_SIZE = 6
"""Of free axes that are not changed."""

_NO_ARRAYS = (DataType.DATA_TYPE_STRING, DataType.DATA_TYPE_BFLOAT16)


def find_sequences(
    model: str,
    path: Path,
    sessions: Sequence[Session],
    signature: Signature,
    lengths: Sequence[LengthsInput],
    *,
    is_reshaped: bool,
    cancellation: LoadCancellation,
) -> SequenceForm | None:
    """Return how a model reads sequences, None if it is not recurrent.

    Its sessions take lengths and states from then on if that gives the answers of the file.

    Args:
        model: The model, for the log.
        path: Its file.
        sessions: All of its sessions.
        signature: Its signature.
        lengths: Its inputs that hold lengths of sequences.
        is_reshaped: Whether its inputs or outputs have other shapes in requests than in the graph.
        cancellation: Ends this early.

    Raises:
        LoadError: It was cancelled.
        DeviceLostError: A device does not work any more.
    """
    session = sessions[0]
    if not session.outline.sequential:
        return None
    started = time.monotonic()
    loading = _SequenceLoading(path, session, signature, lengths, cancellation)
    try:
        reason = loading.find_obstacle(is_reshaped=is_reshaped)
        analysis = SequenceAnalysis(without_lengths({}, reason)) if reason else loading.analyse()
        if analysis.content:
            for one in sessions:
                opened = loading.opened if one is session else None
                one.use_sequence_graph(analysis.content, analysis.form, opened, cancellation)
    except DeviceLostError:
        raise
    except Exception as error:  # of ONNX Runtime and of the rewrite, of many classes
        cancellation.raise_if_cancelled()
        if any(one.runs_sequences for one in sessions):  # not all of them: their answers differ
            raise LoadError(f"its graph for sequences cannot be loaded: {error}") from error
        log.info("%s: sequences of different lengths share no runs: %s", model, error)
        reason = "it could not be run with lengths; see the server's log"
        return without_lengths({}, reason)
    _log(model, analysis.form, time.monotonic() - started)
    return analysis.form


def batch_sequences(
    batcher: Batcher,
    form: SequenceForm,
    signature: Signature,
    metrics: ModelMetrics,
    *,
    is_mixed: bool = True,
) -> SequenceMethod:
    """Have the requests of a recurrent model share runs as far as it is known how.

    Args:
        batcher: Of the model, whose cost model is a `SequenceCostModel`.
        form: How the model reads sequences; it has time axes.
        signature: Gets the groups of requests.
        metrics: Count the steps.
        is_mixed: Whether requests of different lengths share runs, if they can.

    Returns:
        How they do.
    """
    is_mixed = is_mixed and form.is_ragged
    names = [spec.name for spec in signature.inputs]
    signature.group_sequences = LengthGrouper(form, names, is_mixed=is_mixed)
    batcher.joiner = RaggedJoiner(form, metrics.sequences.record_run)
    costs = batcher.cost_model
    merger = LengthMerger(costs.predict, costs.batch_sizes) if is_mixed else None
    batcher.queue.merge = merger
    batcher.queue.limit_rows = None if merger is None else merger.limit_rows
    if is_mixed:
        return SequenceMethod.SEQUENCE_METHOD_RAGGED
    return SequenceMethod.SEQUENCE_METHOD_EQUAL_LENGTHS


def round_steps(batcher: Batcher) -> None:
    """Have runs take a number of steps that others take too, where new shapes cost more.

    Called after warm-up, which has measured that for the number of rows.
    """
    if isinstance(batcher.joiner, RaggedJoiner):
        on_cpu = all(device == CPU for device in batcher.devices)
        batcher.joiner.rounds_steps = bool(batcher.padding.padded_sizes) and not on_cpu


def complete_lengths(
    lengths: Sequence[LengthsInput], form: SequenceForm | None
) -> Sequence[LengthsInput]:
    """Return the inputs with lengths, with the sequences that they are the lengths of.

    Following the nodes of a graph may not have found these.
    """
    if form is None or not form.time_axes:
        return lengths
    sequences, axis = next(iter(form.time_axes.items()))
    return [
        one if one.sequences else replace(one, sequences=sequences, axis=axis) for one in lengths
    ]


def _log(model: str, form: SequenceForm, seconds: float) -> None:
    if form.is_ragged:
        state = form.stateless_reason or f"{form.state_size} numbers"
        log.info("%s: sequences share runs; state: %s (%.2f s)", model, state, seconds)
    else:
        log.info(
            "%s: sequences of different lengths share no runs: %s (%.2f s)",
            model,
            form.ragged_reason,
            seconds,
        )


class _SequenceLoading:
    def __init__(
        self,
        path: Path,
        session: Session,
        signature: Signature,
        lengths: Sequence[LengthsInput],
        cancellation: LoadCancellation,
    ) -> None:
        self._path, self._session, self._cancellation = path, session, cancellation
        self._specs, self._optional = signature.inputs, signature.optional
        self._is_batched = signature.batched
        self._lengths = [one.name for one in lengths]
        self.opened: SequenceGraph | None = None
        """The graph that was opened last."""

    def find_obstacle(self, *, is_reshaped: bool) -> str:
        """Return why the model is served one length at a time, "" if nothing is known yet."""
        provider = self._session.provider
        if reason := self._find_unusual_input():
            return reason
        if not self._is_batched:
            return "its requests cannot share runs: axis 0 is not that of independent rows"
        if is_reshaped:
            return "its config.pbtxt reshapes its tensors"
        if provider not in _PROVIDERS:
            return f"it runs on {provider}, which compiles graphs"
        nested = self._session.outline.nested_external
        return "a graph inside a node has external data" if nested else ""

    def _find_unusual_input(self) -> str:
        for spec in self._specs:
            if spec.any_shape:
                return f"input {spec.name!r} has no declared shape"
            if spec.dtype in _NO_ARRAYS:
                return f"input {spec.name!r} is {spec}"
        return ""

    def analyse(self) -> SequenceAnalysis:
        outline = self._session.outline
        files = find_external(self._path, outline.external)
        nbytes = outline.size + sum(file.stat().st_size for file in {*files.values()})
        if nbytes > MAX_BYTES:
            reason = f"it has {nbytes:,} bytes (expected up to {MAX_BYTES:,})"
            return SequenceAnalysis(without_lengths({}, reason))
        source = RecurrentSource(
            comparisons=self._comparisons(files),
            open_trace=self._open_trace,
            make_inputs=self._make_inputs,
            axis_groups=_group_axes(self._specs),
            lengths=[name for name in self._lengths if name in {one.name for one in self._specs}],
            inputs=[spec.name for spec in self._specs],
            overridable=[spec.name for spec in self._optional],
        )
        return analyse(self._read(files), source)

    def _read(self, files: Mapping[str, Path]) -> bytes:
        return with_external_data(self._path.read_bytes(), read_external(files))

    def _comparisons(self, files: Mapping[str, Path]) -> list[Comparison]:
        """Return ways to compare; a GPU rounds too differently from run to run to do it alone."""
        file_run = self._cancellable(self._session.run)
        if self._session.device.kind == "cpu":
            return [Comparison(file_run, self._open_graph)]
        return [
            Comparison(self._open_trace(self._read(files)), self._open_on_cpu),
            Comparison(file_run, self._open_graph, GPU_TOLERANCE),
        ]

    def _open_on_cpu(self, content: bytes, form: SequenceForm) -> Callable[[Inputs], Outputs]:
        graph = self._session.open_sequence_graph(content, form, self._cancellation, on_cpu=True)
        return self._cancellable(graph.run)

    def _open_trace(self, content: bytes) -> Callable[[Inputs], Outputs]:
        return self._cancellable(self._session.open_trace(content, self._cancellation))

    def _open_graph(self, content: bytes, form: SequenceForm) -> Callable[[Inputs], Outputs]:
        self.opened = self._session.open_sequence_graph(content, form, self._cancellation)
        return self._cancellable(self.opened.run)

    def _cancellable(self, run: Callable[[Inputs], Outputs]) -> Callable[[Inputs], Outputs]:
        cancellation = self._cancellation

        def cancellable_run(inputs: Inputs) -> Outputs:
            cancellation.raise_if_cancelled()
            cancellation.note_progress()
            return run(inputs)

        return cancellable_run

    def _make_inputs(self, rows: int, sizes: Mapping[FreeAxis, int], seed: int) -> dict[str, Array]:
        specs = [
            replace(
                spec,
                shape=(
                    *spec.shape[:1],
                    *(
                        sizes.get((spec.name, axis), _FREE_SIZE)
                        if not isinstance(size, int)
                        else size
                        for axis, size in enumerate(spec.shape[1:], start=1)
                    ),
                ),
            )
            for spec in self._specs
        ]
        return make_inputs(specs, rows, _FREE_SIZE, seed=seed)


def _group_axes(specs: Sequence[TensorSpec]) -> list[list[FreeAxis]]:
    """Return the free axes but for axis 0; those of one name are equal."""
    groups: dict[object, list[FreeAxis]] = {}
    for spec in specs:
        for axis, size in enumerate(spec.shape[1:], start=1):
            if isinstance(size, str) and not means_unknown_size(size):
                groups.setdefault(size, []).append((spec.name, axis))
            elif not isinstance(size, int):
                groups[spec.name, axis] = [(spec.name, axis)]
    return list(groups.values())
