"""The client that a command asks with, and arguments that several commands have."""

import argparse
from typing import TYPE_CHECKING, TypeVar

from neurona_client.commands import connection
from neurona_client.commands.failures import WRONG_USAGE, CommandError

if TYPE_CHECKING:
    from neurona_client.aio import AsyncClient
    from neurona_client.client import Client

    One = TypeVar("One", Client, AsyncClient)

PATIENCE = 1.0
"""Seconds that a command waits for a server that cannot be reached: a person looks on."""


def add_arguments(parser: argparse.ArgumentParser, *, timeout: float = 30.0) -> None:
    parser.add_argument(
        "--timeout",
        type=connection.seconds,
        default=timeout,
        metavar="S",
        help=f"seconds to wait for each answer (default: {timeout:g})",
    )
    connection.add_arguments(parser)


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
    from neurona_client.aio import AsyncClient

    return _made(AsyncClient, options, coalesce=coalesce, attempts=1)


def _made(
    kind: "type[One]", options: argparse.Namespace, *, coalesce: bool, attempts: int
) -> "One":
    from neurona_client.options import Retries, Tls

    to = connection.connection(options)
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
