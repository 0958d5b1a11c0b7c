"""The unary methods of neurona.v1 over HTTP, as JSON and as protobuf.

    POST /neurona.v1.Prediction/Predict
    Content-Type: application/json            or application/x-protobuf

The JSON is protobuf's own mapping of the messages in prediction.proto: fields have the names of the
file, `data` is base64, enum values are names. Each response has the type of its request. GET
/healthz says whether the server serves.
"""

from collections.abc import Callable
from functools import partial
from http import HTTPStatus
from typing import Any

import msgspec
from google.protobuf import json_format
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass

from neurona_protos import prediction_pb2
from neurona_server.errors import InvalidArgumentError, UnsupportedError, quoted
from neurona_server.http.error_responses import JSON, HttpError
from neurona_server.http.routing import ApiRequest, Handler, Route
from neurona_server.rpc.call import Methods, Unary
from neurona_server.web.endpoints import HEALTH_PATH, SERVING
from neurona_server.web.messages import HttpResponse

PROTOBUF = "application/x-protobuf"

PROTOBUF_TYPES = (PROTOBUF, "application/protobuf", "application/octet-stream")

SLOW_JSON_BYTES = 16 << 10
"""Bytes of JSON from which on converting it takes too long for the server's thread."""

MAX_JSON_VALUES = 1 << 16
"""Values, keys and brackets in a request: each becomes an object of Python. The data of tensors are
a single one, being base64."""

MAX_DEPTH = 20
"""Messages in messages; those of prediction.proto have five."""


def neurona_routes(methods: Methods, state: Callable[[], str]) -> list[Route]:
    """Return a route for each unary method of neurona.v1, and that of the health.

    Args:
        methods: The functions of all services.
        state: Returns SERVING, NOT_SERVING or STARTING, which a reason may follow.
    """
    routes = [Route("GET", HEALTH_PATH, partial(_answer_health, state), any_host=True)]
    for service in prediction_pb2.DESCRIPTOR.services_by_name.values():
        for descriptor in service.methods:
            path = f"/{service.full_name}/{descriptor.name}"
            method = methods.get(path)
            if method is None:
                continue
            handler: Handler = partial(_reject_stream, path)
            if isinstance(method, Unary):
                messages = map(GetMessageClass, (descriptor.input_type, descriptor.output_type))
                handler = _MethodHandler(path, *messages)
            routes.append(Route("POST", path, handler, method.right))
    return routes


class _MethodHandler:
    """Answers the requests of one method."""

    def __init__(self, path: str, request: type[Message], response: type[Message]) -> None:
        self._path = path
        self._request = request
        self._response = response

    async def __call__(self, request: ApiRequest) -> HttpResponse:
        content_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if content_type in PROTOBUF_TYPES:
            response = await request.call(self._path, await request.body())
            return HttpResponse(HTTPStatus.OK, response, PROTOBUF)
        if content_type not in (JSON, "text/json"):
            raise HttpError(
                HTTPStatus.UNSUPPORTED_MEDIA_TYPE,
                f"unsupported Content-Type {quoted(content_type)} (expected {JSON} or {PROTOBUF})",
                Accept_Post=f"{JSON}, {PROTOBUF}",
            )
        body = await request.body()
        convert = partial(json_to_message, body, self._request)
        is_slow = len(body) > SLOW_JSON_BYTES
        message = await request.work(convert, len(body)) if is_slow else convert()
        response = await request.call(self._path, message)
        write = partial(message_to_json, response, self._response)
        is_slow = len(response) > SLOW_JSON_BYTES
        content = await request.work(write, len(response)) if is_slow else write()
        return HttpResponse(HTTPStatus.OK, content, JSON)


def json_to_message(body: bytes, message_type: type[Message]) -> bytes:
    """Convert the JSON of a message to its bytes.

    Raises:
        InvalidArgumentError: It is no JSON, has too many values, or does not fit the message.
    """
    value = parse_json(body or b"{}", MAX_JSON_VALUES)
    message = message_type()
    try:
        json_format.ParseDict(value, message, max_recursion_depth=MAX_DEPTH)
        return message.SerializeToString()
    except json_format.ParseError as error:
        reason = str(error)
    except (ValueError, TypeError, RecursionError, AttributeError) as error:
        reason = str(error)
    name = message_type.DESCRIPTOR.full_name
    raise InvalidArgumentError(f"the JSON is no {name}: {reason[:500]}")


def message_to_json(content: bytes, message_type: type[Message]) -> bytes:
    """Convert the bytes of a message to JSON."""
    message = message_type.FromString(content)
    value = json_format.MessageToDict(message, preserving_proto_field_name=True)
    return msgspec.json.encode(value)


def parse_json(body: bytes, max_values: int) -> Any:
    """Parse JSON.

    Raises:
        InvalidArgumentError: It is no JSON, not UTF-8, nested too deeply, or has too many values.
    """
    values = sum(map(body.count, (b",", b"[", b"{", b":")))
    if values > max_values:
        raise InvalidArgumentError(
            f"the JSON has about {values} values (expected at most {max_values})"
        )
    try:
        return msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise InvalidArgumentError(f"the body is no JSON: {error}") from None
    except RecursionError:
        raise InvalidArgumentError("the JSON is nested too deeply") from None


async def _reject_stream(path: str, _: ApiRequest) -> HttpResponse:
    raise UnsupportedError(f"{path} is a stream (expected a call over gRPC)")


async def _answer_health(state: Callable[[], str], _: ApiRequest) -> HttpResponse:
    text = state()
    status = HTTPStatus.OK if text == SERVING else HTTPStatus.SERVICE_UNAVAILABLE
    return HttpResponse(status, f"{text}\n".encode())
