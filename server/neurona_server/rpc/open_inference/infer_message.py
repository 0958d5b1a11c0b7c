"""A ModelInferRequest that is parsed without the data of its tensors if it is large."""

from collections.abc import Sequence
from typing import NamedTuple

from neurona_protos.open_inference_pb2 import InferTensorContents, ModelInferRequest
from neurona_server.rpc.detached_data import DataPaths, bytes_index, packed_index, read_bytes_index
from neurona_server.rpc.fast_path import DataFields
from neurona_server.rpc.limits import LARGE_MESSAGE, Limits
from neurona_server.rpc.open_inference.messages import parse_message
from neurona_server.rpc.open_inference.typed_contents import EncodedContents

Tensor = ModelInferRequest.InferInputTensor

_RAW: DataPaths = {ModelInferRequest.RAW_INPUT_CONTENTS_FIELD_NUMBER: bytes_index}
_DATA: DataPaths = {
    **_RAW,
    ModelInferRequest.INPUTS_FIELD_NUMBER: {
        Tensor.CONTENTS_FIELD_NUMBER: packed_index(InferTensorContents.UINT64_CONTENTS_FIELD_NUMBER)
    },
}


def _raw_indices(rest: bytes) -> list[int | None]:
    message = ModelInferRequest.FromString(rest)
    return [read_bytes_index(content) for content in message.raw_input_contents]


RAW_DATA = DataFields(_RAW, _raw_indices)
"""Where a request has its raw contents."""


class InferMessage(NamedTuple):
    """A request, and where its data are."""

    request: ModelInferRequest
    """Without data, if `spans` says where they are in the message."""

    message: bytes
    raw: Sequence[bytes | memoryview]
    """The raw contents."""

    spans: Sequence[tuple[int, int]] = ()

    @property
    def size(self) -> int:
        """The bytes of the message."""
        return len(self.message)

    def contents_of(self, tensor: Tensor) -> list[EncodedContents]:
        """Return the typed contents of one of the request's inputs."""
        if not self.spans:
            encoded = tensor.contents.SerializeToString()
            return [EncodedContents(encoded, 0, len(encoded))]
        indices = tensor.contents.uint64_contents
        return [EncodedContents(self.message, *self.spans[index]) for index in indices]


def parse_infer_message(message: bytes, limits: Limits) -> InferMessage:
    """Parse a request, a large one without its data. Raises InvalidArgumentError."""
    if len(message) < LARGE_MESSAGE:
        request = parse_message(ModelInferRequest, message)
        return InferMessage(request, message, request.raw_input_contents)
    rest, spans = limits.detach_data(message, _DATA)
    request = parse_message(ModelInferRequest, rest)
    view = memoryview(message)
    raw = []
    for content in request.raw_input_contents:
        index = read_bytes_index(content)
        start, stop = (0, 0) if index is None else spans[index]
        raw.append(view[start:stop])
    return InferMessage(request, message, raw, spans)
