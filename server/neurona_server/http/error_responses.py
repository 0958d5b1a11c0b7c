"""The HTTP response to an error: status, headers and JSON.

The status follows google.rpc.Code, as gateways between HTTP and gRPC have it. The file is alone
because every group of routes uses it, and may write the JSON in its own form.
"""

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any

from neurona_server.errors import NeuronaError, TooLargeError
from neurona_server.rpc.call import REQUEST_ID, RequestIdentity
from neurona_server.rpc.status import RETRY_AFTER, status_of
from neurona_server.web.messages import HttpResponse

JSON = "application/json"

CLIENT_CLOSED_REQUEST: Any = 499
"""The status of a request that its caller has cancelled; nobody reads it."""

_STATUSES: Mapping[str, HTTPStatus] = {
    "INVALID_ARGUMENT": HTTPStatus.BAD_REQUEST,
    "OUT_OF_RANGE": HTTPStatus.BAD_REQUEST,
    "FAILED_PRECONDITION": HTTPStatus.BAD_REQUEST,
    "UNAUTHENTICATED": HTTPStatus.UNAUTHORIZED,
    "PERMISSION_DENIED": HTTPStatus.FORBIDDEN,
    "NOT_FOUND": HTTPStatus.NOT_FOUND,
    "ALREADY_EXISTS": HTTPStatus.CONFLICT,
    "ABORTED": HTTPStatus.CONFLICT,
    "RESOURCE_EXHAUSTED": HTTPStatus.TOO_MANY_REQUESTS,
    "UNIMPLEMENTED": HTTPStatus.NOT_IMPLEMENTED,
    "UNAVAILABLE": HTTPStatus.SERVICE_UNAVAILABLE,
    "DEADLINE_EXCEEDED": HTTPStatus.GATEWAY_TIMEOUT,
}


class HttpError(NeuronaError):
    """A request that is wrong as HTTP, before it is one of a service: it has a status of its own.

    Its gRPC code is the one whose usual status is nearest.
    """

    code = 3  # INVALID_ARGUMENT
    outcome = "invalid"

    def __init__(self, status: HTTPStatus, message: str, **headers: str) -> None:
        super().__init__(message)
        self.status = status
        self.headers = headers


class NoRouteError(HttpError):
    """No route has the path."""

    code = 5  # NOT_FOUND


@dataclass(frozen=True)
class ErrorReply:
    """What a caller learns of an error."""

    status: HTTPStatus
    code: str
    """The name of the gRPC code, as "NOT_FOUND"."""
    message: str
    headers: Mapping[str, str] = field(default_factory=dict)


WriteError = Callable[[ErrorReply], HttpResponse]
"""Writes the response to an error in the form of a protocol; adds `headers` to it."""


def write_json_error(error: ErrorReply) -> HttpResponse:
    """Write {"code": "NOT_FOUND", "message": "..."}."""
    content = json.dumps({"code": error.code, "message": error.message}, ensure_ascii=False)
    return HttpResponse(error.status, content.encode(errors="replace"), JSON, error.headers)


def error_reply(error: Exception, identity: RequestIdentity) -> ErrorReply:
    """Return what the caller learns of an error; one that is a bug is logged."""
    status = status_of(error, identity)
    code = status.code.name
    http_status = _STATUSES.get(code, HTTPStatus.INTERNAL_SERVER_ERROR)
    headers = {REQUEST_ID: identity.request_id}
    if isinstance(error, HttpError):
        http_status = error.status
        headers |= {name.replace("_", "-"): value for name, value in error.headers.items()}
    elif isinstance(error, TooLargeError):
        http_status = HTTPStatus.REQUEST_ENTITY_TOO_LARGE
    elif code == "CANCELLED":
        http_status = CLIENT_CLOSED_REQUEST
    elif code == "UNAUTHENTICATED":
        headers["WWW-Authenticate"] = "Bearer"
    if status.retry_after_ms:
        headers["Retry-After"] = str(math.ceil(status.retry_after_ms / 1000))
        headers[RETRY_AFTER] = str(status.retry_after_ms)
    elif code == "UNAVAILABLE":
        headers["Retry-After"] = "1"
    return ErrorReply(http_status, code, status.message, headers)
