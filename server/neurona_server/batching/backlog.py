"""How long it would take to run what waits."""

from collections.abc import Callable, Hashable

Cost = Callable[[int, Hashable], float]
"""Seconds of a run, by its rows and group: `Curve.predict`."""


class Backlog:
    """The rows that wait in each group, and the seconds that running them takes.

    Asked for often and changed as often, so that only groups that changed since the last
    time are counted anew. Not for use by several threads at once.
    """

    def __init__(self, cost: Cost) -> None:
        self._cost = cost
        self._seconds: dict[Hashable, float] = {}
        self._changed: set[Hashable] = set()
        self._total = 0.0
        self._limit = 0
        self.rows: dict[Hashable, int] = {}

    def add(self, group: Hashable, rows: int) -> None:
        """Rows that come, or, below zero, that go."""
        left = self.rows.get(group, 0) + rows
        self._changed.add(group)
        if left:
            self.rows[group] = left
        else:
            del self.rows[group]

    def seconds(self, limit: int) -> float:
        """For all of it, one run after the other, with `limit` rows in a run."""
        if limit != self._limit:
            self._limit = limit
            self._changed.update(self.rows)
        for group in self._changed:
            self._total -= self._seconds.pop(group, 0.0)
            if rows := self.rows.get(group, 0):
                self._seconds[group] = self._group_seconds(group, rows, limit)
                self._total += self._seconds[group]
        self._changed.clear()
        if not self.rows:
            self._total = 0.0  # what rounding left
        return self._total

    def _group_seconds(self, group: Hashable, rows: int, limit: int) -> float:
        full, rest = divmod(rows, limit)
        seconds = full * self._cost(limit, group) if full else 0.0
        return seconds + (self._cost(rest, group) if rest else 0.0)
