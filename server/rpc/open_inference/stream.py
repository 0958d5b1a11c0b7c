"""ModelStreamInfer: an answer for each request, in the order of the requests."""

from collections import deque
from collections.abc import Callable

from prometheus_client import Gauge

from neurona_protos.open_inference_pb2 import (
    ModelInferRequest,
    ModelInferResponse,
    ModelStreamInferResponse,
)
from neurona_server.errors import ModelFailedError
from neurona_server.rpc.call import StreamCall
from neurona_server.rpc.encoding import prefix
from neurona_server.rpc.open_inference.immediate import parse
from neurona_server.rpc.open_inference.outputs import FINAL
from neurona_server.rpc.status import status_of
from neurona_server.rpc.submission import Receiver
from neurona_server.rpc.waiting import Waiting

MAX_OUTSTANDING = 4096
"""Requests of one stream that are unanswered, or whose answers wait for the reader."""

REAL_STATUS = "triton_grpc_error"
"""The header with which a caller asks that an error ends the stream with its status."""

RESPONSE = ModelStreamInferResponse.DESCRIPTOR.fields_by_name["infer_response"].number

Begin = Callable[[ModelInferRequest, Receiver], object]


class _Turn:
    """One request's place in the order of answers: who gets its answer."""

    __slots__ = (
        "_cancel",
        "_wake",
        "deadline",
        "defer",
        "error",
        "message_id",
        "response",
        "waiting",
    )

    def __init__(self, call: StreamCall, message_id: str, waiting: Waiting) -> None:
        self.deadline = call.deadline
        self.defer = call.defer
        self.message_id = message_id
        self.waiting = waiting
        self.response: bytes | None = None
        self.error: Exception | None = None
        self._wake = call.wake
        self._cancel: Callable[[], None] | None = None

    @property
    def come(self) -> bool:
        return self.response is not None or self.error is not None

    def reply(self, response: bytes) -> None:
        self._cancel = None  # it holds the inputs, and the answer may wait for the reader
        self.waiting.came(len(response))
        self.response = response
        self._wake()

    def fail(self, error: Exception) -> None:
        self._cancel = None
        self.waiting.came(0)
        self.error = error
        self._wake()

    def on_cancel(self, callback: Callable[[], None]) -> None:
        if not self.come:
            self._cancel = callback

    def cancel(self) -> None:
        if (cancel := self._cancel) is not None:
            cancel()


class InferStream:
    """A `Stream`. Answers come from any thread; the rest runs in the door's."""

    def __init__(
        self, begin: Begin, call: StreamCall, check: Callable[[bytes], None], streams: Gauge
    ) -> None:
        """`streams` counts those that are open; the door calls `cancel` at each one's end."""
        streams.inc()
        self._streams = streams
        self._check = check
        self._begin = begin
        self._call = call
        self._turns: deque[_Turn] = deque()
        self._waiting = Waiting()
        self._half_closed = False
        self._real_status = call.metadata(REAL_STATUS).lower() in ("true", "1")

    def receive(self, message: bytes) -> None:
        self._check(message)
        request = parse(ModelInferRequest, message)
        turn = _Turn(self._call, request.id, self._waiting)
        self._turns.append(turn)
        self._begin(request, turn)

    def half_close(self) -> None:
        self._half_closed = True

    def take(self) -> bytes | None:
        if not self._turns or not self._turns[0].come:
            return None
        if (error := self._turns[0].error) is not None and self._real_status:
            self._call.fail(error)  # what is behind it is cancelled as the call ends
            return None
        turn = self._turns.popleft()
        self._waiting.went(len(turn.response or b""))
        if turn.response is not None:
            return prefix(RESPONSE, len(turn.response)) + turn.response
        response = ModelInferResponse(id=turn.message_id)
        response.parameters[FINAL].bool_param = True
        failed = ModelStreamInferResponse(
            error_message=status_of(error or ModelFailedError()).message, infer_response=response
        )
        return failed.SerializeToString()

    @property
    def congested(self) -> bool:
        outstanding = len(self._turns)
        return outstanding >= MAX_OUTSTANDING or self._waiting.full(outstanding)

    @property
    def finished(self) -> bool:
        return self._half_closed and not self._turns

    def drain(self) -> None:
        self._half_closed = True

    def cancel(self) -> None:
        self._streams.dec()
        for turn in list(self._turns):
            turn.cancel()
