"""neurona-serve with another policy for sequences of different lengths, to compare it with.

    python sequence_server.py POLICY ARGUMENTS

starts `neurona-serve ARGUMENTS` in this process, where POLICY says what shares a run: the rest of
the server is the same. It is alone since it runs in the server's process, where nothing of a
benchmark may be imported.
"""

import sys
from collections.abc import Hashable, Sequence
from typing import Any

from neurona_server.batching.batch import Batch
from neurona_server.batching.queue import Queue
from neurona_server.batching.request import Request
from neurona_server.cli import main
from neurona_server.sequences.ragged import LengthGroup

SERVER, PADDED, CLOSED = "server", "padded", "closed"


class AnyLength(LengthGroup):
    """A group of all lengths: its requests wait in one line, in the order of their arrival."""

    def __eq__(self, other: object) -> bool:
        return isinstance(other, AnyLength) and other.base == self.base

    def __hash__(self) -> int:
        return hash(self.base)


def pad_to_longest() -> None:
    """Has a batch take what arrived first, padded to the longest sequence of the batch."""
    put = Queue.put

    def put_in_line(self: Queue, requests: Sequence[Request], **options: Any) -> Sequence[Request]:
        for request in requests:
            if isinstance(request.group, LengthGroup):
                request.group = AnyLength(request.group.base, count_steps(request))
        return put(self, requests, **options)

    Queue.put = put_in_line  # type: ignore[method-assign]


def close_at_new_length() -> None:
    """Has a batch take what arrived first, up to the first sequence of another length.

    So does Triton's dynamic batcher for a model whose requests may differ in shape.
    """
    pad_to_longest()  # for the line; what follows leaves nothing to pad
    fill = Queue._fill

    def fill_with_one_length(
        self: Queue, batch: Batch, level: Any, group: Hashable, rows: int, limit: int
    ) -> int:
        steps = count_steps(batch.requests[0]) if batch.requests else 0
        fitting = 0
        for request in level.lanes[group]:
            steps = steps or count_steps(request)
            if count_steps(request) != steps:
                break
            fitting += request.rows
        return (
            fill(self, batch, level, group, rows, min(limit, rows + fitting)) if fitting else rows
        )

    Queue._fill = fill_with_one_length  # type: ignore[method-assign]


def count_steps(request: Request) -> int:
    """Returns the steps of a request: the size of axis 1 of its sequences."""
    return max([array.shape[1] for array in request.inputs.values() if array.ndim > 2])


POLICIES = {PADDED: pad_to_longest, CLOSED: close_at_new_length}


if __name__ == "__main__":
    policy, *arguments = sys.argv[1:]
    if policy != SERVER:
        POLICIES[policy]()
    sys.argv[1:] = arguments
    sys.exit(main())
