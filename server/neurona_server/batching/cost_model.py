"""The cost of a run by its rows, measured at warm-up and updated by every run.

The costs also decide which batch sizes batches are padded to.
"""

import math
import threading
from bisect import bisect_left
from collections import OrderedDict, deque
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median

MAX_SAMPLES = 5
"""Runs that an estimate is the median of: one slow run changes nothing."""

STEADY_SECONDS = 0.1
"""Total seconds of at least two measured runs of a batch size after which it is known well enough:
disturbances of a machine are short compared with that."""

MEASURING_BUDGET = 1.0
"""Seconds to measure all batch sizes: the model does not serve until then."""

RELIABLE_RUNS = 3
"""Runs of a group before requests may be rejected by its estimate."""

RELIABLE_SECONDS = 5.0
"""Seconds after its last run in which requests may be rejected by a group's estimate: a wrong one
that rejects all requests would never be corrected."""

MAX_GROUPS = 256
"""Groups whose relative cost is kept; the least recently run one is dropped first."""


@dataclass
class _Group:
    """The cost of a group relative to that of the measured one."""

    runs: int = 0
    rows: int = 0
    """The most rows of a run that `factors` has learned from."""
    factors: deque[float] = field(default_factory=lambda: deque(maxlen=MAX_SAMPLES))
    factor: float = 1.0
    last_run: float = -math.inf


class CostModel:
    """Seconds of a run by its rows, from the median time of each batch size.

    Between batch sizes it interpolates linearly. Groups (the other axes of the inputs: a longer
    sequence, a larger image) differ by a factor, which is learned for each group from its
    second run on, as the first run of a shape may include preparation of the device.

    Thread-safe.
    """

    def __init__(self, batch_sizes: Sequence[int]) -> None:
        self.batch_sizes = tuple(batch_sizes)
        self._samples: dict[int, deque[float]] = {
            size: deque(maxlen=MAX_SAMPLES) for size in self.batch_sizes
        }
        self._seconds: dict[int, float] = {}
        self._measured_group: Hashable = None
        self._measured_rows = 0  # the most of one of its runs
        self._groups: OrderedDict[Hashable, _Group] = OrderedDict()
        # The factors of the latest runs, whatever their groups, and the median of these.
        self._recent_factors: deque[float] = deque(maxlen=MAX_SAMPLES)
        self._typical_factor = 1.0
        self._lock = threading.Lock()  # for writers; readers need none

    @property
    def seconds(self) -> dict[int, float]:
        """The estimated seconds of each batch size that has run, in ascending order."""
        return dict(self._seconds)

    def measure(
        self, time_run: Callable[[int], float], group: Hashable, budget: float = MEASURING_BUDGET
    ) -> None:
        """Measure the batch sizes in ascending order; `time_run(rows)` returns seconds.

        Stops once it has taken `budget` seconds: larger sizes are learned when they first run.
        """
        self._measured_group = group
        spent = 0.0
        for size in self.batch_sizes:
            spent += time_run(size)  # the first run of a shape includes its preparation
            self._samples[size].clear()
            self._measured_rows = size
            total = 0.0
            for count in range(1, MAX_SAMPLES + 1):
                seconds = time_run(size)
                spent += seconds
                total += seconds
                self._add_sample(size, seconds)
                if spent > budget or (count > 1 and total > STEADY_SECONDS):
                    break
            if spent > budget:
                break

    def predict(self, rows: int, group: Hashable = None) -> float:
        """Return the predicted seconds of a run, 0.0 before the first measurement.

        A group without measurements is predicted like the measured one.
        """
        record = self._groups.get(group)
        return self._predict_for_measured_group(rows) * (record.factor if record else 1.0)

    def is_known(self, group: Hashable) -> bool:
        """Return whether the cost of a group was learned: from its first run it is not."""
        record = self._groups.get(group)
        return group == self._measured_group or (record is not None and bool(record.factors))

    def factor(self, group: Hashable) -> float:
        """Return what a run of a group takes over one of the measured group."""
        record = self._groups.get(group)
        return record.factor if record else 1.0

    def predict_measured(self, rows: int, group: Hashable) -> float | None:
        """Return the predicted seconds of a run, None if no such run was measured.

        That is one of the same group with as many rows or more.
        """
        if group == self._measured_group:
            return self._predict_for_measured_group(rows) if rows <= self._measured_rows else None
        record = self._groups.get(group)
        if record is None or rows > record.rows:
            return None
        return self._predict_for_measured_group(rows) * record.factor

    def is_reliable(self, group: Hashable, now: float) -> bool:
        """Return whether the group has run often and recently enough to reject requests."""
        record = self._groups.get(group)
        if record is None:
            return False
        recent = now - record.last_run <= RELIABLE_SECONDS
        return recent and (record.runs > RELIABLE_RUNS or group == self._measured_group)

    def observe(self, rows: int, seconds: float, group: Hashable, now: float) -> None:
        """Learn from a run of `rows` of `group` that took `seconds` and ended at `now`."""
        seconds = max(seconds, 1e-9)  # a coarse clock may show no time at all
        with self._lock:
            if self._measured_group is None:
                self._measured_group = group
            record = self._groups.setdefault(group, _Group())
            record.runs += 1
            record.last_run = now
            self._groups.move_to_end(group)
            if len(self._groups) > MAX_GROUPS:
                self._groups.popitem(last=False)
            base = self._predict_for_measured_group(rows)
            if base:
                self._recent_factors.append(seconds / base)
                self._typical_factor = median(self._recent_factors)
            if group == self._measured_group:
                sizes = self.batch_sizes
                size = next((size for size in sizes if size >= rows), sizes[-1])
                scaled = (
                    seconds * self._predict_for_measured_group(size) / base if base else seconds
                )
                self._add_sample(size, scaled)
                self._measured_rows = max(self._measured_rows, rows)
            elif base and record.runs > 1:
                record.rows = max(record.rows, rows)
                record.factors.append(seconds / base)
                record.factor = median(record.factors)

    def best_batch_size(self, objective: float | None) -> int:
        """Return the batch size with the highest throughput that meets `objective` (seconds).

        A request may arrive just after a batch has started: it waits for that run, then for its
        own. So a batch size meets the objective if two of its runs do, at the typical cost of the
        groups that run now. The smallest batch size that has not run yet is assumed to cost no more
        than the one below it, so that it is tried. If none meets the objective, it is the one with
        the most rows per second of those that cost little more than the cheapest. Without an
        objective or any measurement it is the largest.
        """
        seconds = self.seconds
        if objective is None or not seconds:
            return self.batch_sizes[-1]
        measured = list(seconds)
        for size in self.batch_sizes:
            if size > measured[-1]:
                seconds[size] = seconds[measured[-1]]
                break
        allowed = objective / (2 * self._typical_factor)
        candidates = [size for size in seconds if seconds[size] <= allowed]
        if not candidates:
            cheapest = min(seconds.values())
            candidates = [size for size in measured if seconds[size] <= 1.5 * cheapest]
        return max(candidates, key=lambda size: (size / seconds[size], size))

    def rows_within(self, seconds: float) -> int:
        """Return the most rows, of any batch, of which a run takes at most `seconds`.

        Runs cost what is typical of the groups that run now. It is 1 at the least.
        """
        allowed = seconds / self._typical_factor
        fits, exceeds = 1, self.batch_sizes[-1] + 1
        while exceeds - fits > 1:
            rows = (fits + exceeds) // 2
            if self._predict_for_measured_group(rows) <= allowed:
                fits = rows
            else:
                exceeds = rows
        return fits

    def _add_sample(self, size: int, seconds: float) -> None:
        samples = self._samples[size]
        samples.append(seconds)
        # The mapping is replaced, not changed: readers in other threads see one or the other.
        self._seconds = dict(sorted({**self._seconds, size: median(samples)}.items()))

    def _predict_for_measured_group(self, rows: int) -> float:
        """Return the seconds of a run of the measured group.

        They are interpolated between the two nearest batch sizes that have run. Above the largest
        size they are proportional to the rows; below the smallest size they are that size's.
        """
        seconds = self._seconds
        below = 0
        for size in seconds:
            if size >= rows:
                if not below:
                    return seconds[size]
                share = (rows - below) / (size - below)
                return seconds[below] + share * (seconds[size] - seconds[below])
            below = size
        return seconds[below] * rows / below if below else 0.0


SLOWER_RATIO = 1.1
"""Padding pays when sizes between two batch sizes cost this many times the upper one ..."""

SLOWER_FIRST_RATIO = 3.0
"""... or when the first run of a size does ..."""

MIN_DIFFERENCE = 100e-6
"""... and the difference is at least this many seconds: less is noise."""

PADDING_ROUNDS = 3

PADDING_BUDGET = 1.0
"""Seconds to measure whether padding pays. A model that would take longer is not padded: it is its
rows that cost, not that their number is new."""


class Padding:
    """The batch sizes that batches are padded up to.

    A GPU prepares each new shape, so a size between two batch sizes may cost more than the upper
    one, for which it is prepared; on a CPU it does not. This is measured.
    """

    def __init__(self, batch_sizes: Sequence[int]) -> None:
        self._batch_sizes = tuple(batch_sizes)
        self._padded_sizes: set[int] = set()

    @property
    def padded_sizes(self) -> frozenset[int]:
        """The batch sizes that smaller batches are padded up to."""
        return frozenset(self._padded_sizes)

    def measure(
        self,
        time_run: Callable[[int], float],
        measured: Mapping[int, float],
        budget: float = PADDING_BUDGET,
    ) -> None:
        """Decide for each batch size that has been `measured` (seconds, by batch size).

        `time_run(rows)` returns the seconds of one run.
        """
        for below, upper in zip(self._batch_sizes, self._batch_sizes[1:], strict=False):
            sizes = sorted({below + (upper - below) * part // 4 for part in (1, 2, 3)} - {below})
            if upper not in measured or not sizes:
                continue
            budget -= 2 * PADDING_ROUNDS * len(sizes) * measured[upper]
            if budget < 0:
                return
            slower_first, slower = [], []
            for size in sizes:  # alternating, so that a slow phase of the machine affects both
                runs = [time_run(size) for _ in range(PADDING_ROUNDS)]
                reference = min([time_run(upper) for _ in range(PADDING_ROUNDS)])
                slower_first.append(
                    runs[0] > SLOWER_FIRST_RATIO * reference
                    and runs[0] - reference > MIN_DIFFERENCE
                )
                slower.append(
                    min(runs) > SLOWER_RATIO * reference and min(runs) - reference > MIN_DIFFERENCE
                )
            if all(slower_first) or all(slower):
                self._padded_sizes.add(upper)

    def padded_rows(self, rows: int) -> int:
        """Return the rows that a batch of `rows` runs with."""
        index = bisect_left(self._batch_sizes, rows)
        if index < len(self._batch_sizes) and self._batch_sizes[index] in self._padded_sizes:
            return self._batch_sizes[index]
        return rows
