"""Who gets the answers to requests of a stream."""

from collections.abc import Callable, Sequence
from typing import Protocol

from neurona_protos.prediction_pb2 import Error, PredictStreamResponse, StreamedResponse
from neurona_server.errors import NeuronaError, too_large
from neurona_server.rpc.call import StreamCall
from neurona_server.rpc.caller import Known
from neurona_server.rpc.encoding import prefix, varint, within
from neurona_server.rpc.status import status_of

_RESPONSES = PredictStreamResponse.RESPONSES_FIELD_NUMBER
_RESPONSE = StreamedResponse.RESPONSE_FIELD_NUMBER
_ID = varint(StreamedResponse.ID_FIELD_NUMBER << 3)


class Framing:
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
                head = prefix(_RESPONSE, size)
                if number:
                    head = _ID + varint(number) + head
                whole = prefix(_RESPONSES, len(head) + size) + head + answer
                if len(whole) > self._most:
                    whole = self.error(number, too_large(len(whole), self._most))
            else:
                whole = self.error(number, answer)
            framed.append(whole)
        return framed

    def error(self, number: int, error: Exception, known: Known | None = None) -> bytes:
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
        return within(_RESPONSES, failed.SerializeToString())


class Host(Protocol):
    """The stream."""

    call: StreamCall
    framing: Framing

    def reserve(self, expected: int) -> None: ...
    def under_way(self, places: "Place | Places", cancel: Callable[[], None]) -> None: ...
    def over(self, places: "Place | Places") -> None: ...
    def answered(self, places: "Place | Places", framed: Sequence[bytes]) -> None: ...


class _Asked:
    __slots__ = ("_host", "deadline", "defer", "expected")

    def __init__(self, host: Host, expected: int) -> None:
        self.deadline = host.call.deadline
        self.defer = host.call.defer
        self.expected = expected
        """Bytes of each answer. Once they are begun, the door's thread alone reads it."""

        self._host = host

    @property
    def trace_id(self) -> str:
        return self._host.call.trace_id


class Place(_Asked):
    """The `Receiver` of one request."""

    __slots__ = ("_number", "trace")

    def __init__(self, host: Host, number: int) -> None:
        super().__init__(host, 0)
        self._number = number
        trace = host.call.trace
        self.trace = None if trace is None else trace.request(number)

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
        """In the door's thread: its answer will have so many bytes."""
        self.expected = size
        self._host.reserve(size)


class Places(_Asked):
    """The `Receivers` of a bundle, which is not traced. What they expect is reserved already."""

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
            Places(self._host, first, self.expected),
            Places(self._host, second, self.expected),
        )

    def single(self) -> list[Place]:
        """In the door's thread: one for each, that take its place and expect nothing yet."""
        self._host.over(self)
        self._host.reserve(-self.expected * len(self._numbers))
        return [Place(self._host, number) for number in self._numbers]
