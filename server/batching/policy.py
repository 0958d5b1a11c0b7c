"""The knobs of batching."""

from dataclasses import dataclass


@dataclass(frozen=True)
class BatchPolicy:
    max_rows: int = 64
    """Rows in one run. A single request that has more runs by itself."""

    max_queue_rows: int = 4096
    """Rows that may wait. A request that would exceed it is refused at once."""

    def __post_init__(self) -> None:
        for name in ("max_rows", "max_queue_rows"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; expected at least 1")
