"""How many of the waiting rows the next batch takes: all, where a run of all is the most efficient.

Where batching gains little, a batch of all keeps the first rows until the last one has run.
The optimum, a semi-Markov decision process, needs seconds to solve and the arrival rate; this rule
comes within a few percent of its mean response (`tests/benchmarks/optimum.py` measures it). It
empties the queue as if nothing else arrived, in batches that keep the sum of the responses least.
That is quick to compute, and what arrives meanwhile only changes the price of time: a run that is
longer by a second delays all arrivals until the queue is empty, thus costs `1 / (1 - utilisation)`
times what it costs those that wait. At full load only efficiency counts.

Two parts of the price need no measurement. What each row costs alike, in whatever batch, such as
writing its answer, is the same for all choices. And groups whose runs take longer than those of
others by a factor have the same choices.
"""

import math
from bisect import bisect_left
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Protocol

from neurona_server.batching.cost_model import CostModel

MIN_RUN_SECONDS = 0.001
"""Of a row, for there to be a choice. What every batch takes beside its run, in threads, counters
and writes, is unknown here, and for shorter runs that decides: batches of all share it most. For
LeNet-5 at 64 requests in flight the choice of smaller ones took 15 % more CPU time a request."""

MAX_PRICE = 32.0
"""Limit of `1 / (1 - utilisation)`: more efficiency than this is not measured."""

UTILISATION_SECONDS = 5.0
UTILISATION_RUNS = 500
"""The time over which the utilisation is averaged, and its least length in runs of one row: a queue
that happens to be long for some runs is no higher utilisation."""

UPDATE_SECONDS = 1.0
"""Between two updates of the table, which takes less than a millisecond."""

MAX_RUNS = 32
"""Runs that the cost of a batch size is the mean of: sizes may differ by a percent or two."""

FIRST_RUNS = 16
"""What the measurement at warm-up counts for."""

MAX_DEVIATION = 2.0
"""The times of what is expected by which a run may exceed it to count in full: a stall says little
about a size."""

SPEED_RUNS = 3
"""Runs that the speed of the machine is averaged over. It may change at any time, and then the
sizes that have run since must not seem worse or better than the others."""

MAX_TABLE_ROWS = 128
"""Waiting rows up to which there is a choice for each number; above it batches are as efficient as
possible."""

EXPLORE_INTERVAL = 32
"""Every so many batches a limited one may have the next larger size: its estimate may be wrong, and
would otherwise never be corrected."""


class Utilisation:
    """The share of the time in which a model's instances run, or could if they had a turn.

    Threads that observe at once may lose an addition: only an estimate is made of it.
    """

    def __init__(self, now: float, instances: int) -> None:
        self.share = 1.0
        """Before anything is known batches are as efficient as possible."""
        self._instances = instances
        self._busy = 0.0
        self._updated = now
        self._last_end = now

    def observe(self, queued_at: float, started: float, ended: float, window: float) -> None:
        """Count a batch.

        Args:
            queued_at: When the first of its requests was queued.
            started: When it left the queue.
            ended: When its last answer was given.
            window: The seconds to average over.
        """
        # A request that waits while no batch runs waits for other models on the device.
        self._busy += ended - started + max(0.0, started - max(self._last_end, queued_at))
        self._last_end = ended
        elapsed = ended - self._updated
        if elapsed >= window / 32:
            share = min(1.0, self._busy / elapsed / self._instances)
            self.share += (1.0 - math.exp(-elapsed / window)) * (share - self.share)
            self._busy = 0.0
            self._updated = ended


class RelativeCosts:
    """What runs of the batch sizes cost relative to each other, at any speed of the machine.

    Threads that observe at once may lose a run.
    """

    def __init__(self, batch_sizes: Sequence[int]) -> None:
        self._sizes = batch_sizes
        self._costs: dict[int, float] = {}
        self._counts: dict[int, int] = {}
        self._slowness = 1.0

    @property
    def costs(self) -> Mapping[int, float]:
        """Those of each batch size that has run, in ascending order."""
        return self._costs

    @property
    def largest(self) -> int:
        """The largest batch size that has run, 0 before any."""
        return max(self._costs, default=0)

    def start(self, seconds: Mapping[int, float]) -> None:
        """Begin with what was measured at warm-up."""
        self._costs = {size: one for size, one in sorted(seconds.items()) if one > 0}
        self._counts = dict.fromkeys(self._costs, FIRST_RUNS)

    def observe(self, rows: int, seconds: float) -> None:
        """Learn from a run; one between two sizes counts for the upper one."""
        size = self._sizes[min(bisect_left(self._sizes, rows), len(self._sizes) - 1)]
        if not seconds:
            return
        if (cost := self._costs.get(size)) is None:
            cost = seconds * size / rows / self._slowness
            self._costs = dict(sorted({**self._costs, size: cost}.items()))
            self._counts[size] = 1
            return
        expected = cost if rows == size else interpolate(self._costs, rows)
        slowness = self._slowness
        # The mean of these deviations is 0 whatever the distribution of the runs, since the speed
        # is learned from the same: or the size that runs would seem to get slower and slower.
        deviation = min(seconds / expected - slowness, MAX_DEVIATION * slowness)
        self._slowness = slowness + deviation / SPEED_RUNS
        self._counts[size] = count = min(self._counts[size] + 1, MAX_RUNS)
        self._costs[size] = cost * (1.0 + deviation / (count * max(1.0, slowness)))


class Waiting(Protocol):
    """A queue, as far as its length matters."""

    @property
    def rows(self) -> int:
        """The number of waiting rows."""


class BatchSizeChoice:
    """The rows of the next batch by those that wait.

    Args:
        cost_model: What runs cost.
        padded_rows: The rows that a batch runs with.
        queue: What waits, of all groups.
        clock: In seconds.
        instances: That take batches from the queue.
    """

    def __init__(
        self,
        cost_model: CostModel,
        padded_rows: Callable[[int], int],
        queue: Waiting,
        clock: Callable[[], float],
        instances: int = 1,
    ) -> None:
        self._cost_model = cost_model
        self._padded_rows = padded_rows
        self._queue = queue
        self._instances = instances
        self._costs = RelativeCosts(cost_model.batch_sizes)
        self._utilisation = Utilisation(clock(), instances)
        self._batches = 0
        self._most_waiting = 1  # since the last update
        self._table: Sequence[int] = ()
        self._efficient_rows = cost_model.batch_sizes[-1]
        self._updated = -math.inf

    @property
    def utilisation(self) -> float:
        """The share of the time in which the instances run."""
        return self._utilisation.share

    def choose(self, _group: Hashable, waiting: int, _oldest: object = None) -> int:
        """Return the rows to take of `waiting` that may run together: at least 1.

        What other groups have waiting is delayed as well, so it counts like more of the same.
        """
        if waiting == 1 or not self._is_worthwhile():
            return waiting
        total = max(waiting, self._queue.rows)
        self._most_waiting = max(self._most_waiting, total)
        table = self._table
        rows = table[total] if total < len(table) else self._efficient_rows
        if rows >= waiting or waiting > self._costs.largest:
            return waiting
        if self._batches % EXPLORE_INTERVAL == 0:
            rows = next((size for size in self._cost_model.batch_sizes if size > rows), rows)
        return min(rows, waiting)

    def observe_run(self, rows: int, seconds: float, group: Hashable) -> None:
        """Learn from a run of `rows`, padding included."""
        if not self._is_worthwhile():
            return
        if not self._costs.largest:
            self._costs.start(self._cost_model.seconds)
        self._costs.observe(rows, seconds / self._cost_model.factor(group))

    def observe_batch(self, queued_at: float, started: float, ended: float) -> None:
        """Learn from a batch: when its first request was queued, when it started and ended."""
        if not self._is_worthwhile():
            return
        self._batches += 1
        window = max(UTILISATION_SECONDS, UTILISATION_RUNS * self._cost_model.predict(1))
        self._utilisation.observe(queued_at, started, ended, window)
        if ended - self._updated >= UPDATE_SECONDS:
            self._updated = ended
            self.update()

    def _is_worthwhile(self) -> bool:
        return self._cost_model.predict(1) >= MIN_RUN_SECONDS

    def update(self) -> None:
        """Make the table anew from the present costs and utilisation."""
        costs = {**self._costs.costs}
        if not costs:
            return
        self._efficient_rows = min(costs, key=lambda size: costs[size] / size)
        price = min(MAX_PRICE, 1.0 / max(1.0 - self._utilisation.share, 1e-9))
        limit = min(2 * self._most_waiting, MAX_TABLE_ROWS)
        self._most_waiting = 1
        runs = [
            interpolate(costs, self._padded_rows(rows))
            for rows in range(1, min(limit, max(costs)) + 1)
        ]
        row_seconds = costs[self._efficient_rows] / self._efficient_rows
        self._table = choice_table(runs, row_seconds, price, self._instances, limit)


def choice_table(
    runs: Sequence[float], row_seconds: float, price: float, instances: int, limit: int
) -> Sequence[int]:
    """Return the rows to take by those that wait, from 0 on.

    Args:
        runs: The seconds of a run, by its rows from 1 on.
        row_seconds: Of a row in a run of the most efficient size.
        price: Of a second that is lost by inefficiency, in seconds of those that wait.
        instances: That take batches from the queue.
        limit: The most waiting rows to return a choice for.
    """
    largest = len(runs)
    sizes = _candidates(largest)
    efficient = [rows * row_seconds for rows in range(1, largest + 1)]
    # What a batch counts for: the seconds of the most efficient one, and those that it loses.
    priced = [best + price * (run - best) for best, run in zip(efficient, runs, strict=True)]
    totals = [0.0]  # of the responses of all that wait
    table = [0]
    for waiting in range(1, limit + 1):
        taken, least = 0, math.inf
        for rows in (*sizes, waiting):
            if rows > waiting or rows > largest:
                continue
            # What is left waits for a batch only while no other instance takes it.
            delayed = rows + (waiting - rows) / instances
            total = delayed * priced[rows - 1] + totals[waiting - rows]
            if total < least or (total == least and rows > taken):
                taken, least = rows, total
        totals.append(least)
        table.append(taken)
    return table


def _candidates(largest: int) -> Sequence[int]:
    """Return the sizes to choose from beside all that waits: about two for each power of two."""
    powers = [1 << power for power in range(largest.bit_length())]
    sizes = {largest, *powers, *[3 * power // 2 for power in powers]}
    return sorted([size for size in sizes if size <= largest])


def interpolate(costs: Mapping[int, float], rows: int) -> float:
    """Return the seconds of a run by those of some sizes, in ascending order."""
    below = 0
    for size, seconds in costs.items():
        if size >= rows:
            if not below:
                return seconds
            return costs[below] + (rows - below) / (size - below) * (seconds - costs[below])
        below = size
    return costs[below] * rows / below
