"""One server address and the channel to it: name resolution, health, unary calls.

A call of Health.Watch that is always open reports at once when the server serves, drains or is
gone. (gRPC's own state of a channel would have to be polled.) A server that hangs is found by
health checks, which are sent while calls to it get no answer.
"""

import codecs
import contextlib
import json
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import grpc

from neurona_client.errors import (
    DeadlineExceededError,
    ServerError,
    UnavailableError,
    explain_connect_error,
)
from neurona_client.options import ClientOptions, Tls
from neurona_client.targets import bypasses_proxy
from neurona_client.transport.grpc_calls import (
    GENERIC_DEADLINE_MESSAGES,
    Metadata,
    Outcome,
    OutcomeCallback,
    UnaryMethod,
)
from neurona_client.transport.session_channels import SessionChannels
from neurona_protos.wire_format import fields, read_varint

DNS_PREFIX = "dns:"

SERVING = 1  # of grpc.health.v1.HealthCheckResponse
_WATCH_PATH = "/grpc.health.v1.Health/Watch"
_CHECK_PATH = "/grpc.health.v1.Health/Check"

CONNECTION_CLOSED = "connection closed"
"""The client was closed, or the name no longer has the address: another server is tried."""

_KEEPALIVE_MS = 6_000
"""Silence after which gRPC pings. Neurona closes connections that ping every 5 seconds or faster;
a server that rejects this interval too makes gRPC double it."""

_KEEPALIVE_TIMEOUT_MS = 5_000
"""How long gRPC waits for the answer before it closes the connection and ends its calls."""

_MIN_SILENCE_SECONDS = 0.1
"""A server is suspected if calls time out and nothing has come from it for so long ..."""

_CALL_SILENCE_SECONDS = 1.0
"""... or if calls without an answer have been waiting for so long."""

_PROBE_TIMEOUT_SECONDS = 2.0
"""A suspected server that does not answer a health check within this time hangs ..."""

_SLOW_LINK_BYTES_PER_SECOND = 1 << 20
"""... and that which its unanswered requests may take to arrive: a health check waits behind them.
If nothing comes meanwhile, gRPC's ping finds that it hangs."""

_MIN_PROBE_PAUSE_SECONDS = 0.5
_MAX_PROBE_PAUSE_SECONDS = 8.0
"""Between health checks of a server that hangs: doubled each time."""

NO_ANSWER = "server does not answer"
_MIN_RECONNECT_BACKOFF_MS = 100
_MAX_RECONNECT_BACKOFF_MS = 2_000

_CONNECT_TIMEOUT_MS = 5_000
"""How long an attempt to connect may take, with TLS. Handshakes of a server that is far away, or
whose machine is busy, take longer than the pause between two attempts."""

_DIAGNOSIS_DELAY_SECONDS = 0.1
"""Without a status from the server for so long, it is found out why there is no connection."""

_DISCONNECTED_CODES = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED)
_SUSPECT_SECONDS = 1.0
_WATCH_RETRY_SECONDS = 0.1
"""Between two calls of Health.Watch that ended without a message."""
_WATCH_ERROR_RETRY_SECONDS = 2.0
"""After an error of the server: perhaps it has no health service."""


class ResolvedTarget(NamedTuple):
    """What a channel connects to.

    authority: the name that was resolved, which the server's certificate is for; empty where
    `target` contains it.
    """

    target: str
    authority: str = ""


def resolve_target(target: str) -> list[ResolvedTarget]:
    """Resolve a `dns:` target to one target for each address.

    Returns:
        The target itself if it needs no resolution or cannot be resolved now: gRPC then reports
        what is wrong.

    Raises:
        ValueError: the name cannot be a host name.
    """
    if not target.startswith(DNS_PREFIX):
        return [ResolvedTarget(target)]
    name_server, _, name = target.removeprefix(DNS_PREFIX).rpartition("/")
    host, _, port = name.rpartition(":")
    if name_server.strip("/") or not host or not port.isdecimal():
        return [ResolvedTarget(target)]  # left to gRPC
    try:
        addresses = socket.getaddrinfo(host.strip("[]"), int(port), type=socket.SOCK_STREAM)
    except OSError:
        return [ResolvedTarget(target)]
    targets = []
    for family, _, _, _, address in addresses:
        numeric_host = str(address[0])
        if family == socket.AF_INET6:
            targets.append(f"ipv6:[{numeric_host}]:{port}")
        elif family == socket.AF_INET:
            targets.append(f"ipv4:{numeric_host}:{port}")
    resolved = [ResolvedTarget(one, host) for one in dict.fromkeys(targets)]
    return resolved or [ResolvedTarget(target)]


def open_channel(resolved_target: ResolvedTarget, options: ClientOptions) -> grpc.Channel:
    """Open a channel.

    Raises:
        OSError: a file of `options.tls` cannot be read.
    """
    target, authority = resolved_target
    arguments = [
        ("grpc.max_send_message_length", options.max_message_bytes),
        ("grpc.max_receive_message_length", options.max_message_bytes),
        ("grpc.service_config", json.dumps(_service_config(target))),
        # Detects a server that vanished without closing the connection while calls are running.
        ("grpc.keepalive_time_ms", _KEEPALIVE_MS),
        ("grpc.keepalive_timeout_ms", _KEEPALIVE_TIMEOUT_MS),
        ("grpc.http2.ping_timeout_ms", _KEEPALIVE_TIMEOUT_MS),
        ("grpc.initial_reconnect_backoff_ms", _MIN_RECONNECT_BACKOFF_MS),
        # In spite of its name: https://github.com/grpc/grpc/blob/master/doc/connection-backoff.md
        ("grpc.min_reconnect_backoff_ms", _CONNECT_TIMEOUT_MS),
        ("grpc.max_reconnect_backoff_ms", _MAX_RECONNECT_BACKOFF_MS),
        # Each client has connections of its own, so that closing one does not disturb another.
        ("grpc.use_local_subchannel_pool", 1),
    ]
    if authority:
        arguments.append(("grpc.default_authority", authority))
    if bypasses_proxy(target, authority):
        arguments.append(("grpc.enable_http_proxy", 0))
    compression = grpc.Compression.Gzip if options.compression else None
    if options.tls is None:
        return grpc.insecure_channel(target, arguments, compression)
    if name := options.tls.server_name or authority:
        arguments.append(("grpc.ssl_target_name_override", name))
    return grpc.secure_channel(target, _credentials(options.tls), arguments, compression)


def _service_config(target: str) -> dict[str, Any]:
    # round_robin even with one address: unlike pick_first, it reconnects by itself.
    config: dict[str, Any] = {"loadBalancingConfig": [{"round_robin": {}}]}
    if target.startswith(DNS_PREFIX):  # of several addresses, use those that are SERVING
        config["healthCheckConfig"] = {"serviceName": ""}
    return config


def _credentials(tls: Tls) -> grpc.ChannelCredentials:
    files = (tls.ca, tls.key, tls.certificate)
    return grpc.ssl_channel_credentials(
        *(None if file is None else _read_pem(file) for file in files)
    )


def _read_pem(file: str | Path) -> bytes:
    # gRPC does not find a certificate behind the byte order mark of editors on Windows.
    return Path(file).read_bytes().removeprefix(codecs.BOM_UTF8)


class Endpoint:
    """One server address: its channel, its health, and the calls in flight to it."""

    def __init__(
        self,
        resolved_target: ResolvedTarget,
        options: ClientOptions,
        on_state_change: Callable[[], None],
    ) -> None:
        self.resolved_target = resolved_target
        self.stream: Any = None
        """The stream that calls to this server share; set by `BaseClient`."""
        self.reachable = False
        self.serving = False
        """Its health status. A server that is draining is reachable and not serving."""
        self.accepts_streams = True
        """False: it rejects streams, or messages as large as several requests together."""
        self.suspect_until = 0.0
        """In monotonic time: it failed a call, and its health may not have changed yet."""
        self.stream_load: Callable[[], int] = int
        """Returns the number of requests in flight on its stream."""
        self.stream_bytes: Callable[[], int] = int
        """Returns the bytes of those of them that were sent."""
        self.channel = open_channel(resolved_target, options)
        self.session_channels = SessionChannels(lambda: open_channel(resolved_target, options))
        self.hanging = False
        """It has not answered a health check: its connection is open, but calls are not answered.
        Other servers are preferred until it answers again."""
        self.connect_error = ""
        """Why there is no connection, as far as it is known."""
        self.last_answer = time.monotonic()
        """When the last message or status came from it."""
        self._silent_since = 0.0
        self._is_probing = False
        self._next_probe = 0.0
        self._probe_pause = _MIN_PROBE_PAUSE_SECONDS
        # Those in flight, and sessions that wait for answers: what cancels them, and the bytes of
        # their requests.
        self._calls: dict[object, tuple[Callable[[], None], int]] = {}
        self._lost_hedges, self._lost_hedges_until = 0, 0.0
        self._lock = threading.Lock()
        self._methods: dict[str, UnaryMethod] = {}
        self._on_state_change = on_state_change
        self._metadata = auth_metadata(options)
        self.uses_tls = options.tls is not None
        self._closed = threading.Event()
        threading.Thread(target=self._watch_health, name="neurona-watch", daemon=True).start()

    def call(
        self,
        path: str,
        message: bytes,
        timeout: float | None,
        metadata: Metadata,
        callback: OutcomeCallback,
    ) -> Callable[[], None]:
        """Start a unary call and return what cancels it."""
        key = object()
        is_cancelled = False

        def on_end(outcome: Outcome) -> None:
            with self._lock:
                self._calls.pop(key, None)
            if isinstance(outcome, UnavailableError):
                if not is_cancelled:
                    self.mark_suspect()
                if self.hanging:
                    outcome = UnavailableError(NO_ANSWER)
            elif _is_local_timeout(outcome):
                self.record_timeout(timeout or 0.0)
            else:
                self.record_message()
            callback(outcome)

        size = len(message)
        self._calls[key] = _do_nothing, size
        try:
            cancel_call = self._method(path).start(message, timeout, metadata, on_end)
        except ValueError:  # what gRPC raises after the channel was closed
            on_end(UnavailableError(CONNECTION_CLOSED))
            return _do_nothing
        with self._lock:
            if key in self._calls:
                self._calls[key] = cancel_call, size

        def cancel() -> None:
            nonlocal is_cancelled
            is_cancelled = True
            cancel_call()

        return cancel

    def track_session(self, key: object, cancel: Callable[[], None], size: int) -> None:
        """Record that a session waits for answers, until `untrack_session`.

        Args:
            key: the session.
            cancel: ends its stream, if the server hangs.
            size: bytes of its requests without an answer.
        """
        with self._lock:
            self._calls[key] = cancel, size

    def untrack_session(self, key: object) -> None:
        """Record that a session waits for no answer any more."""
        with self._lock:
            self._calls.pop(key, None)

    def mark_suspect(self) -> None:
        """Record a failed call: for a second, other servers are preferred."""
        self.suspect_until = time.monotonic() + _SUSPECT_SECONDS

    def record_timeout(self, seconds: float) -> None:
        """Record that a call had no response for so many seconds, until its timeout.

        If nothing else has come from the server meanwhile, other servers are preferred until it
        answers a health check.
        """
        now = time.monotonic()
        started = now - seconds
        if self.last_answer >= started:
            return
        if self._silent_since <= self.last_answer:
            self._silent_since = started
        if now - self._silent_since >= _MIN_SILENCE_SECONDS:
            self.suspect_until = now + _PROBE_TIMEOUT_SECONDS + _SUSPECT_SECONDS
            self._probe(now)

    def record_message(self) -> None:
        """Record that a message came from the server."""
        self.last_answer = time.monotonic()
        if self.hanging:
            self.record_answer()

    def record_answer(self) -> None:
        """Record that the server does not hang."""
        self.last_answer = time.monotonic()
        self.suspect_until = 0.0
        self.hanging = False
        self._probe_pause = _MIN_PROBE_PAUSE_SECONDS

    def check_answers(self) -> None:
        """Send a health check if calls have waited for long, or if the server hangs.

        To be called several times a second.
        """
        now = time.monotonic()
        if self.hanging:
            if now >= self._next_probe:
                self._probe(now)
        elif self.reachable and now - self.last_answer > _CALL_SILENCE_SECONDS and self.load:
            self._probe(now)

    def fail_calls(self) -> None:
        """End all calls in flight, so that they are sent to another server."""
        if self.stream is not None:
            self.stream.fail(UnavailableError(NO_ANSWER))
        with self._lock:
            calls = list(self._calls.values())
        for cancel, _ in calls:
            cancel()

    def record_lost_hedge(self) -> None:
        """Record that a hedge got a response before the call that this server had first.

        Counts as load for a second, so that faster servers get more calls; it is not a failure.
        """
        with self._lock:
            now = time.monotonic()
            self._lost_hedges = 1 if now > self._lost_hedges_until else self._lost_hedges + 1
            self._lost_hedges_until = now + _SUSPECT_SECONDS

    @property
    def load(self) -> int:
        """Requests in flight."""
        load = len(self._calls) + self.stream_load()
        if self._lost_hedges and time.monotonic() < self._lost_hedges_until:
            load += self._lost_hedges
        return load

    def close(self) -> None:
        """Close the channel; calls in flight end."""
        self._closed.set()
        self.session_channels.close()
        self.channel.close()

    def _method(self, path: str) -> UnaryMethod:
        method = self._methods.get(path)
        if method is None:
            method = self._methods[path] = UnaryMethod(self.channel, path)
        return method

    def _probe(self, now: float) -> None:
        with self._lock:
            if self._is_probing or self._closed.is_set():
                return
            self._is_probing = True

        def on_end(outcome: Outcome) -> None:
            if not _is_local_timeout(outcome):
                if not isinstance(outcome, UnavailableError):  # a lost connection does not hang
                    self.record_answer()
            elif self.last_answer < now:
                self._next_probe = time.monotonic() + self._probe_pause
                self._probe_pause = min(2 * self._probe_pause, _MAX_PROBE_PAUSE_SECONDS)
                self.hanging = True
            self._is_probing = False

        timeout = _PROBE_TIMEOUT_SECONDS + self._count_bytes() / _SLOW_LINK_BYTES_PER_SECOND
        try:
            self._method(_CHECK_PATH).start(b"", timeout, self._metadata, on_end)
        except ValueError:  # the channel is closed
            self._is_probing = False

    def _count_bytes(self) -> int:
        """Return the bytes of the requests that were sent and have no response."""
        with self._lock:
            calls = list(self._calls.values())
        return sum(size for _, size in calls) + self.stream_bytes()

    def _watch_health(self) -> None:
        is_rejected = False
        while not self._closed.is_set():
            received_status = False
            diagnosis = threading.Timer(_DIAGNOSIS_DELAY_SECONDS, self._diagnose_connection)
            diagnosis.daemon = True
            diagnosis.start()
            try:
                method: Any = self.channel.unary_stream(_WATCH_PATH)
                # A server that rejects the call must fail it at once when it is gone. (Without
                # wait_for_ready, gRPC sometimes never ends a call during a reconnection.)
                statuses = method(b"", metadata=self._metadata, wait_for_ready=not is_rejected)
                for response in statuses:
                    diagnosis.cancel()
                    received_status = True
                    self.connect_error = ""
                    self.record_answer()
                    self._set_state(
                        reachable=True, serving=parse_health_status(response) == SERVING
                    )
            except ValueError:  # the channel is closed
                return
            except grpc.RpcError as error:
                is_rejected = error.code() not in _DISCONNECTED_CODES
                if is_rejected:  # it answers calls, if not this one
                    self.connect_error = ""
                    self._set_state(reachable=True, serving=True)
                    self._closed.wait(_WATCH_ERROR_RETRY_SECONDS)
                    continue
            finally:
                diagnosis.cancel()
            self.hanging = False  # it is gone, or the connection was lost
            self._set_state(reachable=False, serving=False)
            if not received_status:
                self._closed.wait(_WATCH_RETRY_SECONDS)

    def _diagnose_connection(self) -> None:
        """Make a call that fails if there is no connection: gRPC's error has the reason."""

        def on_end(outcome: Outcome) -> None:
            if isinstance(outcome, UnavailableError) and not self.reachable:
                self.connect_error = explain_connect_error(str(outcome), uses_tls=self.uses_tls)

        with contextlib.suppress(ValueError):  # the channel is closed
            self._method(_CHECK_PATH).start(b"", _PROBE_TIMEOUT_SECONDS, self._metadata, on_end)

    def _set_state(self, *, reachable: bool, serving: bool) -> None:
        self.reachable, self.serving = reachable, serving
        self._on_state_change()


def auth_metadata(options: ClientOptions) -> Metadata:
    """Return the metadata of every call of a client."""
    return () if options.token is None else (("authorization", f"Bearer {options.token}"),)


def parse_health_status(response: bytes) -> int:
    """Return the status in a HealthCheckResponse, its only field.

    Raises:
        ServerError: the bytes are not a HealthCheckResponse.
    """
    status = 0
    try:
        for field, start, _ in fields(response, 0, len(response)):
            if field == 1:
                status = read_varint(response, start)[0]
    except ValueError as error:
        raise ServerError(f"response is not a HealthCheckResponse: {error}") from error
    return status


def _is_local_timeout(outcome: Outcome) -> bool:
    """Return whether a call timed out without an answer of the server."""
    return isinstance(outcome, DeadlineExceededError) and str(outcome) in GENERIC_DEADLINE_MESSAGES


def _do_nothing() -> None:
    pass
