"""Messages of PredictStream: many requests in one, and the answers in one.

Ids are from 128 to 16383, so that each takes two bytes: a request's length in the message does
not depend on its id, and what stands around it can be written beforehand.
"""

from collections.abc import Iterator

from google.protobuf.message import DecodeError

from neurona_client.errors import NeuronaError, ServerError, from_status
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
_ID = varint(StreamedRequest.ID_FIELD_NUMBER << 3)
_REQUESTS = PredictStreamRequest.REQUESTS_FIELD_NUMBER
_REQUEST = StreamedRequest.REQUEST_FIELD_NUMBER
_RESPONSES_TAG = PredictStreamResponse.RESPONSES_FIELD_NUMBER << 3 | 2
_ID_TAG = StreamedResponse.ID_FIELD_NUMBER << 3
_RESPONSE_TAG = StreamedResponse.RESPONSE_FIELD_NUMBER << 3 | 2
_MOST_FRAMES = 4096


class Frame:
    """What stands before and behind the id of a request of so many bytes."""

    __slots__ = ("after", "before")

    def __init__(self, length: int) -> None:
        self.after = header(_REQUEST, length)
        inside = len(_ID) + 2 + len(self.after) + length
        self.before = header(_REQUESTS, inside) + _ID


_FRAMES: dict[int, Frame] = {}


def frame_for(length: int) -> Frame:
    frame = _FRAMES.get(length)
    if frame is None:
        if len(_FRAMES) >= _MOST_FRAMES:
            _FRAMES.clear()
        frame = _FRAMES[length] = Frame(length)
    return frame


Answered = list[tuple[int, bytes | NeuronaError]]


def answers(message: bytes) -> Answered:
    """Of a PredictStreamResponse: each answer's id, and the PredictResponse or the error.

    Raises ServerError if it is none.
    """
    found: Answered = []
    at, end = 0, len(message)
    try:
        while at < end:
            # As our server writes nearly all of them: a short answer with an id of two bytes.
            size = message[at + 1]
            stop = at + 2 + size
            length = message[at + 6]
            if (
                size < 128
                and stop <= end
                and length == size - 5
                and message[at] == _RESPONSES_TAG
                and message[at + 2] == _ID_TAG
                and message[at + 3] > 127 > message[at + 4]
                and message[at + 5] == _RESPONSE_TAG
            ):
                number = message[at + 3] & 127 | message[at + 4] << 7
                found.append((number, message[at + 7 : stop]))
                at = stop
                continue
            tag, at = read_varint(message, at)
            size, at = read_varint(message, at)
            if tag != _RESPONSES_TAG or at + size > end:
                return _by_fields(message)
            found.append(_answer(message, at, at + size))
            at += size
    except IndexError:
        return _by_fields(message)
    except ValueError as error:
        raise ServerError(f"the answer is no PredictStreamResponse: {error}") from error
    return found


def _by_fields(message: bytes) -> Answered:
    try:
        return [
            _answer(message, start, stop)
            for field, start, stop in fields(message, 0, len(message))
            if field == PredictStreamResponse.RESPONSES_FIELD_NUMBER
        ]
    except ValueError as error:
        raise ServerError(f"the answer is no PredictStreamResponse: {error}") from error


def _answer(message: bytes, start: int, stop: int) -> tuple[int, bytes | NeuronaError]:
    number, outcome = 0, None
    for field, at, end in fields(message, start, stop):
        if field == StreamedResponse.ID_FIELD_NUMBER:
            number = read_varint(message, at)[0]
        elif field == StreamedResponse.RESPONSE_FIELD_NUMBER:
            outcome = message[at:end]
        elif field == StreamedResponse.ERROR_FIELD_NUMBER:
            try:
                error = Error.FromString(message[at:end])
            except DecodeError as wrong:
                raise ValueError(str(wrong)) from wrong
            wait = error.retry_after_ms / 1000 if error.retry_after_ms else None
            return number, from_status(error.code, error.message, wait)
    if outcome is None:
        return number, ServerError("the server's answer has neither a response nor an error")
    return number, outcome


def free_ids() -> Iterator[int]:
    return iter(range(FIRST_ID, END_OF_IDS))
