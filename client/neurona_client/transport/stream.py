"""One PredictStream that many calls share: no I/O here, only who gets what.

A message holds whatever has gathered while the last one was being written: no timer. The wire has
no word for giving one request up: one that waits is not sent, and the answer of another is dropped
when it comes.
"""

import threading
from collections import deque
from collections.abc import Callable, Sequence

from neurona_client.errors import (
    ClosedError,
    NeuronaError,
    OverloadedError,
    ServerError,
    UnavailableError,
)
from neurona_client.transport.endpoint import Endpoint, late
from neurona_client.transport.framing import END_OF_IDS, FIRST_ID, IDS, answers, frame_for, free_ids
from neurona_client.transport.grpc_calls import Done, Metadata, Outcome, Wire, open_wire

FEW = 32
"""Requests of a message, where no more than twice as many wait. A message costs gRPC about as much
as a dozen requests cost us; but with smaller ones client and server work at the same time."""

MAX_MESSAGE_BYTES = 256 << 10
"""A message takes no more requests once it has so many bytes."""

_UNIMPLEMENTED = 12

Told = Sequence[tuple[Done, Outcome]]  # who waits, and for what came

Deliver = Callable[["Stream", Told], None]
"""Has callers told, many at once, of whom none has given up; in a thread that holds the lock."""

Soon = Callable[[Callable[[], None]], None]
"""Has a message begun when those who are about to ask have asked."""


class Pending:
    """A request on its way."""

    __slots__ = ("abandoned", "done", "message", "told")

    def __init__(self, message: bytes, done: Done) -> None:
        self.message = message
        self.done = done
        self.abandoned = False
        self.told = False
        """Its outcome is there, and is or will be delivered."""


class Together:
    """A step: a request that shares a stream."""

    __slots__ = ("_message", "_pending", "_stream", "timeout")

    def __init__(self, stream: "Stream", message: bytes, timeout: float | None) -> None:
        self.timeout = timeout
        self._stream = stream
        self._message = message

    def start(self, done: Done) -> Callable[[], bool]:
        self._pending = Pending(self._message, done)
        self._stream.put(self._pending)
        return self.give_up

    def give_up(self) -> bool:
        return self._stream.give_up(self._pending)

    def expired(self) -> Outcome:
        return late()


class Stream:
    """`put` may be called from any thread. Each request's outcome is delivered once."""

    def __init__(
        self, endpoint: Endpoint, metadata: Metadata, deliver: Deliver, soon: Soon
    ) -> None:
        self.lost: NeuronaError | None = None
        self._endpoint = endpoint
        self._deliver = deliver
        self._soon = soon
        self._queue: deque[Pending] = deque()
        self._writing = False
        self.held = 0
        """While it is not 0, nothing is written unless much waits: callers who have just been told
        are about to ask again. For `Deliver` to count up."""
        self._lock = threading.Lock()  # one for a message and for the loss, none for a request
        self._slots: list[Pending | None] = [None] * END_OF_IDS
        self._free = deque(free_ids())
        endpoint.stream_load = self._load
        self._wire: Wire = open_wire(endpoint.channel, metadata, self)

    def put(self, pending: Pending) -> None:
        try:
            self._queue.append(pending)
            if not self._writing and (not self.held or len(self._queue) >= FEW):
                self._begin()
        except BaseException:  # Ctrl-C: perhaps nobody writes what waits
            self.give_up(pending)
            self._give_up(UnavailableError("interrupted"))
            raise

    def give_up(self, pending: Pending) -> bool:
        """Whether its outcome came before, and is delivered all the same."""
        with self._lock:
            pending.abandoned = True
            if not pending.told:
                pending.message = b""  # a server that never answers keeps no memory of ours
            return pending.told

    def let_go(self, *, entirely: bool = False) -> None:
        """Of what `held` holds."""
        with self._lock:
            self.held = 0 if entirely else max(0, self.held - 1)
        # In this order, so that what is asked meanwhile is seen here or there.
        if self._queue and not self._writing and not self.held:
            self._begin()

    def close(self) -> None:
        self._give_up(ClosedError("the client is closed"))

    def received(self, message: bytes) -> None:
        try:
            self._match(answers(message))
        except ServerError as error:
            self._give_up(error)

    def written(self) -> None:
        try:
            self._write_on()
        except BaseException:  # Ctrl-C, in a caller's thread: what was taken is not sent
            self._give_up(UnavailableError("interrupted"))
            raise

    def _write_on(self) -> None:
        message = b""
        while not message:
            if not self._some():
                self._writing = False
                # What came after that look may have found us writing.
                if not (self._some() and self._claim()):
                    return
            message = self._next()
        self._wire.write(message)

    def ended(self, error: NeuronaError) -> None:
        if isinstance(error, OverloadedError) or error.code == _UNIMPLEMENTED:
            # What it says of a stream does not hold for each of the requests.
            self._endpoint.shares = False
            error = UnavailableError(f"the server does not take the stream: {error}")
        with self._lock:
            if self.lost is not None:
                return
            self.lost = error
            self._writing = False  # what is asked from here on finds out in `_begin`
            unanswered = [pending for pending in self._slots if pending is not None]
            self._slots.clear()
        if isinstance(error, UnavailableError):
            self._endpoint.doubt()
        self._fail(unanswered, error)
        self._fail_queued()

    def _give_up(self, error: NeuronaError) -> None:
        self.ended(error)
        self._wire.cancel()

    def _begin(self) -> None:
        if self._claim():
            self._soon(self.written)
        elif self.lost is not None:
            self._fail_queued()

    def _some(self) -> bool:
        """Whether there is something to be written now."""
        return bool(self._queue) and (not self.held or len(self._queue) >= FEW)

    def _claim(self) -> bool:
        """Whether it is for the caller to write."""
        with self._lock:
            if self._writing:
                return False
            self._writing = self.lost is None
            return self._writing

    def _next(self) -> bytes:
        """A message of those that wait; empty if nobody of them waits any more."""
        waiting, slots, free = self._queue, self._slots, self._free
        most, size = max(FEW, len(waiting) // 2), 0
        pieces: list[bytes] = []
        with self._lock:
            while waiting and most and size < MAX_MESSAGE_BYTES and free and self.lost is None:
                pending = waiting.popleft()
                if pending.abandoned:
                    continue
                most -= 1
                number = free.popleft()
                slots[number] = pending
                message = pending.message
                frame = frame_for(len(message))
                pieces += (frame.before, IDS[number], frame.after, message)
                size += len(message)
        if self.lost is not None:
            self._fail_queued()
        elif not free:  # thousands of calls were given up and never answered
            self._give_up(UnavailableError("the server leaves too many requests unanswered"))
        return b"".join(pieces)

    def _match(self, answered: list[tuple[int, bytes | NeuronaError]]) -> None:
        slots, free = self._slots, self._free
        told: list[tuple[Done, Outcome]] = []
        with self._lock:
            if self.lost is not None:
                return
            for number, outcome in answered:
                if not 0 <= number < END_OF_IDS or (pending := slots[number]) is None:
                    raise ServerError(f"the server answered a request {number} that was not sent")
                slots[number] = None
                free.append(number)
                if not pending.abandoned:
                    pending.told = True
                    told.append((pending.done, outcome))
            if told:
                self._deliver(self, told)

    def _load(self) -> int:
        """Requests that have no answer yet."""
        return len(self._queue) + END_OF_IDS - FIRST_ID - len(self._free)

    def _fail_queued(self) -> None:
        queued: list[Pending] = []
        while self._queue:
            try:
                queued.append(self._queue.popleft())
            except IndexError:  # another thread took the last
                break
        self._fail(queued, self.lost or UnavailableError("the stream is lost"))

    def _fail(self, unanswered: Sequence[Pending], error: NeuronaError) -> None:
        told: list[tuple[Done, Outcome]] = []
        with self._lock:
            for pending in unanswered:
                if not pending.abandoned:
                    pending.told = True
                    told.append((pending.done, error))
            if told:
                self._deliver(self, told)
