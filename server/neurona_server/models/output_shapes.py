"""The shapes that a model's outputs really have, from the runs before it serves.

ONNX Runtime does not hold a model to the shapes that its file declares for outputs, and many files
declare those of the example that they were exported with: one row, one column, or nothing at all.
"""

import contextlib
from collections.abc import Collection, Sequence
from dataclasses import replace

import numpy as np

from neurona_protos.tensors import NUMPY_DTYPES
from neurona_server.batching.request import Inputs, Outputs
from neurona_server.models.batching_check import Run
from neurona_server.models.signature import Size, TensorSpec, shared_names
from neurona_server.models.synthetic_inputs import (
    FREE_SIZES,
    has_free_rows,
    make_inputs,
    suppose_shapes,
)

MAX_PLACES = 8
"""Axes of one name that are tried one by one."""

Shape = tuple[int, ...]


class ShapeRecorder:
    """Records the shapes of the inputs and outputs of successful runs."""

    def __init__(self) -> None:
        self._shapes: set[tuple[tuple[tuple[str, Shape], ...], tuple[Shape, ...]]] = set()

    def wrap(self, run: Run) -> Run:
        """Return `run` as a function that records the shapes of each of its runs."""

        def recorded_run(inputs: Inputs) -> Outputs:
            outputs = run(inputs)
            before = tuple([(name, np.shape(array)) for name, array in inputs.items()])
            self._shapes.add((before, tuple([np.shape(array) for array in outputs])))
            return outputs

        return recorded_run

    def correct(
        self, outputs: Sequence[TensorSpec], inputs: Sequence[TensorSpec], run: Run
    ) -> list[TensorSpec]:
        """Return the outputs with what the runs have shown where that contradicts their shapes.

        A size is taken from the runs only if it was the same for different sizes of all free axes
        of the inputs, or for different floats if they have no free axis; for that the model may be
        run again. Integers may be the size itself, as those of Expand.

        Args:
            outputs: The declared outputs.
            inputs: The required inputs.
            run: Runs the model, and was wrapped by this recorder.
        """
        if any(not self._agrees(index, spec) for index, spec in enumerate(outputs)):
            _run_differently(inputs, run)
        return [self._correct(index, spec, inputs) for index, spec in enumerate(outputs)]

    @property
    def has_runs(self) -> bool:
        """Whether the model has run at all."""
        return bool(self._shapes)

    def _observed(self, index: int) -> set[Shape]:
        return {shapes[index] for _, shapes in self._shapes}

    def _agrees(self, index: int, spec: TensorSpec) -> bool:
        return all(
            not spec.any_shape
            and len(shape) == len(spec.shape)
            and all(
                size == declared
                for size, declared in zip(shape, spec.shape, strict=True)
                if isinstance(declared, int)
            )
            for shape in self._observed(index)
        )

    def _correct(self, index: int, spec: TensorSpec, inputs: Sequence[TensorSpec]) -> TensorSpec:
        if self._agrees(index, spec):
            return spec
        observed = self._observed(index)
        ranks = {len(shape) for shape in observed}
        if len(ranks) > 1 or any(one.any_shape for one in inputs):
            return replace(spec, shape=(), any_shape=True)
        (rank,) = ranks
        is_certain = self._varied(inputs)
        sizes: list[Size] = []
        for axis in range(rank):
            sizes_seen = {shape[axis] for shape in observed}
            declared = spec.shape[axis] if len(spec.shape) == rank else None
            if len(spec.shape) == rank and (
                not isinstance(declared, int) or sizes_seen == {declared}
            ):
                sizes.append(declared)
            else:
                constant = axis > 0 and is_certain and len(sizes_seen) == 1 and 0 not in sizes_seen
                sizes.append(min(sizes_seen) if constant else None)
        return replace(spec, shape=tuple(sizes), any_shape=False)

    def _varied(self, inputs: Sequence[TensorSpec]) -> bool:
        """Return whether each free axis of the inputs has had several sizes."""
        if any(spec.any_shape for spec in inputs):
            return False
        if not any(map(_has_free_size, inputs)):
            return all(NUMPY_DTYPES[spec.dtype].kind == "f" for spec in inputs)
        shapes = [dict(before) for before, _ in self._shapes]
        return all(
            len({shape[spec.name][axis] for shape in shapes}) > 1
            for spec in inputs
            for axis, size in enumerate(spec.shape)
            if not isinstance(size, int)
        )


def without_sizes(outputs: Sequence[TensorSpec]) -> list[TensorSpec]:
    """Return outputs that were never seen, with free sizes: what is declared may not be true."""
    return [replace(spec, shape=(None,) * len(spec.shape)) for spec in outputs]


def find_independent_names(
    inputs: Sequence[TensorSpec], run: Run, *, batched: bool
) -> Collection[str]:
    """Return the names of sizes that occur several times and need not be equal, as runs show.

    Equal names say that sizes are equal; some exporters give one name to all free axes. Names from
    the model's settings are always meant.
    """
    names = set()
    for name in shared_names(inputs):
        places = [
            (index, axis)
            for index, spec in enumerate(inputs)
            for axis, size in enumerate(spec.shape)
            if size == name and not (batched and axis == 0)
        ]
        configured = any(spec.axes and name in spec.axes for spec in inputs)
        if len(places) > 1 and not configured and _runs_with_unequal_sizes(inputs, places, run):
            names.add(name)
    return names


def _runs_with_unequal_sizes(
    inputs: Sequence[TensorSpec], places: Sequence[tuple[int, int]], run: Run
) -> bool:
    """Return whether a run succeeds in which not all sizes at `places` are equal.

    First they all differ, then one of them from the others: of two pictures, say, only the widths
    may have to be equal.
    """
    differences = [range(len(places))]
    differences += [range(place, place + 1) for place in range(min(len(places), MAX_PLACES))]
    for size in FREE_SIZES:
        with contextlib.suppress(Exception):  # the model does not support this size
            run(make_inputs(inputs, 2, size))
            for different in differences:
                changed = [*inputs]
                for count, place in enumerate(different, start=1):
                    index, axis = places[place]
                    sizes: list[Size] = [*changed[index].shape]
                    sizes[axis] = size + count
                    changed[index] = replace(changed[index], shape=tuple(sizes))
                with contextlib.suppress(Exception):
                    run(make_inputs(changed, 2, size))
                    return True
            return False
    return False


def _has_free_size(spec: TensorSpec) -> bool:
    return any(not isinstance(size, int) for size in spec.shape)


def _run_differently(inputs: Sequence[TensorSpec], run: Run) -> None:
    """Run with other sizes than before, if the model supports any, else with other values."""
    for supposed in suppose_shapes(inputs):
        rows = 3 if all(map(has_free_rows, supposed)) else 1
        sizes = FREE_SIZES if any(map(_has_free_size, supposed)) else FREE_SIZES[:1]
        for size in sizes:
            with contextlib.suppress(Exception):  # the model does not support this size
                run(make_inputs(supposed, rows, size + 1, seed=2))
                run(make_inputs(supposed, rows, size + 1, seed=3))
                return
