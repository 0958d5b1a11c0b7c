"""PredictStream: many requests in a message, answers as they are ready."""

from collections import deque
from collections.abc import Callable, Sequence
from typing import Protocol

from google.protobuf.message import DecodeError
from prometheus_client import Gauge

from neurona_protos.frames_pb2 import PredictStreamRequest as Frames
from neurona_protos.prediction_pb2 import Error, PredictStreamResponse, StreamedResponse
from neurona_protos.wire_format import header, length_delimited, varint
from neurona_server.errors import InvalidArgumentError, NeuronaError, response_too_large
from neurona_server.rpc.call import RequestIdentity, StreamCall
from neurona_server.rpc.flow_control import StreamWindow
from neurona_server.rpc.limits import Limits
from neurona_server.rpc.status import status_of

_RESPONSES = PredictStreamResponse.RESPONSES_FIELD_NUMBER
_RESPONSE = StreamedResponse.RESPONSE_FIELD_NUMBER
_ID = varint(StreamedResponse.ID_FIELD_NUMBER << 3)


class ResponseFraming:
    """Answers with the caller's numbers, as fields of a PredictStreamResponse; one that is larger
    than `most` bytes by itself becomes an error."""

    def __init__(self, most: int) -> None:
        self._most = most

    def answers(
        self, numbers: Sequence[int], answers: Sequence[bytes | NeuronaError]
    ) -> list[bytes]:
        framed = []
        for number, answer in zip(numbers, answers, strict=True):
            if isinstance(answer, bytes):
                size = len(answer)
                head = header(_RESPONSE, size)
                if number:
                    head = _ID + varint(number) + head
                whole = header(_RESPONSES, len(head) + size) + head + answer
                if len(whole) > self._most:
                    whole = self.error(number, response_too_large(len(whole), self._most))
            else:
                whole = self.error(number, answer)
            framed.append(whole)
        return framed

    def error(self, number: int, error: Exception, known: RequestIdentity | None = None) -> bytes:
        """`known` is the request that failed, for the log."""
        status = status_of(error, known)
        failed = StreamedResponse(
            id=number,
            error=Error(
                code=status.number,
                message=status.message,
                retry_after_ms=status.retry_after_ms,
            ),
        )
        return length_delimited(_RESPONSES, failed.SerializeToString())


class Host(Protocol):
    """The stream."""

    call: StreamCall
    framing: ResponseFraming

    def reserve(self, expected: int) -> None: ...
    def under_way(self, places: "StreamResponder | Places", cancel: Callable[[], None]) -> None: ...
    def over(self, places: "StreamResponder | Places") -> None: ...
    def answered(self, places: "StreamResponder | Places", framed: Sequence[bytes]) -> None: ...


class _Asked:
    __slots__ = ("_host", "deadline", "defer", "expected_bytes")

    def __init__(self, host: Host, expected: int) -> None:
        self.deadline = host.call.deadline
        self.defer = host.call.defer
        self.expected_bytes = expected
        """Bytes of each answer. Once they are begun, the transport's thread alone reads it."""

        self._host = host

    @property
    def trace_id(self) -> str:
        return self._host.call.trace_id


class StreamResponder(_Asked):
    """The `Responder` of one request."""

    __slots__ = ("_number", "trace")

    def __init__(self, host: Host, number: int) -> None:
        super().__init__(host, 0)
        self._number = number
        trace = host.call.trace
        self.trace = None if trace is None else trace.start_request(number)

    @property
    def request_id(self) -> str:
        """The stream's, and behind it what the caller calls the request."""
        return f"{self._host.call.request_id}#{self._number}"

    def reply(self, response: bytes) -> None:
        self._host.answered(self, self._host.framing.answers([self._number], [response]))
        if self.trace is not None:
            self.trace.end()

    def fail(self, error: Exception) -> None:
        self._host.answered(self, [self._host.framing.error(self._number, error, self)])
        if self.trace is not None:
            self.trace.end(error)

    def on_cancel(self, callback: Callable[[], None]) -> None:
        self._host.under_way(self, callback)

    def expect(self, size: int) -> None:
        """In the transport's thread: its answer will have so many bytes."""
        self.expected_bytes = size
        self._host.reserve(size)


class Places(_Asked):
    """The `CoalescedResponder` of a coalesced request, which is not traced; their room is
    reserved."""

    __slots__ = ("_numbers",)

    def __init__(self, host: Host, numbers: Sequence[int], expected: int) -> None:
        super().__init__(host, expected)
        self._numbers = numbers

    def reply(self, answers: Sequence[bytes | NeuronaError]) -> None:
        self._host.answered(self, self._host.framing.answers(self._numbers, answers))

    def fail(self, error: Exception) -> None:
        frame = self._host.framing.error
        self._host.answered(self, [frame(number, error, self) for number in self._numbers])

    def on_cancel(self, callback: Callable[[], None]) -> None:
        self._host.under_way(self, callback)

    @property
    def request_id(self) -> str:
        """The stream's, and behind it what the caller calls the request if it is a single one."""
        number = f"#{self._numbers[0]}" if len(self._numbers) == 1 else ""
        return self._host.call.request_id + number

    def halves(self, middle: int) -> "tuple[Places, Places]":
        self._host.over(self)
        first, second = self._numbers[:middle], self._numbers[middle:]
        return (
            Places(self._host, first, self.expected_bytes),
            Places(self._host, second, self.expected_bytes),
        )

    def single(self) -> list[StreamResponder]:
        """In the transport's thread: one for each, that take its place and expect nothing yet."""
        self._host.over(self)
        self._host.reserve(-self.expected_bytes * len(self._numbers))
        return [StreamResponder(self._host, number) for number in self._numbers]


MAX_OUTSTANDING = 4096
"""Requests of one stream that are unanswered, or whose answers wait for the reader."""

MAX_MESSAGE_BYTES = 1 << 20
"""A message takes no more answers once it has this many bytes."""

_REQUESTS, _REQUEST = 1, 2  # fields of PredictStreamRequest and StreamedRequest


class Coalescer(Protocol):
    """Sends requests on their way; `places` tell it who gets the answers."""

    def add(self, number: int, message: bytes) -> None:
        """One more, that may wait for others until `end`."""

    def end(self) -> None: ...


class PredictionStream:
    """A `Stream`. Answers come from any thread; the rest runs in the transport's.

    What is received is begun only as far as the answers, those that are expected too, are no more
    than may wait for the reader; the rest is begun as he takes some.
    """

    def __init__(
        self,
        gather: Callable[["PredictionStream"], Coalescer],
        call: StreamCall,
        limits: Limits,
        streams: Gauge,
    ) -> None:
        """`streams` counts those that are open; the transport calls `cancel` at each one's end."""
        streams.inc()
        self._streams = streams
        self.call = call
        self.framing = ResponseFraming(limits.max_message_bytes)
        self._limits = limits
        self._gather = gather
        self._waiting = StreamWindow()
        self._received: deque[tuple[int, bytes]] = deque()  # and not begun
        self._outstanding = 0  # begun, and the answer not taken
        self._came: deque[tuple[StreamResponder | Places, Sequence[bytes]]] = deque()
        self._ready: deque[bytes] = deque()
        # What has those cancelled that are under way. Any thread may add and take out.
        self._cancels: dict[StreamResponder | Places, Callable[[], None]] = {}
        self._cancelled = False
        self._half_closed = False

    def receive(self, message: bytes) -> None:
        self._limits.check_wire(message, _REQUESTS, _REQUEST)
        try:
            requests = Frames.FromString(message).requests
        except DecodeError:
            raise InvalidArgumentError(
                "the bytes are not a neurona.v1.PredictStreamRequest"
            ) from None
        if len(requests) > MAX_OUTSTANDING:
            raise InvalidArgumentError(
                f"the message has {len(requests)} requests; expected at most {MAX_OUTSTANDING}"
            )
        self._received.extend([(streamed.id, streamed.request) for streamed in requests])
        self._begin()

    def half_close(self) -> None:
        self._half_closed = True

    def take_message(self) -> bytes | None:
        self._collect()
        pieces: list[bytes] = []
        size, most = 0, self._limits.max_message_bytes
        ready = self._ready
        while ready and size < MAX_MESSAGE_BYTES and size + len(ready[0]) <= most:
            piece = ready.popleft()
            size += len(piece)
            pieces.append(piece)
        self._waiting.release(size)
        self._outstanding -= len(pieces)
        if self._received and self._waiting.low:
            self._begin()
        return b"".join(pieces) if pieces else None

    @property
    def congested(self) -> bool:
        self._collect()
        return bool(self._received) or self._outstanding >= MAX_OUTSTANDING or self._waiting.full

    @property
    def finished(self) -> bool:
        return self._half_closed and not self._received and not self._outstanding

    def drain(self) -> None:
        self._half_closed = True

    def cancel(self) -> None:
        self._streams.dec()
        self._received.clear()
        self._cancelled = True  # before the look, so that what comes after it cancels itself
        for cancel in list(self._cancels.values()):
            cancel()

    def reserve(self, expected: int) -> None:
        self._waiting.reserve(expected)

    def place(self, number: int) -> StreamResponder:
        self._outstanding += 1
        return StreamResponder(self, number)

    def places(self, numbers: Sequence[int], expected: int) -> Places:
        self._outstanding += len(numbers)
        return Places(self, numbers, expected)

    def under_way(self, places: StreamResponder | Places, cancel: Callable[[], None]) -> None:
        """From any thread: they can be cancelled so."""
        self._cancels[places] = cancel
        if self._cancelled:
            cancel()

    def over(self, places: StreamResponder | Places) -> None:
        """From any thread: others take their place."""
        self._cancels.pop(places, None)

    def answered(self, places: StreamResponder | Places, framed: Sequence[bytes]) -> None:
        """From any thread: the answers as fields of a PredictStreamResponse."""
        self._cancels.pop(places, None)
        self._came.append((places, framed))
        self.call.wake()

    def _collect(self) -> None:
        while self._came:
            places, framed = self._came.popleft()
            size = sum([len(piece) for piece in framed])
            self._waiting.settle(places.expected_bytes * len(framed), size)
            self._ready.extend(framed)

    def _begin(self) -> None:
        gathering = self._gather(self)
        received, waiting = self._received, self._waiting
        while received and not waiting.full:
            gathering.add(*received.popleft())
        gathering.end()
