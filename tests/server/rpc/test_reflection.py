"""Reflection: every service is listed, every symbol is found, nothing else is exposed."""

import grpc
import numpy as np
import pytest
from google.protobuf.descriptor_pb2 import FileDescriptorProto
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message_factory import GetMessageClass

from neurona_protos.reflection_pb2 import (
    ExtensionRequest,
    ServerReflectionRequest,
    ServerReflectionResponse,
)

VERSIONS = ["v1", "v1alpha"]
SERVICES = [
    "grpc.health.v1.Health",
    "grpc.reflection.v1.ServerReflection",
    "grpc.reflection.v1alpha.ServerReflection",
    "neurona.v1.Models",
    "neurona.v1.Prediction",
]


def ask(server, *requests, version="v1"):
    method = server.channel.stream_stream(
        f"/grpc.reflection.{version}.ServerReflection/ServerReflectionInfo",
        ServerReflectionRequest.SerializeToString,
        ServerReflectionResponse.FromString,
    )
    return list(method(iter(requests), timeout=10))


def pool_of(server, symbol, version="v1"):
    """A descriptor pool of the files that the server returns for a symbol, as tools make it."""
    (response,) = ask(
        server, ServerReflectionRequest(file_containing_symbol=symbol), version=version
    )
    files = [
        FileDescriptorProto.FromString(file)
        for file in response.file_descriptor_response.file_descriptor_proto
    ]
    pool = DescriptorPool()
    for file in reversed(files):  # imports are added first
        pool.Add(file)
    return pool


@pytest.mark.parametrize("version", VERSIONS)
def test_every_service_is_listed_and_described(server, version):
    (listed,) = ask(server, ServerReflectionRequest(list_services="*"), version=version)
    names = [service.name for service in listed.list_services_response.service]
    assert [name for name in names if name in SERVICES] == SERVICES
    for name in names:
        service = pool_of(server, name, version).FindServiceByName(name)
        for method in service.methods:
            assert f"/{name}/{method.name}" in server.methods
    described = {
        f"/{name}/{method.name}"
        for name in names
        for method in pool_of(server, name).FindServiceByName(name).methods
    }
    assert described == set(server.methods)


def test_a_client_made_from_reflection_alone_predicts(server):
    pool = pool_of(server, "neurona.v1.Prediction.Predict")
    method = pool.FindServiceByName("neurona.v1.Prediction").FindMethodByName("Predict")
    make_request, response = (GetMessageClass(t) for t in (method.input_type, method.output_type))
    request = make_request(model="regressor")
    series = np.array([[1, 2, 3]], np.float32)
    request.inputs.add(name="series", dtype=1, shape=series.shape, data=series.tobytes())
    predict = server.channel.unary_unary(
        f"/{method.containing_service.full_name}/{method.name}",
        make_request.SerializeToString,
        response.FromString,
    )
    assert predict(request, timeout=10).regression.rows[0].values[0] == 6


def test_a_file_is_found_by_name_and_by_each_symbol_it_declares(server):
    symbols = [
        *("neurona.v1.Tensor", "neurona.v1.Tensor.shape", "neurona.v1.PredictRequest.which"),
        *("neurona.v1.DataType", "neurona.v1.DATA_TYPE_FLOAT", "neurona.v1.Models.List"),
        "neurona.v1.ModelMetadata.FiguresEntry",
    ]
    by_name = ServerReflectionRequest(file_by_filename="neurona_protos/prediction.proto")
    by_symbol = [ServerReflectionRequest(file_containing_symbol=symbol) for symbol in symbols]
    first, *others = (
        list(response.file_descriptor_response.file_descriptor_proto)
        for response in ask(server, by_name, *by_symbol)
    )
    assert FileDescriptorProto.FromString(first[0]).package == "neurona.v1"
    assert others == [first] * len(symbols)


@pytest.mark.parametrize(
    ("request_", "code", "message"),
    [
        (ServerReflectionRequest(file_by_filename="/etc/passwd"), "NOT_FOUND", "'/etc/passwd'"),
        (ServerReflectionRequest(file_containing_symbol="a\nb"), "NOT_FOUND", r"'a\nb'"),
        # In protobuf's default pool, but of no service.
        (
            ServerReflectionRequest(file_by_filename="google/protobuf/descriptor.proto"),
            "NOT_FOUND",
            "unknown file",
        ),
        (
            ServerReflectionRequest(
                file_containing_extension=ExtensionRequest(
                    containing_type="neurona.v1.Tensor", extension_number=7
                )
            ),
            "NOT_FOUND",
            "no extension 7",
        ),
        (
            ServerReflectionRequest(all_extension_numbers_of_type="x"),
            "NOT_FOUND",
            "unknown symbol 'x'",
        ),
        (ServerReflectionRequest(host="h"), "INVALID_ARGUMENT", "the reflection request is empty"),
    ],
)
def test_an_unknown_name_is_an_error_response_and_the_stream_continues(
    server, request_, code, message
):
    error, listed = ask(server, request_, ServerReflectionRequest(list_services=""))
    assert error.error_response.error_code == grpc.StatusCode[code].value[0]
    assert message in error.error_response.error_message
    assert error.original_request == request_
    assert error.valid_host == request_.host
    assert listed.list_services_response.service


def test_a_message_has_no_extensions(server):
    request = ServerReflectionRequest(all_extension_numbers_of_type="neurona.v1.Tensor")
    (response,) = ask(server, request)
    assert response.all_extension_numbers_response.base_type_name == "neurona.v1.Tensor"
    assert not response.all_extension_numbers_response.extension_number


def test_the_bytes_are_those_of_the_specification(server):
    """By hand: list_services is field 7, its echo field 2 of the response, services field 6."""
    method = server.channel.stream_stream(
        "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo"
    )
    (response,) = method(iter([b"\x3a\x01*"]), timeout=10)
    assert response.startswith(b"\x12\x03\x3a\x01*" + b"\x32")
    assert b"\x0a\x17\x0a\x15grpc.health.v1.Health" in response
    (error,) = method(iter([b"\x22\x01x"]), timeout=10)
    assert error.startswith(b"\x12\x03\x22\x01x" + b"\x3a")
    assert b"\x08\x05" in error  # NOT_FOUND


def test_invalid_bytes_end_the_stream(server):
    method = server.channel.stream_stream(
        "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo"
    )
    with pytest.raises(grpc.RpcError) as caught:
        list(method(iter([b"\xff"]), timeout=10))
    assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT
