"""ModelStreamInfer: an answer for each request, in the order of the requests."""

from collections import deque
from collections.abc import Callable
from functools import partial

from neurona_protos.open_inference_pb2 import (
    ModelInferRequest,
    ModelInferResponse,
    ModelStreamInferResponse,
)
from neurona_server.batching.request import Request
from neurona_server.errors import ModelFailedError, NeuronaError
from neurona_server.rpc.call import StreamCall
from neurona_server.rpc.open_inference.immediate import parse
from neurona_server.rpc.open_inference.outputs import FINAL, prefix
from neurona_server.rpc.status import status_of
from neurona_server.rpc.submission import Defer, Track, cancel

MAX_OUTSTANDING = 4096
"""Requests of one stream that are unanswered, or whose answers wait for the reader."""

REAL_STATUS = "triton_grpc_error"
"""The header with which a caller asks that an error ends the stream with its status."""

RESPONSE = ModelStreamInferResponse.DESCRIPTOR.fields_by_name["infer_response"].number

Deliver = Callable[[bytes | None, NeuronaError | None], None]
Begin = Callable[[ModelInferRequest, float, Deliver, Track, Defer], None]


class _Turn:
    """One request's place in the order of answers."""

    __slots__ = ("error", "message_id", "request", "response")

    def __init__(self, message_id: str) -> None:
        self.message_id = message_id
        self.request: Request | None = None
        self.response: bytes | None = None
        self.error: NeuronaError | None = None

    @property
    def come(self) -> bool:
        return self.response is not None or self.error is not None


class InferStream:
    """A `Stream`. Answers come from any thread; the rest runs in the door's."""

    def __init__(self, begin: Begin, call: StreamCall, check: Callable[[bytes], None]) -> None:
        self._check = check
        self._begin = begin
        self._call = call
        self._turns: deque[_Turn] = deque()
        self._half_closed = False
        self._real_status = call.metadata(REAL_STATUS).lower() in ("true", "1")

    def receive(self, message: bytes) -> None:
        self._check(message)
        request = parse(ModelInferRequest, message)
        turn = _Turn(request.id)
        self._turns.append(turn)
        self._begin(
            request,
            self._call.deadline,
            partial(self._deliver, turn),
            partial(setattr, turn, "request"),
            self._call.defer,
        )

    def half_close(self) -> None:
        self._half_closed = True

    def take(self) -> bytes | None:
        if not self._turns or not self._turns[0].come:
            return None
        if (error := self._turns[0].error) is not None and self._real_status:
            self._call.fail(error)  # what is behind it is cancelled as the call ends
            return None
        turn = self._turns.popleft()
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
        return len(self._turns) >= MAX_OUTSTANDING

    @property
    def finished(self) -> bool:
        return self._half_closed and not self._turns

    def drain(self) -> None:
        self._half_closed = True

    def cancel(self) -> None:
        for turn in list(self._turns):
            if (request := turn.request) is not None:
                cancel(request)

    def _deliver(self, turn: _Turn, response: bytes | None, error: NeuronaError | None) -> None:
        turn.request = None  # it holds its inputs, and its answer may wait for the reader
        turn.response = response
        if response is None:
            turn.error = error or ModelFailedError()
        self._call.wake()
