"""PredictStream: many requests in a message, answers as they are ready."""

import itertools
from collections import deque
from collections.abc import Callable
from functools import partial

from google.protobuf.message import DecodeError

from neurona_protos.prediction_pb2 import (
    Error,
    PredictRequest,
    PredictResponse,
    PredictStreamRequest,
    PredictStreamResponse,
    StreamedResponse,
)
from neurona_server.batching.request import Request
from neurona_server.errors import (
    CancelledError,
    InvalidError,
    ModelFailedError,
    NeuronaError,
    too_large,
)
from neurona_server.rpc.call import StreamCall
from neurona_server.rpc.limits import Limits
from neurona_server.rpc.status import status_of

MAX_OUTSTANDING = 4096
"""Requests of one stream that are unanswered, or whose answers wait for the reader."""

MAX_MESSAGE_BYTES = 1 << 20
"""A message takes no more answers once it has this many bytes."""

ENVELOPE = 6
"""Bytes at the most that say, in front of an answer in a message, what comes and how long."""

_REQUESTS, _REQUEST = 1, 2  # fields of PredictStreamRequest and StreamedRequest

Deliver = Callable[[PredictResponse | None, NeuronaError | None], None]
Track = Callable[[Request], None]
Defer = Callable[[Callable[[], None]], None]
Begin = Callable[[PredictRequest, float, Deliver, Track, Defer], None]


class PredictionStream:
    """A `Stream`. Answers come from any thread; the rest runs in the door's."""

    def __init__(self, begin: Begin, call: StreamCall, limits: Limits) -> None:
        self._limits = limits
        self._begin = begin
        self._call = call
        self._serials = itertools.count()
        self._unanswered: dict[int, Request | None] = {}
        self._ready: deque[StreamedResponse] = deque()
        self._half_closed = False

    def receive(self, message: bytes) -> None:
        self._limits.check_wire(message, _REQUESTS, _REQUEST)
        try:
            requests = PredictStreamRequest.FromString(message).requests
        except DecodeError:
            raise InvalidError("the bytes are not a neurona.v1.PredictStreamRequest") from None
        if len(requests) > MAX_OUTSTANDING:
            raise InvalidError(
                f"the message has {len(requests)} requests; expected at most {MAX_OUTSTANDING}"
            )
        for streamed in requests:
            serial = next(self._serials)
            self._unanswered[serial] = None
            self._begin(
                streamed.request,
                self._call.deadline,
                partial(self._deliver, serial, streamed.id),
                partial(self._unanswered.__setitem__, serial),
                self._call.defer,
            )

    def half_close(self) -> None:
        self._half_closed = True

    def take(self) -> bytes | None:
        message = PredictStreamResponse()
        size, most = 0, self._limits.max_message_bytes
        while self._ready and size < MAX_MESSAGE_BYTES:
            answered = self._ready.popleft()
            own = answered.ByteSize() + ENVELOPE
            if own > most:
                answered = _failed(answered.id, too_large(own, most))
            elif size + own > most:
                self._ready.appendleft(answered)
                break
            size += own
            message.responses.append(answered)
        return message.SerializeToString() if size else None

    @property
    def congested(self) -> bool:
        return len(self._unanswered) + len(self._ready) >= MAX_OUTSTANDING

    @property
    def finished(self) -> bool:
        return self._half_closed and not self._unanswered and not self._ready

    def drain(self) -> None:
        self._half_closed = True

    def cancel(self) -> None:
        for request in list(self._unanswered.values()):
            if request is not None:
                request.cancel(CancelledError("the caller ended the stream"))

    def _deliver(
        self,
        serial: int,
        request_id: int,
        response: PredictResponse | None,
        error: NeuronaError | None,
    ) -> None:
        if response is not None:
            answered = StreamedResponse(id=request_id, response=response)
        else:
            answered = _failed(request_id, error or ModelFailedError())
        # In this order, so that the stream never looks finished with an answer on its way.
        self._ready.append(answered)
        del self._unanswered[serial]
        self._call.wake()


def _failed(request_id: int, error: NeuronaError) -> StreamedResponse:
    status = status_of(error)
    return StreamedResponse(
        id=request_id,
        error=Error(
            code=status.number,
            message=status.message,
            retry_after_ms=status.retry_after_ms,
        ),
    )
