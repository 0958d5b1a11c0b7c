"""Makes the body of a response over HTTP of a ModelInferResponse.

The body is JSON, and behind it the binary data of the outputs that the caller wants so. A response
to a request like an earlier one differs in its binary data only: `ResponseForm` keeps the JSON.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import msgspec

from neurona_protos.open_inference_pb2 import InferParameter, ModelInferResponse
from neurona_protos.prediction_pb2 import DataType
from neurona_protos.wire_format import fields
from neurona_server.http.open_inference.json_tensors import write_json_tensor
from neurona_server.rpc.fast_path import MessageTemplate
from neurona_server.rpc.open_inference.messages import DATATYPE_NAMES

_RAW_CONTENTS = ModelInferResponse.RAW_OUTPUT_CONTENTS_FIELD_NUMBER
_LARGE = 16 << 10
"""Bytes from which on a response is parsed without its data, which would be copied."""

_DATATYPES: dict[str, DataType] = {name: number for number, name in DATATYPE_NAMES.items()}


class InferBody(NamedTuple):
    """The body of a response."""

    content: bytes
    json_bytes: int | None
    """How many of its bytes are JSON, if others follow."""


@dataclass
class ResponseForm:
    """How a caller wants the outputs: as JSON or as binary data."""

    is_binary: bool = False
    """Whether outputs that are not in `by_name` are binary data."""

    by_name: dict[str, bool] = field(default_factory=dict)
    _kept: tuple[MessageTemplate, bytes] | None = field(default=None, compare=False)
    """A response in which all outputs are binary data, and its JSON."""

    def write_like_earlier(self, response: bytes) -> InferBody | None:
        """Return the body of a response that differs from an earlier one in its data only.

        None if there is none like it.
        """
        kept = self._kept
        if kept is None:
            return None
        template, text = kept
        if len(response) != template.size or not template.matches(response):
            return None
        spans = template.spans
        if len(spans) == 1:
            ((start, stop),) = spans
            return InferBody(text + response[start:stop], len(text))
        parts = [response[start:stop] for start, stop in spans]
        return InferBody(b"".join([text, *parts]), len(text))

    def write(self, response: bytes) -> InferBody:
        """Return the body of a serialized ModelInferResponse.

        Raises:
            InvalidArgumentError: An output cannot be JSON.
        """
        spans: list[tuple[int, int]] = []
        if self.is_binary or self.by_name or len(response) >= _LARGE:
            head, spans = _detach_contents(response)
            view = memoryview(response)
            contents: Iterator[bytes | memoryview] = (view[start:stop] for start, stop in spans)
        else:  # the bytes are needed once, and need no places
            head = ModelInferResponse.FromString(response)
            contents = iter(head.raw_output_contents)
        outputs: list[dict[str, Any]] = []
        binary: list[bytes | memoryview] = []
        for tensor in head.outputs:
            output: dict[str, Any] = {
                "name": tensor.name,
                "datatype": tensor.datatype,
                "shape": list(tensor.shape),
            }
            parameters = _plain_parameters(tensor.parameters)
            data = next(contents)
            if "shared_memory_region" in parameters:
                pass  # it has no data here
            elif self.by_name.get(tensor.name, self.is_binary):
                parameters["binary_data_size"] = len(data)
                binary.append(data)
            else:
                output["data"] = write_json_tensor(
                    tensor.name,
                    _DATATYPES[tensor.datatype],
                    math.prod(tensor.shape),
                    data,
                )
            if parameters:
                output["parameters"] = parameters
            outputs.append(output)
        body: dict[str, Any] = {"model_name": head.model_name, "model_version": head.model_version}
        if head.id:
            body["id"] = head.id
        if head.parameters:
            body["parameters"] = _plain_parameters(head.parameters)
        text = msgspec.json.encode({**body, "outputs": outputs})
        if not binary:
            return InferBody(text, None)
        if len(binary) == len(spans) and not head.id and all(binary):
            self._kept = (MessageTemplate(response, spans), text)
        return InferBody(b"".join([text, *binary]), len(text))


def _detach_contents(response: bytes) -> tuple[ModelInferResponse, list[tuple[int, int]]]:
    """Return a response without its raw contents, and where they are in its bytes."""
    pieces, spans, position = [], [], 0
    for number, start, stop in fields(response, 0, len(response)):
        if number == _RAW_CONTENTS:
            spans.append((start, stop))
        else:
            pieces.append(response[position:stop])
        position = stop
    head = ModelInferResponse.FromString(b"".join(pieces))
    return head, spans


def _plain_parameters(parameters: Mapping[str, InferParameter]) -> dict[str, Any]:
    plain = {}
    for name, parameter in parameters.items():
        kind = parameter.WhichOneof("parameter_choice")
        if kind is not None:
            plain[name] = getattr(parameter, kind)
    return plain
