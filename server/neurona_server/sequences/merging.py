"""Decides which lengths share a batch, from the measured costs of runs.

It is alone since a queue calls it under its lock, whatever a batch is joined of.
"""

from bisect import bisect_left
from collections.abc import Callable, Hashable, Mapping, Sequence
from operator import itemgetter

from neurona_server.sequences.ragged import LengthGroup

LIMIT_READS = 2000
"""Readings of the most rows of batches after which they are decided anew."""

MIN_SAVING = 1.25
"""How many times cheaper the rows of a smaller batch are to be: less is noise."""

BATCH_SECONDS = 60e-6
"""What a batch takes beside its run: it is cut, and its requests are finished."""

EXPLORED_RUNS = 64
"""Runs with fewer rows than there could be after which one has more: a cost that was measured while
the machine was busy would otherwise never be corrected."""

Cost = Callable[[int, Hashable], float]
"""Seconds by the rows and the group of a run."""

_STEPS = itemgetter(1)


class RowLimits:
    """The most rows of a run: those with which each of them costs the least.

    Many sequences may take longer together than in two runs, as their arrays do not fit into a
    CPU's cache. One thread at a time may use it.
    """

    def __init__(self, batch_sizes: Sequence[int]) -> None:
        """Make it.

        Args:
            batch_sizes: The limit is one of these, if it is less than any other.
        """
        self._batch_sizes = batch_sizes
        self._limits: dict[tuple[Hashable, int], int] = {}
        self._reads = 0
        self._limited_runs = 0

    def best(self, group: Hashable, limit: int, seconds_of_row: Cost) -> int:
        """Return the number of rows, up to `limit`, with which each of them costs the least.

        Costs change slowly: it is decided anew now and then.

        Args:
            group: Of the run.
            limit: The most rows of any run.
            seconds_of_row: Returns the seconds of each row of a run, by its rows and group.
        """
        self._reads += 1
        if self._reads > LIMIT_READS:
            self._reads = 0
            self._limits = {}
        best = self._limits.get((group, limit))
        if best is None:
            best, seconds = limit, seconds_of_row(limit, group) / MIN_SAVING
            for size in self._batch_sizes:
                if size < limit and (one := seconds_of_row(size, group)) < seconds:
                    best, seconds = size, one
            self._limits[group, limit] = best
        return best

    def next(self, group: Hashable, limit: int, seconds_of_row: Cost) -> int:
        """Return the most rows of the next run: the best number or, now and then, a larger one."""
        best = self.best(group, limit, seconds_of_row)
        if best < limit:
            self._limited_runs += 1
            turn, is_other = divmod(self._limited_runs, EXPLORED_RUNS)
            if not is_other:
                larger = [*[size for size in self._batch_sizes if best < size < limit], limit]
                return larger[turn % len(larger)]
        return best


class LengthMerger:
    """The `Merge` of the queue of a recurrent model.

    The batch of the oldest request is filled with sequences of other lengths as long as that
    shortens the sum of the waits of all that wait: a joint run takes less than two, but the batch
    takes longer by the padding, and the shorter sequences wait for the longest one. The more waits,
    the more counts the time of the runs, and the less that of a single batch.

    A batch has no more rows than pays: see `RowLimits`.
    """

    def __init__(
        self,
        predict: Cost,
        batch_sizes: Sequence[int] = (),
        batch_seconds: float = BATCH_SECONDS,
    ) -> None:
        """Make it.

        Args:
            predict: Returns the seconds of a run by its rows and group.
            batch_sizes: The most rows of a batch are one of these, if it can have fewer than any
                other.
            batch_seconds: What a batch takes beside its run.
        """
        self._predict = predict
        self._batch_seconds = batch_seconds
        self._limits = RowLimits(batch_sizes)

    def __call__(
        self, leader: Hashable, rows: Mapping[Hashable, int], limit: int
    ) -> Sequence[Hashable]:
        """Return the groups of a batch: see `Merge`."""
        if len(rows) == 1 or not isinstance(leader, LengthGroup) or rows[leader] >= limit:
            return (leader,)
        base, predict = leader.base, self._predict
        others = sorted(
            [
                group
                for group in rows
                if isinstance(group, LengthGroup) and group != leader and group[0] == base
            ],
            key=_STEPS,
        )
        above = bisect_left(others, leader.steps, key=_STEPS)
        below = above - 1
        groups: list[Hashable] = [leader]
        longest, total = leader, rows[leader]
        waiting = sum(rows.values()) - total
        seconds = predict(total, longest)
        while total < limit and (below >= 0 or above < len(others)):
            best, best_value, best_seconds = None, 0.0, seconds
            for index in (below, above):
                if not 0 <= index < len(others):
                    continue
                group = others[index]
                count = min(rows[group], limit - total)
                joint = predict(total + count, group if index == above else longest)
                saved = self._seconds_alone(group, rows[group], count, limit) - (joint - seconds)
                value = saved * waiting - (joint - seconds) * total
                if value > best_value:
                    best, best_value, best_seconds = index, value, joint
            if best is None:
                if below < 0:
                    break
                below -= 1  # a shorter one with fewer rows may fit
                continue
            group = others[best]
            count = min(rows[group], limit - total)
            groups.append(group)
            total += count
            waiting -= count
            seconds = best_seconds
            if best == above:
                longest = group
                above += 1
            else:
                below -= 1
        return groups

    def limit_rows(self, group: Hashable, limit: int) -> int:
        """Return the most rows of the next batch that a group leads: up to `limit`."""
        if not isinstance(group, LengthGroup):
            return limit
        return self._limits.next(group, limit, self._seconds_of_row)

    def _seconds_alone(self, group: LengthGroup, rows: int, count: int, limit: int) -> float:
        """Return what the runs of a group alone take less if `count` of its rows run elsewhere."""
        limit = self._limits.best(group, limit, self._seconds_of_row)
        if rows > limit:
            return count * self._seconds_of_row(limit, group)
        seconds = self._predict(rows, group)
        if count < rows:
            return seconds - self._predict(rows - count, group)
        return seconds + self._batch_seconds

    def _seconds_of_row(self, rows: int, group: Hashable) -> float:
        return (self._predict(rows, group) + self._batch_seconds) / rows
