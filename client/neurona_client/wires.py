"""How the bytes of a stream get to the server and back, in two ways with one face.

`QuickWire` works on grpcio's own completion queue, what its public calls are built on: one thread
for a stream, and no waiting for another one between two messages. That is no public API; where
it does not suit, `PublicWire` does the same with `stream_stream`, and more thread switches.
"""

import logging
import queue
import threading
from collections.abc import Callable, Iterator
from typing import Any, Protocol

import grpc

from neurona_client.calls import Metadata, error_of
from neurona_client.errors import NeuronaError, UnavailableError, from_trailers

try:
    from grpc._cython import cygrpc  # type: ignore[attr-defined]
except ImportError:  # another implementation of grpcio
    cygrpc = None

log = logging.getLogger(__name__)

PATH = "/neurona.v1.Prediction/PredictStream"
_NO_FLAGS = 0


class Ends(Protocol):
    """What happens to a wire. From its own thread, one after the other; `ended` is the last."""

    def received(self, message: bytes) -> None: ...

    def written(self) -> None:
        """What was written last is on its way: the next may be written."""

    def ended(self, error: NeuronaError) -> None: ...


class Wire(Protocol):
    def write(self, message: bytes) -> None:
        """When `written` was told of the one before. From any thread."""

    def cancel(self) -> None: ...


def open_wire(channel: grpc.Channel, metadata: Metadata, ends: Ends) -> Wire:
    if cygrpc is not None:
        try:
            return QuickWire(channel, metadata, ends)
        except (AttributeError, TypeError) as error:
            log.warning("this grpcio (%s) is used by its public API: %s", grpc.__version__, error)
    return PublicWire(channel, metadata, ends)


class QuickWire:
    """Raises AttributeError or TypeError where grpcio is not as it was."""

    def __init__(self, channel: grpc.Channel, metadata: Metadata, ends: Ends) -> None:
        self._ends = ends
        self._status = cygrpc.ReceiveStatusOnClientOperation(_NO_FLAGS)
        begin = (cygrpc.SendInitialMetadataOperation(metadata, _NO_FLAGS), self._status)
        operations = (
            (begin, self._ended),
            ((cygrpc.ReceiveInitialMetadataOperation(_NO_FLAGS),), self._begun),
            ((cygrpc.ReceiveMessageOperation(_NO_FLAGS),), self._received),
        )
        raw = channel._channel  # type: ignore[attr-defined]
        self._lock = threading.Lock()
        self._due = len(operations)  # batches of operations under way
        self._over = False
        self._call = raw.segregated_call(
            cygrpc.PropagationConstants.GRPC_PROPAGATE_DEFAULTS,
            PATH.encode(),
            None,
            None,
            metadata,
            None,
            operations,
            None,
        )
        threading.Thread(target=self._run, name="neurona-stream", daemon=True).start()

    def write(self, message: bytes) -> None:
        self._operate(cygrpc.SendMessageOperation(message, _NO_FLAGS), self._written)

    def cancel(self) -> None:
        self._call.cancel(cygrpc.StatusCode.cancelled, "the client is closed")

    def _run(self) -> None:
        next_event = self._call.next_event
        error: NeuronaError = UnavailableError("the stream is given up")
        try:
            while self._due:
                event = next_event()
                with self._lock:
                    self._due -= 1
                try:
                    event.tag(event)
                except Exception:  # a bug of ours must not leave callers without an answer
                    log.exception("the stream is given up")
                    self._call.cancel(cygrpc.StatusCode.cancelled, "given up")
            error = self._error()
        finally:
            self._ends.ended(error)

    def _begun(self, _: Any) -> None:
        pass

    def _received(self, event: Any) -> None:
        message = event.batch_operations[0].message()
        if message is not None:
            self._operate(cygrpc.ReceiveMessageOperation(_NO_FLAGS), self._received)
            self._ends.received(message)

    def _written(self, event: Any) -> None:
        if event.success and not self._over:
            self._ends.written()

    def _ended(self, _: Any) -> None:
        with self._lock:
            self._over = True

    def _operate(self, operation: Any, tag: Callable[[Any], None]) -> None:
        with self._lock:
            if self._over:  # `_run` ends as soon as nothing is due
                return
            # False once the call has ended, which `_ended` may have yet to hear.
            if self._call.operate((operation,), tag):
                self._due += 1

    def _error(self) -> NeuronaError:
        code, message = self._status.code(), self._status.details() or ""
        if isinstance(message, bytes):
            message = message.decode(errors="replace")
        if code in (cygrpc.StatusCode.ok, cygrpc.StatusCode.cancelled):
            return UnavailableError(f"the server ended the stream: {message}")
        return from_trailers(code, message, self._status.trailing_metadata() or ())


class PublicWire:
    def __init__(self, channel: grpc.Channel, metadata: Metadata, ends: Ends) -> None:
        self._ends = ends
        self._queue: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        method: Any = channel.stream_stream(PATH)
        self._call: Any = method(self._messages(), metadata=metadata)
        threading.Thread(target=self._run, name="neurona-stream", daemon=True).start()

    def write(self, message: bytes) -> None:
        self._queue.put(message)

    def cancel(self) -> None:
        self._call.cancel()

    def _messages(self) -> Iterator[bytes]:
        while (message := self._queue.get()) is not None:
            yield message
            self._ends.written()  # gRPC asks for the next one when it has sent this

    def _run(self) -> None:
        error: NeuronaError = UnavailableError("the server ended the stream")
        try:
            for message in self._call:
                self._ends.received(message)
        except grpc.RpcError:
            error = error_of(self._call)
        except Exception:  # a bug of ours must not leave callers without an answer
            log.exception("the stream is given up")
            self._call.cancel()
        finally:
            self._queue.put(None)
            self._ends.ended(error)
