"""Arguments that several subcommands share, and the client that they describe."""

import argparse
import codecs
import math
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from neurona_client.files.content import FileContentError
from neurona_client.files.texts import decode_text
from neurona_client.targets import validate_target

if TYPE_CHECKING:
    from neurona_client.async_client import AsyncClient
    from neurona_client.client import Client

    C = TypeVar("C", Client, AsyncClient)

DEFAULT_ADDRESS = "127.0.0.1:8001"

FAILED = 1
WRONG_USAGE = 2

UNREACHABLE_TIMEOUT = 1.0
"""Seconds that a command waits for an unreachable server; less than the client's default, because
a person is waiting."""


MAX_SECONDS = 1e8
"""Longer durations mean three years: the clocks of Python and gRPC cannot count them all."""


MAX_FILE_BYTES = 16 << 20
"""Of a file of certificates, a key or a token."""


class CommandError(Exception):
    """Ends a command with a line on standard error and an exit status."""

    def __init__(self, text: str, status: int = FAILED) -> None:
        super().__init__(text)
        self.status = status


@dataclass(frozen=True)
class Connection:
    """How to connect to servers. Certificates and keys are names of PEM files."""

    addresses: tuple[str, ...]
    tls: bool
    ca: str | None = None
    certificate: str | None = None
    key: str | None = None
    server_name: str | None = None
    token: str | None = field(default=None, repr=False)


def add_connection_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments that `connection_from` reads."""
    group = parser.add_argument_group("connection")
    group.add_argument(
        "--address",
        metavar="HOST:PORT",
        help="server, or unix:PATH; several replicas separated by commas "
        f"(default: {DEFAULT_ADDRESS})",
    )
    group.add_argument("--tls", action="store_true", default=None, help="use TLS")
    group.add_argument(
        "--ca",
        metavar="FILE",
        help="PEM file of the certificate authorities to trust (default: those of gRPC)",
    )
    group.add_argument(
        "--certificate", metavar="FILE", help="PEM file of the client certificate (mutual TLS)"
    )
    group.add_argument("--key", metavar="FILE", help="PEM file of the key of --certificate")
    group.add_argument(
        "--server-name", metavar="NAME", help="name in the server's certificate (default: the host)"
    )
    group.add_argument("--token-file", metavar="FILE", help="file that contains a bearer token")
    group.add_argument(
        "--token-in-plaintext",
        action="store_true",
        help="send the token to other machines without TLS, in a network that is safe",
    )


def add_request_arguments(parser: argparse.ArgumentParser, *, timeout: float = 30.0) -> None:
    """Add the timeout of each response, in seconds, and the connection."""
    parser.add_argument(
        "--timeout",
        type=positive_seconds,
        default=timeout,
        metavar="S",
        help=f"seconds to wait for each response (default: {timeout:g})",
    )
    add_connection_arguments(parser)


def add_version_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the choice of a version of the model."""
    group = parser.add_mutually_exclusive_group()
    group.add_argument(
        "--version", type=int, metavar="N", help="version (default: the server's choice)"
    )
    group.add_argument(
        "--label", metavar="NAME", help="version that this label points to, such as latest"
    )


def connection_from(options: argparse.Namespace) -> Connection:
    """Read the connection from flags and the environment.

    Raises:
        CommandError: a file cannot be read, or options contradict each other.
    """
    addresses = _flag_or_variable(options.address, "NEURONA_ADDRESS") or DEFAULT_ADDRESS
    ca = _flag_or_variable(options.ca, "NEURONA_CA")
    certificate = _flag_or_variable(options.certificate, "NEURONA_CLIENT_CERTIFICATE")
    key = _flag_or_variable(options.key, "NEURONA_CLIENT_KEY")
    if (certificate is None) != (key is None):
        raise CommandError("--certificate and --key are required together", WRONG_USAGE)
    for name in (ca, certificate, key):  # fails here, where the message is plain, not in gRPC
        content = read_file(name)
        if content is not None and b"-----BEGIN " not in content:
            raise CommandError(f"{name} is no PEM file (expected -----BEGIN ...)", WRONG_USAGE)
    server_name = _flag_or_variable(options.server_name, "NEURONA_SERVER_NAME")
    tls = options.tls or _boolean_variable("NEURONA_TLS") or bool(ca or certificate or server_name)
    token = _read_token(options.token_file)
    targets = tuple(one.strip() for one in addresses.split(",") if one.strip())
    if not targets:
        raise CommandError(f"invalid address {addresses!r} (expected HOST:PORT)", WRONG_USAGE)
    try:
        for target in targets:
            validate_target(target)
    except ValueError as error:
        raise CommandError(str(error), WRONG_USAGE) from error
    if server_name is not None and not server_name.isprintable():
        raise CommandError(f"invalid name {server_name!r} (expected that of a host)", WRONG_USAGE)
    return Connection(targets, tls, ca, certificate, key, server_name, token)


def make_client(options: argparse.Namespace) -> "Client":
    """Create a client for a command.

    Raises:
        CommandError: an option is invalid.
    """
    from neurona_client.client import Client

    return _make_client(Client, options, coalesce=True, max_attempts=5)


def make_bench_client(options: argparse.Namespace, *, coalesce: bool) -> "AsyncClient":
    """Create a client that retries nothing, so that failures are counted.

    Raises:
        CommandError: an option is invalid.
    """
    from neurona_client.async_client import AsyncClient

    return _make_client(AsyncClient, options, coalesce=coalesce, max_attempts=1)


def _make_client(
    client_type: "type[C]", options: argparse.Namespace, *, coalesce: bool, max_attempts: int
) -> "C":
    from neurona_client.options import Retries, Tls

    to = connection_from(options)
    try:
        return client_type(
            to.addresses,
            coalesce=coalesce,
            timeout=options.timeout,
            token=to.token,
            tls=Tls(to.ca, to.certificate, to.key, to.server_name) if to.tls else None,
            retries=Retries(max_attempts=max_attempts, unreachable_timeout=UNREACHABLE_TIMEOUT),
            token_in_plaintext=options.token_in_plaintext,
        )
    except ValueError as error:
        raise CommandError(str(error), WRONG_USAGE) from error


def positive_seconds(text: str) -> float:
    """Parse a duration, for argparse."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"invalid duration {text!r} (expected seconds above 0)")
    return min(value, MAX_SECONDS)


def read_file(name: str | None) -> bytes | None:
    """Return the content of a file; None for no name.

    Raises:
        CommandError: the file cannot be read.
    """
    if name is None:
        return None
    try:
        with Path(name).open("rb") as file:
            content = file.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise CommandError(f"cannot read {name}: {error.strerror}", WRONG_USAGE) from error
    if len(content) > MAX_FILE_BYTES:  # or without an end, like /dev/zero
        raise CommandError(
            f"{name} is too large (expected at most {MAX_FILE_BYTES} bytes)", WRONG_USAGE
        )
    return content.removeprefix(codecs.BOM_UTF8)  # of editors on Windows


def _flag_or_variable(flag: str | None, variable: str) -> str | None:
    return flag if flag is not None else os.environ.get(variable) or None


def _boolean_variable(variable: str) -> bool:
    text = os.environ.get(variable, "")
    if text.lower() not in ("", "true", "false"):
        raise CommandError(f"{variable} is {text!r} (expected true or false)", WRONG_USAGE)
    return text.lower() == "true"


def _read_token(flag: str | None) -> str | None:
    """Read the token from a file if one is named, else from the environment."""
    content = read_file(_flag_or_variable(flag, "NEURONA_TOKEN_FILE"))
    if content is None:
        text = os.environ.get("NEURONA_TOKEN", "")
    else:
        try:
            text = decode_text(content)
        except FileContentError as error:
            raise CommandError("invalid token file (expected text)", WRONG_USAGE) from error
    text = text.strip()
    # The message does not show the token: it is a secret.
    if not text.isascii() or any(character.isspace() for character in text):
        raise CommandError("invalid token (expected ASCII without spaces)", WRONG_USAGE)
    return text or None
