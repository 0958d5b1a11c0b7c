"""The time to keep in reserve for batches that take longer than expected.

It is apart from admission, which uses it for every request: it is computed between batches.
"""

import math
from bisect import bisect_left

from neurona_server.batching.cost_distribution import DecayingHistogram

DEVIATIONS = 3.3
"""Standard deviations that a sum of cycles exceeds with a chance of 0.0005."""

USUAL_RATIO = 2.0
"""A cycle above this many times a full one is a jump: not part of the spread, but one that may
come."""

PRIOR_VARIANCE = 0.02
"""The variance of a cycle, relative to a full one, before there are observations ..."""

PRIOR_WEIGHT = 2.0
"""... and the number of observations that it counts as."""

MAX_CYCLES = 16
"""Cycles for which the reserve is computed; that of more grows with the root of their number."""

MIN_RATIO = 0.001
"""The least ratio of a cycle that is observed."""

LEAST_LEVEL = 0.05
"""The share of the cycles that are shorter than the least one that is reckoned with."""

UPDATE_BATCHES = 32
"""Batches between two computations."""


class CycleReserve:
    """The reserve for a number of cycles, and what is left of one that takes too long.

    Times are relative to a full cycle; a ratio of 1.0 is a cycle that took as long as predicted.
    The sum of n cycles exceeds its mean as a normal variable does, or because one of them is far
    longer than usual: the larger of the two is reserved (for heavy tails one large jump decides,
    see Foss, Korshunov and Zachary, An Introduction to Heavy-Tailed and Subexponential
    Distributions, 2011).
    """

    def __init__(self, late_share: float) -> None:
        """Make a reserve without observations.

        Args:
            late_share: The chance with which a request may be late.
        """
        self._late_share = late_share
        self._ratios = DecayingHistogram()
        self.least_ratio = 0.0
        """What almost all cycles take, relative to a full one: it is below 1.0."""
        self._batches = 0
        self.jumped = False
        """Whether the last cycle took far longer than predicted."""
        self._reserves = [0.0] * (MAX_CYCLES + 1)
        self._ratio_edges: list[float] = []
        self._survival: list[float] = []
        self._mean_rest: list[float] = []
        self._update()

    def observe(self, ratio: float) -> None:
        """Learn from a cycle that took `ratio` of what was predicted, relative to a full one."""
        is_jump = ratio > USUAL_RATIO
        if not (is_jump and self.jumped):  # several in a row are one: the pace follows them
            self._ratios.add(ratio)
        self.jumped = is_jump
        self._batches -= 1
        if self._batches <= 0 or ratio - 1.0 > self._reserves[1]:
            self._update()

    def reserve(self, cycles: float) -> float:
        """Return the reserve for so many cycles, in full cycles."""
        index = int(cycles)
        if index >= MAX_CYCLES:
            return self._reserves[MAX_CYCLES] * math.sqrt(cycles / MAX_CYCLES)
        below = self._reserves[index]
        return below + (cycles - index) * (self._reserves[index + 1] - below)

    def rest(self, ratio: float) -> tuple[float, float]:
        """Return the mean of what is left of a cycle that has taken `ratio`, and the most of it.

        The most is exceeded with the chance of being late. A cycle that has taken longer than any
        before may take twice as long.
        """
        edges = self._ratio_edges
        index = bisect_left(edges, ratio)
        if index >= len(edges) - 1:
            return ratio / 2, ratio
        survival = self._survival
        chance = survival[index] * self._late_share
        top = index
        while top < len(edges) - 1 and survival[top] > chance:
            top += 1
        return max(0.0, self._mean_rest[index] - ratio), edges[top] - ratio

    def _update(self) -> None:
        self._batches = UPDATE_BATCHES
        self.least_ratio = min(1.0, self._ratios.quantile(LEAST_LEVEL))
        shares = self._ratios.shares()
        usual = [(ratio, share) for ratio, share in shares if ratio <= USUAL_RATIO]
        weight = self._ratios.count * sum([share for _, share in usual])
        squares = 0.0
        if usual:
            squares = self._ratios.count * sum([share * (r - 1.0) ** 2 for r, share in usual])
        variance = (squares + PRIOR_WEIGHT * PRIOR_VARIANCE) / (weight + PRIOR_WEIGHT)
        spread = DEVIATIONS * math.sqrt(variance)
        # From the largest ratio down: the chance of each or more, and the mean of these.
        edges, survival, means = [], [], []
        chance = total = 0.0
        for ratio, share in reversed(shares):
            chance += share
            total += share * ratio
            edges.append(ratio)
            survival.append(chance)
            means.append(total / chance)
        reserves = [0.0]
        for cycles in range(1, MAX_CYCLES + 1):
            chance = self._late_share / (2 * cycles)
            jump = edges[bisect_left(survival, chance)] - 1.0 if edges else 0.0
            reserves.append(max(spread * math.sqrt(cycles), jump))
        self._ratio_edges, self._survival = edges[::-1], survival[::-1]
        self._mean_rest, self._reserves = means[::-1], reserves
