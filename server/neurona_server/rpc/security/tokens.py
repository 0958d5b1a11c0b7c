"""Bearer tokens from a file, which holds only their hashes.

    [[tokens]]
    name = "billing"
    sha256 = "…"                        # 64 hexadecimal digits, from neurona-serve --hash-token
    rights = ["predict", "describe"]    # and "control"
    models = ["lenet5", "team-*"]       # optional; default: every model

A plain hash is enough for a long random token, which cannot be guessed; short tokens are not
hashed.
"""

import hashlib
import hmac
import re
import sys
import tomllib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import msgspec

from neurona_server.errors import ConfigError, UnauthenticatedError
from neurona_server.models.repository.validation import convert
from neurona_server.rpc.security.access import UNRESTRICTED, Grant, Right
from neurona_server.rpc.security.reloaded_files import ReloadedFiles, read_file

CHECK_PAUSE = 1.0
"""Minimum seconds between two checks whether the file has changed."""

MIN_LENGTH = 20
"""Characters of a token: 120 bits if they are random base64."""

_BEARER = re.compile(r"bearer +(\S+)", re.IGNORECASE)


class Access:
    """Authorizes calls by their token, before the transport reads the request."""

    def __init__(self, file: Path) -> None:
        """Read the tokens, which are reloaded when the file changes.

        Raises:
            ConfigError: The file cannot be read or is invalid. Later the last valid tokens stay.
        """
        self._tokens = ReloadedFiles("tokens", [file], lambda: _read_tokens(file), CHECK_PAUSE)

    def grant(self, right: Right | None, metadata: Iterable[tuple[str, str | bytes]]) -> Grant:
        """Return the grant of a caller by its metadata.

        Methods without a `right` are open to every caller.

        Raises:
            UnauthenticatedError: The token is missing or unknown.
            PermissionDeniedError: It does not have the right.
        """
        if right is None:
            return UNRESTRICTED
        values = [value for key, value in metadata if key == "authorization"]
        if len(values) != 1 or isinstance(values[0], bytes):
            raise UnauthenticatedError(
                "missing token (expected the metadata authorization: Bearer TOKEN, once)"
            )
        bearer = _BEARER.fullmatch(values[0])
        if bearer is None:
            raise UnauthenticatedError("invalid authorization (expected Bearer TOKEN)")
        digest = hashlib.sha256(bearer[1].encode()).digest()
        # All are compared, each in constant time, so that the duration reveals nothing.
        grants = [t.grant for t in self._tokens.current() if hmac.compare_digest(t.digest, digest)]
        if not grants:
            raise UnauthenticatedError("unknown token")
        grants[0].check_right(right)
        return grants[0]


def hash_token() -> int:
    """Run neurona-serve --hash-token: read a token from standard input and print its hash."""
    token = sys.stdin.readline().strip()
    if len(token) < MIN_LENGTH or re.search(r"\s", token):
        print(
            f"neurona-serve: expected a token of at least {MIN_LENGTH} characters without spaces "
            "on standard input; openssl rand -base64 32 makes a good one",
            file=sys.stderr,
        )
        return 1
    print(hashlib.sha256(token.encode()).hexdigest())
    return 0


@dataclass(frozen=True)
class _Token:
    digest: bytes
    grant: Grant


class _TokenEntry(msgspec.Struct, forbid_unknown_fields=True):
    name: Annotated[str, msgspec.Meta(min_length=1)]
    sha256: Annotated[
        str,
        msgspec.Meta(
            pattern=r"\A[0-9a-fA-F]{64}\Z",
            description="64 hexadecimal digits, from neurona-serve --hash-token",
        ),
    ]
    rights: Annotated[list[Literal["predict", "describe", "control"]], msgspec.Meta(min_length=1)]
    models: Annotated[list[str], msgspec.Meta(min_length=1)] | None = None


class _TokensFile(msgspec.Struct, forbid_unknown_fields=True):
    tokens: Annotated[list[_TokenEntry], msgspec.Meta(min_length=1)]


def _read_tokens(file: Path) -> list[_Token]:
    def error(message: str) -> ConfigError:
        hint = ""
        if message.startswith(("unknown key", "missing key")):
            hint = "; tokens are not written in plain text but hashed by neurona-serve --hash-token"
        return ConfigError(f"{file}: {message}{hint}")

    try:
        values = tomllib.loads(read_file(file).decode())
    except ValueError as invalid:  # not TOML, or not UTF-8
        raise ConfigError(f"{file} is not TOML: {invalid}") from invalid
    # Errors show no values and no unknown keys: one might be the token itself.
    entries = convert(values, _TokensFile, "", error, show_values=False).tokens
    tokens = [
        _Token(
            bytes.fromhex(entry.sha256),
            Grant(
                entry.name,
                frozenset(map(Right, entry.rights)),
                None if entry.models is None else tuple(entry.models),
            ),
        )
        for entry in entries
    ]
    if len({token.digest for token in tokens}) < len(tokens):
        raise error("duplicate tokens (expected each sha256 once)")
    return tokens
