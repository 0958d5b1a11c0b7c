"""The limits of a request to any model: fields, tensors, axes, rows."""

from dataclasses import dataclass

from neurona_protos.open_inference_pb2 import ModelInferRequest
from neurona_protos.prediction_pb2 import PredictRequest
from neurona_protos.wire_format import BYTES, FIXED32, FIXED64, VARINT, skip_varint
from neurona_server.errors import InvalidArgumentError, quoted

LARGE_MESSAGE = 4 << 20
"""Bytes from which on the fields of a message are counted before it is parsed."""

MAX_FIELDS = 1 << 18
"""Fields of a message and of the messages in it: 4096 requests of several tensors have fewer."""

MAX_AXES = 32
"""Axes of a tensor."""

_TENSORS, _SHAPE = 4, 3  # fields of PredictRequest and Tensor; InferInputTensor has the latter too
_MAX_SHAPE_BYTES = 10 * MAX_AXES  # a negative size takes ten


@dataclass(frozen=True)
class Limits:
    """The limits that the server's options set."""

    max_tensors: int = 256
    max_rows: int = 0
    """0: only the model's queue limits them."""
    max_message_bytes: int = 64 << 20
    """A larger response in a stream becomes an error."""

    def check_wire(self, message: bytes, *path: int, tensors: int = _TENSORS) -> None:
        """Check a message before it is parsed.

        Args:
            message: The serialized message.
            path: The fields that lead from the message to its requests; empty if it is one.
            tensors: The field of a request that holds its tensors.

        Raises:
            InvalidArgumentError: There are too many fields, or a shape is too long.
        """
        check_fields(message, *path, tensors, max_field_bytes=(_SHAPE, _MAX_SHAPE_BYTES))

    def check(self, request: PredictRequest | ModelInferRequest) -> None:
        """Check a parsed request before its tensors are read. Raises InvalidArgumentError."""
        if len(request.inputs) > self.max_tensors:
            raise InvalidArgumentError(
                f"the request has {len(request.inputs)} tensors "
                f"(expected at most {self.max_tensors})"
            )
        for tensor in request.inputs:
            if len(tensor.shape) > MAX_AXES:
                raise InvalidArgumentError(
                    f"input {quoted(tensor.name)} has {len(tensor.shape)} axes "
                    f"(expected at most {MAX_AXES})"
                )

    def check_rows(self, rows: int) -> None:
        """Check the rows of a request. Raises InvalidArgumentError."""
        if self.max_rows and rows > self.max_rows:
            raise InvalidArgumentError(
                f"the request has {rows} rows (expected at most {self.max_rows})"
            )


def check_fields(message: bytes, *path: int, max_field_bytes: tuple[int, int]) -> None:
    """Check the number of fields of a large message without parsing it.

    Parsing a message of many small fields would take many times its size. Bytes that are no
    message pass: the parser rejects them.

    Args:
        message: The serialized message.
        path: The fields whose nested messages are read: the field of the outermost message, the
            field of the messages in it, and so on.
        max_field_bytes: A field of the innermost messages, and how many bytes it may have.

    Raises:
        InvalidArgumentError: There are more than MAX_FIELDS, or that field is too long.
    """
    end = len(message)
    if end < LARGE_MESSAGE:
        return
    field, max_bytes = max_field_bytes
    count, position = 0, 0
    ends: list[int] = []  # of the messages around the current one
    while True:
        while position >= end:
            if not ends:
                return
            end = ends.pop()
        count += 1
        if count > MAX_FIELDS:
            raise InvalidArgumentError(
                f"the message has more than {MAX_FIELDS} fields; split it into several"
            )
        tag, position = skip_varint(message, position)
        number, wire_type = tag >> 3, tag & 7
        if wire_type == BYTES:
            length, position = skip_varint(message, position)
            if len(ends) < len(path) and number == path[len(ends)]:
                ends.append(end)
                end = min(end, position + length)
                continue
            if len(ends) == len(path) and number == field and length > max_bytes:
                raise InvalidArgumentError(
                    f"field {number} has {length} bytes (expected at most {max_bytes})"
                )
            position += length
        elif wire_type == VARINT:
            _, position = skip_varint(message, position)
        elif wire_type in (FIXED64, FIXED32):
            position += 8 if wire_type == FIXED64 else 4
        else:
            return
