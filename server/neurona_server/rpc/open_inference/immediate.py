"""Calls that are answered where they arrive: they wait for nothing."""

from collections.abc import Callable
from typing import TypeVar

from google.protobuf.message import DecodeError, Message

from neurona_server.errors import InvalidError, NeuronaError
from neurona_server.rpc.call import Call, Unary
from neurona_server.rpc.rights import Grant, Right

Request = TypeVar("Request", bound=Message)


def parse(kind: type[Request], data: bytes) -> Request:
    """Raises InvalidError."""
    try:
        return kind.FromString(data)
    except DecodeError:
        name = kind.DESCRIPTOR.full_name
        raise InvalidError(f"the bytes are not an {name}") from None


def immediate(
    right: Right | None, kind: type[Request], respond: Callable[[Request, Grant], Message]
) -> Unary:
    """For callers with the `right`; None: for everybody."""

    def start(call: Call) -> None:
        try:
            response = respond(parse(kind, call.request), call.grant)
        except NeuronaError as error:
            call.fail(error)
        else:
            call.reply(response.SerializeToString())

    return Unary(start, right)
