"""Methods whose messages name things take some KiB; only those with tensors take more."""

import grpc

from neurona_protos.wire_format import length_delimited
from neurona_server.errors import TooLargeError
from neurona_server.rpc.call import ANY_MESSAGE_BYTES, SMALL_MESSAGE_BYTES, Streaming
from neurona_server.rpc.transports.listener import ListenerOptions

WITH_TENSORS = {
    *[f"/neurona.v1.Prediction/{name}" for name in ("Predict", "Classify", "Regress")],
    "/neurona.v1.Prediction/PredictStream",
    "/neurona.v1.Prediction/Session",
    *[f"/inference.GRPCInferenceService/Model{name}" for name in ("Infer", "StreamInfer")],
    "/inference.GRPCInferenceService/RepositoryModelLoad",  # files of a model
}
UNKNOWN_FIELD = 1999


def call(server, path, message):
    """Returns the error of a call with one message, None if it succeeded."""
    streams = isinstance(server.methods[path], Streaming)
    try:
        if streams:
            next(server.channel.stream_stream(path)(iter([message]), timeout=20), None)
        else:
            server.channel.unary_unary(path)(message, timeout=20)
    except grpc.RpcError as error:
        return error
    return None


def test_every_method_has_a_limit(server):
    for path, method in server.methods.items():
        limit = ANY_MESSAGE_BYTES if path in WITH_TENSORS else SMALL_MESSAGE_BYTES
        assert method.max_message_bytes == limit, path


def test_a_larger_message_is_rejected_before_the_service_sees_it(make_server):
    rejections = []
    server = make_server(
        options=ListenerOptions(max_message_bytes=1 << 20, on_reject=rejections.append)
    )
    padding = SMALL_MESSAGE_BYTES - 4
    message = length_delimited(UNKNOWN_FIELD, bytes(padding))
    assert len(message) == SMALL_MESSAGE_BYTES
    paths = server.methods.keys() - WITH_TENSORS
    for path in paths:
        error = call(server, path, message)
        assert error is None or error.code() != grpc.StatusCode.RESOURCE_EXHAUSTED, path
        error = call(server, path, message + b"\x08")
        assert error.code() == grpc.StatusCode.RESOURCE_EXHAUSTED, path
        assert "has 16385 bytes (expected at most 16384 for this method)" in error.details()
    assert [type(error) for error in rejections] == [TooLargeError] * len(paths)
