"""The budget of bytes that are being received and answered, over all calls of a transport.

Large messages are charged from the moment they have been received until their call has ended and
its response is written; a message over the budget ends its call. What gRPC itself has received of
messages that are not complete is measured by `connection_guard`, which reports it here.

A connection may hold no more than what is left for the others: alone half of the budget, beside
one that holds as much a third of it, and so on. So none can take all, however much it sends.
"""

import threading
from collections.abc import Callable
from typing import Protocol

from neurona_server.errors import BuffersFullError

LARGE = 16 << 10
"""Bytes of a message from which on it is charged: smaller ones cost nothing for it."""

COPIES = 2
"""Copies of a response until it is written: Python's and gRPC's."""

RETRY_AFTER = 1.0
"""Seconds after which a call that did not fit may be retried."""

MESSAGES = 4
"""The budget is at least so many messages of the maximum size: of one that has been received, gRPC
and its conversion to Python hold three copies for a moment."""

CALL_OVERHEAD, MESSAGE_OVERHEAD = 512, 128
"""Bytes that a connection may have received besides a unary call's message, of its headers, and
besides a message of a stream, of frames, window updates and TLS. Without them those of many
messages would count as incomplete while another call waits, maybe for days."""

FRAMES = 256
"""The frames, and TLS, of a large message take no more than its size divided by this."""

ALWAYS = -1
"""As `record_above`: record the size of every message."""


class Reception(Protocol):
    """A call whose next message gRPC has been asked to receive."""

    @property
    def peer(self) -> str:
        """The caller's address and port."""

    @property
    def messages_received(self) -> int:
        """Messages that it has received so far."""

    @property
    def is_stream(self) -> bool:
        """Whether it may rightly wait for its next message for long."""

    def abort(self, error: Exception) -> None:
        """End the call, if its message has not arrived. In the transport's thread."""

    def post(self, action: Callable[[], None]) -> None:
        """Call `action` in the transport's thread. Thread-safe."""


class BufferBudget:
    """Counts the bytes of large messages, by connection.

    `receiving` has each call that waits for a message, with the size of the largest that its method
    takes. Only the transport's thread changes it, and each change of a dict is
    atomic: it needs no lock.
    """

    def __init__(self, limit: int, max_message_bytes: int) -> None:
        """Make the budget of `limit` bytes, at least MESSAGES of `max_message_bytes`."""
        self.limit = limit
        # Of the message that is being converted there are two further copies.
        self.usable = limit - 2 * max_message_bytes
        self.receiving: dict[Reception, int] = {}
        self.record_above = LARGE
        """Messages larger than this have to be given to `record`."""
        self.completed: dict[str, int] = {}
        """Bytes of complete messages, by connection, while the guard observes it."""
        self.incomplete_bytes = 0
        """Bytes of messages that are not complete, as last measured."""
        self._lock = threading.Lock()
        self._held: dict[str, int] = {}
        self._total = 0

    @property
    def buffered_bytes(self) -> int:
        """The bytes of large or slow messages that are being received, wait or are being sent."""
        return self._total + self.incomplete_bytes

    @property
    def held_bytes(self) -> int:
        """The bytes of messages that are charged."""
        return self._total

    def held_by(self, peer: str) -> int:
        """Return the bytes that are charged to a connection."""
        return self._held.get(peer, 0)

    def record(self, peer: str, size: int, overhead: int = CALL_OVERHEAD) -> None:
        """Record that a message is complete, with its overhead. In the transport's thread."""
        # The guard may remove the connection meanwhile.
        if (before := self.completed.get(peer)) is not None:
            self.completed[peer] = before + size + size // FRAMES + overhead

    def charge(self, peer: str, size: int, *, required: bool = False) -> None:
        """Charge bytes to a connection. Thread-safe.

        Args:
            peer: The connection.
            size: The bytes.
            required: Charge them although the connection then holds too much.

        Raises:
            BuffersFullError: It would hold more than what is left for others.
        """
        with self._lock:
            held = self._held.get(peer, 0) + size
            left = self.usable - self.incomplete_bytes - self._total
            # A message alone has to fit, however large it is.
            if held > left and self._total and not required:
                raise self.error()
            self._held[peer] = held
            self._total += size

    def release(self, peer: str, size: int) -> None:
        """Undo a charge. Thread-safe."""
        with self._lock:
            self._total -= size
            if (held := self._held.get(peer, 0) - size) > 0:
                self._held[peer] = held
            else:
                self._held.pop(peer, None)

    def exceeds_share(self, peer: str) -> bool:
        """Return whether a connection holds more than what is left for the others."""
        return self._held.get(peer, 0) > self.usable - self.incomplete_bytes - self._total

    def error(self) -> BuffersFullError:
        """Make the error of a call that does not fit."""
        return BuffersFullError(
            f"too many bytes are being received and answered (expected at most {self.limit}, the "
            "option max_buffered_bytes)",
            RETRY_AFTER,
        )


class StreamCharge:
    """What one stream is charged. Only the transport's thread uses it.

    It is charged its last message, until it reads the next one, and the responses that it has not
    sent. Changes of a few bytes are left out.
    """

    __slots__ = ("_budget", "_charged", "_message", "_peer")

    def __init__(self, budget: BufferBudget) -> None:
        self._budget = budget
        self._charged = self._message = 0
        self._peer = ""

    def receive(self, size: int, call: Reception) -> None:
        """Charge a message that has been received, if it is large.

        Raises:
            BuffersFullError: It does not fit.
        """
        self._peer = self._peer or call.peer
        self._budget.record(self._peer, size, MESSAGE_OVERHEAD)
        if size > LARGE:
            self._budget.charge(self._peer, size)
            self._message = size
            self._charged += size

    def update(self, responses: int, call: Reception, *, required: bool = True) -> None:
        """Charge the bytes of the responses that the stream has outstanding now.

        Raises:
            BuffersFullError: They do not fit, and are not `required`.
        """
        change = self._message + responses - self._charged
        if change > LARGE:
            self._peer = self._peer or call.peer
            self._budget.charge(self._peer, change, required=required)
        elif change < -LARGE or (change < 0 and not responses):
            self._budget.release(self._peer, -change)
        else:
            return
        self._charged += change

    def can_read(self, responses: int, call: Reception) -> bool:
        """Return whether the stream may read its next message; release the last one.

        It may not while it has responses outstanding and its connection has more than its share.
        """
        self._message = 0
        self.update(responses, call)
        return not self._charged or not self._budget.exceeds_share(self._peer)

    def clear(self) -> None:
        """Release everything, because the stream has ended."""
        self._budget.release(self._peer, self._charged)
        self._charged = self._message = 0
