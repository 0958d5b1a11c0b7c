"""Messages of PredictStream: many requests in one message, many responses in one.

Ids are from 128 to 16383, so that each takes two bytes: the length of a request in the message
does not depend on its id, and the bytes around the id can be encoded beforehand.
"""

from collections.abc import Iterator

from google.protobuf.message import DecodeError

from neurona_client.errors import NeuronaError, ServerError, error_from_status
from neurona_protos.prediction_pb2 import (
    Error,
    PredictStreamRequest,
    PredictStreamResponse,
    StreamedRequest,
    StreamedResponse,
)
from neurona_protos.wire_format import fields, header, read_varint, varint

FIRST_ID, END_OF_IDS = 1 << 7, 1 << 14
IDS = [varint(number) for number in range(END_OF_IDS)]
"""Each id as a varint."""

_ID_TAG = varint(StreamedRequest.ID_FIELD_NUMBER << 3)
_REQUESTS = PredictStreamRequest.REQUESTS_FIELD_NUMBER
_REQUEST = StreamedRequest.REQUEST_FIELD_NUMBER
_RESPONSES_TAG = PredictStreamResponse.RESPONSES_FIELD_NUMBER << 3 | 2
_RESPONSE_ID_TAG = StreamedResponse.ID_FIELD_NUMBER << 3
_RESPONSE_TAG = StreamedResponse.RESPONSE_FIELD_NUMBER << 3 | 2
_MAX_CACHED_FRAMES = 4096

StreamedOutcomes = list[tuple[int, bytes | NeuronaError]]
"""Id of each request, and its PredictResponse or error."""


class RequestFrame:
    """The bytes before and after the id of a request of one length."""

    __slots__ = ("after_id", "before_id")

    def __init__(self, length: int) -> None:
        self.after_id = header(_REQUEST, length)
        content_length = len(_ID_TAG) + 2 + len(self.after_id) + length
        self.before_id = header(_REQUESTS, content_length) + _ID_TAG


_frames: dict[int, RequestFrame] = {}


def frame_for(length: int) -> RequestFrame:
    """Return the frame of a request of a length in bytes."""
    frame = _frames.get(length)
    if frame is None:
        if len(_frames) >= _MAX_CACHED_FRAMES:
            _frames.clear()
        frame = _frames[length] = RequestFrame(length)
    return frame


def request_ids() -> Iterator[int]:
    """Iterate over all ids that a stream may use."""
    return iter(range(FIRST_ID, END_OF_IDS))


def parse_responses(message: bytes) -> StreamedOutcomes:
    """Split a PredictStreamResponse.

    Raises:
        ServerError: the bytes are not a PredictStreamResponse.
    """
    outcomes: StreamedOutcomes = []
    position, end = 0, len(message)
    try:
        while position < end:
            # The form of nearly all responses of the server: a short one with an id of two bytes.
            size = message[position + 1]
            stop = position + 2 + size
            length = message[position + 6]
            if (
                size < 128
                and stop <= end
                and length == size - 5
                and message[position] == _RESPONSES_TAG
                and message[position + 2] == _RESPONSE_ID_TAG
                and message[position + 3] > 127 > message[position + 4]
                and message[position + 5] == _RESPONSE_TAG
            ):
                request_id = message[position + 3] & 127 | message[position + 4] << 7
                outcomes.append((request_id, message[position + 7 : stop]))
                position = stop
                continue
            tag, position = read_varint(message, position)
            size, position = read_varint(message, position)
            if tag != _RESPONSES_TAG or position + size > end:
                return _parse_any_fields(message)
            outcomes.append(_parse_response(message, position, position + size))
            position += size
    except IndexError:
        return _parse_any_fields(message)
    except ValueError as error:
        raise ServerError(f"response is not a PredictStreamResponse: {error}") from error
    return outcomes


def _parse_any_fields(message: bytes) -> StreamedOutcomes:
    """Split a message that may have other fields as well."""
    try:
        return [
            _parse_response(message, start, stop)
            for field, start, stop in fields(message, 0, len(message))
            if field == PredictStreamResponse.RESPONSES_FIELD_NUMBER
        ]
    except ValueError as error:
        raise ServerError(f"response is not a PredictStreamResponse: {error}") from error


def _parse_response(message: bytes, start: int, stop: int) -> tuple[int, bytes | NeuronaError]:
    request_id, outcome = 0, None
    for field, content_start, content_end in fields(message, start, stop):
        if field == StreamedResponse.ID_FIELD_NUMBER:
            request_id = read_varint(message, content_start)[0]
        elif field == StreamedResponse.RESPONSE_FIELD_NUMBER:
            outcome = message[content_start:content_end]
        elif field == StreamedResponse.ERROR_FIELD_NUMBER:
            try:
                error = Error.FromString(message[content_start:content_end])
            except DecodeError as cause:
                raise ValueError(str(cause)) from cause
            retry_after = error.retry_after_ms / 1000 if error.retry_after_ms else None
            return request_id, error_from_status(error.code, error.message, retry_after)
    if outcome is None:
        return request_id, ServerError("response has neither a result nor an error")
    return request_id, outcome
