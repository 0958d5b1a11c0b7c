"""What the responses to a load say of a latency objective: counts, times, and whose fault it was.

A request counts from when it was sent: what the load itself was late is listed beside it. It is in
time if its response was read within the objective. It was admitted unless it was refused with
RESOURCE_EXHAUSTED; one that was dropped (DEADLINE_EXCEEDED) or failed was admitted and is not in
time. A late one counts as the machine's fault if it would have been in time without the stalls
between its sending and its end, not merely if there were any.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from http2 import OK
from numpy.typing import NDArray
from open_loop import Arrivals
from stalls import Stalls

DEADLINE_EXCEEDED, RESOURCE_EXHAUSTED = 4, 8
CONFIDENCE_DEVIATES = 1.645  # of the normal distribution: 95 % on one side
HINT_RESOLUTION = 0.001  # hints are whole milliseconds

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Outcome:
    """What became of the requests of one load; times are in seconds, NaN where there is none.

    Attributes:
        sent: Requests.
        in_time, late, dropped, refused, failed: What became of them; `failed` is anything else.
        stalled: Of those late, how many would have been in time without the machine's stalls.
        latest: The longest by which an answer was late.
        goodput: Responses in time per second.
        p50, p99, p999: Latency of the admitted ones that were answered.
        refusal_p50, refusal_p99: Latency of refusals.
        hints: Refusals with a hint whose truth can be told (see `hint_errors`).
        hint_p90: The 90th percentile of the hints' relative error.
        hint_doubt: The median relative width of what is known of the true waits.
        lateness_p99, gap_p99, gap_max: How late the load itself was in sending and in reading.
        stall_count, stall_seconds, longest_stall: The machine's.
    """

    sent: int
    in_time: int
    late: int
    stalled: int
    dropped: int
    refused: int
    failed: int
    latest: float
    goodput: float
    p50: float
    p99: float
    p999: float
    refusal_p50: float
    refusal_p99: float
    hints: int
    hint_p90: float
    hint_doubt: float
    lateness_p99: float
    gap_p99: float
    gap_max: float
    stall_count: int
    stall_seconds: float
    longest_stall: float


def judge(arrivals: Arrivals, objective: float, stalls: Stalls, cycle: float) -> Outcome:
    """Returns what became of the requests of a load.

    Args:
        arrivals: The requests.
        objective: Seconds in which an admitted request was to be answered.
        stalls: Of the machine meanwhile.
        cycle: Seconds that a batch takes once it has begun, for the truth of hints.
    """
    taken = arrivals.ended - arrivals.sent
    answered = arrivals.statuses == OK
    refused = arrivals.statuses == RESOURCE_EXHAUSTED
    dropped = arrivals.statuses == DEADLINE_EXCEEDED
    in_time = answered & (taken <= objective)
    late = answered & ~in_time
    merged = stalls.merged()
    excess = taken[late] - objective
    stalled = stalled_seconds(merged, arrivals.sent[late], arrivals.ended[late]) >= excess
    lengths = [end - begin for begin, end in merged]
    errors, doubts = hint_errors(arrivals, cycle)
    return Outcome(
        sent=len(taken),
        in_time=_count(in_time),
        late=_count(late),
        stalled=_count(stalled),
        dropped=_count(dropped),
        refused=_count(refused),
        failed=_count(~(answered | refused | dropped)),
        latest=float(excess.max(initial=0.0)),
        goodput=_count(in_time) / arrivals.seconds,
        p50=quantile(taken[answered], 0.5),
        p99=quantile(taken[answered], 0.99),
        p999=quantile(taken[answered], 0.999),
        refusal_p50=quantile(taken[refused], 0.5),
        refusal_p99=quantile(taken[refused], 0.99),
        hints=len(errors),
        hint_p90=quantile(errors, 0.9),
        hint_doubt=quantile(doubts, 0.5),
        lateness_p99=quantile(arrivals.lateness, 0.99),
        gap_p99=quantile(arrivals.gaps, 0.99),
        gap_max=float(arrivals.gaps.max(initial=0.0)),
        stall_count=len(merged),
        stall_seconds=sum(lengths),
        longest_stall=max(lengths, default=0.0),
    )


def quantile(values: Array, part: float) -> float:
    """Returns a value that `part` of all do not exceed, NaN if there are none."""
    return float(np.quantile(values, part, method="higher")) if len(values) else math.nan


def share_at_least(good: int, total: int) -> float:
    """Returns the share of good ones that is exceeded with 95 % confidence (Wilson 1927)."""
    if not total:
        return math.nan
    z2, share = CONFIDENCE_DEVIATES**2, good / total
    centre = share + z2 / (2 * total)
    spread = CONFIDENCE_DEVIATES * math.sqrt((share * (1 - share) + z2 / (4 * total)) / total)
    return max(0.0, centre - spread) / (1 + z2 / total)


def stalled_seconds(
    merged: Sequence[tuple[float, float]], begins: Array, ends: Array
) -> NDArray[np.float64]:
    """Returns how long each of some intervals was stalled.

    Args:
        merged: The stalls, ascending, none overlapping.
        begins: Of the intervals.
        ends: Of the intervals, in the same order.
    """
    if not merged:
        return np.zeros(len(begins))
    edges = np.array(merged).ravel()
    lengths = np.array([end - begin for begin, end in merged])
    after = np.cumsum(lengths)
    # The stalled seconds until each edge; between two edges they grow linearly.
    until = np.stack([after - lengths, after], axis=1).ravel()
    return np.asarray(np.interp(ends, edges, until) - np.interp(begins, edges, until))


def hint_errors(arrivals: Arrivals, cycle: float) -> tuple[Array, Array]:
    """Returns the relative errors of hints, and how far apart the bounds of each true wait are.

    In a queue in the order of arrival, a refused request would have run at the earliest with the
    admitted one sent before it, and at the latest with the admitted one sent after it: what these
    two met, counted from the refusal, bounds its wait. A hint within the bounds has no error;
    another one the distance from the nearer bound, divided by that. Each model has its own queue.

    Args:
        arrivals: The requests; those of one body have one queue.
        cycle: Seconds between the start of a batch and its responses.
    """
    errors, doubts = [np.zeros(0)], [np.zeros(0)]
    for item in np.unique(arrivals.items):
        own = arrivals.items == item
        sent, ended = arrivals.sent[own], arrivals.ended[own]
        admitted = np.flatnonzero(arrivals.statuses[own] == OK)
        hints = arrivals.retry_after[own]
        refused = np.flatnonzero((arrivals.statuses[own] == RESOURCE_EXHAUSTED) & (hints > 0))
        after = np.searchsorted(admitted, refused)
        is_bounded = (after > 0) & (after < len(admitted))
        refused, after = refused[is_bounded], after[is_bounded]
        start = sent[refused] + cycle
        low = np.maximum(ended[admitted[after - 1]] - start, HINT_RESOLUTION)
        high = np.maximum(ended[admitted[after]] - start, low)
        hint = hints[refused]
        errors.append(
            np.maximum(0.0, np.maximum(low - hint, hint - high)) / np.clip(hint, low, high)
        )
        doubts.append((high - low) / high)
    return np.concatenate(errors), np.concatenate(doubts)


def _count(mask: NDArray[np.bool_]) -> int:
    return int(np.count_nonzero(mask))
