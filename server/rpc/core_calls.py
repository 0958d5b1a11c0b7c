"""The `Call` and the `StreamCall` of the door on grpcio's completion queue.

Operations go to gRPC in batches, each with a tag that comes back when the batch is done: a
function to be called with the event. An operation belongs to one batch: used twice, its memory
would be freed twice.
"""

import logging
import math
import threading
import time
from collections.abc import Callable
from typing import Any, Protocol

from grpc._cython import cygrpc  # type: ignore[attr-defined]

from neurona_server.errors import ExpiredError, InvalidError, StoppingError, too_large
from neurona_server.rpc.call import Stream, Streaming
from neurona_server.rpc.rights import Grant
from neurona_server.rpc.status import status_of

log = logging.getLogger(__name__)

STOPPING = "the server is stopping; call again"
AGED = "the connection is as old as connections get; call again"

_NO_FLAGS = 0
_OK = cygrpc.StatusCode.ok

Event = Any  # of cygrpc, which has no types
RawCall = Any


class Door(Protocol):
    """What calls need of their door."""

    thread: int
    max_message_bytes: int

    def defer(self, callback: Callable[[], None]) -> None:
        """As that of a `Call`."""

    def done(self, event: Event) -> None:
        """The tag of a call's last event. In the door's thread."""

    def watch(self, call: "CoreCall") -> None:
        """Has the caller's going noticed, if the call is open when all that is ready is read."""

    def awaken(self, call: "CoreStreamCall") -> None:
        """Has it written what it has, when all that is ready is read. In the door's thread."""

    def forget(self, call: "CoreStreamCall") -> None:
        """It has ended."""


class CoreCall:
    __slots__ = (
        "_close",
        "_deadline",
        "_door",
        "_on_cancel",
        "_open",
        "_raw",
        "_start",
        "defer",
        "grant",
        "request",
    )

    def __init__(
        self, door: Door, event: Event, grant: Grant, start: Callable[["CoreCall"], None]
    ) -> None:
        self.request = b""
        self.grant = grant
        self.defer = door.defer
        self._door = door
        self._raw = event.call
        self._deadline = event.call_details.deadline
        self._start = start
        self._on_cancel: list[Callable[[], None]] = []
        # Of several threads, the one that pops an element does what it stands for: it ends the
        # call, it asks gRPC to say when the caller is gone. list.pop is atomic.
        self._open = [True]
        self._close = [True]
        operations = (cygrpc.ReceiveMessageOperation(_NO_FLAGS),)
        self._raw.start_server_batch(operations, self._received)

    @property
    def deadline(self) -> float:
        return deadline_of(self._deadline)

    def reply(self, response: bytes) -> None:
        if len(response) > self._door.max_message_bytes:
            self.fail(too_large(len(response), self._door.max_message_bytes))
            return
        if not self._ends():
            return
        # They hold the request, which holds us: that would wait for the collector of cycles.
        self._on_cancel.clear()
        self._send(
            cygrpc.SendInitialMetadataOperation(None, _NO_FLAGS),
            cygrpc.SendMessageOperation(response, _NO_FLAGS),
            cygrpc.SendStatusFromServerOperation((), _OK, b"", _NO_FLAGS),
        )

    def fail(self, error: Exception) -> None:
        if self._ends():
            self._on_cancel.clear()
            self._send(
                cygrpc.SendInitialMetadataOperation(None, _NO_FLAGS), status_operation(error)
            )

    def on_cancel(self, callback: Callable[[], None]) -> None:
        self._on_cancel.append(callback)

    def watch(self) -> None:
        """Most calls have ended before there is a need to: then it is part of their last batch."""
        if self._open and self._claims_close():
            operations = (cygrpc.ReceiveCloseOnServerOperation(_NO_FLAGS),)
            self._raw.start_server_batch(operations, self._closed)

    def _received(self, event: Event) -> None:
        message = event.batch_operations[0].message()
        if message is None:  # the caller is gone, or it was too late or too large for gRPC
            if self.deadline <= time.monotonic():
                self.fail(ExpiredError("the deadline passed before the request was there"))
            else:
                self.fail(InvalidError("the call has no request"))
            return
        self.request = message
        self._door.watch(self)
        try:
            self._start(self)
        except Exception as error:  # a service's bug must end its call, not the door
            self.fail(error)

    def _closed(self, event: Event) -> None:
        if event.batch_operations[0].cancelled() and self._ends():
            self._door.done(event)
            for callback in self._on_cancel:
                callback()
            self._on_cancel.clear()

    def _send(self, *operations: Any) -> None:
        if self._claims_close():
            operations += (cygrpc.ReceiveCloseOnServerOperation(_NO_FLAGS),)
        self._raw.start_server_batch(operations, self._door.done)

    def _ends(self) -> bool:
        try:
            return self._open.pop()
        except IndexError:
            return False

    def _claims_close(self) -> bool:
        try:
            return self._close.pop()
        except IndexError:
            return False


class CoreStreamCall:
    """All but `wake` is called in the door's thread."""

    def __init__(self, door: Door, event: Event, grant: Grant, method: Streaming) -> None:
        self.grant = grant
        self.defer = door.defer
        self.deadline = deadline_of(event.call_details.deadline)
        self._metadata = {k: v for k, v in event.invocation_metadata if isinstance(v, str)}
        self._door = door
        self._raw: RawCall = event.call
        self._ended = self._reading = self._writing = False
        self._half_closed = self._begun = self._woken = False
        self._error: Exception | None = None
        self._reason = AGED
        self.stream: Stream = method.start(self)
        self._raw.start_server_batch(
            (cygrpc.ReceiveCloseOnServerOperation(_NO_FLAGS),), self._closed
        )
        self._read()
        door.awaken(self)

    @property
    def ended(self) -> bool:
        return self._ended

    def wake(self) -> None:
        if threading.get_ident() == self._door.thread:
            self._door.awaken(self)
        elif not self._woken:
            self._woken = True  # one event is enough, however many answers there are
            self._raw.start_server_batch((), self._wake)

    def metadata(self, key: str) -> str:
        return str(self._metadata.get(key, ""))

    def fail(self, error: Exception) -> None:
        self._error = error
        self._door.awaken(self)

    def drain(self, *, stopping: bool = False) -> None:
        if not self._ended:
            if stopping:
                self._reason = STOPPING
            try:
                self.stream.drain()
            except Exception as error:
                self._error = error
            self._door.awaken(self)

    def drain_for_stop(self) -> None:
        """From any thread."""
        self._raw.start_server_batch((), lambda _: self.drain(stopping=True))

    def write(self) -> None:
        """What it has to write, if nothing is being written."""
        if self._ended or self._writing:
            return
        message, finished = None, False
        try:
            if self._error is None:
                message = self.stream.take()
                finished = message is None and self.stream.finished
        except Exception as error:  # a service's bug must end its call, not the door
            self._error = error
            message = None
        if message is not None:
            self._writing = True
            self._send(cygrpc.SendMessageOperation(message, _NO_FLAGS), tag=self._written)
        elif self._error is not None:
            self._end(status_operation(self._error))
        elif finished:
            if self._half_closed:
                self._end(cygrpc.SendStatusFromServerOperation((), _OK, b"", _NO_FLAGS))
            else:
                self._end(status_operation(StoppingError(self._reason)))

    def _read(self) -> None:
        if self._ended or self._reading or self._half_closed or self._error:
            return
        try:
            if self.stream.congested:  # `_written` reads on
                return
        except Exception as error:
            self._error = error
            return
        self._reading = True
        operations = (cygrpc.ReceiveMessageOperation(_NO_FLAGS),)
        self._raw.start_server_batch(operations, self._received)

    def _received(self, event: Event) -> None:
        self._reading = False
        if self._ended:
            return
        message = event.batch_operations[0].message()
        try:
            if message is None:
                self._half_closed = True
                self.stream.half_close()
            else:
                self.stream.receive(message)
        except Exception as error:  # what a service raises ends its own call only
            self._error = error
        self._read()
        self._door.awaken(self)

    def _written(self, _: Event) -> None:
        self._writing = False
        self._read()
        self._door.awaken(self)

    def _wake(self, _: Event) -> None:
        self._woken = False  # before the last look, so that what comes after it wakes us again
        self._door.awaken(self)

    def _closed(self, event: Event) -> None:
        if not self._ended and event.batch_operations[0].cancelled():
            self._leave()

    def _end(self, status: Any) -> None:
        self._send(status, tag=ignore)
        self._leave()

    def _leave(self) -> None:
        self._ended = True
        self._door.forget(self)
        try:
            self.stream.cancel()
        except Exception:
            log.exception("a stream could not be cancelled")

    def _send(self, operation: Any, tag: Callable[[Event], None]) -> None:
        operations: tuple[Any, ...] = (operation,)
        if not self._begun:
            self._begun = True
            operations = (cygrpc.SendInitialMetadataOperation(None, _NO_FLAGS), operation)
        self._raw.start_server_batch(operations, tag)


def refuse(event: Event, error: Exception) -> None:
    """Ends a call before its request has been read."""
    event.call.start_server_batch(
        (
            cygrpc.SendInitialMetadataOperation(None, _NO_FLAGS),
            status_operation(error),
            cygrpc.ReceiveCloseOnServerOperation(_NO_FLAGS),
        ),
        ignore,
    )


def status_operation(error: Exception) -> Any:
    status = status_of(error)
    return cygrpc.SendStatusFromServerOperation(
        status.trailers, status.number, status.message.encode(), _NO_FLAGS
    )


def ignore(_: Event) -> None:
    """The tag of a batch that nobody waits for."""


def deadline_of(wall: float) -> float:
    """gRPC's deadline, by the wall clock, on the monotonic one; inf if the caller set none."""
    remaining = wall - time.time()
    return math.inf if remaining > 1e9 else time.monotonic() + remaining
