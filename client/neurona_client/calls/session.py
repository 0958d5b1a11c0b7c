"""The operations of a session: to send steps, to receive an answer, to go on at another server.

A session does nothing in the background. The events of its stream only record what has come; the
operation that waits for an answer moves the session when the stream is lost, when the server ends
it or hangs, or when steps have no answer within their timeout. A session that waits for nothing
holds its state, and begins again with the next steps. It is one file because each operation and
each event may find that the session has to move.
"""

import threading
from collections import deque
from collections.abc import Callable

import grpc

from neurona_client.calls.backpressure import CapacityLimiter
from neurona_client.calls.retry import backoff_times, pause_before_retry, wait_for_endpoint
from neurona_client.calls.session_protocol import (
    PendingSteps,
    SessionAnswer,
    SessionEndingError,
    SessionProtocol,
    encode_steps,
)
from neurona_client.calls.steps import Deadline, Operation, Pause, WaitForCapacity
from neurona_client.errors import (
    ClosedError,
    DeadlineExceededError,
    InvalidInputError,
    NeuronaError,
    NotFoundError,
    OverloadedError,
    UnavailableError,
    UnreachableError,
    WrongTaskError,
)
from neurona_client.inputs import PreparedTensors
from neurona_client.options import ClientOptions
from neurona_client.transport.endpoint import CONNECTION_CLOSED, NO_ANSWER, Endpoint
from neurona_client.transport.endpoint_pool import EndpointPool
from neurona_client.transport.grpc_calls import (
    ByteStream,
    Metadata,
    Outcome,
    OutcomeCallback,
    open_session_stream,
)
from neurona_client.transport.trace_context import trace_context
from neurona_protos.tensors import TensorError

Prepare = Callable[[Deadline], Operation[tuple[PreparedTensors, bool]]]
"""Converts the inputs of a message, when the model has been described."""

_REFUSALS = (InvalidInputError, NotFoundError, WrongTaskError)
"""Of a session that goes on: another server may have the version that this one does not have."""


class SessionStream:
    """The stream of a session to one server; receives its events."""

    def __init__(self, session: "SessionCall", endpoint: Endpoint, metadata: Metadata) -> None:
        """Start the call.

        Raises:
            ValueError: the channel is closed.
            OSError: a file of certificates cannot be read.
        """
        self.endpoint = endpoint
        self.is_writing = False
        self.is_answered = False
        self.end_error: NeuronaError | None = None
        self._session = session
        self._channel: grpc.Channel = endpoint.session_channels.acquire()
        try:
            self.byte_stream: ByteStream = open_session_stream(self._channel, metadata, self)
        except BaseException:
            endpoint.session_channels.release(self._channel)
            raise

    def on_message(self, message: bytes) -> None:
        """See `StreamListener`."""
        self.endpoint.record_message()
        self._session.on_message(self, message)

    def on_written(self) -> None:
        """See `StreamListener`."""
        self._session.on_written(self)

    def on_end(self, error: NeuronaError) -> None:
        """See `StreamListener`."""
        self.endpoint.session_channels.release(self._channel)
        if self.endpoint.hanging:
            error = UnavailableError(NO_ANSWER)
        self._session.on_end(self, error)


class SessionCall:
    """The state and the operations of one session. Safe for threads."""

    def __init__(
        self,
        protocol: SessionProtocol,
        pool: EndpointPool,
        capacity: CapacityLimiter,
        options: ClientOptions,
        metadata: Metadata,
    ) -> None:
        """Create a session, which begins on a server with its first steps.

        Args:
            protocol: what is sent and answered.
            pool: the servers.
            capacity: limits the messages without an answer.
            options: of the client.
            metadata: of each stream.
        """
        self._protocol = protocol
        self._pool = pool
        self._capacity = capacity
        self._options = options
        self._metadata = metadata
        self._lock = threading.Lock()
        self._answers: deque[SessionAnswer] = deque()
        self._waiters: list[OutcomeCallback] = []
        self._change_count = 0
        self._is_closed = False
        self._stream: SessionStream | None = None
        self._is_opening = False
        self._last_endpoint: Endpoint | None = None
        """From which the last stream was lost: others are preferred."""
        self._failure: NeuronaError | None = None
        """Why the last stream was left, if its steps are to be sent again."""
        self._failure_count = 0  # in a row, without an answer between
        self._backoffs = backoff_times(options.retries)
        pool.add_close_listener(self)

    def send(self, prepare: Prepare, timeout: float | None) -> Operation[None]:
        """Send the steps of one message; does not wait for their answer.

        Args:
            prepare: converts their inputs.
            timeout: seconds to the answer; None: no limit.

        Raises:
            InvalidInputError: the inputs do not fit the model.
            OverloadedError: the message is too large.
            DeadlineExceededError: the timeout passed before there was capacity for the message.
        """
        deadline = Deadline(timeout)
        self._check_open()
        tensors, is_sample = yield from prepare(deadline)
        with self._lock:
            message_id = self._protocol.next_id()
        try:
            message = encode_steps(tensors, message_id)
        except TensorError as error:
            raise InvalidInputError(str(error)) from error
        size, limit = len(message), self._options.max_message_bytes
        if size > limit:
            raise OverloadedError(f"message has {size} bytes (expected at most {limit})")
        if not self._capacity.try_acquire(size):
            try:
                yield WaitForCapacity(self._capacity, size, deadline.remaining())
            except DeadlineExceededError:
                raise deadline.exceeded_error() from None
        with self._lock:
            is_accepted = not self._is_closed
            if is_accepted:
                pending = PendingSteps(message_id, message, is_sample, deadline)
                self._protocol.add(pending)
                self._track()
                self._record_change()
        if not is_accepted:
            self._capacity.release(size)
            self._check_open()
        self._leave_hanging_server()
        if self._claim_opening(unless_failed=True):
            try:
                endpoint = self._pick()
                if endpoint is not None:
                    self._open(endpoint)
            finally:
                self._release_opening()
        self._write_next()

    def receive(self) -> Operation[SessionAnswer]:
        """Wait for the next answer, also to steps that are going to be sent from elsewhere.

        Moves the session to another server where that is needed.

        Raises:
            ClosedError: the session or the client is closed.
        """
        while True:
            change_count = self._change_count
            answer = yield from self.receive_if_sent()
            if answer is not None:
                return answer
            yield _WaitForChange(self, change_count, None)

    def receive_if_sent(self) -> Operation[SessionAnswer | None]:
        """Wait for the next answer; None: there is one to all steps that have been sent.

        Raises:
            ClosedError: see `receive`.
        """
        while True:
            self._check_open()
            with self._lock:
                if self._answers:
                    return self._answers.popleft()
                if not self._protocol.unanswered:
                    return None
                oldest = self._protocol.unanswered[0]
                change_count = self._change_count
                has_stream = self._stream is not None
            try:
                remaining = oldest.deadline.remaining()
            except DeadlineExceededError as error:
                self._expire(oldest, error)
                continue
            if not has_stream and self._claim_opening():
                try:
                    yield from self._begin(oldest)
                finally:
                    self._release_opening()
                self._write_next()
            else:
                yield _WaitForChange(self, change_count, remaining)

    def close(self) -> None:
        """End the session; operations that wait end with ClosedError. May be called again."""
        with self._lock:
            self._is_closed = True
            stream = self._stream
            is_idle = not self._protocol.unanswered and not (stream and stream.is_writing)
            removed = self._protocol.remove_all()
            self._leave_stream()
            self._record_change()
        self._release(removed)
        if stream is not None:
            if is_idle:
                stream.byte_stream.finish()
            else:
                stream.byte_stream.cancel()

    def on_close(self) -> None:
        """Let operations that wait find that the client is closed; see `CloseListener`."""
        with self._lock:
            self._record_change()

    # Events of a stream

    def on_message(self, stream: SessionStream, message: bytes) -> None:
        """Record an answer; called by the stream."""
        size, must_leave = 0, False
        with self._lock:
            if stream is not self._stream:
                return
            unanswered = self._protocol.unanswered
            oldest_size = len(unanswered[0].message) if unanswered else 0
            outcome = self._protocol.on_message(message)
            if isinstance(outcome, SessionAnswer):
                size = oldest_size
                self._answers.append(outcome)
                self._failure_count = 0
                stream.is_answered = True
                self._track()
            elif outcome is not None:
                must_leave = True
                self._record_failure(stream, outcome)
            self._record_change()
        if size:
            self._capacity.release(size)
        if must_leave:
            stream.byte_stream.cancel()

    def on_written(self, stream: SessionStream) -> None:
        """Send the next message; called by the stream."""
        with self._lock:
            stream.is_writing = False
        self._write_next()

    def on_end(self, stream: SessionStream, error: NeuronaError) -> None:
        """Record the end of a stream; called by it."""
        with self._lock:
            stream.end_error = error
            if stream is not self._stream:
                return
            if isinstance(error, UnavailableError):
                stream.endpoint.mark_suspect()
            self._record_failure(stream, error)
            self._record_change()

    # Servers

    def _begin(self, oldest: PendingSteps) -> Operation[None]:
        """Begin on a server, after a pause if there was a failure.

        Raises:
            ClosedError: the client is closed.
        """
        with self._lock:
            failure, self._failure = self._failure, None
        try:
            if failure is not None:
                pause = self._pause_after(failure)
                if pause is None:
                    self._fail_all(self._explain(failure))
                    return
                remaining = oldest.deadline.remaining()
                if remaining is not None and pause >= remaining:
                    self._expire(oldest, failure)
                    return
                if pause:
                    yield Pause(pause)
            endpoint = self._pick()
            if endpoint is None:
                endpoint = yield from wait_for_endpoint(
                    self._pool, self._options.retries, oldest.deadline
                )
        except UnreachableError as error:
            self._fail_all(error)
        except DeadlineExceededError as error:
            self._expire(oldest, error)
        else:
            self._open(endpoint)

    def _pick(self) -> Endpoint | None:
        return self._pool.pick(self._last_endpoint, for_session=True)

    def _open(self, endpoint: Endpoint) -> None:
        try:
            stream = SessionStream(self, endpoint, (*self._metadata, *trace_context()))
        except (ValueError, OSError) as error:
            reason = CONNECTION_CLOSED if isinstance(error, ValueError) else str(error)
            with self._lock:
                self._last_endpoint = endpoint
                self._failure = UnavailableError(reason)
                self._failure_count += 1
            return
        with self._lock:
            is_wanted = not self._is_closed
            if is_wanted:
                self._stream = stream
                self._protocol.restart()
                self._track()
                if stream.end_error is not None:  # before it was known here
                    endpoint.mark_suspect()
                    self._record_failure(stream, stream.end_error)
        if not is_wanted:
            stream.byte_stream.cancel()

    def _pause_after(self, failure: NeuronaError) -> float | None:
        """Return the seconds before the session begins again; None: it does not."""
        retries, backoff = self._options.retries, next(self._backoffs)
        if self._failure_count >= retries.max_attempts:
            return None
        if isinstance(failure, UnavailableError) or (
            isinstance(failure, OverloadedError) and failure.retry_after is not None
        ):
            return pause_before_retry(failure, backoff, self._pool)
        is_refused = isinstance(failure, OverloadedError) or (
            self._protocol.is_continued and isinstance(failure, _REFUSALS)
        )
        return backoff if is_refused and len(self._pool.endpoints) > 1 else None

    def _explain(self, failure: NeuronaError) -> NeuronaError:
        if not (self._protocol.steps and isinstance(failure, _REFUSALS)):
            return failure
        text = f"session cannot go on after {self._protocol.steps} steps: {failure}"
        return type(failure)(text, request_id=failure.request_id)

    def _leave_hanging_server(self) -> None:
        with self._lock:
            stream = self._stream
            if stream is None or not stream.endpoint.hanging:
                return
        if not self._pool.has_healthy_endpoint():
            return
        with self._lock:
            if self._stream is not stream:
                return
            self._leave_stream()
            self._last_endpoint = stream.endpoint
        stream.byte_stream.cancel()

    def _claim_opening(self, *, unless_failed: bool = False) -> bool:
        """Return whether the caller is the one that opens a stream; sets `_is_opening`."""
        with self._lock:
            if self._is_opening or self._stream is not None or self._is_closed:
                return False
            if unless_failed and self._failure is not None:
                return False  # `receive` decides whether to try again
            self._is_opening = True
            return True

    def _release_opening(self) -> None:
        with self._lock:
            self._is_opening = False
            self._record_change()

    # Steps

    def _write_next(self) -> None:
        with self._lock:
            stream = self._stream
            if stream is None or stream.is_writing:
                return
            message = self._protocol.next_message()
            if message is None:
                return
            stream.is_writing = True
        try:
            stream.byte_stream.write(message)
        except BaseException:  # Ctrl-C: perhaps the message is not going to be sent
            stream.byte_stream.cancel()
            raise

    def _expire(self, pending: PendingSteps, error: NeuronaError) -> None:
        """Give up the oldest steps, so that they are not in the state."""
        stream = None
        with self._lock:
            unanswered = self._protocol.unanswered
            if not unanswered or unanswered[0] is not pending:
                return
            if self._protocol.remove_first() and self._stream is not None:
                stream = self._stream
                self._leave_stream()
            self._add_failed_answer(error)
            self._track()
            self._record_change()
        self._capacity.release(len(pending.message))
        if stream is not None:
            stream.byte_stream.cancel()
            stream.endpoint.record_timeout(pending.deadline.timeout or 0.0)

    def _fail_all(self, error: NeuronaError) -> None:
        """Give up all steps; the next ones begin with the state of the last answer."""
        with self._lock:
            removed = self._protocol.remove_all()
            for _ in removed:
                self._add_failed_answer(error)
            self._failure_count = 0
            self._backoffs = backoff_times(self._options.retries)
            self._record_change()
        self._release(removed)

    # While the lock is held

    def _record_failure(self, stream: SessionStream, failure: NeuronaError) -> None:
        self._leave_stream()
        self._last_endpoint = stream.endpoint
        if not self._protocol.unanswered:  # the next steps begin again
            return
        self._failure = failure
        # A server that ends the session after an answer has not failed.
        if not (isinstance(failure, SessionEndingError) and stream.is_answered):
            self._failure_count += 1

    def _leave_stream(self) -> None:
        if self._stream is not None:
            self._stream.endpoint.untrack_session(self)
            self._stream = None
        self._protocol.restart()

    def _add_failed_answer(self, error: NeuronaError) -> None:
        self._answers.append(SessionAnswer(error, self._protocol.state, self._protocol.steps))

    def _track(self) -> None:
        """Have the server watched while it owes answers."""
        stream = self._stream
        if stream is None:
            return
        if self._protocol.unanswered:
            stream.endpoint.track_session(
                self, stream.byte_stream.cancel, self._protocol.unanswered_bytes
            )
        else:
            stream.endpoint.untrack_session(self)

    def _record_change(self) -> None:
        self._change_count += 1
        waiters, self._waiters = self._waiters, []
        for callback in waiters:
            callback(b"")

    # Without the lock

    def _check_open(self) -> None:
        if self._pool.closed_reason:
            raise ClosedError(self._pool.closed_reason)
        if self._is_closed:
            raise ClosedError("session closed")

    def _release(self, removed: list[PendingSteps]) -> None:
        for pending in removed:
            self._capacity.release(len(pending.message))

    def wait_for_change(self, change_count: int, callback: OutcomeCallback) -> None:
        """Call back once when something has changed since `change_count`; perhaps right away."""
        with self._lock:
            if self._change_count == change_count and not self._is_closed:
                self._waiters.append(callback)
                return
        callback(b"")

    def cancel_wait(self, callback: OutcomeCallback) -> None:
        """Undo `wait_for_change`, unless it has called back already."""
        with self._lock:
            if callback in self._waiters:
                self._waiters.remove(callback)


class _WaitForChange:
    """A step: waits until something has happened to a session."""

    def __init__(self, session: SessionCall, change_count: int, timeout: float | None) -> None:
        self.timeout = timeout
        self._session = session
        self._change_count = change_count

    def start(self, callback: OutcomeCallback) -> Callable[[], None]:
        self._session.wait_for_change(self._change_count, callback)
        return lambda: self._session.cancel_wait(callback)

    def timeout_outcome(self) -> Outcome:
        return b""
