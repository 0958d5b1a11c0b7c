"""Bearer tokens from a file, which holds only their hashes.

    [[tokens]]
    name = "billing"
    sha256 = "…"                        # 64 hexadecimal digits, from neurona-serve --hash-token
    rights = ["predict", "describe"]    # and "control"
    models = ["lenet5", "team-*"]       # optional; default: every model

A plain hash is enough for a long random token, which cannot be guessed; short tokens are not
hashed. Tokens with the same name are one caller, so that a token can be replaced.
"""

import hashlib
import re
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Literal

import msgspec

from neurona_server.errors import ConfigError, UnauthenticatedError
from neurona_server.files import parse_toml
from neurona_server.models.repository.validation import convert
from neurona_server.rpc.security.access import UNRESTRICTED, Grant, Right
from neurona_server.rpc.security.reloaded_files import ReloadedFiles

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
        self._grants = ReloadedFiles("tokens", [file], lambda texts: _parse_tokens(file, texts[0]))

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
        # The duration of the lookup may depend on the digest, but reveals nothing of use: who
        # chooses tokens cannot choose their digests, and a digest does not lead to its token.
        digest = hashlib.sha256(bearer[1].encode(errors="replace")).digest()
        grant = self._grants.content.get(digest)
        if grant is None:
            raise UnauthenticatedError("unknown token")
        grant.check_right(right)
        return grant


def hash_token() -> int:
    """Run neurona-serve --hash-token: read a token from standard input and print its hash."""
    try:
        line = sys.stdin.readline() if sys.stdin is not None else ""  # None: it is closed
        token = line.removeprefix("\ufeff").strip()  # PowerShell's byte order mark
        digest = hashlib.sha256(token.encode()).hexdigest()
    except UnicodeError:  # bytes that are not UTF-8
        token = digest = ""
    if len(token) < MIN_LENGTH or re.search(r"\s", token):
        print(
            f"neurona-serve: expected a token of at least {MIN_LENGTH} characters without spaces "
            "on standard input; openssl rand -base64 32 makes a good one",
            file=sys.stderr,
        )
        return 1
    print(digest)
    return 0


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


def _parse_tokens(file: Path, content: bytes) -> Mapping[bytes, Grant]:
    """Return the grants of the tokens in a file, by the SHA-256 digest of the token."""

    def error(message: str) -> ConfigError:
        hint = ""
        if message.startswith(("unknown key", "missing key")):
            hint = "; tokens are not written in plain text but hashed by neurona-serve --hash-token"
        return ConfigError(f"{file}: {message}{hint}")

    # Errors show no values and no unknown keys: one might be the token itself.
    entries = convert(parse_toml(content, file), _TokensFile, "", error, show_values=False).tokens
    grants = {
        bytes.fromhex(entry.sha256): Grant(
            entry.name,
            frozenset(map(Right, entry.rights)),
            None if entry.models is None else tuple(entry.models),
        )
        for entry in entries
    }
    if len(grants) < len(entries):
        raise error("duplicate tokens (expected each sha256 once)")
    return grants
