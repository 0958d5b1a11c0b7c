"""The client that a command asks with, and arguments that several commands have."""

import argparse
import math
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

DEFAULT_ADDRESS = "127.0.0.1:8001"


@dataclass(frozen=True)
class Connection:
    """What a channel is made of. Certificates and keys are names of PEM files."""

    addresses: tuple[str, ...]
    tls: bool
    ca: str | None = None
    certificate: str | None = None
    key: str | None = None
    server_name: str | None = None
    token: str | None = field(default=None, repr=False)


def add_connection_arguments(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("connection")
    group.add_argument(
        "--address",
        metavar="HOST:PORT",
        help="of the server, or unix:PATH; several replicas with commas between "
        f"(default: {DEFAULT_ADDRESS})",
    )
    group.add_argument("--tls", action="store_true", default=None, help="speak TLS")
    group.add_argument(
        "--ca", metavar="FILE", help="PEM file of the authorities to trust, instead of the usual"
    )
    group.add_argument("--certificate", metavar="FILE", help="PEM file, to show to the server")
    group.add_argument("--key", metavar="FILE", help="PEM file of the certificate's key")
    group.add_argument(
        "--server-name", metavar="NAME", help="that the server's certificate has, if not the host's"
    )
    group.add_argument("--token-file", metavar="FILE", help="file that holds a bearer token")
    group.add_argument(
        "--token-in-plaintext",
        action="store_true",
        help="send it to other machines without TLS: the network is safe",
    )


def connection(options: argparse.Namespace) -> Connection:
    """Raises CommandError for a file that cannot be read and for what does not fit together."""
    addresses = _value(options.address, "NEURONA_ADDRESS") or DEFAULT_ADDRESS
    ca = _value(options.ca, "NEURONA_CA")
    certificate = _value(options.certificate, "NEURONA_CLIENT_CERTIFICATE")
    key = _value(options.key, "NEURONA_CLIENT_KEY")
    for name in (ca, certificate, key):
        content(name)  # found out here, where the message is plain
    if (certificate is None) != (key is None):
        raise CommandError("--certificate and --key go together", WRONG_USAGE)
    server_name = _value(options.server_name, "NEURONA_SERVER_NAME")
    tls = options.tls or _yes_or_no("NEURONA_TLS") or bool(ca or certificate or server_name)
    token = _token(options.token_file)
    found = tuple(one.strip() for one in addresses.split(",") if one.strip())
    if not found:
        raise CommandError(f"the address is {addresses!r}; expected HOST:PORT", WRONG_USAGE)
    return Connection(found, tls, ca, certificate, key, server_name, token)


def seconds(text: str) -> float:
    """For argparse: a duration that is more than nothing."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds above 0")
    return value


def _value(flag: str | None, variable: str) -> str | None:
    return flag if flag is not None else os.environ.get(variable) or None


def _yes_or_no(variable: str) -> bool:
    text = os.environ.get(variable, "")
    if text.lower() not in ("", "true", "false"):
        raise CommandError(f"{variable} is {text!r}; expected true or false", WRONG_USAGE)
    return text.lower() == "true"


def _token(flag: str | None) -> str | None:
    """That of the environment is not looked at where a file is named."""
    read = content(_value(flag, "NEURONA_TOKEN_FILE"))
    text = os.environ.get("NEURONA_TOKEN", "") if read is None else read.decode("ascii", "replace")
    text = text.strip()
    # The token itself is not shown: it is a secret.
    if not text.isascii() or any(character.isspace() for character in text):
        raise CommandError("the token has spaces or is not plain ASCII", WRONG_USAGE)
    return text or None


def content(name: str | None) -> bytes | None:
    """Raises CommandError for a file that cannot be read."""
    if name is None:
        return None
    try:
        return Path(name).read_bytes()
    except OSError as error:
        raise CommandError(f"cannot read {name}: {error.strerror}", WRONG_USAGE) from error


FAILED = 1
WRONG_USAGE = 2


class CommandError(Exception):
    """Its text is the line."""

    def __init__(self, text: str, status: int = FAILED) -> None:
        super().__init__(text)
        self.status = status


if TYPE_CHECKING:
    from neurona_client.async_client import AsyncClient
    from neurona_client.client import Client

    One = TypeVar("One", Client, AsyncClient)

PATIENCE = 1.0
"""Seconds that a command waits for a server that cannot be reached: a person looks on."""


def add_request_arguments(parser: argparse.ArgumentParser, *, timeout: float = 30.0) -> None:
    parser.add_argument(
        "--timeout",
        type=seconds,
        default=timeout,
        metavar="S",
        help=f"seconds to wait for each answer (default: {timeout:g})",
    )
    add_connection_arguments(parser)


def add_which(parser: argparse.ArgumentParser) -> None:
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--version", type=int, metavar="N", help="which version, not the default")
    which.add_argument("--label", metavar="NAME", help='the version with this label, as "latest"')


def client(options: argparse.Namespace) -> "Client":
    """Raises CommandError for options that cannot be meant."""
    from neurona_client.client import Client

    return _made(Client, options, coalesce=True, attempts=5)


def measuring_client(options: argparse.Namespace, *, coalesce: bool) -> "AsyncClient":
    """It tries nothing twice: what fails is to be seen. Raises CommandError."""
    from neurona_client.async_client import AsyncClient

    return _made(AsyncClient, options, coalesce=coalesce, attempts=1)


def _made(
    kind: "type[One]", options: argparse.Namespace, *, coalesce: bool, attempts: int
) -> "One":
    from neurona_client.options import Retries, Tls

    to = connection(options)
    try:
        return kind(
            to.addresses,
            coalesce=coalesce,
            timeout=options.timeout,
            token=to.token,
            tls=Tls(to.ca, to.certificate, to.key, to.server_name) if to.tls else None,
            retries=Retries(attempts=attempts, patience=PATIENCE),
            token_in_plaintext=options.token_in_plaintext,
        )
    except ValueError as error:
        raise CommandError(str(error), WRONG_USAGE) from error
