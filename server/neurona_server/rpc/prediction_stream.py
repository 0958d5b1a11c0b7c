"""PredictStream: many requests in a message, answers as they are ready."""

from collections import deque
from collections.abc import Callable, Sequence
from typing import Protocol

from google.protobuf.message import DecodeError
from prometheus_client import Gauge

from neurona_protos.frames_pb2 import PredictStreamRequest as Frames
from neurona_server.errors import InvalidError
from neurona_server.rpc.call import StreamCall
from neurona_server.rpc.limits import Limits
from neurona_server.rpc.places import Framing, Place, Places
from neurona_server.rpc.waiting import Waiting

MAX_OUTSTANDING = 4096
"""Requests of one stream that are unanswered, or whose answers wait for the reader."""

MAX_MESSAGE_BYTES = 1 << 20
"""A message takes no more answers once it has this many bytes."""

_REQUESTS, _REQUEST = 1, 2  # fields of PredictStreamRequest and StreamedRequest


class Gathering(Protocol):
    """Sends requests on their way; `places` tell it who gets the answers."""

    def add(self, number: int, message: bytes) -> None:
        """One more, that may wait for others until `end`."""

    def end(self) -> None: ...


class PredictionStream:
    """A `Stream`. Answers come from any thread; the rest runs in the door's.

    What is received is begun only as far as the answers, those that are expected too, are no more
    than may wait for the reader; the rest is begun as he takes some.
    """

    def __init__(
        self,
        gather: Callable[["PredictionStream"], Gathering],
        call: StreamCall,
        limits: Limits,
        streams: Gauge,
    ) -> None:
        """`streams` counts those that are open; the door calls `cancel` at each one's end."""
        streams.inc()
        self._streams = streams
        self.call = call
        self.framing = Framing(limits.max_message_bytes)
        self._limits = limits
        self._gather = gather
        self._waiting = Waiting()
        self._received: deque[tuple[int, bytes]] = deque()  # and not begun
        self._outstanding = 0  # begun, and the answer not taken
        self._came: deque[tuple[Place | Places, Sequence[bytes]]] = deque()
        self._ready: deque[bytes] = deque()
        # What has those cancelled that are under way. Any thread may add and take out.
        self._cancels: dict[Place | Places, Callable[[], None]] = {}
        self._cancelled = False
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
        self._received.extend([(streamed.id, streamed.request) for streamed in requests])
        self._begin()

    def half_close(self) -> None:
        self._half_closed = True

    def take(self) -> bytes | None:
        self._collect()
        pieces: list[bytes] = []
        size, most = 0, self._limits.max_message_bytes
        ready = self._ready
        while ready and size < MAX_MESSAGE_BYTES and size + len(ready[0]) <= most:
            piece = ready.popleft()
            size += len(piece)
            pieces.append(piece)
        self._waiting.went(size)
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
        self._waiting.begun(expected)

    def place(self, number: int) -> Place:
        self._outstanding += 1
        return Place(self, number)

    def places(self, numbers: Sequence[int], expected: int) -> Places:
        self._outstanding += len(numbers)
        return Places(self, numbers, expected)

    def under_way(self, places: Place | Places, cancel: Callable[[], None]) -> None:
        """From any thread: they can be cancelled so."""
        self._cancels[places] = cancel
        if self._cancelled:
            cancel()

    def over(self, places: Place | Places) -> None:
        """From any thread: others take their place."""
        self._cancels.pop(places, None)

    def answered(self, places: Place | Places, framed: Sequence[bytes]) -> None:
        """From any thread: the answers as fields of a PredictStreamResponse."""
        self._cancels.pop(places, None)
        self._came.append((places, framed))
        self.call.wake()

    def _collect(self) -> None:
        while self._came:
            places, framed = self._came.popleft()
            size = sum([len(piece) for piece in framed])
            self._waiting.came(places.expected * len(framed), size)
            self._ready.extend(framed)

    def _begin(self) -> None:
        gathering = self._gather(self)
        received, waiting = self._received, self._waiting
        while received and not waiting.full:
            gathering.add(*received.popleft())
        gathering.end()
