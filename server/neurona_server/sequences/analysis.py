"""Finds out by runs how a recurrent model reads sequences, and the graph that serves them."""

import logging
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from neurona_server.batching.request import Array, Inputs
from neurona_server.sequences import graph as recurrent_graph
from neurona_server.sequences.form import SequenceForm
from neurona_server.sequences.graph import NotRewrittenError, OldOperatorsError
from neurona_server.sequences.proof import (
    TOLERANCE,
    Disprove,
    Run,
    disprove_lengths,
    disprove_state,
    find_tolerance,
)
from neurona_server.sequences.rewriting import RewrittenGraph, rewrite
from neurona_server.sequences.tensor_axes import (
    TRACED_SIZES,
    Axis,
    FreeAxis,
    MakeInputs,
    TensorAxes,
    Trace,
    TracedRun,
    UnknownAxesError,
    find_time_axes,
)

if TYPE_CHECKING:
    from onnx import ModelProto

log = logging.getLogger(__name__)


class SequenceAnalysis(NamedTuple):
    """How a model reads sequences, and what to run in its place."""

    form: SequenceForm
    content: bytes = b""
    """The rewritten graph; none if nothing was proved of it."""


class Comparison(NamedTuple):
    """A way to run the file and a graph that it is rewritten to.

    Attributes:
        file_run: Runs the file as it is.
        open_graph: Opens a graph that takes what a form says; returns what runs it.
        tolerance: By how much answers may differ, relative to the largest value.
    """

    file_run: Run
    open_graph: Callable[[bytes, SequenceForm], Run]
    tolerance: float = TOLERANCE


@dataclass(frozen=True)
class RecurrentSource:
    """A recurrent model and ways to run it.

    Attributes:
        comparisons: Ways to run the file and the rewritten graph, all of which must agree; the last
            is that of serving.
        open_trace: Opens a graph without replacing its nodes; returns what runs it.
        make_inputs: Makes inputs.
        axis_groups: The free axes of the inputs but for axis 0; those of a group have equal sizes.
        lengths: The inputs in which callers send lengths.
        inputs: The inputs that callers must send.
        overridable: Those that they may leave out.
    """

    comparisons: Sequence[Comparison]
    open_trace: Callable[[bytes], Run]
    make_inputs: MakeInputs
    axis_groups: Sequence[Collection[FreeAxis]]
    lengths: Sequence[str] = ()
    inputs: Collection[str] = ()
    overridable: Collection[str] = field(default=())


def analyse(content: bytes, source: RecurrentSource) -> SequenceAnalysis:
    """Return how a model reads sequences, proved by runs.

    Args:
        content: The ONNX file, without external data.
        source: Ways to run it.

    Raises:
        Exception: What runs and their cancellation raise.
    """
    try:
        model = recurrent_graph.read_model(content)
        del content  # it may be large
        return _FormFinder(model, source).analyse()
    except (NotRewrittenError, UnknownAxesError) as error:
        return SequenceAnalysis(without_lengths({}, str(error)))


def without_lengths(time_axes: Mapping[str, int], reason: str) -> SequenceForm:
    """Return the form of a model that is served one length at a time, and why."""
    return SequenceForm(time_axes, ragged_reason=reason, stateless_reason=reason)


class _FormFinder:
    def __init__(self, model: "ModelProto", source: RecurrentSource) -> None:
        self._model, self._source = model, source

    def analyse(self) -> SequenceAnalysis:
        source = self._source
        if reason := recurrent_graph.find_obstacle(self._model):
            raise NotRewrittenError(reason)
        if len(source.lengths) > 1:
            names = ", ".join(map(repr, source.lengths))
            raise NotRewrittenError(f"it has several inputs with lengths: {names}")
        nodes = recurrent_graph.recurrent_nodes(self._model.graph)
        trace = self._trace(self._model)
        time_axes = find_time_axes(
            source.axis_groups, {node.input[0] for node in nodes}, trace, self._make_with_one_step
        )
        axes = self._find_axes(time_axes, trace)
        del trace  # its session, before others are opened
        try:
            return self._prove(time_axes, axes)
        except NotRewrittenError as error:
            return SequenceAnalysis(without_lengths(time_axes, str(error)))

    def _prove(self, time_axes: Mapping[str, int], axes: TensorAxes) -> SequenceAnalysis:
        source, model = self._source, self._model
        form = SequenceForm(
            time_axes,
            self._output_axes(axes),
            lengths_input=source.lengths[0] if source.lengths else "",
        )
        try:
            rewritten = self._rewrite(model, axes)
        except OldOperatorsError:
            model = recurrent_graph.to_newer_operators(model)
            axes = self._find_axes(time_axes, self._trace(model))
            rewritten = self._rewrite(model, axes)
        reason = rewritten.stateless_reason
        while True:
            form = replace(form, state_size=rewritten.state_size, stateless_reason=reason)
            reason = self._disprove(rewritten.content, form)
            if not reason:
                return SequenceAnalysis(form, rewritten.content)
            rewritten = self._rewrite(model, axes, with_state=False)

    def _disprove(self, content: bytes, form: SequenceForm) -> str:
        """Return why the states of a graph are wrong, "" if they are right or it has none.

        Raises:
            NotRewrittenError: Its answers to rows of different lengths are wrong.
        """
        for comparison in self._source.comparisons:
            run = comparison.open_graph(content, form)
            if problem := self._compare(disprove_lengths, comparison, run, form):
                raise NotRewrittenError(problem)
            if form.has_state and (problem := self._compare(disprove_state, comparison, run, form)):
                return problem
        return ""

    def _compare(
        self, disprove: Disprove, comparison: Comparison, run: Run, form: SequenceForm
    ) -> str:
        """Return why a graph's answers are wrong, "" if they are right."""
        make_rows = self._row_maker(form.time_axes)
        file_run, tolerance = comparison.file_run, comparison.tolerance
        problem = disprove(file_run, run, form, make_rows, tolerance)
        if problem:  # perhaps of rounding, which is measured only if it is needed
            larger = find_tolerance(file_run, form, make_rows, tolerance)
            if larger > tolerance:
                problem = disprove(file_run, run, form, make_rows, larger)
        return problem

    def _rewrite(
        self, model: "ModelProto", axes: TensorAxes, *, with_state: bool = True
    ) -> RewrittenGraph:
        source = self._source
        names = {*source.inputs, *source.overridable}
        return rewrite(model, axes, names, source.lengths, with_state=with_state)

    def _trace(self, model: "ModelProto") -> Trace:
        content, names = recurrent_graph.with_all_tensors(model)
        run = self._source.open_trace(content)
        constants = recurrent_graph.constants(model)

        def trace(inputs: Inputs) -> Mapping[str, Array]:
            outputs = dict(zip(names, run(inputs), strict=True))
            arrays = {name: array for name, array in outputs.items() if hasattr(array, "shape")}
            return {**constants, **inputs, **arrays}

        return trace

    def _find_axes(self, time_axes: Mapping[str, int], trace: Trace) -> TensorAxes:
        make_rows = self._row_maker(time_axes)
        return TensorAxes(
            [
                TracedRun(rows, steps, trace(make_rows(rows, steps, seed)))
                for seed, (rows, steps) in enumerate(TRACED_SIZES, start=1)
            ]
        )

    def _output_axes(self, axes: TensorAxes) -> Mapping[int, int]:
        """Return the axis of time of the outputs that have one, by index."""
        output_axes = {}
        for index, output in enumerate(self._model.graph.output):
            meanings = axes.find(output.name)
            if meanings is None:
                raise NotRewrittenError(f"the number of axes of output {output.name!r} varies")
            if not meanings or meanings[0] is not Axis.ROWS:
                raise NotRewrittenError(f"axis 0 of output {output.name!r} is not that of the rows")
            steps = [axis for axis, meaning in enumerate(meanings) if meaning is Axis.TIME]
            if len(steps) > 1 or {Axis.OTHER, Axis.ROWS_AND_TIME} & {*meanings}:
                raise NotRewrittenError(
                    f"the shape of output {output.name!r} depends on the steps in an unknown way"
                )
            if steps:
                output_axes[index] = steps[0]
        return output_axes

    def _row_maker(
        self, time_axes: Mapping[str, int]
    ) -> Callable[[int, int, int], dict[str, Array]]:
        source = self._source
        free = {axis for group in source.axis_groups for axis in group}

        def make_rows(rows: int, steps: int, seed: int) -> dict[str, Array]:
            sizes = dict.fromkeys(free, TRACED_SIZES[0][1])
            sizes.update(dict.fromkeys(time_axes.items(), steps))
            arrays = source.make_inputs(rows, sizes, seed)
            for name in source.lengths:
                arrays[name] = np.full_like(arrays[name], steps)
            return arrays

        return make_rows

    def _make_with_one_step(
        self, rows: int, sizes: Mapping[FreeAxis, int], seed: int
    ) -> dict[str, Array]:
        arrays = self._source.make_inputs(rows, sizes, seed)
        for name in self._source.lengths:
            arrays[name] = np.ones_like(arrays[name])
        return arrays
