"""Options of a client: how to reach servers, which to trust, how often to try."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from neurona_client.targets import is_local, validate_target

DEFAULT_TARGET = "127.0.0.1:8001"
MAX_PENDING_BYTES = 64 << 20
MAX_PENDING_REQUESTS = 4096
"""The server reads no more of a stream that has this many requests without a response."""


@dataclass(frozen=True)
class Tls:
    """PEM files for TLS.

        Client("models.example.com:8001", tls=Tls(ca="ca.pem"))

    Attributes:
        ca: certificates of the authorities that may sign the server's certificate; None: those
            that gRPC trusts by default.
        certificate: the client's own certificate, for servers that require one (mutual TLS).
        key: the private key of `certificate`.
        server_name: the name in the server's certificate, if it is not the name in the target.

    Raises:
        ValueError: a certificate without its key, or the other way round.
    """

    ca: Path | str | None = None
    certificate: Path | str | None = None
    key: Path | str | None = None
    server_name: str | None = None

    def __post_init__(self) -> None:
        if (self.certificate is None) != (self.key is None):
            absent = "key" if self.key is None else "certificate"
            raise ValueError(f"missing {absent} (expected certificate and key together)")


@dataclass(frozen=True)
class Retries:
    """How often a call is attempted. Predictions change nothing on the server, so a retry is safe.

        servers = ["10.0.0.7:8001", "10.0.0.8:8001"]
        client = Client(servers, retries=Retries(max_attempts=3, hedge_after=0.05))

    Hedging follows J. Dean and L. A. Barroso, "The Tail at Scale", Communications of the ACM
    56 (2), 2013.

    Attributes:
        max_attempts: how often a request is sent, over all servers; 1: no retries. Hedges are not
            counted.
        initial_backoff: seconds before the second attempt, doubled for each further one and
            randomised by up to half. A retry-after of the server replaces it.
        max_backoff: upper bound of the doubled backoff, in seconds.
        unreachable_timeout: seconds that a call waits while no server is reachable. The timeout of
            the call bounds it too.
        hedge_after: seconds without a response after which a call is sent to a second server as
            well; the first response counts, the other call is dropped. None: no hedging. The 95th
            percentile of the latency is a good choice. Has no effect with a single server, nor
            after a server has reported overload.
        hedge_share: maximum hedges per request, above 0 and up to 1, so that servers that are slow
            because of their load get little more of it. Up to ten unused hedges are saved up.

    Raises:
        ValueError: a number outside its range.
    """

    max_attempts: int = 5
    initial_backoff: float = 0.05
    max_backoff: float = 1.0
    unreachable_timeout: float = 5.0
    hedge_after: float | None = None
    hedge_share: float = 0.1

    def __post_init__(self) -> None:
        if self.max_attempts < 1:
            raise ValueError(f"max_attempts is {self.max_attempts} (expected at least 1)")
        for name in ("initial_backoff", "max_backoff", "unreachable_timeout"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} is {getattr(self, name)} (expected 0 or more seconds)")
        if self.hedge_after is not None and not self.hedge_after > 0:
            raise ValueError(
                f"hedge_after is {self.hedge_after} (expected more than 0 seconds, or None)"
            )
        if not 0 < self.hedge_share <= 1:
            raise ValueError(f"hedge_share is {self.hedge_share} (expected more than 0, up to 1)")


DEFAULT_RETRIES = Retries()


@dataclass(frozen=True)
class ClientOptions:
    """All options of a client, validated; `Client` describes each."""

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


def validated_options(
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
) -> ClientOptions:
    """Validate the arguments of `Client` and `AsyncClient`.

    Raises:
        ValueError: an option is outside its range, or the token would travel in plaintext.
    """
    targets = (target,) if isinstance(target, str) else tuple(target)
    if not targets:
        raise ValueError(f"invalid target {target!r} (expected HOST:PORT, or several)")
    for one in targets:
        validate_target(one)
    for name, limit in (("bytes", max_pending_bytes), ("requests", max_pending_requests)):
        if limit < 1:
            raise ValueError(f"max_pending_{name} is {limit} (expected at least 1)")
    if timeout is not None and not timeout > 0:
        raise ValueError(f"timeout is {timeout} (expected more than 0 seconds, or None)")
    secure = (tls if isinstance(tls, Tls) else Tls()) if tls else None
    if token is not None:
        if not token.isascii() or not token.isprintable() or " " in token or not token:
            raise ValueError("invalid token (expected printable ASCII without spaces)")
        remote = [one for one in targets if not is_local(one)]
        if secure is None and remote and not token_in_plaintext:
            raise ValueError(
                f"token would be sent to {remote[0]!r} in plaintext, readable on the network: use "
                "tls=True, or token_in_plaintext=True if the network is safe"
            )
    return ClientOptions(
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
