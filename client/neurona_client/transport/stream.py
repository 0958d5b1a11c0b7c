"""One PredictStream that many calls share: which request gets which outcome, without I/O.

A message holds the requests that have gathered while the last one was being written; there is no
timer. PredictStream has no way to cancel one request: an abandoned request that has not been sent
is dropped, and the response to one that has been sent is ignored.
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
from neurona_client.transport.endpoint import Endpoint
from neurona_client.transport.framing import (
    END_OF_IDS,
    FIRST_ID,
    IDS,
    frame_for,
    parse_responses,
    request_ids,
)
from neurona_client.transport.grpc_calls import (
    ByteStream,
    Metadata,
    Outcome,
    OutcomeCallback,
    generic_deadline_error,
    open_stream,
)

MIN_REQUESTS_PER_MESSAGE = 32
"""A message takes half of the queue, but at least this many requests. A message costs gRPC about as
much as a dozen requests cost this client; with smaller messages, client and server work in
parallel."""

MAX_MESSAGE_BYTES = 256 << 10
"""A message takes no further request once it has reached this size."""

_UNIMPLEMENTED = 12

Deliveries = Sequence[tuple[OutcomeCallback, Outcome]]

ScheduleWrite = Callable[[Callable[[], None]], None]
"""Calls a function when the callers that are about to submit requests have submitted them."""


class PendingRequest:
    """A request that has no outcome yet."""

    __slots__ = ("abandoned", "callback", "delivered", "message")

    def __init__(self, message: bytes, callback: OutcomeCallback) -> None:
        self.message = message
        self.callback = callback
        self.abandoned = False
        self.delivered = False
        """Its outcome exists, and has been or will be delivered."""


class Stream:
    """The shared stream to one server. Each request's outcome is delivered exactly once.

    `submit` may be called from any thread.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        metadata: Metadata,
        deliver: "Deliver",
        schedule_write: ScheduleWrite,
    ) -> None:
        self.failure: NeuronaError | None = None
        """Why the stream has ended; None while it is open."""
        self.hold_count = 0
        """While above 0, nothing is written unless many requests are queued: callers that have just
        got an outcome are about to submit. Incremented by `Deliver`."""
        self._endpoint = endpoint
        self._deliver = deliver
        self._schedule_write = schedule_write
        self._queue: deque[PendingRequest] = deque()
        self._writing = False
        self._lock = threading.Lock()  # taken once for a message, and not at all by `submit`
        self._slots: list[PendingRequest | None] = [None] * END_OF_IDS
        self._free_ids = deque(request_ids())
        endpoint.stream_load = self._count_in_flight
        endpoint.stream_bytes = self._count_bytes
        self._byte_stream: ByteStream = open_stream(endpoint.channel, metadata, self)

    def submit(self, pending: PendingRequest) -> None:
        """Queue a request."""
        try:
            self._queue.append(pending)
            if not self._writing and (
                not self.hold_count or len(self._queue) >= MIN_REQUESTS_PER_MESSAGE
            ):
                self._start_write()
        except BaseException:  # Ctrl-C: perhaps no thread is going to write the queue
            self.abandon(pending)
            self.fail(UnavailableError("interrupted"))
            raise

    def abandon(self, pending: PendingRequest) -> bool:
        """Give up a request; return whether its outcome exists, and is delivered all the same."""
        with self._lock:
            pending.abandoned = True
            if not pending.delivered:
                pending.message = b""  # frees its memory even if the server never responds
            return pending.delivered

    def release_hold(self, *, entirely: bool = False) -> None:
        """Decrement `hold_count`, or reset it, and write if nothing holds the queue any more."""
        with self._lock:
            self.hold_count = 0 if entirely else max(0, self.hold_count - 1)
        # In this order, a request that is submitted meanwhile is written here or by `submit`.
        if self._queue and not self._writing and not self.hold_count:
            self._start_write()

    def record_timeout(self, seconds: float) -> None:
        """Record that a request had no response for so many seconds, until its timeout."""
        self._endpoint.record_timeout(seconds)

    def fail(self, error: NeuronaError) -> None:
        """End the stream; all requests without an outcome fail with `error`."""
        self.on_end(error)
        self._byte_stream.cancel()

    def close(self) -> None:
        """End the stream; all requests without an outcome fail with ClosedError."""
        self.fail(ClosedError("client closed"))

    def on_message(self, message: bytes) -> None:
        """See `StreamListener`."""
        self._endpoint.record_message()
        try:
            self._deliver_responses(parse_responses(message))
        except ServerError as error:
            self.fail(error)

    def on_written(self) -> None:
        """See `StreamListener`; also called to write the first message."""
        try:
            self._write_next()
        except BaseException:  # Ctrl-C in a caller's thread: the message was not sent
            self.fail(UnavailableError("interrupted"))
            raise

    def on_end(self, error: NeuronaError) -> None:
        """See `StreamListener`."""
        if isinstance(error, OverloadedError) or error.code == _UNIMPLEMENTED:
            # The error is about the stream, not about each request in it.
            self._endpoint.accepts_streams = False
            error = UnavailableError(f"stream rejected by the server: {error}")
        with self._lock:
            if self.failure is not None:
                return
            self.failure = error
            self._writing = False  # requests submitted from here on fail in `_start_write`
            unanswered = [pending for pending in self._slots if pending is not None]
            self._slots.clear()
        if isinstance(error, UnavailableError):
            self._endpoint.mark_suspect()
        self._deliver_failure(unanswered, error)
        self._fail_queued()

    def _start_write(self) -> None:
        if self._claim_writing():
            self._schedule_write(self.on_written)
        elif self.failure is not None:
            self._fail_queued()

    def _write_next(self) -> None:
        message = b""
        while not message:
            if not self._can_write():
                self._writing = False
                # A request that was queued after the check may have met `_writing` still set.
                if not (self._can_write() and self._claim_writing()):
                    return
            message = self._next_message()
        self._byte_stream.write(message)

    def _can_write(self) -> bool:
        queue = self._queue
        return bool(queue) and (not self.hold_count or len(queue) >= MIN_REQUESTS_PER_MESSAGE)

    def _claim_writing(self) -> bool:
        """Return whether the caller is the one that writes; sets `_writing`."""
        with self._lock:
            if self._writing:
                return False
            self._writing = self.failure is None
            return self._writing

    def _next_message(self) -> bytes:
        """Take requests from the queue into a message; empty if all of them were abandoned."""
        queue, slots, free_ids = self._queue, self._slots, self._free_ids
        count, size = max(MIN_REQUESTS_PER_MESSAGE, len(queue) // 2), 0
        pieces: list[bytes] = []
        with self._lock:
            while queue and count and size < MAX_MESSAGE_BYTES and free_ids and not self.failure:
                pending = queue.popleft()
                if pending.abandoned:
                    continue
                count -= 1
                request_id = free_ids.popleft()
                slots[request_id] = pending
                message = pending.message
                frame = frame_for(len(message))
                pieces += (frame.before_id, IDS[request_id], frame.after_id, message)
                size += len(message)
        if self.failure is not None:
            self._fail_queued()
        elif not free_ids:  # thousands of requests were abandoned and never answered
            self.fail(UnavailableError("too many requests without a response on the stream"))
        return b"".join(pieces)

    def _deliver_responses(self, responses: list[tuple[int, bytes | NeuronaError]]) -> None:
        slots, free_ids = self._slots, self._free_ids
        deliveries: list[tuple[OutcomeCallback, Outcome]] = []
        with self._lock:
            if self.failure is not None:
                return
            for request_id, outcome in responses:
                if not 0 <= request_id < END_OF_IDS or (pending := slots[request_id]) is None:
                    raise ServerError(f"response to unknown request {request_id}")
                slots[request_id] = None
                free_ids.append(request_id)
                if not pending.abandoned:
                    pending.delivered = True
                    deliveries.append((pending.callback, outcome))
            if deliveries:
                self._deliver(self, deliveries)

    def _count_in_flight(self) -> int:
        """Return the number of requests without a response, queued or sent."""
        if self.failure is not None:
            return 0
        return len(self._queue) + END_OF_IDS - FIRST_ID - len(self._free_ids)

    def _count_bytes(self) -> int:
        """Return the bytes of the requests that were sent, have no response and are wanted."""
        with self._lock:
            return sum(len(pending.message) for pending in self._slots if pending is not None)

    def _fail_queued(self) -> None:
        queued: list[PendingRequest] = []
        while self._queue:
            try:
                queued.append(self._queue.popleft())
            except IndexError:  # another thread took the last one
                break
        self._deliver_failure(queued, self.failure or UnavailableError("stream lost"))

    def _deliver_failure(self, requests: Sequence[PendingRequest], error: NeuronaError) -> None:
        deliveries: list[tuple[OutcomeCallback, Outcome]] = []
        with self._lock:
            for pending in requests:
                if not pending.abandoned:
                    pending.delivered = True
                    deliveries.append((pending.callback, error))
            if deliveries:
                self._deliver(self, deliveries)


Deliver = Callable[[Stream, Deliveries], None]
"""Delivers outcomes of requests that are not abandoned; called while the stream's lock is held."""


class StreamedCall:
    """A step of an operation: a request on a shared stream."""

    __slots__ = ("_message", "_pending", "_stream", "timeout")

    def __init__(self, stream: Stream, message: bytes, timeout: float | None) -> None:
        self.timeout = timeout
        self._stream = stream
        self._message = message

    def start(self, callback: OutcomeCallback) -> Callable[[], bool]:
        """See `Step.start`."""
        self._pending = PendingRequest(self._message, callback)
        self._stream.submit(self._pending)
        return self.abandon

    def abandon(self) -> bool:
        """Give up the request; see `Stream.abandon`."""
        return self._stream.abandon(self._pending)

    def timeout_outcome(self) -> Outcome:
        """See `Step.timeout_outcome`."""
        self._stream.record_timeout(self.timeout or 0.0)
        return generic_deadline_error()
