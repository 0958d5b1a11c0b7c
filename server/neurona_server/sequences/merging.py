"""Decides which lengths share a batch, from the measured costs of runs.

It is alone since a queue calls it under its lock, whatever a batch is joined of.
"""

from bisect import bisect_left
from collections.abc import Callable, Hashable, Mapping, Sequence
from functools import partial
from typing import NamedTuple

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


class _Step(NamedTuple):
    """Lengths that may join a batch."""

    value: float
    """The seconds by which they shorten the waits of all that wait, in total."""
    lengths: int
    """Their number."""
    rows: int
    """Theirs, as far as the batch has room."""
    seconds: float
    """Of the run with them."""


NO_STEP = _Step(0.0, 0, 0, 0.0)


class _Growth:
    """A batch that grows."""

    def __init__(self, leader: Hashable, rows: int, seconds: float) -> None:
        self.groups = [leader]
        self.longest = leader
        self.rows = rows
        self.seconds = seconds

    def add(self, step: _Step, groups: Sequence[Hashable], *, is_longer: bool) -> None:
        """Have groups join the batch, the longest last if they are longer than all others."""
        self.groups += groups
        self.rows += step.rows
        self.seconds = step.seconds
        if is_longer:
            self.longest = groups[-1]


class _Side:
    """The waiting lengths on one side of a batch, from the nearest one on.

    It has sums of their rows and savings, so that each is looked at once.
    """

    def __init__(
        self,
        family: Sequence[tuple[float, Hashable]],
        leader: int,
        direction: int,
        rows: Mapping[Hashable, int],
        saving: Callable[[Hashable, int], float],
    ) -> None:
        """Make it.

        Args:
            family: All waiting lengths in order.
            leader: The index of the leader.
            direction: 1 for the longer ones, -1 for the shorter ones.
            rows: The waiting rows of each group.
            saving: Returns the seconds that the other runs of a group take less if so many of its
                rows run in this batch.
        """
        self.direction = direction
        self._family = family
        self._rows = rows
        self._saving = saving
        self._stride = 1
        self._size = len(family) - 1 - leader if direction > 0 else leader
        self._start = 0  # how many are in the batch, or were passed over
        self._first = leader + direction  # the index of the nearest one
        self._row_sums = [0]
        self._savings = [0.0]

    @property
    def has_more(self) -> bool:
        """Whether there are lengths that were neither taken nor passed over."""
        return self._start < self._size

    def group(self, count: int) -> Hashable:
        """Return the last one of the next `count`."""
        return self._family[self._first + self.direction * (self._start + count - 1)][1]

    def count(self, room: int) -> int:
        """Return how many may join a batch with room for so many rows, at most a stride."""
        end = min(self._start + self._stride, self._size)
        rows, sums = self._rows, self._row_sums
        while len(sums) <= end and sums[-1] - sums[self._start] < room:
            group = self._family[self._first + self.direction * (len(sums) - 1)][1]
            self._savings.append(self._savings[-1] + self._saving(group, rows[group]))
            sums.append(sums[-1] + rows[group])
        return min(bisect_left(sums, sums[self._start] + room), len(sums) - 1, end) - self._start

    def sums(self, count: int, room: int) -> tuple[int, float]:
        """Return the rows of the next `count` that a batch has room for, and what they save."""
        start, end = self._start, self._start + count
        rows = self._row_sums[end] - self._row_sums[start]
        saved = self._savings[end] - self._savings[start]
        if rows > room:
            before = self._row_sums[end - 1] - self._row_sums[start]
            saved = self._savings[end - 1] - self._savings[start]
            return room, saved + self._saving(self.group(count), room - before)
        return rows, saved

    def take(self, count: int) -> Sequence[Hashable]:
        """Return the next `count`, which join the batch."""
        groups = [self.group(number) for number in range(1, count + 1)]
        self._start += count
        self._stride = 2 * count
        return groups

    def skip(self) -> None:
        """Pass over the next one."""
        self.count(1)
        self._start += 1


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

        The batch grows to shorter or to longer sequences, by whichever pays more, and by twice as
        many lengths as the last time if all of those paid. So it predicts few runs, however many
        lengths wait.
        """
        rows = waiting.rows
        if len(rows) == 1 or not isinstance(leader, LengthGroup) or rows[leader] >= max_batch_rows:
            return (leader,)
        family, index = waiting.family(leader)
        if len(family) == 1:
            return (leader,)

        batch = _Growth(leader, rows[leader], self._predict(rows[leader], leader))
        others = waiting.total_rows - batch.rows
        saving = partial(self._seconds_saved, waiting, max_batch_rows)
        shorter = _Side(family, index, -1, rows, saving)
        longer = _Side(family, index, 1, rows, saving)
        skips = MAX_SKIPS
        while batch.rows < max_batch_rows:
            side, best = shorter, self._best_step(batch, shorter, others, max_batch_rows)
            step = self._best_step(batch, longer, others, max_batch_rows)
            if step.value > best.value:
                side, best = longer, step
            if best.value > 0:
                others -= best.rows
                batch.add(best, side.take(best.lengths), is_longer=side is longer)
            elif skips and shorter.has_more:
                skips -= 1
                shorter.skip()  # a shorter one with fewer rows may fit
            else:
                break
        return batch.groups

    def _best_step(self, batch: "_Growth", side: "_Side", others: int, limit: int) -> "_Step":
        """Return how many of the next lengths on a side join the batch at best.

        It is as many as the stride of the side says or, if fewer of them pay more, half as many,
        and so on.
        """
        best = NO_STEP
        room = limit - batch.rows
        count = side.count(room)
        while count:
            rows, saved = side.sums(count, room)
            last = side.group(count) if side.direction > 0 else batch.longest
            seconds = self._predict(batch.rows + rows, last)
            more = seconds - batch.seconds
            value = (saved - more) * others - more * batch.rows
            if 0 < best.value >= value:
                break
            if value > best.value:
                best = _Step(value, count, rows, seconds)
            count //= 2
        return best

    def limit_rows(self, group: Hashable, limit: int) -> int:
        """Return the most rows of the next batch that a group leads: up to `limit`."""
        if not isinstance(group, LengthGroup):
            return limit
        return self._limits.next(group, limit, self._seconds_of_row)

    def _seconds_saved(
        self, waiting: MergedBacklog, max_batch_rows: int, group: Hashable, count: int
    ) -> float:
        """Return what the runs of a group alone take less if `count` of its rows run elsewhere."""
        rows = waiting.rows[group]
        if rows > 1:  # a single one is never too many
            limit = self._limits.best(group, max_batch_rows, self._seconds_of_row)
            if rows > limit:
                return count * self._seconds_of_row(limit, group)
            if count < rows:
                return self._predict(rows, group) - self._predict(rows - count, group)
        return self._predict(rows, group) + self._batch_seconds

    def _seconds_of_row(self, rows: int, group: Hashable) -> float:
        return (self._predict(rows, group) + self._batch_seconds) / rows
