"""Where a batch is padded up to the next rung of the ladder, and where that is a waste."""

from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence

SLOWER = 1.1
"""Padding pays when sizes between two rungs cost this many times the upper rung ..."""

SLOW_AT_FIRST = 3.0
"""... or when a size that is met for the first time does ..."""

ROUNDS = 3

WORTH = 100e-6
"""... and the difference is so many seconds at the least: below it is the machine's noise."""


BUDGET = 1.0
"""Seconds for finding out. What would take longer is left as it is: where so slow a model runs,
it is the rows that cost, not their number's being new."""


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

    def measure(
        self,
        time_run: Callable[[int], float],
        known: Mapping[int, float],
        budget: float = BUDGET,
    ) -> None:
        """`time_run(rows)` gives the seconds of one run; `known` has those of the rungs that have
        run."""
        for below, rung in zip(self._rungs, self._rungs[1:], strict=False):
            sizes = sorted({below + (rung - below) * part // 4 for part in (1, 2, 3)} - {below})
            if rung not in known or not sizes:
                continue
            budget -= 2 * ROUNDS * len(sizes) * known[rung]
            if budget < 0:
                return
            first, later = [], []
            for size in sizes:  # side by side, so that a machine that slows down slows both
                runs = [time_run(size) for _ in range(ROUNDS)]
                upper = min([time_run(rung) for _ in range(ROUNDS)])
                first.append(runs[0] > SLOW_AT_FIRST * upper and runs[0] - upper > WORTH)
                later.append(min(runs) > SLOWER * upper and min(runs) - upper > WORTH)
            if all(first) or all(later):
                self._padded.add(rung)

    def rows(self, rows: int) -> int:
        """The rows that a batch of `rows` runs with."""
        index = bisect_left(self._rungs, rows)
        if index < len(self._rungs) and self._rungs[index] in self._padded:
            return self._rungs[index]
        return rows
