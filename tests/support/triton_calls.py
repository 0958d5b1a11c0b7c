"""Calls as Triton's clients make them, and how their results compare with Triton's.

Cases of `tests/triton_compatibility` are marked `triton(suite)`, and have one of these results:

- same: what Triton's tests check holds
- different wording: an error has Triton's status, but other words
- declared difference: the case checks what the manual's table declares in Triton's place
- not declared: the case failed
"""

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import grpc
import numpy as np
from grpc_health.v1.health_pb2_grpc import HealthStub

from neurona_protos import open_inference_pb2 as pb
from neurona_protos.open_inference_pb2_grpc import GRPCInferenceServiceStub
from support.triton_requests import DTYPES, arrays, raw

SAME = "same"
WORDING = "different wording"
DECLARED = "declared difference"
UNDECLARED = "not declared"
RESULTS = (SAME, WORDING, DECLARED, UNDECLARED)

wording_differences: list[str] = []
"""Errors of the running case that have other words than Triton's."""

_CONTENTS = {
    "BOOL": "bool_contents",
    "UINT8": "uint_contents",
    "UINT16": "uint_contents",
    "UINT32": "uint_contents",
    "UINT64": "uint64_contents",
    "INT8": "int_contents",
    "INT16": "int_contents",
    "INT32": "int_contents",
    "INT64": "int64_contents",
    "FP32": "fp32_contents",
    "FP64": "fp64_contents",
    "BYTES": "bytes_contents",
}

Array = np.ndarray[Any, Any]
Inputs = Mapping[str, tuple[str, Any]]
"""Datatype and values by name."""


class Slice(NamedTuple):
    """A part of a region of shared memory, in place of values."""

    region: str
    byte_size: int
    shape: Sequence[int]
    offset: int = 0


class Response(NamedTuple):
    message: pb.ModelInferResponse
    arrays: dict[str, Array]


def values_of(datatype: str, shape: Sequence[int], start: int = 0, count: int = 60) -> Array:
    """Return an array of `count` numbers from `start` on, again and again, or strings of them."""
    numbers = start + np.arange(int(np.prod(shape)), dtype=np.int64).reshape(tuple(shape)) % count
    if datatype == "BYTES":
        return np.array([str(n).encode() for n in numbers.ravel()], object).reshape(numbers.shape)
    if datatype == "BOOL":
        return numbers % 2 == 1
    return numbers.astype(DTYPES[datatype])


def make_request(
    model: str,
    inputs: Inputs,
    *,
    outputs: Iterable[str] = (),
    classes: Mapping[str, int] | None = None,
    slices: Mapping[str, Slice] | None = None,
    version: str = "",
    request_id: str = "",
    parameters: Mapping[str, object] | None = None,
    typed: bool = False,
) -> pb.ModelInferRequest:
    """Make a request.

    Args:
        model: The model's name.
        inputs: Datatype and values, or a Slice, by name.
        outputs: Names of the requested outputs; none requests all.
        classes: Classification counts of the outputs that have one.
        slices: Regions that outputs are written to.
        version: The model's version.
        request_id: The request's id.
        parameters: Its parameters.
        typed: Whether values are sent in typed contents, not raw.
    """
    message = pb.ModelInferRequest(model_name=model, model_version=version, id=request_id)
    for key, value in (parameters or {}).items():
        set_parameter(message.parameters[key], value)
    for name, (datatype, values) in inputs.items():
        if isinstance(values, Slice):
            tensor = message.inputs.add(name=name, datatype=datatype, shape=values.shape)
            _set_slice(tensor.parameters, values)
            continue
        array = np.asarray(values, DTYPES.get(datatype, object))
        tensor = message.inputs.add(name=name, datatype=datatype, shape=array.shape)
        if typed:
            getattr(tensor.contents, _CONTENTS[datatype]).extend(array.ravel().tolist())
        else:
            message.raw_input_contents.append(raw(array))
    for name in dict.fromkeys([*outputs, *(classes or {}), *(slices or {})]):
        output = message.outputs.add(name=name)
        if classes and name in classes:
            output.parameters["classification"].int64_param = classes[name]
        if slices and name in slices:
            _set_slice(output.parameters, slices[name])
    return message


def set_parameter(parameter: pb.InferParameter, value: object) -> None:
    if isinstance(value, bool):
        parameter.bool_param = value
    elif isinstance(value, int):
        parameter.int64_param = value
    elif isinstance(value, float):
        parameter.double_param = value
    else:
        parameter.string_param = str(value)


def _set_slice(parameters: Any, region_slice: Slice) -> None:
    parameters["shared_memory_region"].string_param = region_slice.region
    parameters["shared_memory_byte_size"].int64_param = region_slice.byte_size
    if region_slice.offset:
        parameters["shared_memory_offset"].int64_param = region_slice.offset


class TritonCaller:
    """Calls a server as Triton's clients do."""

    def __init__(self, channel: grpc.Channel) -> None:
        self.stub = GRPCInferenceServiceStub(channel)
        self.health = HealthStub(channel)

    def infer(self, model: str, inputs: Inputs, timeout: float = 60, **options: Any) -> Response:
        """Send a request and return its response; `options` are those of `make_request`."""
        message = make_request(model, inputs, **options)
        response = self.stub.ModelInfer(message, timeout=timeout)
        shared = any("shared_memory_region" in output.parameters for output in response.outputs)
        return Response(response, {} if shared else arrays(response))

    def start(self, model: str, inputs: Inputs, timeout: float = 60, **options: Any) -> Any:
        """Send a request and return its future, whose result is a ModelInferResponse."""
        return self.stub.ModelInfer.future(make_request(model, inputs, **options), timeout=timeout)

    def stream(
        self, requests: Sequence[pb.ModelInferRequest], timeout: float = 60
    ) -> Iterator[pb.ModelStreamInferResponse]:
        responses: Iterator[pb.ModelStreamInferResponse] = self.stub.ModelStreamInfer(
            iter(requests), timeout=timeout
        )
        return responses

    def is_live(self) -> bool:
        return self.stub.ServerLive(pb.ServerLiveRequest(), timeout=30).live

    def is_ready(self) -> bool:
        return self.stub.ServerReady(pb.ServerReadyRequest(), timeout=30).ready

    def is_model_ready(self, model: str, version: str = "") -> bool:
        request = pb.ModelReadyRequest(name=model, version=version)
        return self.stub.ModelReady(request, timeout=30).ready

    def are_ready(self, model: str, *versions: int) -> bool:
        return all(self.is_model_ready(model, str(version)) for version in versions)

    def are_gone(self, model: str, *versions: int) -> bool:
        return not any(self.is_model_ready(model, str(version)) for version in versions)

    def check_versions(self, model: str, *versions: int) -> None:
        """Check that a model of `triton_models.save_versions` answers, with each of these."""
        values = values_of("INT32", (1, 16))
        inputs = {f"INPUT{index}": ("INT32", values) for index in range(2)}
        for version in versions:
            result = self.infer(model, inputs, version=str(version))
            name = "OUTPUT0" if version == 1 else "OUTPUT1"
            assert (result.arrays[name] == values * 2).all()

    def server_metadata(self) -> pb.ServerMetadataResponse:
        return self.stub.ServerMetadata(pb.ServerMetadataRequest(), timeout=30)

    def metadata(self, model: str, version: str = "") -> pb.ModelMetadataResponse:
        request = pb.ModelMetadataRequest(name=model, version=version)
        return self.stub.ModelMetadata(request, timeout=30)

    def config(self, model: str, version: str = "") -> Any:
        request = pb.ModelConfigRequest(name=model, version=version)
        return self.stub.ModelConfig(request, timeout=30).config

    def statistics(self, model: str = "", version: str = "") -> list[pb.ModelStatistics]:
        request = pb.ModelStatisticsRequest(name=model, version=version)
        return list(self.stub.ModelStatistics(request, timeout=30).model_stats)

    def runs(self, model: str) -> dict[int, int]:
        """Return the number of runs by rows in the batch."""
        (statistics,) = self.statistics(model)
        return {s.batch_size: s.compute_infer.count for s in statistics.batch_stats}

    def index(self, *, ready: bool = False) -> dict[tuple[str, str], tuple[str, str]]:
        """Return state and reason by name and version."""
        request = pb.RepositoryIndexRequest(ready=ready)
        models = self.stub.RepositoryIndex(request, timeout=30).models
        return {(m.name, m.version): (m.state, m.reason) for m in models}

    def load(self, model: str, **parameters: str | bytes) -> None:
        request = pb.RepositoryModelLoadRequest(model_name=model)
        for name, value in parameters.items():
            if isinstance(value, bytes):
                request.parameters[name].bytes_param = value
            else:
                request.parameters[name].string_param = value
        self.stub.RepositoryModelLoad(request, timeout=60)

    def unload(self, model: str, **parameters: bool) -> None:
        request = pb.RepositoryModelUnloadRequest(model_name=model)
        for name, value in parameters.items():
            request.parameters[name].bool_param = value
        self.stub.RepositoryModelUnload(request, timeout=60)

    def register(self, name: str, key: str, byte_size: int, offset: int = 0) -> None:
        request = pb.SystemSharedMemoryRegisterRequest(
            name=name, key=key, byte_size=byte_size, offset=offset
        )
        self.stub.SystemSharedMemoryRegister(request, timeout=30)

    def unregister(self, name: str = "") -> None:
        request = pb.SystemSharedMemoryUnregisterRequest(name=name)
        self.stub.SystemSharedMemoryUnregister(request, timeout=30)

    def regions(self, name: str = "") -> list[str]:
        request = pb.SystemSharedMemoryStatusRequest(name=name)
        return sorted(self.stub.SystemSharedMemoryStatus(request, timeout=30).regions)


def expect_error(
    call: Callable[[], object], status: str, text: str, ours: str | None = None
) -> str:
    """Check that a call fails as in Triton, and return its message.

    Args:
        call: Makes the call.
        status: The name of the gRPC status.
        text: What Triton's tests look for in the message.
        ours: The words in their place; if the message has these, the case's result is "different
            wording".
    """
    try:
        call()
    except grpc.RpcError as error:
        actual, message = error.code().name, error.details()
    else:
        raise AssertionError(f"no error (expected {status}: {text})")
    assert actual == status, f"{actual}: {message}"
    if text not in message:
        assert ours is not None, message
        assert ours in message, message
        wording_differences.append(message)
    return str(message)


def wait_for(condition: Callable[[], bool], seconds: float = 60) -> None:
    """Wait until a condition of the server is true."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"the condition did not come true within {seconds:g} s"
        time.sleep(0.02)
