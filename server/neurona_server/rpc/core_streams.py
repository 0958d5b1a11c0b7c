"""The `StreamCall` of the door on grpcio's completion queue."""

import logging
import threading
from collections.abc import Callable
from typing import Any, Protocol

from grpc._cython import cygrpc  # type: ignore[attr-defined]

from neurona_server.errors import StoppingError
from neurona_server.rpc.call import Stream, Streaming
from neurona_server.rpc.caller import Caller, CallTrace, fields_of, gone
from neurona_server.rpc.core_calls import (
    NO_FLAGS,
    OK,
    REFUSED_BY_GRPC,
    STOPPING,
    Door,
    Event,
    RawCall,
    deadline_of,
    ignore,
    status_operation,
)
from neurona_server.rpc.rights import Grant

log = logging.getLogger(__name__)

AGED = "the connection is as old as connections get; call again"


class StreamDoor(Door, Protocol):
    def awaken(self, call: "CoreStreamCall") -> None:
        """Has it written what it has, when all that is ready is read. In the door's thread."""

    def forget(self, call: "CoreStreamCall") -> None:
        """It has ended."""


class CoreStreamCall(Caller):
    """All but `wake` is called in the door's thread."""

    def __init__(
        self,
        door: StreamDoor,
        event: Event,
        grant: Grant,
        method: Streaming,
        trace: CallTrace | None = None,
    ) -> None:
        super().__init__(event.invocation_metadata, trace)
        self.grant = grant
        self.defer = door.defer
        self.deadline = deadline_of(event.call_details.deadline)
        self._headers = {k: v for k, v in event.invocation_metadata if isinstance(v, str)}
        self._door = door
        self._raw: RawCall = event.call
        self._ended = self._reading = self._writing = False
        self._half_closed = self._begun = self._woken = False
        self._error: Exception | None = None
        self._reason = AGED
        self.stream: Stream = method.start(self)
        operations = (cygrpc.ReceiveCloseOnServerOperation(NO_FLAGS),)
        door.begin(self._raw, operations, self._closed)
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
            self._door.begin(self._raw, (), self._wake)

    def metadata(self, key: str) -> str:
        return str(self._headers.get(key, ""))

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
        self._door.begin(self._raw, (), lambda _: self.drain(stopping=True))

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
            self._send(cygrpc.SendMessageOperation(message, NO_FLAGS), tag=self._written)
        elif self._error is not None:
            self._fail(self._error)
        elif finished:
            if self._half_closed:
                status = cygrpc.SendStatusFromServerOperation((), OK, b"", NO_FLAGS)
                self._send(status, tag=ignore)
                self._leave(None)
            else:
                self._fail(StoppingError(self._reason))

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
        operations = (cygrpc.ReceiveMessageOperation(NO_FLAGS),)
        self._door.begin(self._raw, operations, self._received)

    def _received(self, event: Event) -> None:
        self._reading = False
        if self._ended:
            return
        message = event.batch_operations[0].message()
        try:
            if message is None:
                if not event.success:
                    self._door.refused(REFUSED_BY_GRPC)
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
            self._leave(gone(self.deadline))

    def _fail(self, error: Exception) -> None:
        self._send(status_operation(error, self), tag=ignore)
        self._leave(error)

    def _leave(self, error: Exception | None) -> None:
        self._ended = True
        self._door.forget(self)
        try:
            self.stream.cancel()
        except Exception:
            log.exception("a stream could not be cancelled", extra=fields_of(self))
        if self.trace is not None:
            self.trace.end(error)

    def _send(self, operation: Any, tag: Callable[[Event], None]) -> None:
        operations: tuple[Any, ...] = (operation,)
        if not self._begun:
            self._begun = True
            operations = (cygrpc.SendInitialMetadataOperation(None, NO_FLAGS), operation)
        self._door.begin(self._raw, operations, tag)
