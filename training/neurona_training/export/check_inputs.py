"""The inputs with which a graph is compared: sizes of the free axes, and values.

Each free axis gets sizes below and above the example's, 1 among them, at several batch sizes.
Values are the example's rows, random ones of the example's range, and the edges of that range.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from neurona_training.export.tensor_comparison import Array

BATCH = "batch"
CHECKED_BATCH_SIZES = (1, 2, 3, 7)
_SEED = 20
_EXAMPLE, _RANDOM = "example", "random"
_BEYOND = "beyond the range"
_EDGES = ("lowest", "highest", "zeros", _BEYOND)
_LONGEST = 100_000  # steps in one check, unless the example has more

Sizes = Mapping[str, int]  # by free axis


@dataclass(frozen=True)
class CheckedInput:
    """An input and how its values vary.

    Args:
        name: of the input.
        example: of any size of the free axes.
        axes: the name of each free axis, "" for an axis of one size.
        lengths_of: the free axis whose steps the values count; "" if they count none.
    """

    name: str
    example: Array
    axes: tuple[str, ...]
    lengths_of: str = ""


@dataclass(frozen=True)
class CheckCase:
    """Arrays by input, and what is special about them."""

    arrays: Mapping[str, Array]
    sizes: Sizes
    values: str

    def __str__(self) -> str:
        """For one line of a report."""
        return ", ".join([*(f"{axis} {size}" for axis, size in self.sizes.items()), self.values])


def example_sizes(inputs: Sequence[CheckedInput]) -> dict[str, int]:
    """The sizes of the free axes in the examples, the batch first."""
    sizes = {
        axis: size
        for one in inputs
        for axis, size in zip(one.axes, one.example.shape, strict=True)
        if axis
    }
    return {name: sizes[name] for name in sorted(sizes, key=lambda name: name != BATCH)}


def make_cases(
    inputs: Sequence[CheckedInput], *, fixed: Sequence[str] = (), limits: Mapping[str, range] = {}
) -> Iterator[CheckCase]:
    """Yields the checks, the example's own sizes first.

    Args:
        inputs: all inputs.
        fixed: axes that keep the example's size.
        limits: sizes that an axis may have; any for those not named.
    """
    generator = np.random.default_rng(_SEED)
    own = example_sizes(inputs)
    yield CheckCase({one.name: one.example for one in inputs}, own, _EXAMPLE)
    for sizes in _size_choices(own, fixed, limits):
        for values in (_EXAMPLE, _RANDOM):
            if (sizes, values) != (own, _EXAMPLE):
                yield make_case(inputs, sizes, values, generator)
    for values in _EDGES:
        yield make_case(inputs, own, values, generator)


def make_case(
    inputs: Sequence[CheckedInput], sizes: Sizes, values: str, generator: np.random.Generator
) -> CheckCase:
    """Makes the arrays of one check.

    Args:
        inputs: all inputs.
        sizes: of the free axes.
        values: which values they get.
        generator: of the random ones.
    """
    arrays = {}
    for one in inputs:
        array = _resize(one, sizes)
        if values != _EXAMPLE:
            array = _fill(one.example, array.shape, values, generator)
        if one.lengths_of:
            array = np.clip(array, 1, sizes[one.lengths_of]).astype(one.example.dtype)
        arrays[one.name] = np.ascontiguousarray(array)
    return CheckCase(arrays, dict(sizes), values)


def _size_choices(
    own: Sizes, fixed: Sequence[str], limits: Mapping[str, range]
) -> Iterator[dict[str, int]]:
    """Yields sizes: of each axis by itself at one row and at several, and of all at once."""

    def choose(axis: str) -> list[int]:
        size = own[axis]
        if axis in fixed:
            return []
        if axis == BATCH:
            candidates = [*CHECKED_BATCH_SIZES]
        else:
            longer = [size + 1, size + 3, 2 * size, 3 * size]
            candidates = [1, 2, size // 2, size - 1, *(n for n in longer if n <= _LONGEST)]
        allowed = limits.get(axis)
        return [
            one
            for one in dict.fromkeys(candidates)
            if one > 0 and one != size and (allowed is None or one in allowed)
        ]

    made: list[dict[str, int]] = [dict(own)]
    batches = choose(BATCH) if BATCH in own else []
    made += [{**own, BATCH: rows} for rows in batches]
    others = [axis for axis in own if axis != BATCH]
    for axis in others:
        for at, size in enumerate(choose(axis)):
            rows = {BATCH: batches[at % len(batches)]} if batches else {}
            made.append({**own, axis: size})
            made.append({**own, **rows, axis: size})
    if len(others) > 1:
        for ratio in (0.5, 2.0):
            changed = {axis: max(int(own[axis] * ratio), 1) for axis in others if axis not in fixed}
            made.append({**own, **changed})
    made_sizes: list[dict[str, int]] = []
    for sizes in made:
        if sizes not in made_sizes:
            made_sizes.append(sizes)
            yield sizes


def _resize(one: CheckedInput, sizes: Sizes) -> Array:
    """The example, repeated or cut along its free axes."""
    array = one.example
    for at, axis in enumerate(one.axes):
        if axis and sizes[axis] != array.shape[at]:
            array = array.take(np.arange(sizes[axis]) % array.shape[at], axis=at)
    return array


def _fill(
    example: Array, shape: tuple[int, ...], values: str, generator: np.random.Generator
) -> Array:
    """An array of values, in the range of the example's numbers."""
    if example.dtype.kind not in "biuf":  # strings
        return np.resize(example, shape)
    lower, upper = _range(example)
    if values == _BEYOND and example.dtype.kind == "f":
        # An integer may be an index, as into a table of words, and stays in the range.
        lower, upper = lower - 4 * (upper - lower), upper + 4 * (upper - lower)
    filled: Array
    if values == "lowest":
        filled = np.full(shape, lower)
    elif values == "highest":
        filled = np.full(shape, upper)
    elif values == "zeros" and example.dtype.kind == "f":
        filled = np.zeros(shape)
    elif example.dtype.kind == "f":
        filled = generator.uniform(lower, upper, shape)
    else:
        filled = generator.integers(int(lower), int(upper) + 1, shape)
    return filled.astype(example.dtype)


def _range(example: Array) -> tuple[float, float]:
    """The least and the largest finite number; wider if they are the same float."""
    finite = example[np.isfinite(example)]
    lower, upper = (float(finite.min()), float(finite.max())) if finite.size else (0.0, 0.0)
    if lower == upper and example.dtype.kind == "f":
        return lower - 1, upper + 1
    return (0.0, 1.0) if example.dtype.kind == "b" else (lower, upper)
