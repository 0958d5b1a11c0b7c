"""What was taken out of a queue, to be run together."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from neurona_server.batching.request import Request


@dataclass(eq=False)  # told apart by identity
class Cut:
    """A batch to run, and what must not run any more."""

    batch: list[Request] = field(default_factory=list)
    expired: list[Request] = field(default_factory=list)

    @property
    def rows(self) -> int:
        return sum([request.rows for request in self.batch])

    @property
    def waits(self) -> list[float]:
        """Seconds from admission to the cut, of each caller's request."""
        return [one.taken - one.arrived for one in self.batch for _ in range(one.count)]

    def halves(self, some: Sequence[Request]) -> list[Sequence[Request]]:
        """Of some of the batch, two halves; none of a single request of a single caller."""
        if len(some) > 1:
            middle = len(some) // 2
            return [some[:middle], some[middle:]]
        parts = some[0].divide()
        self.batch.extend(parts)  # so that whoever ends the batch ends them too
        return [[part] for part in parts]
