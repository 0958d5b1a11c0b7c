"""Finds along which axes of a recurrent graph's tensors the rows and the steps are.

A graph is run with all of its tensors as outputs, for different numbers of rows and of steps: an
axis whose size is always the number of steps has the steps, whatever nodes have moved it there.
That also covers shapes that are computed inside the graph, which declarations leave open.
"""

import enum
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass

import numpy as np

from neurona_server.batching.request import Array, Inputs

TRACED_SIZES = ((3, 5), (3, 8), (5, 5))
"""Rows and steps of the runs that show the axes: all products and sums of them differ."""

FreeAxis = tuple[str, int]
"""An input and its axis of free size."""

Trace = Callable[[Inputs], Mapping[str, Array]]
"""Runs a graph; returns all tensors of it by name."""

MakeInputs = Callable[[int, Mapping[FreeAxis, int], int], dict[str, Array]]
"""Makes inputs that the graph accepts, of a number of rows, sizes of free axes, and a seed."""


class Axis(enum.Enum):
    """What is along an axis of a tensor."""

    ROWS = enum.auto()
    TIME = enum.auto()
    ROWS_AND_TIME = enum.auto()
    FIXED = enum.auto()
    OTHER = enum.auto()
    """A number that depends on the rows or the steps in another way."""


@dataclass(frozen=True)
class TracedRun:
    """All tensors of one run."""

    rows: int
    steps: int
    tensors: Mapping[str, Array]


class TensorAxes:
    """The axes of all tensors of a graph, as runs of TRACED_SIZES have shown them."""

    def __init__(self, runs: Sequence[TracedRun]) -> None:
        self._runs = runs

    def find(self, tensor: str) -> tuple[Axis, ...] | None:
        """Return what is along each axis of a tensor; None if their number differs, or unknown."""
        shapes = [np.shape(run.tensors[tensor]) for run in self._runs if tensor in run.tensors]
        if len(shapes) < len(self._runs) or len({len(shape) for shape in shapes}) > 1:
            return None
        return tuple([self._classify(sizes) for sizes in zip(*shapes, strict=True)])

    def values(self, tensor: str) -> Sequence[Array]:
        """Return the values of a tensor in each run; none if it is unknown."""
        return [run.tensors[tensor] for run in self._runs if tensor in run.tensors]

    def is_steps(self, tensor: str, offset: int = 0) -> bool:
        """Return whether all values of a tensor are the number of steps plus an offset."""
        runs = [run for run in self._runs if tensor in run.tensors]
        return bool(runs) and all(
            bool(np.all(run.tensors[tensor] == run.steps + offset)) for run in runs
        )

    def is_constant(self, tensor: str, value: float) -> bool:
        """Return whether all values of a tensor are this one."""
        values = self.values(tensor)
        return bool(values) and all(bool(np.all(array == value)) for array in values)

    def _classify(self, sizes: Sequence[int]) -> Axis:
        sizes = list(sizes)
        if len(set(sizes)) == 1:
            return Axis.FIXED
        if sizes == [run.rows for run in self._runs]:
            return Axis.ROWS
        if sizes == [run.steps for run in self._runs]:
            return Axis.TIME
        if sizes == [run.rows * run.steps for run in self._runs]:
            return Axis.ROWS_AND_TIME
        return Axis.OTHER


class UnknownAxesError(Exception):
    """The axes of time are not found; the text says why."""


def find_time_axes(
    groups: Sequence[Collection[FreeAxis]],
    sequences: Collection[str],
    trace: Trace,
    make_inputs: MakeInputs,
) -> Mapping[str, int]:
    """Return the axis of time of each input that has one.

    The free axes are changed one after the other: that of time changes the number of steps of all
    recurrent nodes.

    Args:
        groups: The free axes of the inputs but for axis 0; those of a group have equal sizes.
        sequences: The tensors that recurrent nodes read, time first.
        trace: Runs the graph.
        make_inputs: Makes inputs.

    Raises:
        UnknownAxesError: Recurrent nodes read different sequences, or none of free length.
        Exception: What runs of the graph raise.
    """
    rows, steps, more = TRACED_SIZES[0][0], TRACED_SIZES[0][1], TRACED_SIZES[1][1]

    def count_steps(larger: Collection[FreeAxis]) -> dict[str, int]:
        sizes = {axis: steps for group in groups for axis in group}
        sizes.update(dict.fromkeys(larger, more))
        tensors = trace(make_inputs(rows, sizes, 1))
        return {name: int(np.shape(tensors[name])[0]) for name in sequences}

    before = count_steps(())
    groups = _ungroup(groups, count_steps)
    tied: list[FreeAxis] = []
    changing: list[Collection[FreeAxis]] = []
    for group in groups:
        try:
            after = count_steps(group)
        except Exception:  # it must be changed together with another one
            tied.extend(group)
            continue
        changed = {name for name in sequences if after[name] != before[name]}
        if changed and changed != {*sequences}:
            raise UnknownAxesError("its layers read sequences of different inputs")
        if changed:
            changing.append(group)
    if tied and count_steps(tied) != before:
        changing.append(tied)
    if not changing:
        raise UnknownAxesError("no input has a number of steps that is free")
    if len(changing) > 1:
        names = sorted({name for group in changing for name, _ in group})
        raise UnknownAxesError(
            f"the steps depend on several sizes of {', '.join(map(repr, names))}"
        )
    axes: dict[str, int] = {}
    for name, axis in changing[0]:
        if name in axes:
            raise UnknownAxesError(f"input {name!r} has several axes with the number of steps")
        axes[name] = axis
    return axes


def _ungroup(
    groups: Sequence[Collection[FreeAxis]], run: Callable[[Collection[FreeAxis]], object]
) -> list[Collection[FreeAxis]]:
    """Return the groups without axes that have a name in common, but may differ in size."""
    ungrouped: list[Collection[FreeAxis]] = []
    for group in groups:
        single: set[FreeAxis] = set()
        for axis in group if len(group) > 1 else ():
            with suppress(Exception):  # it must be changed together with another one
                run([axis])
                single.add(axis)
        ungrouped.extend([axis] for axis in single)
        if rest := [axis for axis in group if axis not in single]:
            ungrouped.append(rest)
    return ungrouped
