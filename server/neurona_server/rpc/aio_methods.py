"""A door's methods as `grpc.aio` wants them, and who may call them."""

import math
import time
from collections.abc import Callable
from typing import Any, NoReturn, Protocol

import grpc
import grpc.aio

from neurona_server.errors import NeuronaError, UnsupportedError, quoted
from neurona_server.rpc.aio_calls import Context
from neurona_server.rpc.call import Methods, Streaming, Unary
from neurona_server.rpc.caller import REQUEST_ID, Caller, CallTrace, CallTracer
from neurona_server.rpc.rights import EVERYTHING, Grant
from neurona_server.rpc.status import status_of
from neurona_server.rpc.tokens import Access


class ServingDoor(Protocol):
    """What methods need of their door."""

    async def serve_unary(
        self, method: Unary, request: bytes, context: Context, grant: Grant, trace: CallTrace | None
    ) -> bytes: ...

    async def serve_stream(
        self, method: Streaming, context: Context, grant: Grant, trace: CallTrace | None
    ) -> None: ...


Begin = Callable[[Context], CallTrace | None]


class AioMethods(grpc.GenericRpcHandler):
    """What gRPC asks, at the start of a call, who serves it."""

    def __init__(
        self,
        door: ServingDoor,
        methods: Methods,
        access: Access | None,
        refused: Callable[[Exception], None],
        tracer: CallTracer | None = None,
    ) -> None:
        self._door = door
        self._refused = refused
        self._methods = methods
        self._access = access
        self._tracer = tracer
        self._handlers = {
            path: self._handler(path, method, EVERYTHING) for path, method in methods.items()
        }

    def service(
        self, handler_call_details: grpc.HandlerCallDetails
    ) -> "grpc.RpcMethodHandler[bytes, bytes]":
        path = handler_call_details.method
        if path not in self._methods:
            return _refusal(UnsupportedError(f"there is no method {quoted(path)}"))
        if self._access is None:
            return self._handlers[path]
        method = self._methods[path]
        try:
            grant = self._access.grant(method.right, handler_call_details.invocation_metadata)
        except NeuronaError as error:
            self._refused(error)
            return _refusal(error)
        return self._handler(path, method, grant)

    def _handler(
        self, path: str, method: Unary | Streaming, grant: Grant
    ) -> "grpc.RpcMethodHandler[bytes, bytes]":
        tracer = None if method.right is None else self._tracer

        def begin(context: Context) -> CallTrace | None:
            if tracer is None:
                return None
            metadata = context.invocation_metadata() or ()
            return tracer.call(path, metadata) if tracer.samples(metadata) else None

        return _handler(self._door, method, grant, begin)


def _refusal(error: NeuronaError) -> "grpc.RpcMethodHandler[bytes, bytes]":
    """Ends a call before its request has been read, unary or not."""

    async def refuse(_: Any, context: Context) -> None:
        await abort(context, error, Caller(context.invocation_metadata, None))

    return grpc.stream_stream_rpc_method_handler(refuse)


def _handler(
    door: ServingDoor, method: Unary | Streaming, grant: Grant, begin: Begin
) -> "grpc.RpcMethodHandler[bytes, bytes]":
    # Without serializers, grpc hands the bytes through as they are.
    if isinstance(method, Unary):

        async def unary(request: bytes, context: Context) -> bytes:
            return await door.serve_unary(method, request, context, grant, begin(context))

        return grpc.unary_unary_rpc_method_handler(unary)

    async def stream(_: Any, context: Context) -> None:
        await door.serve_stream(method, context, grant, begin(context))

    return grpc.stream_stream_rpc_method_handler(stream)


def deadline_of(context: Context) -> float:
    """A point in time on the monotonic clock; inf if the caller set none."""
    remaining = context.time_remaining()
    return math.inf if remaining is None else time.monotonic() + remaining


async def abort(context: Context, error: Exception, caller: Caller) -> NoReturn:
    """Ends a call with the status of `error`."""
    status = status_of(error, caller)
    if caller.trace is not None:
        caller.trace.end(error)
    trailers = (*status.trailers, (REQUEST_ID, caller.request_id))
    await context.abort(status.code, status.message, trailers)
