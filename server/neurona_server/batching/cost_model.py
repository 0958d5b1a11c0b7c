"""What a run of so many rows costs: measured at warm-up, learned on from every run."""

import math
import threading
from bisect import bisect_left
from collections import OrderedDict, deque
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median

SLOWER = 1.1
"""Padding pays when sizes between two rungs cost this many times the upper rung ..."""

SLOW_AT_FIRST = 3.0
"""... or when a size that is met for the first time does ..."""

ROUNDS = 3

WORTH = 100e-6
"""... and the difference is so many seconds at the least: below it is the machine's noise."""


PADDING_BUDGET = 1.0
"""Seconds for finding out. What would take longer is left as it is: where so slow a model runs,
it is the rows that cost, not their number's being new."""


class Padding:
    """A GPU prepares anew for each shape that it meets, so that a size between two rungs may
    cost more than the upper rung, which it knows; a CPU does not. Which it is, is measured.
    """

    def __init__(self, batch_sizes: Sequence[int]) -> None:
        self._rungs = tuple(batch_sizes)
        self._padded_sizes: set[int] = set()

    @property
    def padded_sizes(self) -> frozenset[int]:
        """The rungs that batches are padded up to."""
        return frozenset(self._padded_sizes)

    def measure(
        self,
        time_run: Callable[[int], float],
        known: Mapping[int, float],
        budget: float = PADDING_BUDGET,
    ) -> None:
        """`time_run(rows)` gives the seconds of one run; `known` has those of the rungs that have
        run."""
        for below, batch_size in zip(self._rungs, self._rungs[1:], strict=False):
            sizes = sorted(
                {below + (batch_size - below) * part // 4 for part in (1, 2, 3)} - {below}
            )
            if batch_size not in known or not sizes:
                continue
            budget -= 2 * ROUNDS * len(sizes) * known[batch_size]
            if budget < 0:
                return
            first, later = [], []
            for size in sizes:  # side by side, so that a machine that slows down slows both
                runs = [time_run(size) for _ in range(ROUNDS)]
                upper = min([time_run(batch_size) for _ in range(ROUNDS)])
                first.append(runs[0] > SLOW_AT_FIRST * upper and runs[0] - upper > WORTH)
                later.append(min(runs) > SLOWER * upper and min(runs) - upper > WORTH)
            if all(first) or all(later):
                self._padded_sizes.add(batch_size)

    def rows(self, rows: int) -> int:
        """The rows that a batch of `rows` runs with."""
        index = bisect_left(self._rungs, rows)
        if index < len(self._rungs) and self._rungs[index] in self._padded_sizes:
            return self._rungs[index]
        return rows


SAMPLES = 5
"""Runs that an estimate is the median of: one run that the machine held up changes nothing."""

STEADY = 0.1
"""Seconds that the measured runs of a rung take together, if two do: what disturbs a machine is
short beside one that long."""

MEASURING_BUDGET = 1.0
"""Seconds for all rungs: nothing is served yet."""

TRUSTED_SAMPLES = 3
"""Runs of a group before its estimate may refuse anybody."""

TRUSTED_SECONDS = 5.0
"""How long it may, without another run: a wrong one that refuses all could never be mended."""

MOST_GROUPS = 256
"""Groups of which the relative cost is remembered; the one not seen for longest goes first."""


@dataclass
class _Group:
    """A group's cost by that of the one that was measured."""

    runs: int = 0
    factors: deque[float] = field(default_factory=lambda: deque(maxlen=SAMPLES))
    factor: float = 1.0
    last: float = -math.inf


class CostModel:
    """Seconds of a run by its rows, on the rungs of a ladder of batch sizes.

    Between the rungs it is a straight line. Groups (the other axes of the inputs: a longer
    sequence, a larger image) differ by a factor, which is learned for each group from its
    second run on: the first one of a shape may have to prepare the device.

    Any thread may observe and read.
    """

    def __init__(self, batch_sizes: Sequence[int]) -> None:
        self.batch_sizes = tuple(batch_sizes)
        self._samples: dict[int, deque[float]] = {
            batch_size: deque(maxlen=SAMPLES) for batch_size in self.batch_sizes
        }
        self._seconds: dict[int, float] = {}
        self._measured: Hashable = None  # the group that the rungs were measured with
        self._groups: OrderedDict[Hashable, _Group] = OrderedDict()
        # The factors of what runs nowadays, whatever its group.
        self._recent: deque[float] = deque(maxlen=SAMPLES)
        self._usual = 1.0
        self._learning = threading.Lock()

    @property
    def seconds(self) -> dict[int, float]:
        """The estimate for each rung that is known."""
        return dict(self._seconds)

    def measure(
        self, time_run: Callable[[int], float], group: Hashable, budget: float = MEASURING_BUDGET
    ) -> None:
        """Runs the ladder from below: `time_run(rows)` gives the seconds of one run.

        Stops once it has taken `budget` seconds: higher rungs are learned when they are met.
        """
        self._measured = group
        spent = 0.0
        for batch_size in self.batch_sizes:
            spent += time_run(batch_size)  # the first run of a shape sets up what later ones have
            self._samples[batch_size].clear()
            together = 0.0
            for count in range(1, SAMPLES + 1):
                seconds = time_run(batch_size)
                spent += seconds
                together += seconds
                self._learn(batch_size, seconds)
                if spent > budget or (count > 1 and together > STEADY):
                    break
            if spent > budget:
                break

    def predict(self, rows: int, group: Hashable = None) -> float:
        """Seconds of a run; 0.0 while nothing is known. A group that is not known yet is taken
        for one like that which was measured."""
        known = self._groups.get(group)
        return self._base(rows) * (known.factor if known else 1.0)

    def trusted(self, group: Hashable, now: float) -> bool:
        """Whether what is known of this group is enough, and fresh enough, to refuse by."""
        known = self._groups.get(group)
        if known is None:
            return False
        fresh = now - known.last <= TRUSTED_SECONDS
        return fresh and (known.runs > TRUSTED_SAMPLES or group == self._measured)

    def observe(self, rows: int, seconds: float, group: Hashable, now: float) -> None:
        """A run of `rows` of `group` took `seconds` and ended `now`."""
        seconds = max(seconds, 1e-9)  # a coarse clock may have seen no time pass
        with self._learning:
            if self._measured is None:
                self._measured = group
            known = self._groups.setdefault(group, _Group())
            known.runs += 1
            known.last = now
            self._groups.move_to_end(group)
            if len(self._groups) > MOST_GROUPS:
                self._groups.popitem(last=False)
            base = self._base(rows)
            if base:
                self._recent.append(seconds / base)
                self._usual = median(self._recent)
            if group == self._measured:
                batch_size = next(
                    (batch_size for batch_size in self.batch_sizes if batch_size >= rows),
                    self.batch_sizes[-1],
                )
                self._learn(
                    batch_size, seconds * self._base(batch_size) / base if base else seconds
                )
            elif base and known.runs > 1:
                known.factors.append(seconds / base)
                known.factor = median(known.factors)

    def best_batch_size(self, objective: float | None) -> int:
        """The rung with the most rows a second of those that meet `objective` (seconds).

        A request may come just after a batch was cut: it waits for that run, then for its
        own, so a rung meets the objective when two of its runs do, at the cost of the groups
        that run nowadays. The lowest rung that is not known yet counts as no dearer than the
        one below it: it is tried. If none meets the objective, it is the one with the most
        rows a second of those that cost little more than the cheapest. Without an objective,
        or while nothing is known, the highest: all that waits is taken.
        """
        seconds = self.seconds
        if objective is None or not seconds:
            return self.batch_sizes[-1]
        known = list(seconds)
        for batch_size in self.batch_sizes:
            if batch_size > known[-1]:
                seconds[batch_size] = seconds[known[-1]]
                break
        allowed = objective / (2 * self._usual)
        fitting = [batch_size for batch_size in seconds if seconds[batch_size] <= allowed]
        if not fitting:
            cheapest = min(seconds.values())
            fitting = [batch_size for batch_size in known if seconds[batch_size] <= 1.5 * cheapest]
        return max(fitting, key=lambda batch_size: (batch_size / seconds[batch_size], batch_size))

    def _learn(self, batch_size: int, seconds: float) -> None:
        samples = self._samples[batch_size]
        samples.append(seconds)
        # A new mapping in the place of the old one: readers in other threads see one or the other.
        self._seconds = dict(sorted({**self._seconds, batch_size: median(samples)}.items()))

    def _base(self, rows: int) -> float:
        """From the nearest rungs that are known: between two on a straight line, beyond them
        in proportion to the rows above, and as the lowest below."""
        seconds = self._seconds
        below = 0
        for batch_size in seconds:
            if batch_size >= rows:
                if not below:
                    return seconds[batch_size]
                share = (rows - below) / (batch_size - below)
                return seconds[below] + share * (seconds[batch_size] - seconds[below])
            below = batch_size
        return seconds[below] * rows / below if below else 0.0
