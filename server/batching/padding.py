"""Where a batch is padded up to the next rung of the ladder, and where that is a waste."""

from bisect import bisect_left
from collections.abc import Callable, Sequence
from statistics import median

GAIN = 1.1
"""Padding pays when the sizes between two rungs cost this many times the upper rung."""


class Padding:
    """A GPU prepares anew for each shape that it meets, so that a size between two rungs may
    cost more than the upper rung, which it knows; a CPU does not. Which it is, is measured.
    """

    def __init__(self, rungs: Sequence[int]) -> None:
        self._rungs = tuple(rungs)
        self._padded: set[int] = set()

    @property
    def padded(self) -> frozenset[int]:
        """The rungs that batches are padded up to."""
        return frozenset(self._padded)

    def measure(self, time_run: Callable[[int], float], seconds: dict[int, float]) -> None:
        """`time_run(rows)` gives the seconds of one run, `seconds` those of each known rung."""
        for below, rung in zip(self._rungs, self._rungs[1:], strict=False):
            # Sizes that were not met before, each once, as they come under load.
            sizes = sorted({below + (rung - below) * part // 4 for part in (1, 2, 3)} - {below})
            if rung in seconds and sizes:
                between = median([time_run(size) for size in sizes])
                if between > GAIN * seconds[rung]:
                    self._padded.add(rung)

    def rows(self, rows: int) -> int:
        """The rows that a batch of `rows` runs with."""
        index = bisect_left(self._rungs, rows)
        if index < len(self._rungs) and self._rungs[index] in self._padded:
            return self._rungs[index]
        return rows
