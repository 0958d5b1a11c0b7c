"""What a run of so many rows costs: measured at warm-up, learned on from every run."""

import threading
from collections import OrderedDict, deque
from collections.abc import Callable, Hashable, Sequence
from statistics import median

SAMPLES = 5
"""Runs that an estimate is the median of: one run that the machine held up changes nothing."""

MOST_GROUPS = 256
"""Groups of which the relative cost is remembered; the one not seen for longest goes first."""


class Curve:
    """Seconds of a run by its rows, on the rungs of a ladder of batch sizes.

    Between the rungs it is a straight line. Groups (the other axes of the inputs: a longer
    sequence, a larger image) differ by a factor, which is learned for each group; before it
    is, the ratio of the bytes of a row stands for it.

    Any thread may observe and read.
    """

    def __init__(self, rungs: Sequence[int]) -> None:
        self.rungs = tuple(rungs)
        self._samples: dict[int, deque[float]] = {
            rung: deque(maxlen=SAMPLES) for rung in self.rungs
        }
        self._seconds: dict[int, float] = {}
        self._group: Hashable = None  # the one that the rungs were measured with
        self._row_bytes = 0
        self._factors: OrderedDict[Hashable, deque[float]] = OrderedDict()
        self._factor: dict[Hashable, float] = {}  # the median of each, for readers
        self._usual = 1.0  # the factor of what runs nowadays, whatever its group
        self._learning = threading.Lock()

    @property
    def seconds(self) -> dict[int, float]:
        """The estimate for each rung that is known."""
        return dict(self._seconds)

    def measure(
        self,
        time_run: Callable[[int], float],
        group: Hashable,
        row_bytes: int,
        budget: float = 2.0,
    ) -> None:
        """Runs the ladder from below: `time_run(rows)` gives the seconds of one run.

        Stops once it has taken `budget` seconds: higher rungs are learned when they are met.
        """
        self._group, self._row_bytes = group, row_bytes
        spent = 0.0
        for rung in self.rungs:
            spent += time_run(rung)  # the first run of a shape sets up what later ones have
            for _ in range(SAMPLES):
                seconds = time_run(rung)
                spent += seconds
                self._learn(rung, seconds)
                if spent > budget:
                    break
            if spent > budget:
                break

    def predict(self, rows: int, group: Hashable = None, row_bytes: int = 0) -> float:
        """Seconds of a run; 0.0 while nothing is known."""
        base = self._base(rows)
        if not base or group is None or group == self._group:
            return base
        factor = self._factor.get(group)
        if factor is None:
            factor = row_bytes / self._row_bytes if row_bytes and self._row_bytes else 1.0
        return base * factor

    def observe(self, rows: int, seconds: float, group: Hashable, row_bytes: int) -> None:
        """A run of `rows` of `group` took `seconds`."""
        seconds = max(seconds, 1e-9)  # a coarse clock may have seen no time pass
        with self._learning:
            if self._group is None:
                self._group, self._row_bytes = group, row_bytes
            base = self._base(rows)
            if base:
                self._usual += 0.2 * (seconds / base - self._usual)
            if group == self._group:
                rung = next((rung for rung in self.rungs if rung >= rows), self.rungs[-1])
                self._learn(rung, seconds * self._base(rung) / base if base else seconds)
            elif base:
                factors = self._factors.setdefault(group, deque(maxlen=SAMPLES))
                factors.append(seconds / base)
                self._factor[group] = median(factors)
                self._factors.move_to_end(group)
                if len(self._factors) > MOST_GROUPS:
                    del self._factor[self._factors.popitem(last=False)[0]]

    def best_rung(self, objective: float | None) -> int:
        """The rung with the most rows a second of those that meet `objective` (seconds).

        A request may come just after a batch was cut: it waits for that run, then for its
        own, so a rung meets the objective when two of its runs do, at the cost of the groups
        that run nowadays. Without an objective, or while nothing is known, the highest rung:
        all that waits is taken.
        """
        seconds = self._seconds
        if objective is None or not seconds:
            return self.rungs[-1]
        fitting = [rung for rung in seconds if 2 * seconds[rung] * self._usual <= objective]
        return max(fitting, key=lambda rung: rung / seconds[rung], default=self.rungs[0])

    def _learn(self, rung: int, seconds: float) -> None:
        samples = self._samples[rung]
        samples.append(seconds)
        # A new mapping in the place of the old one: readers in other threads see one or the other.
        self._seconds = dict(sorted({**self._seconds, rung: median(samples)}.items()))

    def _base(self, rows: int) -> float:
        """From the nearest rungs that are known: between two on a straight line, beyond them
        in proportion to the rows above, and as the lowest below."""
        seconds = self._seconds
        below = 0
        for rung in seconds:
            if rung >= rows:
                if not below:
                    return seconds[rung]
                share = (rows - below) / (rung - below)
                return seconds[below] + share * (seconds[rung] - seconds[below])
            below = rung
        return seconds[below] * rows / below if below else 0.0
