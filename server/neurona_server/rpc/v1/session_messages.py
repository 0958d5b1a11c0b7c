"""The messages of a session: read from bytes, and written as bytes."""

from collections.abc import Sequence
from typing import NamedTuple

from google.protobuf.message import DecodeError

from neurona_protos.prediction_pb2 import (
    Error,
    SessionRequest,
    SessionResponse,
    SessionStart,
    Tensor,
)
from neurona_protos.wire_format import header, varint
from neurona_server.batching.request import Outputs
from neurona_server.errors import InvalidArgumentError, response_too_large
from neurona_server.rpc.call import RequestIdentity
from neurona_server.rpc.detached_data import bytes_index, read_bytes_index
from neurona_server.rpc.fast_path import DataFields
from neurona_server.rpc.limits import LARGE_MESSAGE, Limits
from neurona_server.rpc.status import status_of
from neurona_server.rpc.v1.responses import PredictResponseWriter
from neurona_server.sequences.state_bytes import StateCodec

FRAME_BYTES = 64
"""Bytes of a response besides the answer and the state, at most."""

_RESPONSE = SessionResponse.RESPONSE_FIELD_NUMBER
_STATE = SessionResponse.STATE_FIELD_NUMBER
_ID = varint(SessionResponse.ID_FIELD_NUMBER << 3)
_STEPS = varint(SessionResponse.STEPS_FIELD_NUMBER << 3)


def _data_indices(rest: bytes) -> list[int | None]:
    return [read_bytes_index(tensor.data) for tensor in SessionRequest.FromString(rest).inputs]


_SESSION_DATA = DataFields(
    {
        SessionRequest.START_FIELD_NUMBER: {SessionStart.STATE_FIELD_NUMBER: bytes_index},
        SessionRequest.INPUTS_FIELD_NUMBER: {Tensor.DATA_FIELD_NUMBER: bytes_index},
    },
    _data_indices,
)
"""Where a message has a state and the data of its tensors."""


def parse_session_message(
    message: bytes, limits: Limits
) -> tuple[SessionRequest, Sequence[memoryview]]:
    """Return a message and, unless it has them itself, the data of its tensors.

    Raises:
        InvalidArgumentError: It is no message, or exceeds a limit.
    """
    try:
        if len(message) < LARGE_MESSAGE:
            return SessionRequest.FromString(message), ()
        detached = limits.detach_data(message, _SESSION_DATA.paths)
        view = memoryview(message)
        data = [view[start:stop] for start, stop in detached.spans]
        request = SessionRequest.FromString(detached.rest)
        if (index := read_bytes_index(request.start.state)) is not None:
            request.start.state = bytes(data[index])
        return request, data
    except DecodeError:
        raise InvalidArgumentError("message is not a neurona.v1.SessionRequest") from None


class SessionResponseWriter(NamedTuple):
    """The `ResponseWriter` of a step, whose response must fit into a message with the state."""

    writer: PredictResponseWriter
    max_bytes: int
    codec: StateCodec | None
    """Of the state that the message has, too; None if it has none."""

    def __call__(self, outputs: Outputs) -> bytes:
        response = self.writer(outputs)
        size = len(response)
        if self.codec is not None:
            size += self.codec.count_bytes(len(outputs[0]))
        if size > self.max_bytes:
            raise response_too_large(size, self.max_bytes)
        return response

    def expected_bytes(self, rows: int) -> int:
        return self.writer.expected_bytes(rows)

    def ranked_classes(self, answer: int) -> int:
        return self.writer.ranked_classes(answer)


def frame_response(request_id: int, response: bytes | None, state: bytes, steps: int) -> bytes:
    """Return a SessionResponse; `response` is a serialized PredictResponse, None if there is none.

    It is concatenated by hand, as the responses of streams are.
    """
    pieces = [_ID, varint(request_id)] if request_id else []
    if response is not None:
        pieces += (header(_RESPONSE, len(response)), response)
    if state:
        pieces += (header(_STATE, len(state)), state)
    if steps:
        pieces += (_STEPS, varint(steps))
    return b"".join(pieces)


def frame_error(
    request_id: int, error: Exception, steps: int, identity: RequestIdentity | None = None
) -> bytes:
    """Return a SessionResponse with the error of a message; `identity` is that of its request."""
    status = status_of(error, identity)
    return SessionResponse(
        id=request_id,
        error=Error(
            code=status.number, message=status.message, retry_after_ms=status.retry_after_ms
        ),
        steps=steps,
    ).SerializeToString()
