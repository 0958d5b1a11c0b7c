"""Decides which lengths share a batch, from the measured costs of runs.

It is alone since a queue calls it under its lock, whatever a batch is joined of.
"""

from bisect import bisect_left
from collections.abc import Callable, Hashable, Mapping, Sequence
from operator import itemgetter

from neurona_server.sequences.ragged import LengthGroup

_STEPS = itemgetter(1)


class LengthMerger:
    """The `Merge` of the queue of a recurrent model.

    The batch of the oldest request is filled with sequences of other lengths as long as that
    shortens the sum of the waits of all that wait: a joint run takes less than two, but the batch
    takes longer by the padding, and the shorter sequences wait for the longest one. The more waits,
    the more counts the time of the runs, and the less that of a single batch.
    """

    def __init__(self, predict: Callable[[int, Hashable], float]) -> None:
        """Make it.

        Args:
            predict: Returns the seconds of a run by its rows and group.
        """
        self._predict = predict

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

    def _seconds_alone(self, group: LengthGroup, rows: int, count: int, limit: int) -> float:
        """Return what the runs of a group alone take less if `count` of its rows run elsewhere."""
        if rows > limit:
            return count * self._predict(limit, group) / limit
        seconds = self._predict(rows, group)
        return seconds - self._predict(rows - count, group) if count < rows else seconds
