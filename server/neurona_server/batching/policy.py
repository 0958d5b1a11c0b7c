"""The knobs of batching. None of them has to be turned for a good result."""

from dataclasses import dataclass
from enum import IntEnum


class Priority(IntEnum):
    """Levels of urgency, in the order in which a queue keeps them."""

    HIGH = 0
    NORMAL = 1
    LOW = 2


WEIGHTS = {Priority.HIGH: 16, Priority.NORMAL: 4, Priority.LOW: 1}
"""The rows that each level gets while all of them wait: the lowest moves too."""


@dataclass(frozen=True)
class BatchPolicy:
    """Times in seconds."""

    max_rows: int = 64
    """Rows in one run. A request that has more is run in parts, and its answer joined."""

    max_queue_rows: int = 4096
    """Rows that may wait. A request that would exceed it is refused at once."""

    max_queue_bytes: int = 256 << 20
    """Bytes of input that may wait, likewise."""

    max_delay: float = 0.0
    """How long an idle instance waits for a batch to fill, counted from the arrival of the
    oldest request. Rarely worth it: under load the batch fills while the last one runs."""

    latency_objective: float | None = None
    """From admission to answer. With it, batches are kept so small and the queue so short
    that what is admitted meets it, as far as the measured run times tell."""

    inline: bool | None = None
    """Whether the thread that reads requests also runs them: None decides by measurement."""

    def __post_init__(self) -> None:
        for name in ("max_rows", "max_queue_rows", "max_queue_bytes"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; expected at least 1")
        if self.max_delay < 0:
            raise ValueError(f"max_delay is {self.max_delay}; expected at least 0")
        if self.latency_objective is not None and self.latency_objective <= 0:
            raise ValueError(f"latency_objective is {self.latency_objective}; expected above 0")

    @property
    def batch_sizes(self) -> tuple[int, ...]:
        """The ladder of batch sizes: powers of two, then `max_rows` itself."""
        powers = (1 << power for power in range(self.max_rows.bit_length()))
        return (*(batch_size for batch_size in powers if batch_size < self.max_rows), self.max_rows)
