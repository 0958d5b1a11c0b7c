"""The parameters of batching.

The defaults suit most models. The file is alone because configuration and model settings need the
parameters without the machinery.
"""

from dataclasses import dataclass
from enum import IntEnum


class Priority(IntEnum):
    """Levels of urgency, in the order in which a queue keeps them."""

    HIGH = 0
    NORMAL = 1
    LOW = 2


WEIGHTS = {Priority.HIGH: 16, Priority.NORMAL: 4, Priority.LOW: 1}
"""The proportion of rows that each level gets while all levels have requests waiting."""

ALL_WEIGHTS = sum(WEIGHTS.values())


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
