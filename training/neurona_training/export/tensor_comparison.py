"""When two outputs are the same to rounding, and how a difference is described."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

RELATIVE_TOLERANCE = 1e-4  # the largest difference, as a fraction of the output ...
TOLERANCE_OF_LARGEST = 1e-5  # ... plus this fraction of the largest output, for those near 0
HALF_PRECISION_FACTOR = 100.0  # of both, where an output is float16

Array = NDArray[Any]


@dataclass(frozen=True)
class Tolerance:
    """How far outputs may differ.

    Args:
        relative: as a fraction of the output.
        of_largest: as a fraction of the largest output, for those near 0.
        absolute: in the output's unit.
    """

    relative: float = RELATIVE_TOLERANCE
    of_largest: float = TOLERANCE_OF_LARGEST
    absolute: float = 0.0

    def allowed(self, expected: Array) -> Array:
        """Returns the largest allowed difference of each number; 0 of NaN and infinity."""
        factor = HALF_PRECISION_FACTOR if expected.dtype == np.float16 else 1.0
        sizes = np.abs(expected.astype(np.float64))
        largest = np.max(sizes, initial=0, where=np.isfinite(sizes))
        allowed = factor * (self.relative * sizes + self.of_largest * largest) + self.absolute
        return np.where(np.isfinite(sizes), allowed, 0.0)


@dataclass(frozen=True)
class Difference:
    """Where an output differs most.

    Args:
        output: its name.
        largest: the largest difference; NaN if only one of both is a number.
        message: in words, without the inputs.
    """

    output: str
    largest: float
    message: str


def distances(actual: Array, expected: Array) -> Array:
    """The difference of each number: 0 between equal infinities and between NaN and NaN."""
    one, other = actual.astype(np.float64), expected.astype(np.float64)
    same = (one == other) | (np.isnan(one) & np.isnan(other))
    with np.errstate(invalid="ignore"):
        difference: Array = np.where(same, 0.0, np.abs(one - other))
    return difference


def find_difference(
    name: str,
    actual: Array,
    expected: Array,
    tolerance: Tolerance,
    *,
    extra: Array | float = 0.0,
    same_type: bool = True,
) -> Difference | None:
    """Compares one output; None if it is the same to rounding.

    Args:
        name: of the output.
        actual: the graph's.
        expected: the reference's. Integers, booleans and strings have to be equal.
        tolerance: for floating-point numbers.
        extra: allowed in addition, for each number or for all.
        same_type: whether the types have to be equal too.
    """
    nan = float("nan")
    if actual.shape != expected.shape:
        return Difference(
            name, nan, f"has shape {list(actual.shape)} (expected {list(expected.shape)})"
        )
    if same_type and actual.dtype != expected.dtype:
        return Difference(name, nan, f"is {actual.dtype} (expected {expected.dtype})")
    if not are_numbers(actual, expected):
        excess = np.where(actual.astype(str) == expected.astype(str), 0.0, np.inf)
        difference = excess
    else:
        difference = distances(actual, expected)
        is_float = "f" in (actual.dtype.kind, expected.dtype.kind)
        allowed = tolerance.allowed(expected) if is_float else np.zeros(expected.shape)
        excess = difference - (allowed + extra)
    wrong = ~(excess <= 0)  # not: excess > 0, which would let NaN pass
    if not wrong.any():
        return None
    index = np.unravel_index(int(np.where(np.isnan(excess), np.inf, excess).argmax()), wrong.shape)
    # Of the numbers that are wrong; NaN beside a number has no size.
    largest = float(np.max(difference[wrong & np.isfinite(difference)], initial=0)) or nan
    place = ", ".join(str(int(at)) for at in index)
    return Difference(
        name,
        largest,
        f"[{place}] is {_format(actual[index])} (expected {_format(expected[index])}); "
        f"{int(wrong.sum())} of {wrong.size} elements differ, by up to {largest:.3g}",
    )


def are_numbers(*arrays: Array) -> bool:
    """Whether all can be subtracted from each other."""
    return all(array.dtype.kind in "fiub" for array in arrays)


def largest_distance(actual: Array, expected: Array) -> float:
    """The largest difference between two outputs of the same shape."""
    if not are_numbers(actual, expected):
        return 0.0
    return float(np.max(distances(actual, expected), initial=0))


def _format(element: Any) -> str:
    return f"{float(element):.7g}" if np.asarray(element).dtype.kind == "f" else str(element)
