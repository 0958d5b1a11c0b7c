"""neurona-serve with another policy for sequences of different lengths, to compare it with.

    python sequence_server.py POLICY ARGUMENTS

starts `neurona-serve ARGUMENTS` in this process, where POLICY says what shares a run: the rest of
the server is the same. It is alone since it runs in the server's process, where nothing of a
benchmark may be imported.
"""

import sys
from collections.abc import Callable, Sequence
from typing import Any

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


class Successive(LengthGroup):
    """A group of requests of equal length that arrived one after the other."""

    number: int

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Successive) and other.number == self.number

    def __hash__(self) -> int:
        return hash(self.number)


def pad_to_longest() -> Callable[[LengthGroup, int], LengthGroup]:
    """Returns groups for batches of what arrived first, padded to the longest one of a batch."""
    return lambda group, steps: AnyLength(group.base, steps)


def close_at_new_length() -> Callable[[LengthGroup, int], LengthGroup]:
    """Returns groups for batches that end where the next request has another length.

    So does Triton's dynamic batcher for a model whose requests may differ in shape.
    """
    number = 0
    last = 0

    def make_group(group: LengthGroup, steps: int) -> LengthGroup:
        nonlocal number, last
        if steps != last:
            number, last = number + 1, steps
        successive = Successive(group.base, steps)
        successive.number = number
        return successive

    return make_group


POLICIES = {PADDED: pad_to_longest, CLOSED: close_at_new_length}


def use_policy(policy: str) -> None:
    """Has queues group sequences by a policy when they arrive."""
    make_group = POLICIES[policy]()
    put = Queue.put

    def put_in_group(self: Queue, requests: Sequence[Request], **options: Any) -> Sequence[Request]:
        self.merge = None  # groups never share a batch
        for request in requests:
            if isinstance(request.group, LengthGroup):
                steps = max([array.shape[1] for array in request.inputs.values() if array.ndim > 2])
                request.group = make_group(request.group, steps)
        return put(self, requests, **options)

    Queue.put = put_in_group  # type: ignore[method-assign]


if __name__ == "__main__":
    policy, *arguments = sys.argv[1:]
    if policy != SERVER:
        use_policy(policy)
    sys.argv[1:] = arguments
    sys.exit(main())
