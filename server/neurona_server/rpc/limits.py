"""What one request may be, whatever model it is for."""

from dataclasses import dataclass

from neurona_protos.open_inference_pb2 import ModelInferRequest
from neurona_protos.prediction_pb2 import PredictRequest
from neurona_protos.wire_format import check_fields
from neurona_server.errors import InvalidError, quoted

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
        as its field `path`, before it is parsed. Raises InvalidError."""
        check_fields(message, *path, tensors, longest=(_SHAPE, _SHAPE_BYTES))

    def check(self, request: PredictRequest | ModelInferRequest) -> None:
        """Before anything is made of its tensors. Raises InvalidError."""
        if len(request.inputs) > self.max_tensors:
            raise InvalidError(
                f"the request has {len(request.inputs)} tensors; "
                f"expected at most {self.max_tensors}"
            )
        for tensor in request.inputs:
            if len(tensor.shape) > MAX_AXES:
                raise InvalidError(
                    f"input {quoted(tensor.name)} has {len(tensor.shape)} axes; "
                    f"expected at most {MAX_AXES}"
                )

    def check_rows(self, rows: int) -> None:
        """Raises InvalidError."""
        if self.max_rows and rows > self.max_rows:
            raise InvalidError(f"the request has {rows} rows; expected at most {self.max_rows}")
