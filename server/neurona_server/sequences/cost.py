"""The cost of a run of a recurrent model, by its rows and by its steps.

Steps run one after the other, each for all rows: a run takes a fixed time, and a time for each step
that depends on the rows. Late steps of a long sequence may take longer, since its arrays do not fit
into a CPU's cache. All of that is measured at warm-up, and every run corrects it.
"""

import math
from bisect import bisect_left
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import astuple, dataclass, replace

import numpy as np

from neurona_server.batching.cost_model import (
    MEASURING_BUDGET,
    RELIABLE_RUNS,
    RELIABLE_SECONDS,
    CostModel,
)
from neurona_server.sequences.ragged import LengthGroup

SAMPLES = 3
"""Runs of each batch size with more steps that are measured."""

LEARNING_RATE = 0.15
"""Part of the difference between a run and its prediction by which the costs are corrected."""

TYPICAL_RATE = 0.05
"""Weight of the newest run, or sequence, in the typical number of steps."""

MAX_EXCESS = 1.0
MAX_SHORTFALL = 0.5
"""Limits of that difference, relative to the prediction: one slow run changes little."""

MIN_SHARE = 0.01
"""Of the time of a measured run: a correction multiplies, so that no part may be 0."""

UNKNOWN_FIXED_SHARE = 0.2
"""The part of the first run's time that is taken as fixed if nothing was measured before."""

MAX_BASES = 256
"""Bases whose relative cost is kept; the one that was added first is dropped first."""


@dataclass(frozen=True)
class StepCost:
    """What runs of one number of rows take, in seconds."""

    fixed: float
    per_step: float
    per_late_step: float = 0.0
    """What each late step takes more than the others."""


@dataclass
class _Base:
    """The runs of requests that differ in their lengths only."""

    runs: int = 0
    last_run: float = -math.inf
    factor: float = 1.0
    """Of the costs, relative to those of the measured base."""


class SequenceCostModel(CostModel):
    """A `CostModel` that knows the steps of a `LengthGroup`.

    Between batch sizes it interpolates linearly. All runs of one base correct the costs of the two
    batch sizes that a run is between, by normalised least mean squares (Widrow and Hoff 1960;
    Nagumo and Noda 1967), whose features are the parts of the prediction. Other groups have the
    cost of the typical number of steps.

    Thread-safe.
    """

    def __init__(self, batch_sizes: Sequence[int]) -> None:
        super().__init__(batch_sizes)
        # Batch sizes in ascending order, and their costs. The pair is replaced, not changed:
        # readers in other threads see one state or the other.
        self._table: tuple[Sequence[int], Sequence[StepCost]] = ((), ())
        self._early_steps = math.inf  # the others are late
        self._typical_steps = 1.0
        self._has_pieces = False
        self._measured_steps = 0.0
        self._bases: dict[Hashable, _Base] = {}
        # The most rows that have run with more steps than those that were measured, by steps.
        self._longer_runs: dict[int, int] = {}

    @property
    def seconds(self) -> dict[int, float]:
        """The estimated seconds of each batch size that has run, at the typical steps."""
        steps = self._typical_steps
        late = max(0.0, steps - self._early_steps)
        return {
            size: cost.fixed + steps * cost.per_step + late * cost.per_late_step
            for size, cost in zip(*self._table, strict=True)
        }

    def measure(
        self, time_run: Callable[[int], float], group: Hashable, budget: float = MEASURING_BUDGET
    ) -> None:
        super().measure(time_run, group, budget)
        base, steps = self._parse(group)
        self._measured_group = base
        self._typical_steps = self._measured_steps = steps
        fixed = UNKNOWN_FIXED_SHARE
        self._replace_costs(
            {
                size: StepCost(fixed * seconds, (1 - fixed) * seconds / steps)
                for size, seconds in self._seconds.items()
            }
        )

    def measure_steps(
        self,
        time_run: Callable[[int, int], float],
        steps: tuple[int, int],
        budget: float = MEASURING_BUDGET,
    ) -> None:
        """Measure the part of a run's time that grows with its steps, after `measure`.

        Args:
            time_run: Returns the seconds of one run, by rows and steps.
            steps: Two numbers of steps; the first is that of `measure`.
            budget: Seconds after which larger batch sizes are taken to be like the last one.
        """
        shorter, longer = steps
        costs: dict[int, StepCost] = {}
        share = 1 - UNKNOWN_FIXED_SHARE
        measured = _time_in_turns(time_run, self._seconds, steps, budget)
        for size, seconds in self._seconds.items():
            if size in measured:
                less, more = measured[size]
                growth = (more / less - 1) * shorter / (longer - shorter)
                share = min(max(growth, MIN_SHARE), 1 - MIN_SHARE)
            else:
                less = seconds
            costs[size] = StepCost((1 - share) * less, share * less / shorter)
        self._measured_steps = max(self._measured_steps, longer)
        self._replace_costs(costs)

    def measure_late_steps(
        self,
        time_run: Callable[[int, int], float],
        steps: int,
        budget: float = MEASURING_BUDGET,
    ) -> None:
        """Measure what steps take that are later than those of `measure_steps`, after that.

        Args:
            time_run: Returns the seconds of one run, by rows and steps.
            steps: The number of steps of a long sequence.
            budget: See `measure_steps`.
        """
        early = int(self._measured_steps)
        share = MIN_SHARE
        costs = dict(zip(*self._table, strict=True))
        expected = {size: cost.fixed + early * cost.per_step for size, cost in costs.items()}
        measured = _time_in_turns(time_run, expected, (early, steps), budget)
        for size, cost in costs.items():
            if size in measured:
                less, more = measured[size]
                growth = (more / less - 1) * expected[size] / (steps - early)
                share = max(growth / cost.per_step - 1, MIN_SHARE)
            costs[size] = replace(cost, per_late_step=share * cost.per_step)
        self._early_steps, self._measured_steps = early, steps
        self._replace_costs(costs)

    def predict(self, rows: int, group: Hashable = None) -> float:
        base, steps = self._parse(group)
        sizes, costs = self._table
        if not sizes:
            return 0.0
        late = max(0.0, steps - self._early_steps)
        upper = bisect_left(sizes, rows)
        if upper == len(sizes):
            cost = costs[-1]
            seconds = cost.fixed + steps * cost.per_step + late * cost.per_late_step
            seconds *= rows / sizes[-1]
        else:
            size, cost = sizes[upper], costs[upper]
            seconds = cost.fixed + steps * cost.per_step + late * cost.per_late_step
            if upper and size != rows:
                below, cost = sizes[upper - 1], costs[upper - 1]
                less = cost.fixed + steps * cost.per_step + late * cost.per_late_step
                seconds = less + (seconds - less) * (rows - below) / (size - below)
        if base != self._measured_group and (record := self._bases.get(base)) is not None:
            seconds *= record.factor
        return seconds

    def predict_measured(self, rows: int, group: Hashable) -> float | None:
        base, steps = self._parse(group)
        if base != self._measured_group:
            return None
        if steps <= self._measured_steps:
            return self.predict(rows, group) if rows <= self._measured_rows else None
        for most_steps, most_rows in list(self._longer_runs.items()):
            if steps <= most_steps and rows <= most_rows:
                return self.predict(rows, group)
        return None

    def is_reliable(self, group: Hashable, now: float) -> bool:
        """Return whether the group's base has run often and recently enough to reject requests."""
        base, _ = self._parse(group)
        record = self._bases.get(base)
        if record is None:
            return False
        recent = now - record.last_run <= RELIABLE_SECONDS
        return recent and (record.runs > RELIABLE_RUNS or base == self._measured_group)

    def observe(self, rows: int, seconds: float, group: Hashable, now: float) -> None:
        seconds = max(seconds, 1e-9)  # a coarse clock may show no time at all
        base, steps = self._parse(group)
        with self._lock:
            if not self._table[0]:
                self._measured_group = base
                size = self._size_above(rows)
                fixed = UNKNOWN_FIXED_SHARE * seconds
                self._replace_costs({size: StepCost(fixed, (seconds - fixed) / steps)})
            record = self._bases.get(base)
            if record is None:
                if len(self._bases) >= MAX_BASES:
                    del self._bases[next(iter(self._bases))]
                record = self._bases[base] = _Base()
            record.runs += 1
            record.last_run = now
            if base != self._measured_group:
                if record.runs > 1:  # the first run of a shape may include its preparation
                    error = seconds / self.predict(rows, group) - 1
                    error = min(max(error, -MAX_SHORTFALL), MAX_EXCESS)
                    record.factor *= 1 + LEARNING_RATE * error
                return
            if isinstance(group, LengthGroup) and not self._has_pieces:
                self._typical_steps += TYPICAL_RATE * (steps - self._typical_steps)
            self._correct(rows, steps, seconds)
            if steps <= self._measured_steps:
                self._measured_rows = max(self._measured_rows, rows)
            else:
                most = self._longer_runs.get(int(steps), 0)
                self._longer_runs[int(steps)] = max(most, rows)

    def note_sequence(self, group: Hashable) -> None:
        """Learn the typical steps from a sequence that runs in pieces, not from those any more."""
        self._has_pieces = True
        if isinstance(group, LengthGroup) and group.base == self._measured_group:
            self._typical_steps += TYPICAL_RATE * (group.steps - self._typical_steps)

    def _correct(self, rows: int, steps: float, seconds: float) -> None:
        """Correct the costs of the batch sizes that determine the prediction of a run."""
        predicted = self.predict(rows, LengthGroup(self._measured_group, int(steps)))
        costs = dict(zip(*self._table, strict=True))
        weights = self._weights(rows)
        size = self._size_above(rows)
        if size not in costs:
            # The seconds of a run are taken for those of the next larger batch size.
            factor = seconds / predicted * max(1.0, size / rows if rows > max(costs) else 1.0)
            alike = [astuple(costs[one]) for one in weights]
            costs[size] = StepCost(
                *[
                    float(factor * np.dot(parts, [*weights.values()]))
                    for parts in zip(*alike, strict=True)
                ]
            )
            self._replace_costs(costs)
            return
        error = min(max(seconds / predicted - 1, -MAX_SHORTFALL), MAX_EXCESS)
        late = max(0.0, steps - self._early_steps)
        parts = [
            weight * part * count
            for one, weight in weights.items()
            for part, count in zip(astuple(costs[one]), (1.0, steps, late), strict=True)
        ]
        norm = sum([part * part for part in parts]) or 1.0
        factors = [1 + LEARNING_RATE * error * predicted * part / norm for part in parts]
        for index, one in enumerate(weights):
            corrected = zip(astuple(costs[one]), factors[3 * index :], strict=False)
            costs[one] = StepCost(*[part * factor for part, factor in corrected])
        self._replace_costs(costs)

    def _weights(self, rows: int) -> dict[int, float]:
        """Return the weights of batch sizes in the prediction of a run."""
        sizes = self._table[0]
        upper = bisect_left(sizes, rows)
        if upper == len(sizes):
            return {sizes[-1]: rows / sizes[-1]}
        if not upper or sizes[upper] == rows:
            return {sizes[upper]: 1.0}
        share = (rows - sizes[upper - 1]) / (sizes[upper] - sizes[upper - 1])
        return {sizes[upper - 1]: 1.0 - share, sizes[upper]: share}

    def _replace_costs(self, costs: Mapping[int, StepCost]) -> None:
        ordered = dict(sorted(costs.items()))
        self._table = tuple(ordered), tuple(ordered.values())

    def _size_above(self, rows: int) -> int:
        sizes = self.batch_sizes
        return next((size for size in sizes if size >= rows), sizes[-1])

    def _parse(self, group: Hashable) -> tuple[Hashable, float]:
        if isinstance(group, LengthGroup):
            return group
        return group, self._typical_steps


def _time_in_turns(
    time_run: Callable[[int, int], float],
    expected: Mapping[int, float],
    steps: tuple[int, int],
    budget: float,
) -> dict[int, tuple[float, float]]:
    """Return the least seconds of runs with few and with many steps, by rows.

    All take turns, so that a slow phase of the machine affects all of them, and none for good.

    Args:
        time_run: Returns the seconds of one run, by rows and steps.
        expected: The seconds with few steps, by rows.
        steps: The two numbers of steps.
        budget: Seconds that all may take; the most rows are left out first.
    """
    fewer, more = steps
    samples: dict[int, list[tuple[float, float]]] = {}
    reserved = 0.0  # for the turns that follow
    for size, seconds in expected.items():
        both = seconds * (1 + more / fewer)
        if budget - reserved <= (1 + SAMPLES) * both:
            break
        budget -= time_run(size, fewer) + time_run(size, more)  # includes preparation
        reserved += SAMPLES * both
        samples[size] = []
    for turn in range(SAMPLES):
        if turn and budget <= 0:
            break
        for size, runs in samples.items():
            runs.append((time_run(size, fewer), time_run(size, more)))
            budget -= sum(runs[-1])
    return {
        size: (min(less for less, _ in runs), min(longer for _, longer in runs))
        for size, runs in samples.items()
    }
