"""Sends the steps of sequences with an id, as clients of the Open Inference Protocol do."""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import grpc
import numpy as np

from neurona_protos.open_inference_pb2 import ModelInferRequest, ModelInferResponse
from support.in_process_server import InProcessServer
from support.triton_calls import set_parameter
from support.triton_requests import arrays, request

Array = np.ndarray[Any, Any]
Metadata = Sequence[tuple[str, str]]


def step_request(
    model: str,
    values: object,
    sequence_id: object,
    *,
    start: bool = False,
    end: bool = False,
    version: str = "",
    name: str = "INPUT",
    datatype: str = "INT32",
) -> ModelInferRequest:
    """Make a step; without an id (None) it has no parameters."""
    message = request(model, version, **{name: (datatype, values)})
    if sequence_id is not None:
        set_parameter(message.parameters["sequence_id"], sequence_id)
        message.parameters["sequence_start"].bool_param = start
        message.parameters["sequence_end"].bool_param = end
    return message


class SequenceCaller:
    """Calls a server's model with one input and one output."""

    def __init__(
        self,
        server: InProcessServer,
        model: str = "accumulator",
        *,
        name: str = "INPUT",
        datatype: str = "INT32",
        metadata: Metadata = (),
    ) -> None:
        self.stub = server.triton
        self._model = model
        self._tensor = {"name": name, "datatype": datatype}
        self._metadata = metadata

    def request(self, values: object, sequence_id: object, **options: Any) -> ModelInferRequest:
        """Make a step; `options` are those of `step_request`. A number is one row."""
        array = [[values]] if isinstance(values, int) else values
        return step_request(self._model, array, sequence_id, **self._tensor, **options)

    def start_step(self, values: object, sequence_id: object, **options: Any) -> Any:
        """Send a step, and return the call."""
        message = self.request(values, sequence_id, **options)
        return self.stub.ModelInfer.future(message, timeout=20, metadata=self._metadata)

    def step(self, values: object, sequence_id: object, **options: Any) -> Array:
        """Send a step, and return the output."""
        return output_of(self.start_step(values, sequence_id, **options).result())

    def error(self, values: object, sequence_id: object, **options: Any) -> tuple[str, str]:
        """Send a step that must fail, and return its status and details."""
        return error_of(self.start_step(values, sequence_id, **options))

    def stream(self, messages: Iterable[ModelInferRequest]) -> Iterator[Array | str]:
        """Send steps in one stream, and yield their outputs, or the messages of their errors."""
        for response in self.stub.ModelStreamInfer(iter(messages), timeout=20):
            yield response.error_message or output_of(response.infer_response)


def output_of(response: ModelInferResponse) -> Array:
    """Return the only output."""
    (output,) = arrays(response).values()
    return output


def error_of(call: Any) -> tuple[str, str]:
    """Return the status and details of a call that must fail."""
    error = call.exception(timeout=20)
    assert isinstance(error, grpc.RpcError), "the call has succeeded"
    return error.code().name, error.details()
