"""Calls that go alone: a message there, a message or an error back, told from gRPC's own thread.

A call is begun on what `unary_unary` itself is built on, and is one event when it has ended; the
public future takes a lock and a condition several times for each. That is no public API: where it
does not suit, the future does the same.
"""

import logging
import queue
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, Protocol

import grpc

from neurona_client.errors import NeuronaError, ServerError, UnavailableError, from_trailers

log = logging.getLogger(__name__)

try:
    from grpc._cython import cygrpc  # type: ignore[attr-defined]
except ImportError:  # another implementation of grpcio
    cygrpc = None


Outcome = bytes | NeuronaError
Done = Callable[[Outcome], None]
"""Told how a step ended, once at the most, from any thread."""

Metadata = tuple[tuple[str, str], ...]

_CANCELLED = grpc.StatusCode.CANCELLED.value[0]

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


try:
    from grpc._cython import cygrpc  # type: ignore[attr-defined]
except ImportError:  # another implementation of grpcio
    cygrpc = None


class Method:
    """One method of the server at the end of a channel."""

    def __init__(self, channel: grpc.Channel, path: str) -> None:
        self._public: Any = channel.unary_unary(path)
        self._is_quick = cygrpc is not None

    def start(
        self, message: bytes, timeout: float | None, metadata: Metadata, done: Done
    ) -> Callable[[], None]:
        """What is returned cancels the call. Raises ValueError when the channel is closed."""
        if self._is_quick:
            try:
                return self._start(message, timeout, metadata, done)
            except (AttributeError, TypeError) as error:
                self._is_quick = False
                log.warning(
                    "this grpcio (%s) is used by its public API: %s", grpc.__version__, error
                )
        future = self._public.future(message, timeout=timeout, metadata=metadata)
        future.add_done_callback(lambda call: done(_outcome(call)))

        def cancel() -> None:
            future.cancel()

        return cancel

    def _start(
        self, message: bytes, timeout: float | None, metadata: Metadata, done: Done
    ) -> Callable[[], None]:
        answer = cygrpc.ReceiveMessageOperation(_NO_FLAGS)
        status = cygrpc.ReceiveStatusOnClientOperation(_NO_FLAGS)
        operations = (
            cygrpc.SendInitialMetadataOperation(metadata, _NO_FLAGS),
            cygrpc.SendMessageOperation(message, _NO_FLAGS),
            cygrpc.SendCloseFromClientOperation(_NO_FLAGS),
            cygrpc.ReceiveInitialMetadataOperation(_NO_FLAGS),
            answer,
            status,
        )

        def ended(_: Any) -> bool:
            try:
                done(_read(answer, status))
            except Exception:  # gRPC's thread, which all calls of the channel need
                log.exception("an answer is lost")
            return True  # the call needs no more events

        public = self._public
        call = public._managed_call(
            cygrpc.PropagationConstants.GRPC_PROPAGATE_DEFAULTS,
            public._method,
            None,
            None if timeout is None else time.time() + timeout,
            metadata,
            None,
            (operations,),
            ended,
            public._context,
            public._registered_call_handle,
        )

        def cancel() -> None:
            call.cancel(_CANCELLED, "the caller gave it up")

        return cancel


def error_of(call: Any) -> NeuronaError:
    """What a call of the public API ended with."""
    return _error(call.code().value[0], call.details() or "", call.trailing_metadata())


def _outcome(call: Any) -> Outcome:
    if call.code() is grpc.StatusCode.OK:
        answer: bytes = call.result()
        return answer
    return error_of(call)


def _read(answer: Any, status: Any) -> Outcome:
    code: int = status.code()
    if code == 0:
        message: bytes | None = answer.message()
        return ServerError("the answer has no message") if message is None else message
    details = status.details() or ""
    if isinstance(details, bytes):
        details = details.decode(errors="replace")
    return _error(code, details, status.trailing_metadata())


def _error(code: int, message: str, trailers: Any) -> NeuronaError:
    # How a server ends what it has not begun when it stops: another one will do it. A caller's
    # own cancelling is nobody's business any more.
    if code == _CANCELLED or message == "Stream removed":
        return UnavailableError(f"the server ended the call: {message}")
    return from_trailers(code, message, trailers or ())
