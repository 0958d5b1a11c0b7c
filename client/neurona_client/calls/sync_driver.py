"""Runs operations in threads: each waits in the thread of its caller."""

import _thread
import threading
from collections.abc import Callable
from typing import Any, TypeVar

from neurona_client.calls.backpressure import CapacityLimiter
from neurona_client.calls.steps import Deadline, Operation, Step
from neurona_client.errors import NeuronaError
from neurona_client.transport import green_threads
from neurona_client.transport.green_threads import prepare_green_threads
from neurona_client.transport.grpc_calls import Outcome
from neurona_client.transport.stream import PendingRequest, Stream, StreamedCall

T = TypeVar("T")


class ThreadReply:
    """The outcome that one thread waits for. A bare lock wakes it with the least overhead."""

    __slots__ = ("_lock", "_next_reply", "_stream", "outcome")

    def __init__(self) -> None:
        self._lock = _thread.allocate_lock()
        self._lock.acquire()
        self._next_reply: ThreadReply | None = None  # the one that this one wakes
        self._stream: Stream | None = None  # of the last one, which releases its hold

    def __call__(self, outcome: Outcome) -> None:
        """Store the outcome and wake the thread."""
        self.outcome: Outcome = outcome
        self._lock.release()

    def wait(self, timeout: float | None) -> bool:
        """Wait some seconds; return whether there is an outcome."""
        if timeout is None:
            self._lock.acquire()
        elif not self._lock.acquire(timeout=min(max(timeout, 0.0), threading.TIMEOUT_MAX)):
            return False
        self.wake_next()
        return True

    def wake_next(self) -> None:
        """Wake the next thread. May be called again."""
        if self._next_reply is not None:
            try:  # noqa: SIM105
                self._next_reply._lock.release()
            except RuntimeError:  # it was woken before, and has not run yet
                pass
            self._next_reply = None
        elif self._stream is not None:
            self._stream.release_hold()
            self._stream = None

    @staticmethod
    def deliver(stream: Stream, deliveries: Any) -> None:
        """Deliver outcomes: each thread wakes the next one, and the last has the stream go on.

        So the threads do not all wake up to wait for the interpreter lock, and their next requests
        travel together: a thread runs until it waits for its next outcome, and then the one runs
        that it has woken.
        """
        last = deliveries[0][0]
        for reply, outcome in deliveries:
            reply.outcome = outcome
            last._next_reply = reply
            last = reply
        deliveries[0][0]._next_reply = deliveries[1][0] if len(deliveries) > 1 else None
        last._stream = stream
        stream.hold_count += 1
        deliveries[0][0]._lock.release()


def yield_then(write: Callable[[], None]) -> None:
    """Let the other threads that can run submit their requests first, so that these go along."""
    try:
        green_threads.sleep(0)
    finally:
        write()


def run(operation: Operation[T]) -> T:
    """Run an operation in this thread and return its result."""
    prepare_green_threads()  # perhaps gevent came after the client
    try:
        step = next(operation)
        while True:
            outcome = _perform(step)
            if isinstance(outcome, NeuronaError):
                step = operation.throw(outcome)
            else:
                step = operation.send(outcome)
    except StopIteration as end:
        result: T = end.value
        return result
    finally:
        operation.close()


def send_streamed(
    capacity: CapacityLimiter, stream: Stream, message: bytes, deadline: Deadline
) -> Outcome:
    """Send a request on a stream without an operation, and release its capacity at the end.

    Raises:
        DeadlineExceededError: there was no outcome before the deadline.
    """
    reply = ThreadReply()
    pending = PendingRequest(message, reply)
    try:
        remaining = deadline.remaining()
        try:
            stream.submit(pending)
            if reply.wait(remaining):
                return reply.outcome
        except BaseException:  # Ctrl-C, perhaps while waking other threads
            if stream.abandon(pending):
                reply.wake_next()
            stream.release_hold(entirely=True)
            raise
        if stream.abandon(pending):
            reply.wake_next()
            return reply.outcome
        stream.record_timeout(remaining or 0.0)
        raise deadline.exceeded_error()
    finally:
        capacity.release(len(message))


def _perform(step: Step) -> Outcome:
    reply = ThreadReply()
    try:
        give_up = step.start(reply)
    except BaseException:  # Ctrl-C
        if isinstance(step, StreamedCall) and step.abandon():
            reply.wake_next()
        raise
    try:
        if reply.wait(step.timeout):
            return reply.outcome
    except BaseException:  # Ctrl-C
        if give_up():
            reply.wake_next()
        raise
    if give_up():
        reply.wake_next()
        return reply.outcome
    return step.timeout_outcome()
