"""PredictStream: many requests in a message, answers as they are ready."""

import itertools
from collections import deque
from collections.abc import Callable

from google.protobuf.message import DecodeError
from prometheus_client import Gauge

from neurona_protos.frames_pb2 import PredictStreamRequest as Frames
from neurona_protos.prediction_pb2 import (
    Error,
    PredictStreamResponse,
    StreamedResponse,
)
from neurona_server.errors import (
    InvalidError,
    too_large,
)
from neurona_server.rpc.call import StreamCall
from neurona_server.rpc.encoding import prefix, varint
from neurona_server.rpc.limits import Limits
from neurona_server.rpc.status import status_of
from neurona_server.rpc.submission import Receiver
from neurona_server.rpc.waiting import Waiting

MAX_OUTSTANDING = 4096
"""Requests of one stream that are unanswered, or whose answers wait for the reader."""

MAX_MESSAGE_BYTES = 1 << 20
"""A message takes no more answers once it has this many bytes."""

ENVELOPE = 6
"""Bytes at the most that say, in front of an answer in a message, what comes and how long."""

_RESPONSES = PredictStreamResponse.RESPONSES_FIELD_NUMBER
_RESPONSE = StreamedResponse.RESPONSE_FIELD_NUMBER
_ID = varint(StreamedResponse.ID_FIELD_NUMBER << 3)
_REQUESTS, _REQUEST = 1, 2  # fields of PredictStreamRequest and StreamedRequest

Begin = Callable[[bytes, Receiver], None]


class _Place:
    """Of one request in the stream: who gets its answer."""

    __slots__ = ("_cancel", "_id", "_serial", "_stream", "deadline", "defer")

    def __init__(self, stream: "PredictionStream", serial: int, request_id: int) -> None:
        self.deadline = stream.call.deadline
        self.defer = stream.call.defer
        self._stream = stream
        self._serial = serial
        self._id = request_id
        self._cancel: Callable[[], None] | None = None

    def reply(self, response: bytes) -> None:
        self._cancel = None  # it holds the request, which holds us
        head = (_ID + varint(self._id)) if self._id else b""
        answered = head + prefix(_RESPONSE, len(response)) + response
        self._stream.answered(self._serial, self._id, answered)

    def fail(self, error: Exception) -> None:
        self._cancel = None
        self._stream.answered(self._serial, self._id, _failed(self._id, error))

    def on_cancel(self, callback: Callable[[], None]) -> None:
        self._cancel = callback

    def cancel(self) -> None:
        if (cancel := self._cancel) is not None:
            cancel()


class PredictionStream:
    """A `Stream`. Answers come from any thread; the rest runs in the door's."""

    def __init__(self, begin: Begin, call: StreamCall, limits: Limits, streams: Gauge) -> None:
        """`streams` counts those that are open; the door calls `cancel` at each one's end."""
        streams.inc()
        self._streams = streams
        self._limits = limits
        self._begin = begin
        self.call = call
        self._serials = itertools.count()
        self._unanswered: dict[int, _Place] = {}
        self._ready: deque[tuple[int, bytes]] = deque()  # ids, and what they are answered with
        self._waiting = Waiting()
        self._half_closed = False

    def receive(self, message: bytes) -> None:
        self._limits.check_wire(message, _REQUESTS, _REQUEST)
        try:
            requests = Frames.FromString(message).requests
        except DecodeError:
            raise InvalidError("the bytes are not a neurona.v1.PredictStreamRequest") from None
        if len(requests) > MAX_OUTSTANDING:
            raise InvalidError(
                f"the message has {len(requests)} requests; expected at most {MAX_OUTSTANDING}"
            )
        for streamed in requests:
            serial = next(self._serials)
            place = self._unanswered[serial] = _Place(self, serial, streamed.id)
            self._begin(streamed.request, place)

    def half_close(self) -> None:
        self._half_closed = True

    def take(self) -> bytes | None:
        pieces: list[bytes] = []
        size, most = 0, self._limits.max_message_bytes
        while self._ready and size < MAX_MESSAGE_BYTES:
            request_id, answered = self._ready.popleft()
            waited = len(answered)
            own = waited + ENVELOPE
            if own > most:
                answered = _failed(request_id, too_large(own, most))
            elif size + own > most:
                self._ready.appendleft((request_id, answered))
                break
            self._waiting.went(waited)
            size += own
            pieces += (prefix(_RESPONSES, len(answered)), answered)
        return b"".join(pieces) if pieces else None

    @property
    def congested(self) -> bool:
        outstanding = len(self._unanswered) + len(self._ready)
        return outstanding >= MAX_OUTSTANDING or self._waiting.full(outstanding)

    @property
    def finished(self) -> bool:
        return self._half_closed and not self._unanswered and not self._ready

    def drain(self) -> None:
        self._half_closed = True

    def cancel(self) -> None:
        self._streams.dec()
        for place in list(self._unanswered.values()):
            place.cancel()

    def answered(self, serial: int, request_id: int, answer: bytes) -> None:
        # In this order, so that the stream never looks finished with an answer on its way.
        self._waiting.came(len(answer))
        self._ready.append((request_id, answer))
        del self._unanswered[serial]
        self.call.wake()


def _failed(request_id: int, error: Exception) -> bytes:
    status = status_of(error)
    failed = StreamedResponse(
        id=request_id,
        error=Error(
            code=status.number,
            message=status.message,
            retry_after_ms=status.retry_after_ms,
        ),
    )
    return failed.SerializeToString()
