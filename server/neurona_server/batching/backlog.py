"""What waits in a queue, by group: its rows, the seconds to run it, and what may share a batch.

It is one file since a merge decides by the same predictions, and both must stay cheap with a
thousand groups: what is read often is never computed from all of them.
"""

import math
from bisect import bisect_left, insort
from collections.abc import Callable, Hashable, Sequence
from operator import itemgetter
from typing import NamedTuple, Protocol

Cost = Callable[[int, Hashable], float]
"""Seconds of a run by its rows and group: `CostModel.predict`."""

PREDICTIONS = 16
"""Groups that are predicted anew at a reading after the most rows of a batch have changed. The
others keep their old predictions a little longer, which are the same for groups of few rows."""


class Backlog:
    """The waiting rows of each group, and the predicted seconds to run them.

    The sum is read often, so only the groups that changed since the last reading are predicted
    again. Not thread-safe.
    """

    def __init__(self, cost: Cost, max_batch_rows: int) -> None:
        """Make it.

        Args:
            cost: Predicts runs.
            max_batch_rows: The most rows of a batch, until `seconds` is called with another number.
        """
        self._cost = cost
        self._seconds: dict[Hashable, float] = {}
        self._changed_groups: set[Hashable] = set()
        self._outdated_groups: list[Hashable] = []  # predicted for another `max_batch_rows`
        self._total = 0.0
        self._max_batch_rows = max_batch_rows
        self.rows: dict[Hashable, int] = {}

    def add(self, group: Hashable, rows: int) -> None:
        """Count rows that joined the queue or, if negative, that left it."""
        remaining = self.rows.get(group, 0) + rows
        if remaining:
            self.rows[group] = remaining
            self._changed_groups.add(group)
        else:
            del self.rows[group]
            self._changed_groups.discard(group)
            self._forget(group)

    def seconds(self, max_batch_rows: int) -> float:
        """Return the predicted seconds to run all rows in batches of `max_batch_rows`."""
        if max_batch_rows != self._max_batch_rows:
            self._max_batch_rows = max_batch_rows
            self._outdated_groups = [*self.rows]
        while self._changed_groups:
            self._predict(self._changed_groups.pop())
        for _ in range(min(PREDICTIONS, len(self._outdated_groups))):
            if (group := self._outdated_groups.pop()) in self.rows:
                self._predict(group)
        if not self.rows:
            self._total = 0.0  # removes rounding errors
        return self._total

    def _predict(self, group: Hashable) -> None:
        """Predict the runs of a group again, which has rows."""
        full, rest = divmod(self.rows[group], self._max_batch_rows)
        seconds = full * self._cost(self._max_batch_rows, group) if full else 0.0
        if rest:
            seconds += self._cost(rest, group)
        self._total += seconds - self._seconds.get(group, 0.0)
        self._seconds[group] = seconds

    def _forget(self, group: Hashable) -> None:
        """Drop the prediction of a group that no longer has rows."""
        self._total -= self._seconds.pop(group, 0.0)


class Place(NamedTuple):
    """Where a group stands among those that may share a batch with it."""

    family: Hashable
    """Groups of one family may share a batch."""

    order: float
    """Among the groups of its family, each of which has another one."""


class Merge(Protocol):
    """Decides which groups share a batch.

    A queue calls it under its lock: it must be fast, and take no lock that a thread holds which
    uses the queue.
    """

    def place(self, group: Hashable) -> Place | None:
        """Return where a group stands, None if it shares a batch with no other."""

    def choose(
        self, leader: Hashable, waiting: "MergedBacklog", max_batch_rows: int
    ) -> Sequence[Hashable]:
        """Return the groups of a batch, in the order in which they fill it: the leader's first.

        Args:
            leader: The group of the oldest request.
            waiting: The groups that wait, of the same priority.
            max_batch_rows: The most rows of the batch.
        """


_ORDER = itemgetter(0)


class MergedBacklog(Backlog):
    """The backlog of a model whose batches have requests of several groups.

    Groups of few rows do not run one by one: what their runs cost more than their share of full
    batches is divided by the number of groups that a batch has if all are full.
    """

    def __init__(self, cost: Cost, max_batch_rows: int, merge: Merge) -> None:
        """Make it.

        Args:
            cost: See `Backlog`.
            max_batch_rows: See `Backlog`.
            merge: Knows the places of groups.
        """
        super().__init__(cost, max_batch_rows)
        self._merge = merge
        self._shares: dict[Hashable, tuple[float, int]] = {}
        self._share_total = 0.0  # seconds, if all batches are full
        self._batches = 0  # if each group runs by itself
        self._places: dict[Hashable, Place] = {}
        self._families: dict[Hashable, list[tuple[float, Hashable]]] = {}
        self.total_rows = 0

    def add(self, group: Hashable, rows: int) -> None:
        if group not in self.rows and (place := self._merge.place(group)) is not None:
            self._places[group] = place
            family = self._families.setdefault(place.family, [])
            insort(family, (place.order, group), key=_ORDER)
        self.total_rows += rows
        super().add(group, rows)

    def family(self, group: Hashable) -> tuple[Sequence[tuple[float, Hashable]], int]:
        """Return the waiting groups that may share a batch with one that waits, and its index.

        They are in order; each comes with its order. The group must have a place.
        """
        place = self._places[group]
        family = self._families[place.family]
        return family, bisect_left(family, place.order, key=_ORDER)

    def seconds(self, max_batch_rows: int) -> float:
        separate = super().seconds(max_batch_rows)
        if not self.rows:
            self._share_total = 0.0
            return 0.0
        full_batches = math.ceil(self.total_rows / max_batch_rows)
        share = min(self._share_total, separate)
        return share + (separate - share) * min(1.0, full_batches / self._batches)

    def _predict(self, group: Hashable) -> None:
        super()._predict(group)
        old_share, old_batches = self._shares.get(group, (0.0, 0))
        rows, most = self.rows[group], self._max_batch_rows
        share, batches = self._cost(most, group) * rows / most, -(-rows // most)
        self._shares[group] = share, batches
        self._share_total += share - old_share
        self._batches += batches - old_batches

    def _forget(self, group: Hashable) -> None:
        super()._forget(group)
        share, batches = self._shares.pop(group, (0.0, 0))
        self._share_total -= share
        self._batches -= batches
        if (place := self._places.pop(group, None)) is not None:
            family = self._families[place.family]
            del family[bisect_left(family, place.order, key=_ORDER)]
            if not family:
                del self._families[place.family]
