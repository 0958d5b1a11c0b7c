"""The limits of a request to any model: fields, tensors, axes, rows, strings."""

from collections.abc import Iterable
from dataclasses import dataclass

from neurona_protos.open_inference_pb2 import ModelInferRequest
from neurona_protos.prediction_pb2 import PredictRequest, SessionRequest
from neurona_server.errors import InvalidArgumentError, quoted
from neurona_server.rpc.detached_data import DataPaths, DetachedMessage, detach_data

LARGE_MESSAGE = 16 << 10
"""Bytes from which on the data of a message are detached before it is parsed. Parsing a smaller one
takes less than a millisecond and some MiB, whatever its fields."""

MAX_REST_BYTES = 64 << 10
"""Bytes of a request besides the data of its tensors."""

MAX_FIELDS, MAX_FIELDS_PER_TENSOR = 1024, 40
"""Fields of a request, and of each tensor that it may have: four, and one for each axis."""

MAX_AXES = 32
"""Axes of a tensor."""

MAX_STRINGS = 1 << 18
"""Strings in the tensors of a request: each becomes an object, of ten times the bytes of a short
one."""

SLOW_STRINGS, SLOW_BYTES = 1 << 10, 1 << 20
"""Strings, and bytes of tensors that are no views of the message, from which on decoding a request
takes too long for the transport's thread: a millisecond."""


@dataclass(frozen=True)
class Limits:
    """The limits that the server's options set."""

    max_tensors: int = 256
    max_rows: int = 0
    """0: only the model's queue limits them."""
    max_message_bytes: int = 64 << 20
    """A larger response in a stream becomes an error."""

    def detach_data(self, message: bytes, paths: DataPaths) -> DetachedMessage:
        """Take the data out of a large message, so that it can be parsed.

        Raises:
            InvalidArgumentError: There are too many fields, too many bytes besides the data, or a
                group; or the bytes are not a message.
        """
        max_fields = MAX_FIELDS + MAX_FIELDS_PER_TENSOR * self.max_tensors
        try:
            return detach_data(message, paths, max_fields=max_fields, max_rest_bytes=MAX_REST_BYTES)
        except ValueError as error:
            raise InvalidArgumentError(str(error)) from None

    def check(self, request: PredictRequest | SessionRequest | ModelInferRequest) -> None:
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

    def check_strings(self, counts: Iterable[int]) -> int:
        """Check the numbers of strings in the tensors of a request; return their sum.

        Raises InvalidArgumentError.
        """
        count = sum(counts)
        if count > MAX_STRINGS:
            raise InvalidArgumentError(
                f"the request has {count} strings (expected at most {MAX_STRINGS})"
            )
        return count

    def check_rows(self, rows: int) -> None:
        """Check the rows of a request. Raises InvalidArgumentError."""
        if self.max_rows and rows > self.max_rows:
            raise InvalidArgumentError(
                f"the request has {rows} rows (expected at most {self.max_rows})"
            )
