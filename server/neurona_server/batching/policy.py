"""The parameters of batching.

The defaults suit most models. The file is alone because configuration and model settings need the
parameters without the machinery.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import IntEnum
from typing import NamedTuple


class Priority(IntEnum):
    """Levels of urgency, in the order in which a queue keeps them."""

    HIGH = 0
    NORMAL = 1
    LOW = 2


WEIGHTS = {Priority.HIGH: 16, Priority.NORMAL: 4, Priority.LOW: 1}
"""The proportion of rows that each level gets while all levels have requests waiting."""

ALL_WEIGHTS = sum(WEIGHTS.values())


class QueueTimeout(NamedTuple):
    """What becomes of a request that has waited for some time."""

    seconds: float
    delays: bool
    """Whether it is then served after all others of its priority that have waited less, instead
    of being rejected."""


@dataclass(frozen=True)
class QueuePolicy:
    """How long and how many requests of one priority may wait, as Triton's queue policies say."""

    seconds: float = 0.0
    """The time that a request may wait; 0: no limit."""

    delays: bool = False
    """See `QueueTimeout`."""

    allow_shorter: bool = False
    """Whether a request may ask for less time than `seconds`."""

    max_requests: int = 0
    """Requests that may wait; 0: no limit."""


@dataclass(frozen=True)
class QueuePolicies:
    """Queue policies by Triton's number of the priority: 1 is the most urgent.

    The levels of the queue stand for the numbers 1, 2, and 3 and above.
    """

    default: QueuePolicy = QueuePolicy()
    by_number: Mapping[int, QueuePolicy] = field(default_factory=dict)
    count: int = 0
    """The greatest number; 0: there are no priorities."""

    default_number: int = 0
    """The number of requests that have none, or one above `count`."""

    def number(self, requested: int) -> int:
        """Return the number that counts for a request with the number `requested`."""
        if self.count and not 0 < requested <= self.count:
            return self.default_number
        return requested

    def policy(self, number: int) -> QueuePolicy:
        return self.by_number.get(number, self.default)

    def level_policy(self, level: Priority) -> QueuePolicy:
        """Return the policy for requests of which only the level is known."""
        return self.policy(self._level_number(level))

    def _level_number(self, level: Priority) -> int:
        number = self.default_number
        return number if priority_of(number) == level else level + 1

    def timeout(self, number: int, requested_seconds: float = math.inf) -> QueueTimeout | None:
        """Return the timeout of a request that asks for `requested_seconds` itself."""
        policy = self.policy(number)
        if not policy.seconds:
            return None
        shorter = policy.allow_shorter and requested_seconds < policy.seconds
        return QueueTimeout(requested_seconds if shorter else policy.seconds, policy.delays)

    def level_timeout(self, level: Priority) -> QueueTimeout | None:
        """Return the timeout of a request of which only the level is known."""
        return self.timeout(self._level_number(level))

    @property
    def have_timeouts(self) -> bool:
        return any(policy.seconds for policy in (self.default, *self.by_number.values()))


def priority_of(number: int) -> Priority:
    """Return the level of Triton's number of a priority; 0 stands for the middle one."""
    return (Priority.NORMAL, Priority.HIGH, Priority.NORMAL, Priority.LOW)[min(number, 3)]


@dataclass(frozen=True)
class BatchPolicy:
    """How requests are queued and batched. Times are in seconds."""

    max_rows: int = 64
    """Rows in one run. A larger request is split, and its outputs are joined."""

    max_queue_rows: int = 4096
    """Rows that may wait. A request that would exceed them is rejected immediately."""

    max_queue_bytes: int = 256 << 20
    """Bytes of input that may wait. A request that would exceed them is rejected immediately."""

    max_delay: float = 0.0
    """How long an idle instance waits for a batch to fill, counted from when the oldest request
    was queued. Rarely useful: under load the batch fills while the previous one runs."""

    latency_objective: float | None = None
    """Time from admission to response. With it, batches are kept small enough and the queue short
    enough for admitted requests to meet it, as far as the measured run times predict."""

    inline: bool | None = None
    """Whether the transport's thread also runs the model; None decides by measurement."""

    max_run_seconds: float = 600.0
    """The longest run: it is terminated after that time, and its requests fail. 0: no limit."""

    preferred_rows: tuple[int, ...] = ()
    """Batch sizes in rows. A batch of one of these runs at once, also before `max_delay` has
    passed, and so does one that cannot grow into any of them."""

    queue_policies: QueuePolicies | None = None
    """Limits of the wait by priority, None if there are none."""

    preserve_order: bool = False
    """Whether responses are delivered in the order in which their requests were admitted."""

    def __post_init__(self) -> None:
        for name in ("max_rows", "max_queue_rows", "max_queue_bytes"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)} (expected at least 1)")
        if self.max_delay < 0:
            raise ValueError(f"max_delay is {self.max_delay} (expected at least 0)")
        if self.latency_objective is not None and self.latency_objective <= 0:
            raise ValueError(f"latency_objective is {self.latency_objective} (expected above 0)")

    @property
    def batch_sizes(self) -> tuple[int, ...]:
        """The batch sizes whose run time is measured: powers of two, then `max_rows` itself."""
        powers = (1 << power for power in range(self.max_rows.bit_length()))
        return (*(size for size in powers if size < self.max_rows), self.max_rows)
