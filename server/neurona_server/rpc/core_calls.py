"""The `Call` of the door on grpcio's completion queue, and what it shares with `core_streams`.

Operations go to gRPC in batches, each with a tag that comes back when the batch is done: a
function to be called with the event. An operation belongs to one batch: used twice, its memory
would be freed twice.
"""

import logging
import math
import time
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from grpc._cython import cygrpc  # type: ignore[attr-defined]

from neurona_server.errors import ExpiredError, InvalidError, TooLargeError, too_large
from neurona_server.models.model import Deferred
from neurona_server.rpc.caller import REQUEST_ID, Caller, CallTrace, gone
from neurona_server.rpc.rights import Grant
from neurona_server.rpc.status import status_of

log = logging.getLogger(__name__)

STOPPING = "the server is stopping; call again"

REFUSED_BY_GRPC = TooLargeError("a message that gRPC has refused")
"""For the metrics alone: the caller has gRPC's own words."""

NO_FLAGS = 0
OK = cygrpc.StatusCode.ok

Event = Any  # of cygrpc, which has no types
RawCall = Any


class Door(Protocol):
    """What calls need of their door."""

    thread: int
    max_message_bytes: int

    def begin(self, call: RawCall, operations: Sequence[Any], tag: Callable[[Event], None]) -> None:
        """Gives operations to gRPC; any thread may. Does nothing once the door is shut."""

    def defer(self, callback: Deferred) -> None:
        """As that of a `Call`."""

    def refused(self, error: Exception) -> None:
        """Has it counted that gRPC or the door has refused a call."""

    def done(self, event: Event) -> None:
        """The tag of a call's last event. In the door's thread."""

    def watch(self, call: "CoreCall") -> None:
        """Has the caller's going noticed, if the call is open when all that is ready is read."""


class CoreCall(Caller):
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
        self,
        door: Door,
        event: Event,
        grant: Grant,
        start: Callable[["CoreCall"], None],
        trace: CallTrace | None = None,
    ) -> None:
        self._metadata = event.invocation_metadata
        self.trace = trace
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
        operations = (cygrpc.ReceiveMessageOperation(NO_FLAGS),)
        door.begin(self._raw, operations, self._received)

    @property
    def deadline(self) -> float:
        return deadline_of(self._deadline)

    def reply(self, response: bytes) -> None:
        if type(response) is not bytes:  # gRPC would refuse it once the call counts as ended
            self.fail(TypeError(f"a service replied with {type(response)}; expected bytes"))
            return
        if len(response) > self._door.max_message_bytes:
            self.fail(too_large(len(response), self._door.max_message_bytes))
            return
        if not self._ends():
            return
        # They hold the request, which holds us: that would wait for the collector of cycles.
        self._on_cancel.clear()
        self._send(
            cygrpc.SendInitialMetadataOperation(None, NO_FLAGS),
            cygrpc.SendMessageOperation(response, NO_FLAGS),
            cygrpc.SendStatusFromServerOperation((), OK, b"", NO_FLAGS),
        )
        if self.trace is not None:
            self.trace.end()

    def fail(self, error: Exception) -> None:
        if self._ends():
            self._on_cancel.clear()
            status = status_operation(error, self)
            self._send(cygrpc.SendInitialMetadataOperation(None, NO_FLAGS), status)
            if self.trace is not None:
                self.trace.end(error)

    def on_cancel(self, callback: Callable[[], None]) -> None:
        self._on_cancel.append(callback)

    def watch(self) -> None:
        """Most calls have ended before there is a need to: then it is part of their last batch."""
        if self._open and self._claims_close():
            operations = (cygrpc.ReceiveCloseOnServerOperation(NO_FLAGS),)
            self._door.begin(self._raw, operations, self._closed)

    def _received(self, event: Event) -> None:
        message = event.batch_operations[0].message()
        if message is None:  # the caller is gone, or it was too late or too large for gRPC
            if not event.success:  # too large, or not to be decompressed: gRPC has said so
                self._door.refused(REFUSED_BY_GRPC)
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
            if self.trace is not None:
                self.trace.end(gone(self.deadline))

    def _send(self, *operations: Any) -> None:
        if self._claims_close():
            operations += (cygrpc.ReceiveCloseOnServerOperation(NO_FLAGS),)
        self._door.begin(self._raw, operations, self._door.done)

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


def refuse(event: Event, error: Exception, trace: CallTrace | None = None) -> None:
    """Ends a call before its request has been read."""
    status = status_operation(error, Caller(event.invocation_metadata, trace))
    event.call.start_server_batch(
        (
            cygrpc.SendInitialMetadataOperation(None, NO_FLAGS),
            status,
            cygrpc.ReceiveCloseOnServerOperation(NO_FLAGS),
        ),
        ignore,
    )
    if trace is not None:
        trace.end(error)


def status_operation(error: Exception, caller: Caller) -> Any:
    status = status_of(error, caller)
    trailers = (*status.trailers, (REQUEST_ID, caller.request_id))
    return cygrpc.SendStatusFromServerOperation(
        trailers, status.number, status.message.encode(), NO_FLAGS
    )


def ignore(_: Event) -> None:
    """The tag of a batch that nobody waits for."""


def deadline_of(wall: float) -> float:
    """gRPC's deadline, by the wall clock, on the monotonic one; inf if the caller set none."""
    remaining = wall - time.time()
    return math.inf if remaining > 1e9 else time.monotonic() + remaining
