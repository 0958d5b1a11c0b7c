"""How long batches take: drawn from measured distributions, by the rows of a batch."""

import math
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from random import Random
from typing import NamedTuple

LARGEST_DRAW = 1.0 - 1e-6
"""Of a million batches, the slowest are as slow as this level says."""


class Phases(NamedTuple):
    """The seconds of one batch: they make up its cycle, from taking requests to the last answer."""

    join: float
    run: float
    answer: float

    @property
    def cycle(self) -> float:
        """All three."""
        return self.join + self.run + self.answer

    def scaled(self, factor: float) -> "Phases":
        """Return each phase times `factor`."""
        return Phases(self.join * factor, self.run * factor, self.answer * factor)


class Quantiles:
    """A distribution of seconds, by some of its quantiles.

    Between two levels it is log-linear, below the lowest it is constant, and above the highest it
    goes on exponentially, as steeply as between the highest two.
    """

    __slots__ = ("_levels", "_logs", "_lowest", "_tail")

    def __init__(self, quantiles: Mapping[float, float]) -> None:
        """Make the distribution of quantiles: seconds by level, each level in (0, 1).

        Raises:
            ValueError: There is no level, a level is not in (0, 1), or seconds are not ascending.
        """
        self._levels = sorted(quantiles)
        seconds = [quantiles[level] for level in self._levels]
        if not seconds or self._levels[0] <= 0 or self._levels[-1] >= 1:
            raise ValueError(f"levels are {self._levels} (expected some, between 0 and 1)")
        if seconds[0] < 0 or sorted(seconds) != seconds:
            raise ValueError(f"quantiles are {seconds} (expected seconds in ascending order)")
        self._logs = [math.log(max(value, 1e-9)) for value in seconds]
        self._lowest = seconds[0]
        self._tail = 0.0  # seconds by which each e-th part of what is left is slower
        if len(seconds) > 1:
            shrinkage = math.log((1 - self._levels[-2]) / (1 - self._levels[-1]))
            self._tail = (seconds[-1] - seconds[-2]) / shrinkage

    def at(self, level: float) -> float:
        """Return the seconds that are not exceeded with the probability `level`."""
        levels, logs = self._levels, self._logs
        index = bisect_left(levels, level)
        if index == 0 or len(levels) == 1:
            return self._lowest
        if index == len(levels):
            beyond = math.log((1 - levels[-1]) / (1 - min(level, LARGEST_DRAW)))
            return math.exp(logs[-1]) + max(0.0, beyond) * self._tail
        below = levels[index - 1]
        share = (level - below) / (levels[index] - below)
        return math.exp(logs[index - 1] + share * (logs[index] - logs[index - 1]))


def constant(seconds: float) -> Quantiles:
    """Return the distribution that is always `seconds`."""
    return Quantiles({0.5: seconds})


@dataclass(frozen=True)
class SizeCosts:
    """The distributions of the phases of batches of one size, and of their whole cycle."""

    join: Quantiles
    run: Quantiles
    answer: Quantiles
    cycle: Quantiles | None = None
    """None: the phases together."""

    def at(self, level: float) -> Phases:
        """Return the phases of a batch whose cycle is not exceeded with the probability `level`."""
        phases = Phases(self.join.at(level), self.run.at(level), self.answer.at(level))
        if self.cycle is None:
            return phases
        # Phases that are slow together are rarer than each by itself; the cycle is what counts.
        return phases.scaled(self.cycle.at(level) / max(phases.cycle, 1e-12))


class BatchCosts:
    """The costs of batches by their rows.

    Between two sizes they are interpolated; above the largest they are proportional to the rows.
    """

    def __init__(self, sizes: Mapping[int, SizeCosts], padded_sizes: Sequence[int] = ()) -> None:
        """Make the costs of sizes in rows; smaller batches are padded up to `padded_sizes`.

        Raises:
            ValueError: There are no sizes.
        """
        if not sizes:
            raise ValueError("costs are of no batch size (expected at least one)")
        self.sizes = tuple(sorted(sizes))
        self.padded_sizes = frozenset(padded_sizes)
        self._costs = [sizes[size] for size in self.sizes]

    @classmethod
    def linear(
        cls, base: float, row: float, sizes: Sequence[int], spread: float = 0.0
    ) -> "BatchCosts":
        """Return costs of `base + row * rows` seconds, run time only.

        Args:
            base: Seconds of a run, whatever its rows.
            row: Seconds that each row adds.
            sizes: Batch sizes in rows.
            spread: By how much the time varies: it is uniform in 1 - spread ... 1 + spread.
        """

        def quantiles(size: int) -> Quantiles:
            seconds = base + row * size
            if not spread:
                return constant(seconds)
            levels = (0.001, *[part / 10 for part in range(1, 10)], 0.999)
            return Quantiles({level: seconds * (1 + spread * (2 * level - 1)) for level in levels})

        none = constant(0.0)
        return cls({size: SizeCosts(none, quantiles(size), none) for size in sizes})

    def at(self, rows: int, level: float) -> Phases:
        """Return the phases of a batch of `rows` at a level of the distribution of its cycle."""
        sizes, costs = self.sizes, self._costs
        index = bisect_left(sizes, rows)
        if index == len(sizes):
            return costs[-1].at(level).scaled(rows / sizes[-1])
        upper = costs[index].at(level)
        if sizes[index] == rows or index == 0:
            return upper
        lower = costs[index - 1].at(level)
        share = (rows - sizes[index - 1]) / (sizes[index] - sizes[index - 1])
        return Phases(
            *[below + share * (above - below) for below, above in zip(lower, upper, strict=True)]
        )

    def draw(self, rows: int, random: Random) -> Phases:
        """Return the phases of one batch of `rows`."""
        return self.at(rows, random.random())

    def mean_cycle(self, rows: int) -> float:
        """Return the mean seconds of the cycle of a batch of `rows`."""
        draws = 200
        return sum([self.at(rows, (one + 0.5) / draws).cycle for one in range(draws)]) / draws
