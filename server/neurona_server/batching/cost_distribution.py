"""The distribution of what batches cost, by their rows: of each phase and of the whole cycle.

The cost model knows what a run takes; this knows how far the next one may be from that.
"""

import math
import threading
from collections.abc import Hashable, Sequence
from typing import NamedTuple

from neurona_server.batching.cost_model import CostModel

BINS_PER_OCTAVE = 16
"""Bins of a histogram up to twice a value: quantiles are exact to about 2 %."""

MEMORY = 2048
"""Batches after which one counts 1/e: enough for a quantile of 0.999, few enough to follow a
machine that changes."""

MAX_WEIGHT = 1e100
"""Weight of a new observation at which all are divided by it, before it exceeds a float."""

MIN_SECONDS = 1e-9
"""What a phase counts for whose clock shows no time at all."""

MEAN_MEMORY = 64
"""Batches of one size after which one counts 1/e in the mean cycle: the pace covers changes that
are faster."""

MAX_DIFFERENCE = 1.5
"""Ratio of a mean cycle to what the cost model has learned at which the mean begins again."""

PACE_GAIN = 0.1
"""How far the pace moves towards that of a batch, if its size is a full one."""

LEVELS = (0.01, 0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95, 0.99, 0.999)
"""The quantiles that are described."""


class DecayingHistogram:
    """A histogram with log-spaced bins, in which old observations count less and less.

    It is sparse: values of one kind lie in few bins. Old observations are not reduced; the weight
    of the new ones grows instead. Not thread-safe.
    """

    __slots__ = ("_bins", "_growth", "_sum", "_total", "_weight")

    def __init__(self, memory: float = MEMORY) -> None:
        """Make an empty histogram.

        Args:
            memory: Observations after which one counts 1/e.
        """
        self._bins: dict[int, float] = {}
        self._growth = math.exp(1.0 / memory)
        self._weight = 1.0
        self._total = 0.0
        self._sum = 0.0

    @property
    def count(self) -> float:
        """The weight of all observations, if the newest one has 1."""
        return self._total / self._weight

    @property
    def mean(self) -> float:
        """The mean of the values, 0.0 without any."""
        return self._sum / self._total if self._total else 0.0

    def add(self, value: float) -> None:
        """Count a value above 0."""
        self._weight = weight = self._weight * self._growth
        index = math.floor(math.log2(value) * BINS_PER_OCTAVE)
        self._bins[index] = self._bins.get(index, 0.0) + weight
        self._total += weight
        self._sum += weight * value
        if weight > MAX_WEIGHT:
            self._bins = {
                index: bin_weight / weight
                for index, bin_weight in self._bins.items()
                if bin_weight > 1e-9 * weight
            }
            self._total = sum(self._bins.values())
            self._sum /= weight
            self._weight = 1.0

    def shares(self) -> Sequence[tuple[float, float]]:
        """Return the middle of each bin and its share of the observations, in ascending order."""
        total = self._total
        return [
            (2.0 ** ((index + 0.5) / BINS_PER_OCTAVE), weight / total)
            for index, weight in sorted(self._bins.items())
        ]

    def quantile(self, level: float) -> float:
        """Return the value that a share `level` of the observations does not exceed.

        It is interpolated in its bin; 0.0 without observations.
        """
        rest = level * self._total
        index = 0
        for index, weight in sorted(self._bins.items()):
            if rest <= weight:
                return float(2.0 ** ((index + rest / weight) / BINS_PER_OCTAVE))
            rest -= weight
        return float(2.0 ** ((index + 1) / BINS_PER_OCTAVE)) if self._bins else 0.0


class BatchTimes(NamedTuple):
    """The seconds of one batch, or a quantile of each over many batches."""

    join: float
    """From taking the requests to the run: their inputs are joined."""
    run: float
    answer: float
    """From the run to the last answer: the outputs are split, and handed to the transport."""
    cycle: float
    """All of these."""


class CostDistribution:
    """Histograms of the times of batches for each batch size of a cost model.

    A batch between two sizes counts for the upper one, and one of another group for the measured
    group, scaled as the cost model predicts.

    A mean cycle is that of its size, times the pace: what batches of any size have taken in the
    last moments over what they usually take. Thread-safe.
    """

    def __init__(self, cost_model: CostModel) -> None:
        self._cost_model = cost_model
        self._sizes = cost_model.batch_sizes
        self._histograms: dict[int, tuple[DecayingHistogram, ...]] = {}
        self._cycles: dict[int, float] = {}
        self._counts: dict[int, int] = {}
        self._run_ratio = 1.0  # of a cycle to the run that the cost model predicts
        self.pace = 1.0
        """What cycles take at the moment, over their usual time."""
        self._lock = threading.Lock()

    def observe(self, rows: int, group: Hashable, times: BatchTimes) -> None:
        """Learn from a batch whose run had `rows`, padding included."""
        sizes = self._sizes
        size = next((size for size in sizes if size >= rows), sizes[-1])
        scale = self._scale(size, rows, group)
        with self._lock:
            histograms = self._histograms.get(size)
            if histograms is None:
                histograms = tuple(DecayingHistogram() for _ in BatchTimes._fields)
                self._histograms = {**self._histograms, size: histograms}
            for histogram, seconds in zip(histograms, times, strict=True):
                histogram.add(max(seconds * scale, MIN_SECONDS))
            self._observe_cycle(size, times.cycle * scale)

    def usual_cycle(self, rows: int, group: Hashable = None) -> float:
        """Return the usual seconds of a cycle, without the pace; 0.0 before any measurement."""
        model = self._cost_model
        for size in self._sizes:
            if size >= rows:
                break
        if (cycle := self._cycles.get(size)) is None:
            return model.predict(rows, group) * self._run_ratio
        if size == rows:
            return cycle * model.factor(group)
        measured = model.predict(size)
        return cycle * model.predict(rows, group) / measured if measured else cycle

    def quantile(self, rows: int, level: float, group: Hashable = None) -> BatchTimes | None:
        """Return a quantile of each time of a batch, None if no batch is known."""
        with self._lock:
            if not self._histograms:
                return None
            size = min(self._histograms, key=lambda size: (abs(math.log(size / rows)), size))
            scale = self._scale(size, rows, group)
            return BatchTimes(
                *[histogram.quantile(level) / scale for histogram in self._histograms[size]]
            )

    def quantiles(self, size: int) -> Sequence[tuple[float, BatchTimes]]:
        """Return the levels of one batch size that enough batches are known for, and the times."""
        with self._lock:
            histograms = self._histograms.get(size, ())
            if not histograms:
                return []
            count = histograms[0].count
            return [
                (level, BatchTimes(*[histogram.quantile(level) for histogram in histograms]))
                for level in LEVELS
                if 2 * count * min(level, 1.0 - level) >= 1.0
            ]

    @property
    def stretch(self) -> float:
        """What cycles take at the moment over the run that the cost model predicts."""
        return self._run_ratio * self.pace

    def adjust_pace(self, excess: float) -> None:
        """Learn from a batch that took longer than predicted.

        Args:
            excess: By how much, relative to a full cycle; below 0 if it was quicker.
        """
        self.pace *= 1.0 + PACE_GAIN * min(max(excess, -1.0), 1.0)

    def _observe_cycle(self, size: int, cycle: float) -> None:
        """Learn the mean of a size; one that took far longer than usual counts as twice that."""
        predicted = self._cost_model.predict(size)
        usual = self._cycles.get(size)
        if usual is None:
            usual = predicted * self._run_ratio or cycle
        count = self._counts.get(size, 1) + 1
        bounded = min(cycle, 2.0 * usual * max(1.0, self.pace))
        usual += (bounded - usual) / min(count, MEAN_MEMORY)
        # The cost model's medians follow a new speed within three runs.
        likely = predicted * self._run_ratio
        if likely and not 1 / MAX_DIFFERENCE < usual / likely < MAX_DIFFERENCE:
            usual, count = likely, 2
        self._cycles[size], self._counts[size] = usual, count
        if predicted:
            ratio = min(cycle / predicted, 2.0 * self._run_ratio)
            self._run_ratio += (ratio - self._run_ratio) / MEAN_MEMORY

    def _scale(self, size: int, rows: int, group: Hashable) -> float:
        """Return what a batch of `size` of the measured group costs over one of `rows`."""
        cost = self._cost_model.predict(rows, group)
        return self._cost_model.predict(size) / cost if cost else 1.0
