"""The best possible batching for a cost curve, and how far a policy is from it.

A model with one instance is a queue that is served in batches, whose random service times depend on
the size. How many of the waiting rows the next batch takes, or whether it waits for more, is a
semi-Markov decision process (Xu, Zhou and Niu, "SMDP-Based Dynamic Batching for Improving
Responsiveness and Energy Efficiency of Batch Services", arXiv 2501.02181, 2025): the state is the
number of rows that wait when a batch ends or, while none runs, when a row arrives. Arrivals are
Poisson, so waiting for a time instead of an arrival would gain nothing.

The process is solved by policy iteration (Puterman, "Markov Decision Processes", 1994, section
11.4.4), whose relative values are exact for each policy: relative value iteration needs a step
as short as the shortest run, thousands of them for a run of a full batch.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Choice = Callable[[int], int]
"""The rows to take by those that wait; 0 to wait for the next one."""

MAX_POLICIES = 100
"""Policy iteration ends after a few: as many mean that the costs are not numbers."""


@dataclass(frozen=True)
class BatchService:
    """What batches take, and the queue in front of them.

    Attributes:
        cycles: For each size from 1 on equally likely durations of a batch in seconds, from taking
            its rows to its last answer: an array (sizes, samples).
        answer_seconds: Of a row. Answers leave one after the other at the end of the cycle.
        max_queue_rows: Rows that may wait. More are refused.
    """

    cycles: Array
    answer_seconds: float = 0.0
    max_queue_rows: int = 512

    def __post_init__(self) -> None:
        if self.cycles.ndim != 2 or not self.cycles.size or self.cycles.min() <= 0:
            raise ValueError(
                f"cycles have the shape {self.cycles.shape} (expected durations above 0 for each "
                "size: sizes, samples)"
            )
        if self.max_queue_rows < len(self.cycles):
            raise ValueError(
                f"max_queue_rows is {self.max_queue_rows} (expected at least the largest batch, "
                f"{len(self.cycles)})"
            )

    @property
    def max_rows(self) -> int:
        """The rows of the largest batch."""
        return len(self.cycles)

    @property
    def capacity(self) -> float:
        """The most rows per second, in batches of whatever size is the most efficient."""
        return float((np.arange(1, self.max_rows + 1) / self.cycles.mean(axis=1)).max())

    @classmethod
    def from_curve(
        cls,
        seconds: dict[int, float],
        *,
        answer_seconds: float = 0.0,
        spread: Sequence[float] = (1.0,),
        max_queue_rows: int = 512,
    ) -> "BatchService":
        """Return the service of a measured curve.

        Args:
            seconds: Of a run, by some of its sizes; sizes between are interpolated.
            answer_seconds: Of a row, in addition to the run.
            spread: Equally likely factors of a run.
            max_queue_rows: Rows that may wait.
        """
        rows = np.arange(1, max(seconds) + 1)
        sizes = sorted(seconds)
        runs = np.interp(rows, sizes, [seconds[size] for size in sizes])
        cycles = np.outer(runs, np.asarray(spread)) + answer_seconds * rows[:, None]
        return cls(cycles, answer_seconds, max_queue_rows)


@dataclass(frozen=True)
class Evaluation:
    """A policy in the long run.

    Attributes:
        rows: The rows to take by the number that wait, 0 to wait for the next one.
        response: Mean seconds from the arrival of a row to its answer.
        refused: Share of the rows that find the queue full.
        utilisation: Share of the time in which a batch runs.
    """

    rows: NDArray[np.int64]
    response: float
    refused: float
    utilisation: float


class BatchingProcess:
    """The semi-Markov decision process of a batch service at one arrival rate.

    Args:
        service: What batches take.
        rate: Rows that arrive in a second.
    """

    def __init__(self, service: BatchService, rate: float) -> None:
        self.service = service
        self.rate = rate
        self._limit = limit = service.max_queue_rows
        sizes = np.arange(1, service.max_rows + 1)
        self._seconds = service.cycles.mean(axis=1)
        squares = (service.cycles**2).mean(axis=1)
        # Row-seconds in the system of what a batch takes, and of what arrives meanwhile.
        self._own = sizes * self._seconds - service.answer_seconds * sizes * (sizes - 1) / 2
        self._arriving = rate * squares / 2
        self._arrivals = _poisson_mixtures(rate * service.cycles, limit)
        self._lost = self._seconds[:, None] * rate - _bounded_means(self._arrivals)
        # What is refused must not seem quick: it costs what the whole queue takes.
        self._refusal = 2 * limit / service.capacity

    def solve(self) -> Evaluation:
        """Return the policy of the least mean response."""
        rows = np.minimum(np.arange(self._limit + 1), self.service.max_rows)
        for _ in range(MAX_POLICIES):
            values, cost = self._relative_values(rows)
            better = self._improve(rows, values, cost)
            if (better == rows).all():
                return self._evaluation(rows)
            rows = better
        raise ValueError(f"no optimal policy found: {MAX_POLICIES} policies (expected far fewer)")

    def evaluate(self, choice: Choice) -> Evaluation:
        """Return how a policy does.

        Args:
            choice: The policy; at the bound of the queue it must not wait.
        """
        rows = np.array([choice(waiting) if waiting else 0 for waiting in range(self._limit + 1)])
        most = np.minimum(np.arange(self._limit + 1), self.service.max_rows)
        if (rows < 0).any() or (rows > most).any() or not rows[-1]:
            raise ValueError(
                "choice of rows invalid (expected 0 to what waits, and to the largest batch)"
            )
        return self._evaluation(rows)

    def _evaluation(self, rows: NDArray[np.int64]) -> Evaluation:
        transitions, seconds, costs, lost = self._chain(rows)
        share = _stationary(transitions)
        period = float(share @ seconds)
        refused = float(share @ lost) / period / self.rate
        in_system = float(share @ costs) / period
        busy = float(share[rows > 0] @ seconds[rows > 0]) / period
        return Evaluation(rows, in_system / (self.rate * (1 - refused)), refused, busy)

    def _chain(self, rows: NDArray[np.int64]) -> tuple[Array, Array, Array, Array]:
        """Return the transitions, seconds, row-seconds and refused rows by state."""
        limit = self._limit
        states = limit + 1
        transitions = np.zeros((states, states))
        seconds, costs, lost = np.zeros(states), np.zeros(states), np.zeros(states)
        for waiting in range(states):
            size = int(rows[waiting])
            if not size:
                transitions[waiting, waiting + 1] = 1.0
                seconds[waiting] = 1 / self.rate
                costs[waiting] = waiting / self.rate
                continue
            left = waiting - size
            arrivals = self._arrivals[size - 1]
            room = limit - left
            transitions[waiting, left:limit] = arrivals[:room]
            transitions[waiting, limit] = max(0.0, 1.0 - arrivals[:room].sum())
            seconds[waiting] = self._seconds[size - 1]
            lost[waiting] = self._lost[size - 1, room]
            costs[waiting] = (
                self._own[size - 1] + left * self._seconds[size - 1] + self._arriving[size - 1]
            )
        return transitions, seconds, costs, lost

    def _relative_values(self, rows: NDArray[np.int64]) -> tuple[Array, float]:
        """Return the relative value of each state under a policy, and its cost per second."""
        transitions, seconds, costs, lost = self._chain(rows)
        states = len(rows)
        system = np.eye(states) - transitions
        system[:, 0] = seconds  # the value of state 0 is 0: its column is that of the gain
        solution = _solve(system, costs + self._refusal * lost)
        gain = float(solution[0])
        solution[0] = 0.0
        return solution, gain

    def _improve(self, rows: NDArray[np.int64], values: Array, gain: float) -> NDArray[np.int64]:
        """Return the policy that is best if `values` and `gain` hold after the next decision."""
        limit = self._limit
        waiting = np.arange(limit + 1)
        wait = np.full(limit + 1, np.inf)
        wait[:-1] = (waiting[:-1] - gain) / self.rate + values[1:]
        totals = [wait]
        padded = np.concatenate([values, np.full(limit, values[-1])])
        windows = np.lib.stride_tricks.sliding_window_view(padded, limit + 1)
        ahead = np.ascontiguousarray(windows) @ self._arrivals.T
        ahead += (1.0 - self._arrivals.sum(axis=1)) * values[-1]
        for size in range(1, self.service.max_rows + 1):
            total = np.full(limit + 1, np.inf)
            left = waiting[: limit + 1 - size]
            total[size:] = (
                self._own[size - 1]
                + self._arriving[size - 1]
                + (left - gain) * self._seconds[size - 1]
                + self._refusal * self._lost[size - 1, limit - left]
                + ahead[left, size - 1]
            )
            totals.append(total)
        table = np.array(totals)
        best = table.argmin(axis=0)
        # A policy is kept where another is better by rounding errors alone: or it would alternate.
        chosen_rows = table[rows, waiting]
        keeps = chosen_rows <= table.min(axis=0) + 1e-9 * np.abs(table.min(axis=0)) + 1e-15
        better: NDArray[np.int64] = np.where(keeps, rows, best)
        return better


def _poisson_mixtures(means: Array, limit: int) -> Array:
    """Return P(k arrivals) for k up to `limit`, of each size: the mean over its samples."""
    counts = np.arange(limit + 1)
    log_factorials = np.concatenate([[0.0], np.cumsum(np.log(counts[1:]))])
    logs = counts * np.log(means)[..., None] - means[..., None] - log_factorials
    mixtures: Array = np.asarray(np.exp(logs).mean(axis=1), np.float64)
    return mixtures


def _bounded_means(arrivals: Array) -> Array:
    """Return E[min(A, room)] by the size and the room from 0 on, given P(A = k)."""
    more = 1.0 - np.cumsum(arrivals, axis=1)  # P(A > k)
    means: Array = np.zeros_like(arrivals)
    means[:, 1:] = np.cumsum(np.maximum(more, 0.0), axis=1)[:, :-1]
    return means


def _solve(system: Array, right: Array) -> Array:
    solution: Array = np.asarray(np.linalg.solve(system, right), np.float64)
    return solution


def _stationary(transitions: Array) -> Array:
    """Return the long-run share of each state of a chain with one recurrent class."""
    states = len(transitions)
    system = (np.eye(states) - transitions).T
    system[-1] = 1.0
    total = np.zeros(states)
    total[-1] = 1.0
    return _solve(system, total)


def simulate(
    service: BatchService,
    choice: Choice,
    arrivals: Array,
    seed: int = 0,
) -> Array:
    """Return the seconds from arrival to answer of each row that is served under a policy.

    Args:
        service: What batches take; its queue has no bound here.
        choice: The policy.
        arrivals: Ascending times in seconds.
        seed: Of the choice among the samples of a cycle.
    """
    samples = service.cycles.shape[1]
    draws = np.random.default_rng(seed).integers(samples, size=len(arrivals)).tolist()
    cycles: Any = service.cycles.tolist()
    times = arrivals.tolist()
    count = len(times)
    table: dict[int, int] = {}
    taken = 0
    ends: list[float] = []
    sizes: list[int] = []
    arrived, now = 0, 0.0
    largest = service.max_rows
    while taken < count:
        while arrived < count and times[arrived] <= now:
            arrived += 1
        waiting = arrived - taken
        if not waiting:
            now = times[arrived]
            continue
        if (size := table.get(waiting, -1)) < 0:
            size = table[waiting] = min(choice(waiting), waiting, largest)
        if not size:
            if arrived == count:
                break
            now = times[arrived]
            continue
        now += cycles[size - 1][draws[len(ends)]]
        ends.append(now)
        sizes.append(size)
        taken += size
    order = np.concatenate([np.arange(size, 0, -1) - 1 for size in sizes])
    finished = np.repeat(np.array(ends), sizes) - service.answer_seconds * order
    responses: Array = finished - arrivals[:taken]
    return responses
