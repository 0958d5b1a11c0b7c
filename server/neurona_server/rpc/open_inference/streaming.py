"""ModelStreamInfer: an answer for each request, in the order of the requests."""

import itertools
from collections import deque
from collections.abc import Callable

from prometheus_client import Gauge

from neurona_protos.open_inference_pb2 import (
    ModelInferRequest,
    ModelInferResponse,
    ModelStreamInferResponse,
)
from neurona_protos.wire_format import header
from neurona_server.errors import ModelFailedError
from neurona_server.rpc.call import StreamCall
from neurona_server.rpc.flow_control import StreamWindow
from neurona_server.rpc.open_inference.messages import parse
from neurona_server.rpc.open_inference.outputs import FINAL
from neurona_server.rpc.status import status_of

MAX_OUTSTANDING = 4096
"""Requests of one stream that are unanswered, or whose answers wait for the reader."""

REAL_STATUS = "triton_grpc_error"
"""The header with which a caller asks that an error ends the stream with its status."""

RESPONSE = ModelStreamInferResponse.DESCRIPTOR.fields_by_name["infer_response"].number


class PendingResponse:
    """One request's place in the order of answers: the `Responder` of its answer."""

    __slots__ = (
        "_answered",
        "_call",
        "_cancel",
        "_number",
        "deadline",
        "defer",
        "error",
        "expected",
        "message",
        "message_id",
        "response",
        "trace",
    )

    def __init__(
        self,
        call: StreamCall,
        number: int,
        message: bytes,
        answered: "Callable[[PendingResponse], None]",
    ) -> None:
        self.trace = None if call.trace is None else call.trace.start_request(number)
        self._call = call
        self._number = number
        self.deadline = call.deadline
        self.defer = call.defer
        self.message = message
        self.message_id = ""
        """Unless it stands in `message`, which was not read."""

        self.expected = 0
        self.response: bytes | None = None
        self.error: Exception | None = None
        self._answered = answered
        self._cancel: Callable[[], None] | None = None

    @property
    def request_id(self) -> str:
        """The stream's, and behind it which request of the stream it is, from 1 on."""
        return f"{self._call.request_id}#{self._number}"

    @property
    def trace_id(self) -> str:
        return self._call.trace_id

    @property
    def come(self) -> bool:
        return self.response is not None or self.error is not None

    def read(self, message_id: str) -> None:
        """The message was, and need not be kept."""
        self.message, self.message_id = b"", message_id

    def reply(self, response: bytes) -> None:
        self._cancel = None  # it holds the inputs, and the answer may wait for the reader
        self.message = b""
        self.response = response
        self._answered(self)
        if self.trace is not None:
            self.trace.end()

    def fail(self, error: Exception) -> None:
        self._cancel = None
        if self.message:
            self.read(parse(ModelInferRequest, self.message).id)
        self.error = error
        self._answered(self)
        if self.trace is not None:
            self.trace.end(error)

    def on_cancel(self, callback: Callable[[], None]) -> None:
        if not self.come:
            self._cancel = callback

    def cancel(self) -> None:
        if (cancel := self._cancel) is not None:
            cancel()


Begin = Callable[[PendingResponse], int]
"""Sends a request on its way; how many bytes its answer will have. Raises InvalidArgumentError for
what
is no request."""


class InferStream:
    """A `Stream`. Answers come from any thread; the rest runs in the transport's."""

    def __init__(self, begin: Begin, call: StreamCall, streams: Gauge) -> None:
        """`streams` counts those that are open; the transport calls `cancel` at each one's end."""
        streams.inc()
        self._streams = streams
        self._begin = begin
        self._call = call
        self._turns: deque[PendingResponse] = deque()
        self._came: deque[PendingResponse] = deque()
        self._numbers = itertools.count(1)
        self._waiting = StreamWindow()
        self._half_closed = False
        self._real_status = call.header(REAL_STATUS).lower() in ("true", "1")

    def receive(self, message: bytes) -> None:
        turn = PendingResponse(self._call, next(self._numbers), message, self._answered)
        self._turns.append(turn)
        turn.expected = self._begin(turn)
        self._waiting.begun(turn.expected)

    def half_close(self) -> None:
        self._half_closed = True

    def take_message(self) -> bytes | None:
        if not self._turns or not self._turns[0].come:
            return None
        if (error := self._turns[0].error) is not None and self._real_status:
            self._call.fail(error)  # what is behind it is cancelled as the call ends
            return None
        self._collect()
        turn = self._turns.popleft()
        self._waiting.went(len(turn.response or b""))
        if turn.response is not None:
            return header(RESPONSE, len(turn.response)) + turn.response
        response = ModelInferResponse(id=turn.message_id)
        response.parameters[FINAL].bool_param = True
        failed = ModelStreamInferResponse(
            error_message=status_of(error or ModelFailedError(), turn).message,
            infer_response=response,
        )
        return failed.SerializeToString()

    @property
    def congested(self) -> bool:
        self._collect()
        return len(self._turns) >= MAX_OUTSTANDING or self._waiting.full

    @property
    def finished(self) -> bool:
        return self._half_closed and not self._turns

    def drain(self) -> None:
        self._half_closed = True

    def cancel(self) -> None:
        self._streams.dec()
        for turn in list(self._turns):
            turn.cancel()

    def _answered(self, turn: PendingResponse) -> None:
        self._came.append(turn)
        self._call.wake()

    def _collect(self) -> None:
        while self._came:
            turn = self._came.popleft()
            self._waiting.came(turn.expected, len(turn.response or b""))
