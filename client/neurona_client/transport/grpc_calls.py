"""Unary calls and byte streams on grpcio: messages as bytes, outcomes delivered by callback.

All exist twice: on cygrpc, the extension module that grpcio's own Python API is built on, and on
the public API. A unary call on cygrpc is one event when it has ended, where the public future takes
a lock and a condition several times; a stream needs no generator and no queue, and a stream of a
session no thread. cygrpc is not a public API: where it is absent or differs, the public API takes
over.
"""

import logging
import math
import queue
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, Protocol

import grpc

from neurona_client.errors import (
    DeadlineExceededError,
    NeuronaError,
    ServerError,
    UnavailableError,
    error_from_trailers,
)

try:
    from grpc._cython import cygrpc  # type: ignore[attr-defined]
except ImportError:  # another implementation of grpcio
    cygrpc = None

log = logging.getLogger(__name__)

_fallback_lock = threading.Lock()

Outcome = bytes | NeuronaError
"""The response of a call, or why there is none."""

OutcomeCallback = Callable[[Outcome], None]
"""Receives the outcome of a step, at most once, from any thread."""

Metadata = tuple[tuple[str, str], ...]

STREAM_PATH = "/neurona.v1.Prediction/PredictStream"
SESSION_PATH = "/neurona.v1.Prediction/Session"
_CANCELLED = grpc.StatusCode.CANCELLED.value[0]
_NO_FLAGS = 0
_CLOCK_TOLERANCE = 0.001
"""Seconds by which a server may notice a deadline earlier."""

GENERIC_DEADLINE_MESSAGES = ("deadline exceeded", "Deadline Exceeded")
"""Messages that do not say how long the timeout was: the client's and gRPC's."""


class StreamListener(Protocol):
    """Receives the events of a stream, one after the other; `on_end` is the last."""

    def on_message(self, message: bytes) -> None:
        """Handle a message of the server."""

    def on_written(self) -> None:
        """Handle that gRPC has sent the last message: the next may be written."""

    def on_end(self, error: NeuronaError) -> None:
        """Handle the end of the stream."""


class ByteStream(Protocol):
    """A call of a streaming method that sends and receives bytes."""

    def write(self, message: bytes) -> None:
        """Send a message, after `on_written` was called for the one before. From any thread."""

    def finish(self) -> None:
        """Send no more messages, after `on_written` was called for the last one."""

    def cancel(self) -> None:
        """End the call."""


def open_stream(channel: grpc.Channel, metadata: Metadata, listener: StreamListener) -> ByteStream:
    """Start a PredictStream call, whose events have a thread of their own, on cygrpc if it works.

    Raises:
        ValueError: the channel is closed.
    """
    if cygrpc is not None:
        try:
            return CygrpcStream(channel, metadata, listener)
        except (AttributeError, TypeError) as error:
            _log_fallback(error)
    return PublicApiStream(channel, STREAM_PATH, metadata, listener)


def open_session_stream(
    channel: grpc.Channel, metadata: Metadata, listener: StreamListener
) -> ByteStream:
    """Start a Session call, whose events come in the channel's thread, on cygrpc if it works.

    Raises:
        ValueError: the channel is closed.
    """
    if cygrpc is not None:
        try:
            return CygrpcSessionStream(channel, metadata, listener)
        except (AttributeError, TypeError) as error:
            _log_fallback(error)
    return PublicApiStream(channel, SESSION_PATH, metadata, listener)


class _CygrpcCall:
    """What the streams on cygrpc have in common: operations in flight, and what their events do.

    A subclass has to create `_call`.
    """

    _call: Any

    def __init__(self, metadata: Metadata, listener: StreamListener) -> None:
        self._listener = listener
        self._status = cygrpc.ReceiveStatusOnClientOperation(_NO_FLAGS)
        self._start_operations = (
            cygrpc.SendInitialMetadataOperation(metadata, _NO_FLAGS),
            self._status,
        )
        self._lock = threading.Lock()
        self._pending_operations = 0
        self._has_ended = False

    def write(self, message: bytes) -> None:
        """See `ByteStream.write`."""
        self._start_operation(cygrpc.SendMessageOperation(message, _NO_FLAGS), self._on_written)

    def finish(self) -> None:
        """See `ByteStream.finish`."""
        self._start_operation(cygrpc.SendCloseFromClientOperation(_NO_FLAGS), self._on_other)

    def cancel(self) -> None:
        """See `ByteStream.cancel`."""
        self._call.cancel(cygrpc.StatusCode.cancelled, "client closed")

    def _handle(self, event: Any, tag: Callable[[Any], None]) -> None:
        with self._lock:
            self._pending_operations -= 1
        try:
            tag(event)
        except Exception:  # a bug here must not leave callers without an outcome
            log.exception("uncaught exception in a stream; aborting the stream")
            self._call.cancel(cygrpc.StatusCode.cancelled, "aborted")

    def _on_other(self, _: Any) -> None:
        pass

    def _on_message(self, event: Any) -> None:
        message = event.batch_operations[0].message()
        if message is not None:
            self._start_operation(cygrpc.ReceiveMessageOperation(_NO_FLAGS), self._on_message)
            self._listener.on_message(message)

    def _on_written(self, event: Any) -> None:
        if event.success and not self._has_ended:
            self._listener.on_written()

    def _on_end(self, _: Any) -> None:
        with self._lock:
            self._has_ended = True

    def _start_operation(self, operation: Any, tag: Callable[[Any], None]) -> None:
        with self._lock:
            if self._has_ended:  # no event comes after that of the last pending operation
                return
            # False once the call has ended, before `_on_end` is called.
            if self._call.operate((operation,), self._tag(tag)):
                self._pending_operations += 1

    def _tag(self, tag: Callable[[Any], None]) -> Callable[[Any], Any]:
        """Return what an operation has as its tag, given what its event is to call."""
        return tag

    def _end_error(self) -> NeuronaError:
        code, message = self._status.code(), self._status.details() or ""
        if isinstance(message, bytes):
            message = message.decode(errors="replace")
        if code in (cygrpc.StatusCode.ok, cygrpc.StatusCode.cancelled):
            return UnavailableError(f"stream ended by the server: {message}")
        return error_from_trailers(code, message, self._status.trailing_metadata() or ())


class CygrpcStream(_CygrpcCall):
    """A PredictStream call on cygrpc, with a thread of its own.

    Raises:
        AttributeError: cygrpc lacks something that is used here.
        TypeError: something of it has other parameters.
    """

    def __init__(self, channel: grpc.Channel, metadata: Metadata, listener: StreamListener) -> None:
        super().__init__(metadata, listener)
        operations = (
            (self._start_operations, self._on_end),
            ((cygrpc.ReceiveInitialMetadataOperation(_NO_FLAGS),), self._on_other),
            ((cygrpc.ReceiveMessageOperation(_NO_FLAGS),), self._on_message),
        )
        cygrpc_channel = channel._channel  # type: ignore[attr-defined]
        self._pending_operations = len(operations)
        self._call = cygrpc_channel.segregated_call(
            cygrpc.PropagationConstants.GRPC_PROPAGATE_DEFAULTS,
            STREAM_PATH.encode(),
            None,
            None,
            metadata,
            None,
            operations,
            None,
        )
        threading.Thread(target=self._run, name="neurona-stream", daemon=True).start()

    def _run(self) -> None:
        next_event = self._call.next_event
        error: NeuronaError = UnavailableError("stream aborted")
        try:
            while self._pending_operations:
                event = next_event()
                self._handle(event, event.tag)
            error = self._end_error()
        finally:
            self._listener.on_end(error)


class CygrpcSessionStream(_CygrpcCall):
    """A Session call on cygrpc: thousands of them share the thread of their channel.

    Raises:
        AttributeError: cygrpc lacks something that is used here.
        TypeError: something of it has other parameters.
    """

    def __init__(self, channel: grpc.Channel, metadata: Metadata, listener: StreamListener) -> None:
        super().__init__(metadata, listener)
        multi_callable: Any = channel.stream_stream(SESSION_PATH)
        operations = (
            self._start_operations,
            (cygrpc.ReceiveInitialMetadataOperation(_NO_FLAGS),),
        )
        self._pending_operations = len(operations)
        self._call = multi_callable._managed_call(
            cygrpc.PropagationConstants.GRPC_PROPAGATE_DEFAULTS,
            multi_callable._method,
            None,
            None,
            metadata,
            None,
            operations,
            self._tag(self._on_start_event),
            multi_callable._context,
            multi_callable._registered_call_handle,
        )
        self._start_operation(cygrpc.ReceiveMessageOperation(_NO_FLAGS), self._on_message)

    def _tag(self, tag: Callable[[Any], None]) -> Callable[[Any], bool]:
        def handle(event: Any) -> bool:
            """Return whether the call needs no more events."""
            self._handle(event, tag)
            if self._pending_operations:
                return False
            try:
                self._listener.on_end(self._end_error())
            except Exception:  # in gRPC's thread, which all calls of the channel need
                log.exception("uncaught exception at the end of a stream")
            return True

        return handle

    def _on_start_event(self, event: Any) -> None:
        if any(operation is self._status for operation in event.batch_operations):
            self._on_end(event)


class PublicApiStream:
    """A stream on grpcio's public API."""

    def __init__(
        self, channel: grpc.Channel, path: str, metadata: Metadata, listener: StreamListener
    ) -> None:
        self._listener = listener
        self._queue: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        method: Any = channel.stream_stream(path)
        self._call: Any = method(self._messages(), metadata=metadata)
        threading.Thread(target=self._run, name="neurona-stream", daemon=True).start()

    def write(self, message: bytes) -> None:
        """See `ByteStream.write`."""
        self._queue.put(message)

    def finish(self) -> None:
        """See `ByteStream.finish`."""
        self._queue.put(None)

    def cancel(self) -> None:
        """See `ByteStream.cancel`."""
        self._call.cancel()

    def _messages(self) -> Iterator[bytes]:
        while (message := self._queue.get()) is not None:
            yield message
            self._listener.on_written()  # gRPC asks for the next message when it has sent this one

    def _run(self) -> None:
        error: NeuronaError = UnavailableError("stream ended by the server")
        try:
            for message in self._call:
                self._listener.on_message(message)
        except grpc.RpcError:
            error = _error_of_call(self._call)
        except Exception:  # a bug here must not leave callers without an outcome
            log.exception("uncaught exception in a stream; aborting the stream")
            self._call.cancel()
        finally:
            self._queue.put(None)
            self._listener.on_end(error)


class UnaryMethod:
    """A unary method of the server at the end of a channel, on cygrpc if it works."""

    def __init__(self, channel: grpc.Channel, path: str) -> None:
        self._callable: Any = channel.unary_unary(path)
        self._uses_cygrpc = cygrpc is not None

    def start(
        self, message: bytes, timeout: float | None, metadata: Metadata, callback: OutcomeCallback
    ) -> Callable[[], None]:
        """Start a call.

        Returns:
            What cancels it.

        Raises:
            ValueError: the channel is closed.
        """
        if self._uses_cygrpc:
            try:
                return self._start_on_cygrpc(message, timeout, metadata, callback)
            except (AttributeError, TypeError) as error:
                with _fallback_lock:  # several threads may make their first call at once
                    is_first, self._uses_cygrpc = self._uses_cygrpc, False
                if is_first:
                    _log_fallback(error)
        end = _end_of(timeout)
        future = self._callable.future(message, timeout=timeout, metadata=metadata)
        future.add_done_callback(lambda call: callback(_outcome_of_call(call, end)))

        def cancel() -> None:
            future.cancel()

        return cancel

    def _start_on_cygrpc(
        self, message: bytes, timeout: float | None, metadata: Metadata, callback: OutcomeCallback
    ) -> Callable[[], None]:
        end = _end_of(timeout)
        response = cygrpc.ReceiveMessageOperation(_NO_FLAGS)
        status = cygrpc.ReceiveStatusOnClientOperation(_NO_FLAGS)
        operations = (
            cygrpc.SendInitialMetadataOperation(metadata, _NO_FLAGS),
            cygrpc.SendMessageOperation(message, _NO_FLAGS),
            cygrpc.SendCloseFromClientOperation(_NO_FLAGS),
            cygrpc.ReceiveInitialMetadataOperation(_NO_FLAGS),
            response,
            status,
        )

        def on_end(_: Any) -> bool:
            try:
                callback(_outcome_of_operations(response, status, end))
            except Exception:  # in gRPC's thread, which all calls of the channel need
                log.exception("uncaught exception in a callback; the outcome of a call is lost")
            return True  # the call needs no more events

        multi_callable = self._callable
        call = multi_callable._managed_call(
            cygrpc.PropagationConstants.GRPC_PROPAGATE_DEFAULTS,
            multi_callable._method,
            None,
            None if timeout is None else time.time() + timeout,
            metadata,
            None,
            (operations,),
            on_end,
            multi_callable._context,
            multi_callable._registered_call_handle,
        )

        def cancel() -> None:
            call.cancel(_CANCELLED, "cancelled by the caller")

        return cancel


def generic_deadline_error() -> NeuronaError:
    """Return the error of a call whose deadline passed, without its timeout in the message."""
    return DeadlineExceededError(GENERIC_DEADLINE_MESSAGES[0])


def _log_fallback(error: Exception) -> None:
    log.warning("falling back to grpcio's public API (grpcio %s): %s", grpc.__version__, error)


def _end_of(timeout: float | None) -> float:
    """Return when a call that starts now has exceeded its deadline, in monotonic time."""
    return math.inf if timeout is None else time.monotonic() + timeout - _CLOCK_TOLERANCE


def _outcome_of_call(call: Any, end: float) -> Outcome:
    """Return the outcome of a call of the public API."""
    if call.code() is grpc.StatusCode.OK:
        response: bytes = call.result()
        return response
    return _error_of_call(call, end)


def _error_of_call(call: Any, end: float = math.inf) -> NeuronaError:
    """Return the error of a call of the public API."""
    return _error(call.code().value[0], call.details() or "", call.trailing_metadata(), end)


def _outcome_of_operations(response: Any, status: Any, end: float) -> Outcome:
    """Return the outcome of a call on cygrpc."""
    code: int = status.code()
    if code == 0:
        message: bytes | None = response.message()
        return ServerError("response has no message") if message is None else message
    details = status.details() or ""
    if isinstance(details, bytes):
        details = details.decode(errors="replace")
    return _error(code, details, status.trailing_metadata(), end)


def _error(code: int, message: str, trailers: Any, end: float) -> NeuronaError:
    # When a deadline passes, the server may cancel the call before gRPC has ended it here.
    if code == _CANCELLED and time.monotonic() >= end:
        return generic_deadline_error()
    # A server that shuts down ends calls that it has not started like this: another server will
    # answer. The outcome of a call that the caller cancels is not read.
    if code == _CANCELLED or message == "Stream removed":
        return UnavailableError(f"call ended by the server: {message}")
    return error_from_trailers(code, message, trailers or ())
