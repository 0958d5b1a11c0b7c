"""Splits a PredictStreamRequest into its requests, which stay serialized.

The parser would take many times the memory of a message of many empty requests, and copy large
ones twice. So the requests are counted first, and large ones are read by hand.
"""

from collections.abc import Sequence

from google.protobuf.message import DecodeError

from neurona_protos.frames_pb2 import PredictStreamRequest
from neurona_protos.wire_format import BYTES, VARINT, content_span, read_varint
from neurona_server.errors import InvalidArgumentError

MAX_REQUESTS = 4096
"""Requests in a message."""

MAX_FIELDS = 16
"""Fields of a large request's entry in a message, which has two: its id and itself."""

COUNTED_BYTES = 64 << 10
"""Bytes of a message from which on its requests are counted before it is parsed."""

LARGE_REQUEST = 2048
"""Bytes that the requests of a message have on average, from which on they are read by hand."""

_REQUESTS = PredictStreamRequest.REQUESTS_FIELD_NUMBER
_ID, _REQUEST = 1, 2  # fields of StreamedRequest
_REQUESTS_TAG = _REQUESTS << 3 | BYTES
_CONTINUED = 0x80
_MAX_ID = 2**64 - 1

IdentifiedRequest = tuple[int, bytes]
"""The caller's id of a request, and the serialized request."""


def split_stream_message(message: bytes) -> Sequence[IdentifiedRequest]:
    """Return the requests of a serialized PredictStreamRequest, with their ids.

    Raises:
        InvalidArgumentError: The bytes are no such message, or have too many requests or fields.
    """
    try:
        if len(message) >= COUNTED_BYTES:
            spans = _find_requests(message)
            if len(spans) * LARGE_REQUEST <= len(message):
                return [_read_request(message, start, stop) for start, stop in spans]
        requests = PredictStreamRequest.FromString(message).requests
    except DecodeError:
        raise InvalidArgumentError("message is not a neurona.v1.PredictStreamRequest") from None
    except ValueError as error:
        raise InvalidArgumentError(
            f"message is not a neurona.v1.PredictStreamRequest: {error}"
        ) from None
    if len(requests) > MAX_REQUESTS:
        raise _too_many(str(len(requests)))
    return [(streamed.id, streamed.request) for streamed in requests]


def _find_requests(message: bytes) -> list[tuple[int, int]]:
    """Return where the entries of requests start and stop.

    Raises ValueError, and InvalidArgumentError if there are too many.
    """
    spans: list[tuple[int, int]] = []
    position, end = 0, len(message)
    fields = 0
    while position < end:
        fields += 1
        if fields > MAX_REQUESTS:
            raise _too_many(f"more than {MAX_REQUESTS}")
        # Most entries have a length of one or two bytes.
        if message[position] == _REQUESTS_TAG and position + 2 < end:
            length, start = message[position + 1], position + 2
            if length >= _CONTINUED and (high := message[start]) < _CONTINUED:
                length, start = length & 0x7F | high << 7, start + 1
            if length < _CONTINUED or start == position + 3:
                position = start + length
                spans.append((start, position))
                continue
        tag, position = read_varint(message, position)
        start, position = content_span(message, tag & 7, position)
        if tag == _REQUESTS_TAG:
            spans.append((start, position))
    if position > end:
        raise ValueError("it ends inside a field")
    return spans


def _read_request(message: bytes, position: int, end: int) -> IdentifiedRequest:
    request_id, request = 0, (0, 0)
    fields = 0
    while position < end:
        fields += 1
        if fields > MAX_FIELDS:
            raise ValueError(f"a request has more than {MAX_FIELDS} fields")
        tag, position = read_varint(message, position)
        start, position = content_span(message, tag & 7, position)
        if tag == _ID << 3 | VARINT:
            request_id = read_varint(message, start)[0] & _MAX_ID
        elif tag == _REQUEST << 3 | BYTES:
            request = (start, position)
    if position > end:
        raise ValueError("it ends inside a field")
    return request_id, message[slice(*request)]


def _too_many(count: str) -> InvalidArgumentError:
    return InvalidArgumentError(f"message has {count} requests (expected at most {MAX_REQUESTS})")
