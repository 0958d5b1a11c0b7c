"""Decides which lengths share a batch, from the measured costs of runs.

It is alone since a queue calls it under its lock, whatever a batch is joined of.
"""

from collections.abc import Hashable, Sequence

from neurona_server.batching.backlog import Cost, MergedBacklog, Place
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

MAX_SKIPS = 4
"""Lengths that are passed over for one with fewer rows: each costs the prediction of a run."""


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

    def place(self, group: Hashable) -> Place | None:
        """Return the base and the steps of a group: see `Merge`."""
        return Place(group.base, group.steps) if isinstance(group, LengthGroup) else None

    def choose(
        self, leader: Hashable, waiting: MergedBacklog, max_batch_rows: int
    ) -> Sequence[Hashable]:
        """Return the groups of a batch: see `Merge`.

        It looks at the next shorter and the next longer sequences only, so that it takes no longer
        the more lengths wait.
        """
        rows, predict = waiting.rows, self._predict
        if len(rows) == 1 or not isinstance(leader, LengthGroup) or rows[leader] >= max_batch_rows:
            return (leader,)
        family, index = waiting.family(leader)
        if len(family) == 1:
            return (leader,)
        below, above = index - 1, index + 1
        groups: list[Hashable] = [leader]
        longest: Hashable = leader
        total = rows[leader]
        others = waiting.total_rows - total
        seconds = predict(total, longest)
        skips = MAX_SKIPS
        savings: dict[int, float] = {}  # by the index, if all rows of a group join the batch
        while total < max_batch_rows and (below >= 0 or above < len(family)):
            best, best_value, best_seconds = -1, 0.0, seconds
            for candidate in (below, above):
                if not 0 <= candidate < len(family):
                    continue
                group = family[candidate][1]
                count = min(rows[group], max_batch_rows - total)
                saved = savings.get(candidate) if count == rows[group] else None
                if saved is None:
                    saved = self._seconds_saved(group, rows[group], count, max_batch_rows)
                    if count == rows[group]:
                        savings[candidate] = saved
                joint = predict(total + count, group if candidate == above else longest)
                more = joint - seconds
                value = (saved - more) * others - more * total
                if value > best_value:
                    best, best_value, best_seconds = candidate, value, joint
            if best < 0:
                if below < 0 or not skips:
                    break
                skips -= 1
                below -= 1  # a shorter one with fewer rows may fit
                continue
            group = family[best][1]
            count = min(rows[group], max_batch_rows - total)
            groups.append(group)
            total += count
            others -= count
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

    def _seconds_saved(self, group: Hashable, rows: int, count: int, limit: int) -> float:
        """Return what the runs of a group alone take less if `count` of its rows run elsewhere."""
        if rows > 1:  # a single one is never too many
            limit = self._limits.best(group, limit, self._seconds_of_row)
            if rows > limit:
                return count * self._seconds_of_row(limit, group)
            if count < rows:
                return self._predict(rows, group) - self._predict(rows - count, group)
        return self._predict(rows, group) + self._batch_seconds

    def _seconds_of_row(self, rows: int, group: Hashable) -> float:
        return (self._predict(rows, group) + self._batch_seconds) / rows
