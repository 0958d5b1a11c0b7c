"""What waits in a level of a queue: its rows by group, and the seconds to run them."""

import math
from collections.abc import Callable, Hashable

Cost = Callable[[int, Hashable], float]
"""Seconds of a run by its rows and group: `CostModel.predict`."""


class Backlog:
    """The waiting rows of each group, and the predicted seconds to run them.

    The sum is read often, so only the groups that changed since the last reading are predicted
    again. Not thread-safe.
    """

    def __init__(self, cost: Cost) -> None:
        self._cost = cost
        self._seconds: dict[Hashable, float] = {}
        self._changed_groups: set[Hashable] = set()
        self._total = 0.0
        self._max_batch_rows = 0
        self.rows: dict[Hashable, int] = {}

    def add(self, group: Hashable, rows: int) -> None:
        """Count rows that joined the queue or, if negative, that left it."""
        remaining = self.rows.get(group, 0) + rows
        self._changed_groups.add(group)
        if remaining:
            self.rows[group] = remaining
        else:
            del self.rows[group]

    def seconds(self, max_batch_rows: int) -> float:
        """Return the predicted seconds to run all rows in batches of `max_batch_rows`."""
        if max_batch_rows != self._max_batch_rows:
            self._max_batch_rows = max_batch_rows
            self._changed_groups.update(self.rows)
        for group in self._changed_groups:
            self._total -= self._seconds.pop(group, 0.0)
            if rows := self.rows.get(group, 0):
                self._seconds[group] = self._group_seconds(group, rows, max_batch_rows)
                self._total += self._seconds[group]
        self._changed_groups.clear()
        if not self.rows:
            self._total = 0.0  # removes rounding errors
        return self._total

    def _group_seconds(self, group: Hashable, rows: int, max_batch_rows: int) -> float:
        full, rest = divmod(rows, max_batch_rows)
        seconds = full * self._cost(max_batch_rows, group) if full else 0.0
        return seconds + (self._cost(rest, group) if rest else 0.0)


class MergedBacklog(Backlog):
    """The backlog of a model whose batches have requests of several groups.

    Groups of few rows do not run one by one: what their runs cost more than their share of full
    batches is divided by the number of groups that a batch has if all are full.
    """

    def __init__(self, cost: Cost) -> None:
        super().__init__(cost)
        self._shares: dict[Hashable, tuple[float, int]] = {}
        self._share_total = 0.0  # seconds, if all batches are full
        self._batches = 0  # if each group runs by itself

    def seconds(self, max_batch_rows: int) -> float:
        changed = {*self._changed_groups}
        if max_batch_rows != self._max_batch_rows:
            changed.update(self.rows)
        separate = super().seconds(max_batch_rows)
        for group in changed:
            share, batches = self._shares.pop(group, (0.0, 0))
            self._share_total -= share
            self._batches -= batches
            if rows := self.rows.get(group, 0):
                share = self._cost(max_batch_rows, group) * rows / max_batch_rows
                batches = -(-rows // max_batch_rows)
                self._shares[group] = share, batches
                self._share_total += share
                self._batches += batches
        if not self.rows:
            self._share_total = 0.0
            return 0.0
        full_batches = math.ceil(sum(self.rows.values()) / max_batch_rows)
        share = min(self._share_total, separate)
        return share + (separate - share) * full_batches / self._batches
