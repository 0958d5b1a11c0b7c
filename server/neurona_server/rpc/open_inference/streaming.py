"""The method ModelStreamInfer: a response for each request, in the order of the requests."""

import itertools
from collections import deque
from collections.abc import Callable

from prometheus_client import Gauge

from neurona_protos.open_inference_pb2 import ModelInferResponse, ModelStreamInferResponse
from neurona_server.errors import ModelFailedError
from neurona_server.rpc.call import StreamCall
from neurona_server.rpc.flow_control import StreamWindow
from neurona_server.rpc.limits import Limits
from neurona_server.rpc.open_inference.infer_message import parse_infer_message
from neurona_server.rpc.open_inference.messages import FINAL_RESPONSE
from neurona_server.rpc.status import status_of

MAX_OUTSTANDING = 4096
"""Requests of one stream that have no response yet, or whose response is not sent."""

STATUS_HEADER = "triton_grpc_error"
"""The header with which a caller asks that an error ends the stream with its status."""


class PendingResponse:
    """A request's position in the order of responses: the `Responder` of the request."""

    __slots__ = (
        "_call",
        "_cancel",
        "_number",
        "_on_completed",
        "arrived",
        "deadline",
        "defer",
        "error",
        "expected_bytes",
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
        on_completed: "Callable[[PendingResponse], None]",
    ) -> None:
        self.trace = None if call.trace is None else call.trace.start_request(number)
        self._call = call
        self._number = number
        self.deadline = call.deadline
        self.arrived = call.arrived
        self.defer = call.defer
        self.message = message
        """The serialized request, until it has been parsed or has a response."""

        self.message_id = ""
        """The request's id, once the message is released."""

        self.expected_bytes = 0
        """Expected size of the response."""

        self.response: bytes | None = None
        """The serialized ModelStreamInferResponse."""

        self.error: Exception | None = None
        self._on_completed = on_completed
        self._cancel: Callable[[], None] | None = None

    @property
    def request_id(self) -> str:
        """The stream's id, "#" and the number of the request in the stream, counted from 1."""
        return f"{self._call.request_id}#{self._number}"

    @property
    def trace_id(self) -> str:
        return self._call.trace_id

    @property
    def completed(self) -> bool:
        """Whether the request has its response or its error."""
        return self.response is not None or self.error is not None

    def release_message(self, message_id: str) -> None:
        """Drop the message, which has been parsed, and keep its id."""
        self.message, self.message_id = b"", message_id

    def reply(self, response: bytes) -> None:
        self._cancel = None  # it holds the inputs, and the response may wait for the reader
        self.message = b""
        self.response = response
        self._on_completed(self)
        if self.trace is not None:
            self.trace.end()

    def fail(self, error: Exception) -> None:
        self._cancel = None
        if self.message:
            self.release_message(parse_infer_message(self.message, Limits()).request.id)
        self.error = error
        self._on_completed(self)
        if self.trace is not None:
            self.trace.end(error)

    def on_cancel(self, callback: Callable[[], None]) -> None:
        if not self.completed:
            self._cancel = callback

    def cancel(self) -> None:
        if (cancel := self._cancel) is not None:
            cancel()


SubmitStreamed = Callable[[PendingResponse], int]
"""Submits a request and returns the expected size of its response in bytes. Raises
InvalidArgumentError for a message that is not a request."""


class InferStream:
    """A `Stream`. Any thread may deliver responses; the rest runs in the transport's thread."""

    def __init__(self, submit: SubmitStreamed, call: StreamCall, open_streams: Gauge) -> None:
        """Start the stream, which `open_streams` counts until the transport calls `cancel`."""
        open_streams.inc()
        self._open_streams = open_streams
        self._submit = submit
        self._call = call
        self._pending: deque[PendingResponse] = deque()
        self._completed: deque[PendingResponse] = deque()
        self._numbers = itertools.count(1)
        self._window = StreamWindow()
        self._half_closed = False
        self._errors_end_stream = call.header(STATUS_HEADER).lower() in ("true", "1")

    def receive(self, message: bytes) -> None:
        pending = PendingResponse(self._call, next(self._numbers), message, self._on_completed)
        self._pending.append(pending)
        pending.expected_bytes = self._submit(pending)
        self._window.reserve(pending.expected_bytes)

    def half_close(self) -> None:
        self._half_closed = True

    def take_message(self) -> bytes | None:
        if not self._pending or not self._pending[0].completed:
            return None
        if (error := self._pending[0].error) is not None and self._errors_end_stream:
            self._call.fail(error)  # the requests after it are cancelled as the call ends
            return None
        self._settle_completed()
        pending = self._pending.popleft()
        self._window.release(len(pending.response or b""))
        if pending.response is not None:
            return pending.response
        response = ModelInferResponse(id=pending.message_id)
        response.parameters[FINAL_RESPONSE].bool_param = True
        failed = ModelStreamInferResponse(
            error_message=status_of(error or ModelFailedError(), pending).message,
            infer_response=response,
        )
        return failed.SerializeToString()

    @property
    def congested(self) -> bool:
        self._settle_completed()
        return len(self._pending) >= MAX_OUTSTANDING or self._window.full

    @property
    def buffered_bytes(self) -> int:
        return self._window.bytes

    @property
    def finished(self) -> bool:
        return self._half_closed and not self._pending

    def drain(self) -> None:
        self._half_closed = True

    def cancel(self) -> None:
        self._open_streams.dec()
        for pending in list(self._pending):
            pending.cancel()

    def _on_completed(self, pending: PendingResponse) -> None:
        self._completed.append(pending)
        self._call.wake()

    def _settle_completed(self) -> None:
        """Replace expected sizes by those of the responses that arrived since the last call."""
        while self._completed:
            pending = self._completed.popleft()
            self._window.settle(pending.expected_bytes, len(pending.response or b""))
