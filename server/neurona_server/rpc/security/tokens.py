"""Bearer tokens from a file, which holds their hashes only.

    [[tokens]]
    name = "billing"
    sha256 = "…"                        # 64 hex digits, from neurona-serve --hash-token
    rights = ["predict", "describe"]    # and "control"
    models = ["lenet5", "team-*"]       # without it: every model

A plain hash is enough for a long random token, which nobody can guess; short ones are refused
where hashes are made.
"""

import hashlib
import hmac
import re
import sys
import tomllib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from neurona_server.errors import ConfigError, UnauthenticatedError
from neurona_server.rpc.security.access import UNRESTRICTED, Grant, Right
from neurona_server.rpc.security.reloading import ReloadedFiles, content

PAUSE = 1.0
"""Seconds in which the file is looked at once at the most."""

MIN_LENGTH = 20
"""Characters of a token: 120 bits when they are random base64."""

_KEYS = {"name", "sha256", "rights", "models"}
_BEARER = re.compile(r"bearer +(\S+)", re.IGNORECASE)


@dataclass(frozen=True)
class _Token:
    digest: bytes
    grant: Grant


class Access:
    """Whose call is it, and may they? A transport asks before it reads the request.

    Raises ConfigError when the file cannot be used. A file that is broken later leaves the
    tokens as they were.
    """

    def __init__(self, file: Path) -> None:
        self._tokens = ReloadedFiles("tokens", [file], lambda: _read(file), PAUSE)

    def grant(self, right: Right | None, metadata: Iterable[tuple[str, str | bytes]]) -> Grant:
        """Without a `right` the method is open to everybody.

        Raises UnauthenticatedError and PermissionDeniedError.
        """
        if right is None:
            return UNRESTRICTED
        values = [value for key, value in metadata if key == "authorization"]
        if len(values) != 1 or isinstance(values[0], bytes):
            raise UnauthenticatedError(
                "a token is needed; expected the metadata authorization: Bearer TOKEN, once"
            )
        bearer = _BEARER.fullmatch(values[0])
        if bearer is None:
            raise UnauthenticatedError("the authorization is not of the form Bearer TOKEN")
        digest = hashlib.sha256(bearer[1].encode()).digest()
        # All are compared, each in constant time: how long it takes says nothing.
        found = [t.grant for t in self._tokens.current() if hmac.compare_digest(t.digest, digest)]
        if not found:
            raise UnauthenticatedError("the token is not known")
        found[0].check_right(right)
        return found[0]


def hash_token() -> int:
    """neurona-serve --hash-token: reads a token from the standard input, prints its hash."""
    token = sys.stdin.readline().strip()
    if len(token) < MIN_LENGTH or re.search(r"\s", token):
        print(
            f"neurona-serve: expected a token of at least {MIN_LENGTH} characters without spaces "
            "on the standard input; openssl rand -base64 32 makes a good one",
            file=sys.stderr,
        )
        return 1
    print(hashlib.sha256(token.encode()).hexdigest())
    return 0


def _read(file: Path) -> list[_Token]:
    try:
        values = tomllib.loads(content(file).decode())
    except ValueError as error:  # not TOML, or not UTF-8
        raise ConfigError(f"{file} is not TOML: {error}") from error
    entries = values.get("tokens")
    if values.keys() != {"tokens"} or not isinstance(entries, list) or not entries:
        raise ConfigError(f"{file}: expected one or more [[tokens]] and nothing else")
    tokens = [_token(f"{file}: token {number}", entry) for number, entry in enumerate(entries, 1)]
    if len({token.digest for token in tokens}) < len(tokens):
        raise ConfigError(f"{file}: two tokens are the same; expected each once")
    return tokens


def _token(where: str, entry: Any) -> _Token:
    """No value of the file stands in an error: it might be the token itself."""
    if not isinstance(entry, dict) or not {"name", "sha256", "rights"} <= entry.keys() <= _KEYS:
        raise ConfigError(
            f"{where}: expected name, sha256 and rights, may have models; a token in plain text "
            "does not belong into the file, neurona-serve --hash-token hashes it"
        )
    name, digest = entry["name"], entry["sha256"]
    if not isinstance(name, str) or not name:
        raise ConfigError(f"{where}: expected a name")
    if not isinstance(digest, str) or not re.fullmatch("[0-9a-fA-F]{64}", digest):
        raise ConfigError(f"{where}: expected a sha256 of 64 hex digits, as of --hash-token")
    rights = _texts(where, "rights", entry["rights"])
    known = [right.value for right in Right]
    if not set(rights) <= set(known):
        raise ConfigError(f"{where}: expected rights out of {', '.join(known)}")
    models = _texts(where, "models", entry["models"]) if "models" in entry else None
    return _Token(bytes.fromhex(digest), Grant(name, frozenset(map(Right, rights)), models))


def _texts(where: str, key: str, value: Any) -> tuple[str, ...]:
    if not isinstance(value, list) or not value or not all(isinstance(each, str) for each in value):
        raise ConfigError(f"{where}: expected {key} as a list of at least one text")
    return tuple(value)
