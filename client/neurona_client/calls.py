"""Calls that go alone: a message there, a message or an error back, told from gRPC's own thread.

A call is begun on what `unary_unary` itself is built on, and is one event when it has ended; the
public future takes a lock and a condition several times for each. That is no public API: where it
does not suit, the future does the same.
"""

import logging
import time
from collections.abc import Callable
from typing import Any

import grpc

from neurona_client.errors import NeuronaError, ServerError, UnavailableError, from_trailers

try:
    from grpc._cython import cygrpc  # type: ignore[attr-defined]
except ImportError:  # another implementation of grpcio
    cygrpc = None

log = logging.getLogger(__name__)

Outcome = bytes | NeuronaError
Done = Callable[[Outcome], None]
"""Told how a step ended, once at the most, from any thread."""

Metadata = tuple[tuple[str, str], ...]

_CANCELLED = grpc.StatusCode.CANCELLED.value[0]
_NO_FLAGS = 0


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
