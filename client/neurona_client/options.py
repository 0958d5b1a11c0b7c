"""What a client can be told: how to reach servers, whom to trust, how often to try."""

import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

DEFAULT_TARGET = "127.0.0.1:8001"
MAX_PENDING_BYTES = 64 << 20
MAX_PENDING_REQUESTS = 4096
"""As many as the server has of one stream before it reads no more of it."""


@dataclass(frozen=True)
class Tls:
    """Files in PEM.

    authority: who signed the server's certificate; None: whom gRPC trusts by itself.
    certificate, key: the client's own, for servers that ask for one (mutual TLS).
    name: what the server's certificate is for, where that is not the name that is dialled.
    """

    authority: Path | str | None = None
    certificate: Path | str | None = None
    key: Path | str | None = None
    name: str | None = None

    def __post_init__(self) -> None:
        if (self.certificate is None) != (self.key is None):
            raise ValueError(
                "a certificate needs its key and a key its certificate; one is missing"
            )


@dataclass(frozen=True)
class Retries:
    """How often a call is tried. Predictions change nothing, so that they may be sent again.

    attempts: how often a request is sent at the most, to whichever server; 1: never again.
        Hedges come on top.
    first_pause, longest_pause: seconds between two attempts, doubled from the one to the other
        and varied at random; where the server says how long, that.
    patience: seconds that a call waits for a server while none can be reached. The call's
        timeout bounds it too.
    hedge_after: seconds without an answer after which a call is sent to another server as well;
        the first answer counts, and the other call is dropped. None: never. About what 95 of 100
        calls take is a good choice. Nothing is hedged with a single server, nor after a server
        has said that it is overloaded.
    hedge_share: hedges per request at the most, so that servers that are slow because they have
        too much to do get little more; up to ten may be saved up.
    """

    attempts: int = 5
    first_pause: float = 0.05
    longest_pause: float = 1.0
    patience: float = 5.0
    hedge_after: float | None = None
    hedge_share: float = 0.1

    def __post_init__(self) -> None:
        if self.attempts < 1:
            raise ValueError(f"attempts is {self.attempts}; expected at least 1")
        if min(self.first_pause, self.longest_pause, self.patience) < 0:
            raise ValueError("pauses and patience must not be negative")
        if self.hedge_after is not None and not self.hedge_after > 0:
            raise ValueError(f"hedge_after is {self.hedge_after}; expected more than 0, or None")
        if not 0 < self.hedge_share <= 1:
            raise ValueError(f"hedge_share is {self.hedge_share}; expected more than 0, 1 at most")


RETRIES = Retries()


@dataclass(frozen=True)
class Options:
    """All of it, checked; see `Client` for what each means."""

    targets: tuple[str, ...]
    coalesce: bool
    timeout: float | None
    token: str | None
    tls: Tls | None
    compression: bool
    retries: Retries
    max_pending_bytes: int
    max_pending_requests: int
    max_message_bytes: int


def options(
    target: str | Sequence[str],
    *,
    coalesce: bool,
    timeout: float | None,
    token: str | None,
    tls: Tls | bool | None,
    compression: bool,
    retries: Retries,
    max_pending_bytes: int,
    max_pending_requests: int,
    max_message_bytes: int,
    token_in_plaintext: bool,
) -> Options:
    """Raises ValueError for what cannot be meant."""
    targets = (target,) if isinstance(target, str) else tuple(target)
    if not targets or not all(targets):
        raise ValueError(f"the target is {target!r}; expected HOST:PORT, or several")
    for name, limit in (("bytes", max_pending_bytes), ("requests", max_pending_requests)):
        if limit < 1:
            raise ValueError(f"max_pending_{name} is {limit}; expected at least 1")
    if timeout is not None and not timeout > 0:
        raise ValueError(f"timeout is {timeout}; expected seconds, more than 0, or None")
    secure = (tls if isinstance(tls, Tls) else Tls()) if tls else None
    if token is not None:
        if not token.isascii() or not token.isprintable() or " " in token or not token:
            raise ValueError("a token is printable ASCII without spaces")
        far = [one for one in targets if not _is_near(one)]
        if secure is None and far and not token_in_plaintext:
            raise ValueError(
                f"the token would be sent to {far[0]!r} in plaintext, readable by everybody on the "
                "way: use tls=True, or say token_in_plaintext=True if the network is safe"
            )
    return Options(
        targets,
        coalesce,
        timeout,
        token,
        secure,
        compression,
        retries,
        max_pending_bytes,
        max_pending_requests,
        max_message_bytes,
    )


def _is_near(target: str) -> bool:
    """Whether what is sent there stays on this machine."""
    if target.startswith(("unix:", "unix-abstract:")):
        return True
    # With a scheme or a name server of its own, gRPC may go anywhere.
    host = target.removeprefix("dns:///").rpartition(":")[0].strip("[]")
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
