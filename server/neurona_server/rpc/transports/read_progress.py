"""What a transport's thread knows of its own reading: how far it is behind, and what that costs.

gRPC's own threads empty the sockets as soon as bytes are there. Beyond the capacity of the
transport's thread requests wait in its queue of events, first in, first out, where no model's queue
counts them. The file is alone because a transport writes it and services read it.
"""

SAMPLING = 17
"""Of so many turns the cost of one is measured: reading the clock of the CPU time is a system call.
It is a prime number, or of a request's two or three turns always the same one would be measured."""

MEMORY = 1024
"""Requests after which the weight of a measurement has halved."""


class ReadProgress:
    """How far the transport's thread has read. Only that thread writes it.

    Attributes:
        read_until: All that had arrived by then has been read, in seconds of the monotonic clock.
            What is read now has arrived later.
    """

    def __init__(self) -> None:
        self.read_until = 0.0
        self._seconds = 0.0
        self._requests = 0.0

    @property
    def request_seconds(self) -> float:
        """The CPU seconds of that thread for receiving and refusing or queuing a request.

        Without the model's runs; 0.0 before any request.
        """
        return self._seconds / self._requests if self._requests else 0.0

    def record_turn(self, seconds: float, requests: int) -> None:
        """Learn from a turn.

        Args:
            seconds: CPU time that all its events took.
            requests: How many requests were read.
        """
        if self._requests >= MEMORY:
            self._seconds /= 2
            self._requests /= 2
        self._seconds += seconds
        self._requests += requests
