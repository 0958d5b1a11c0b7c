"""Finds the groups of which a batch need not wait to be filled, where batches wait at all.

It is alone since only models with `max_delay` have it.
"""

from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterable, Sequence

from neurona_server.batching.request import Request

GROUPS_TO_CHECK = 16
"""Groups that are looked at again at a time after the most rows of a batch have changed."""


def ready_rows(requests: Iterable[Request], preferred_rows: Sequence[int]) -> int:
    """Return the rows of a batch that need not wait for more, 0 if it may grow.

    It is the largest batch of a preferred size or, if the next request would exceed all of these,
    what there is. So it looks at no more requests than such a batch has.

    Args:
        requests: Of one group, in the order in which they are served.
        preferred_rows: The preferred sizes, at least one.
    """
    largest = max(preferred_rows)
    rows = ready = 0
    for request in requests:
        if rows and rows + request.rows > largest:
            return ready or rows
        rows += request.rows
        if rows in preferred_rows:
            ready = rows
    return ready or (rows if rows >= largest else 0)


class CompleteBatches:
    """The groups of which a batch is complete, by the most urgent level of their requests.

    Only groups that changed are looked at again. Not thread-safe.
    """

    def __init__(
        self, ready_rows: Callable[[Hashable], int], level: Callable[[Hashable], int | None]
    ) -> None:
        """Make it.

        Args:
            ready_rows: Returns the rows of the batch of a group that need not wait, 0 if it may
                grow.
            level: Returns the most urgent level with requests of a group, None if none waits.
        """
        self._ready_rows = ready_rows
        self._level = level
        self._changed_groups: set[Hashable] = set()
        self._outdated_groups: list[Hashable] = []
        self._by_level: dict[int, OrderedDict[Hashable, int]] = {}
        self._levels: dict[Hashable, int] = {}  # of the groups in there

    def note_change(self, group: Hashable) -> None:
        """Note that requests of a group have come, gone or changed their order."""
        self._changed_groups.add(group)

    def check_all(self, groups: Iterable[Hashable]) -> None:
        """Look at all groups again, a few at a time."""
        self._outdated_groups = [*groups]

    def find(self) -> tuple[Hashable, int] | None:
        """Return a group whose batch is complete, with its rows; of the most urgent level."""
        while self._changed_groups:
            self._check(self._changed_groups.pop())
        for _ in range(min(GROUPS_TO_CHECK, len(self._outdated_groups))):
            self._check(self._outdated_groups.pop())
        for level in sorted(self._by_level):
            for group, rows in self._by_level[level].items():
                return group, rows
        return None

    def _check(self, group: Hashable) -> None:
        old_level = self._levels.pop(group, None)
        level = self._level(group)
        rows = 0 if level is None else self._ready_rows(group)
        if old_level is not None and (level != old_level or not rows):
            del self._by_level[old_level][group]
        if level is not None and rows:
            self._levels[group] = level
            self._by_level.setdefault(level, OrderedDict())[group] = rows
