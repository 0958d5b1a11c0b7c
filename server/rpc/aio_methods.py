"""A door's methods as `grpc.aio` wants them, and who may call them."""

import math
import time
from collections.abc import Callable
from typing import Any, NoReturn, Protocol

import grpc
import grpc.aio

from neurona_server.errors import NeuronaError
from neurona_server.rpc.aio_calls import Context
from neurona_server.rpc.call import Methods, Streaming, Unary
from neurona_server.rpc.rights import EVERYTHING, Grant
from neurona_server.rpc.status import status_of
from neurona_server.rpc.tokens import Access


class ServingDoor(Protocol):
    """What methods need of their door."""

    async def serve_unary(
        self, method: Unary, request: bytes, context: Context, grant: Grant
    ) -> bytes: ...

    async def serve_stream(self, method: Streaming, context: Context, grant: Grant) -> None: ...


class AioMethods(grpc.GenericRpcHandler):
    """What gRPC asks, at the start of a call, who serves it."""

    def __init__(
        self,
        door: ServingDoor,
        methods: Methods,
        access: Access | None,
        refused: Callable[[Exception], None],
    ) -> None:
        self._door = door
        self._refused = refused
        self._methods = methods
        self._access = access
        self._handlers = {
            path: _handler(door, method, EVERYTHING) for path, method in methods.items()
        }

    def service(
        self, handler_call_details: grpc.HandlerCallDetails
    ) -> "grpc.RpcMethodHandler[bytes, bytes] | None":
        path = handler_call_details.method
        if self._access is None or path not in self._methods:
            return self._handlers.get(path)
        method = self._methods[path]
        try:
            grant = self._access.grant(method.right, handler_call_details.invocation_metadata)
        except NeuronaError as error:
            self._refused(error)
            return _refusal(error)
        return _handler(self._door, method, grant)


def _refusal(error: NeuronaError) -> "grpc.RpcMethodHandler[bytes, bytes]":
    """Ends a call before its request has been read, unary or not."""

    async def refuse(_: Any, context: Context) -> None:
        await abort(context, error)

    return grpc.stream_stream_rpc_method_handler(refuse)


def _handler(
    door: ServingDoor, method: Unary | Streaming, grant: Grant
) -> "grpc.RpcMethodHandler[bytes, bytes]":
    # Without serializers, grpc hands the bytes through as they are.
    if isinstance(method, Unary):

        async def unary(request: bytes, context: Context) -> bytes:
            return await door.serve_unary(method, request, context, grant)

        return grpc.unary_unary_rpc_method_handler(unary)

    async def stream(_: Any, context: Context) -> None:
        await door.serve_stream(method, context, grant)

    return grpc.stream_stream_rpc_method_handler(stream)


def deadline_of(context: Context) -> float:
    """A point in time on the monotonic clock; inf if the caller set none."""
    remaining = context.time_remaining()
    return math.inf if remaining is None else time.monotonic() + remaining


async def abort(context: Context, error: Exception) -> NoReturn:
    """Ends a call with the status of `error`."""
    status = status_of(error)
    await context.abort(status.code, status.message, status.trailers)
