"""Asks a server what its models cost: `Models.List` and `Models.Describe`.

It is alone because nothing else of the simulation needs gRPC or a server.
"""

from collections.abc import Sequence
from typing import Any, cast

import grpc
from google.protobuf.json_format import MessageToDict

from neurona_protos.prediction_pb2 import DescribeModelRequest, ListModelsRequest
from neurona_protos.prediction_pb2_grpc import ModelsStub

TIMEOUT = 10.0
"""Seconds for an answer."""


def describe_models(address: str, names: Sequence[str] = ()) -> list[dict[str, Any]]:
    """Return the descriptions of models, as dictionaries.

    Args:
        address: HOST:PORT of a server without TLS that asks for no token.
        names: The models; without any, all that it serves.

    Returns:
        A DescribeModelResponse for each, names as in prediction.proto.

    Raises:
        ValueError: The server does not answer, or does not have a model.
    """
    with grpc.insecure_channel(address) as channel:
        stub = ModelsStub(channel)  # type: ignore[no-untyped-call]
        try:
            if not names:
                listed = stub.List(ListModelsRequest(), timeout=TIMEOUT, wait_for_ready=True)
                names = [summary.model for summary in listed.models]
            messages = [
                stub.Describe(DescribeModelRequest(model=name), timeout=TIMEOUT) for name in names
            ]
        except grpc.RpcError as error:
            details = cast(grpc.Call, error).details()
            raise ValueError(f"{address}: {details}") from None
    return [MessageToDict(message, preserving_proto_field_name=True) for message in messages]
