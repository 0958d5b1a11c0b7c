"""What one request may be, whatever model it is for."""

from dataclasses import dataclass

from neurona_protos.open_inference_pb2 import ModelInferRequest
from neurona_protos.prediction_pb2 import PredictRequest
from neurona_protos.wire_format import BYTES, FIXED32, FIXED64, VARINT, skip_varint
from neurona_server.errors import InvalidArgumentError, quoted

LARGE = 4 << 20
"""Bytes from which on a message's fields are counted before it is parsed."""

MAX_FIELDS = 1 << 18
"""Of a message and the messages in it: 4096 requests of several tensors have fewer."""

MAX_AXES = 32
"""Of a tensor."""

_TENSORS, _SHAPE = 4, 3  # fields of PredictRequest and Tensor; InferInputTensor has the latter too
_SHAPE_BYTES = 10 * MAX_AXES  # a negative size takes ten


@dataclass(frozen=True)
class Limits:
    max_tensors: int = 256
    max_rows: int = 0
    """0: as many as may wait for a model."""
    max_message_bytes: int = 64 << 20
    """An answer in a stream that is larger by itself becomes an error."""

    def check_wire(self, message: bytes, *path: int, tensors: int = _TENSORS) -> None:
        """A request whose field `tensors` has its tensors, or the message that has such requests
        as its field `path`, before it is parsed. Raises InvalidArgumentError."""
        check_fields(message, *path, tensors, longest=(_SHAPE, _SHAPE_BYTES))

    def check(self, request: PredictRequest | ModelInferRequest) -> None:
        """Before anything is made of its tensors. Raises InvalidArgumentError."""
        if len(request.inputs) > self.max_tensors:
            raise InvalidArgumentError(
                f"the request has {len(request.inputs)} tensors; "
                f"expected at most {self.max_tensors}"
            )
        for tensor in request.inputs:
            if len(tensor.shape) > MAX_AXES:
                raise InvalidArgumentError(
                    f"input {quoted(tensor.name)} has {len(tensor.shape)} axes; "
                    f"expected at most {MAX_AXES}"
                )

    def check_rows(self, rows: int) -> None:
        """Raises InvalidArgumentError."""
        if self.max_rows and rows > self.max_rows:
            raise InvalidArgumentError(
                f"the request has {rows} rows; expected at most {self.max_rows}"
            )


def check_fields(message: bytes, *path: int, longest: tuple[int, int]) -> None:
    """Raises InvalidArgumentError when a message has too many fields.

    `path`: the field that holds messages, the field in those that holds messages, and so on.
    `longest`: of the innermost ones, a field and how many bytes it may have. What is no protobuf
    is left to the parser.
    """
    end = len(message)
    if end < LARGE:
        return
    count, position = 0, 0
    ends: list[int] = []  # of the messages around the one that is read now
    while True:
        while position >= end:
            if not ends:
                return
            end = ends.pop()
        count += 1
        if count > MAX_FIELDS:
            raise InvalidArgumentError(
                f"the message has more than {MAX_FIELDS} fields; send several"
            )
        tag, position = skip_varint(message, position)
        number, wire_type = tag >> 3, tag & 7
        if wire_type == BYTES:
            length, position = skip_varint(message, position)
            if len(ends) < len(path) and number == path[len(ends)]:
                ends.append(end)
                end = min(end, position + length)
                continue
            if len(ends) == len(path) and number == longest[0] and length > longest[1]:
                raise InvalidArgumentError(
                    f"field {number} has {length} bytes; expected at most {longest[1]}"
                )
            position += length
        elif wire_type == VARINT:
            _, position = skip_varint(message, position)
        elif wire_type in (FIXED64, FIXED32):
            position += 8 if wire_type == FIXED64 else 4
        else:
            return
