"""One target and the channel to it: whether it can be reached, and single calls over it.

Whether it can be reached says a call of Health.Watch that is always open: it tells at once when a
server serves, leaves or is gone. (gRPC's own word on a channel's state has to be polled for.)
"""

import json
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import grpc

from neurona_client.errors import DeadlineError, NeuronaError, ServerError, UnavailableError
from neurona_client.options import Options, Tls
from neurona_client.transport.grpc_calls import Done, Metadata, Method, Outcome
from neurona_protos.wire_format import fields, read_varint

PREFIX = "dns:"


class Place(NamedTuple):
    """Where a channel goes.  authority: the name that was asked for, which a certificate is for;
    empty where the target itself says it."""

    target: str
    authority: str = ""


def places(target: str) -> list[Place]:
    """Of a name that cannot be looked up now, the target itself: gRPC will say what is wrong.

    Raises ValueError for what no name can be.
    """
    if not target.startswith(PREFIX):
        return [Place(target)]
    authority, _, name = target.removeprefix(PREFIX).rpartition("/")
    host, _, port = name.rpartition(":")
    if authority.strip("/") or not host or not port.isdecimal():
        return [Place(target)]  # a name server of its own, or none of our syntax
    try:
        found = socket.getaddrinfo(host.strip("[]"), int(port), type=socket.SOCK_STREAM)
    except OSError:
        return [Place(target)]
    targets = []
    for family, _, _, _, address in found:
        numeric = str(address[0])
        if family == socket.AF_INET6:
            targets.append(f"ipv6:[{numeric}]:{port}")
        elif family == socket.AF_INET:
            targets.append(f"ipv4:{numeric}:{port}")
    return [Place(one, host) for one in dict.fromkeys(targets)] or [Place(target)]


_KEEPALIVE_MS = 30_000
_KEEPALIVE_TIMEOUT_MS = 10_000
_FIRST_RECONNECT_MS = 100
_LONGEST_RECONNECT_MS = 2_000


def open_channel(place: Place, options: Options) -> grpc.Channel:
    """Raises OSError for a file of `tls` that cannot be read."""
    arguments = [
        ("grpc.max_send_message_length", options.max_message_bytes),
        ("grpc.max_receive_message_length", options.max_message_bytes),
        ("grpc.service_config", json.dumps(_service_config(place.target))),
        # Notices servers that are gone without a word, while calls are under way.
        ("grpc.keepalive_time_ms", _KEEPALIVE_MS),
        ("grpc.keepalive_timeout_ms", _KEEPALIVE_TIMEOUT_MS),
        ("grpc.initial_reconnect_backoff_ms", _FIRST_RECONNECT_MS),
        ("grpc.min_reconnect_backoff_ms", _FIRST_RECONNECT_MS),
        ("grpc.max_reconnect_backoff_ms", _LONGEST_RECONNECT_MS),
        # Each client has connections of its own, so that closing one disturbs no other.
        ("grpc.use_local_subchannel_pool", 1),
    ]
    if place.authority:
        arguments.append(("grpc.default_authority", place.authority))
    compression = grpc.Compression.Gzip if options.compression else None
    if options.tls is None:
        return grpc.insecure_channel(place.target, arguments, compression)
    if name := options.tls.name or place.authority:
        arguments.append(("grpc.ssl_target_name_override", name))
    return grpc.secure_channel(place.target, _credentials(options.tls), arguments, compression)


def _service_config(target: str) -> dict[str, Any]:
    # round_robin with one address as well: unlike pick_first, it connects again by itself.
    config: dict[str, Any] = {"loadBalancingConfig": [{"round_robin": {}}]}
    if target.startswith(PREFIX):  # of several servers, those that serve
        config["healthCheckConfig"] = {"serviceName": ""}
    return config


def _credentials(tls: Tls) -> grpc.ChannelCredentials:
    return grpc.ssl_channel_credentials(
        _content(tls.authority), _content(tls.key), _content(tls.certificate)
    )


def _content(file: Path | str | None) -> bytes | None:
    return None if file is None else Path(file).read_bytes()


SERVING = 1  # of grpc.health.v1.HealthCheckResponse
_WATCH = "/grpc.health.v1.Health/Watch"
SAYS_NOTHING = ("no answer came in time", "Deadline Exceeded")
"""What is said of a deadline by those who do not know how long it was."""

CLOSED = "the connection is closed"
"""As the client is, or its name no longer has the address: then another one is asked."""

_GONE = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED)
_DOUBT = 1.0  # seconds
_PAUSE = 0.1  # seconds between two tries of a server that ends them at once
_LONG_PAUSE = 2.0  # of one that answers with another error: it has no such method, perhaps


class Endpoint:
    def __init__(self, place: Place, options: Options, changed: Callable[[], None]) -> None:
        self.place = place
        self.stream: Any = None
        """The one that calls to it share; for `Predictions`."""
        self.reachable = False
        self.serving = False
        """What its health says. A server that drains is reachable and does not serve."""
        self.shares = True
        """False: it takes no streams, or no messages as large as several requests together."""
        self.doubtful_until = 0.0
        """Of the monotonic clock: it failed a call, and its health may not have noticed yet."""
        self._alone = 0
        self._overtaken, self._overtaken_until = 0, 0.0
        self._lock = threading.Lock()
        self.stream_load: Callable[[], int] = int
        """Requests under way in the stream to it."""
        self.channel = open_channel(place, options)
        self._methods: dict[str, Method] = {}
        self._changed = changed
        self._metadata = metadata(options)
        self._closed = threading.Event()
        threading.Thread(target=self._watch, name="neurona-watch", daemon=True).start()

    def call(
        self, path: str, message: bytes, timeout: float | None, metadata: Metadata, done: Done
    ) -> Callable[[], None]:
        """A call of its own. What is returned cancels it."""
        method = self._methods.get(path)
        if method is None:
            method = self._methods[path] = Method(self.channel, path)
        given_up = False

        def ended(with_: Outcome) -> None:
            self._count(-1)
            if isinstance(with_, UnavailableError) and not given_up:
                self.doubt()
            done(with_)

        self._count(1)
        try:
            cancel = method.start(message, timeout, metadata, ended)
        except ValueError:  # how gRPC refuses what comes after `close`
            ended(UnavailableError(CLOSED))
            return _nothing

        def give_up() -> None:
            nonlocal given_up
            given_up = True
            cancel()

        return give_up

    def doubt(self) -> None:
        self.doubtful_until = time.monotonic() + _DOUBT

    def overtaken(self) -> None:
        """Another one has answered a call that this one had first. Counted as load for a while,
        it makes others go to faster servers; a failure it is not."""
        with self._lock:
            now = time.monotonic()
            self._overtaken = 1 if now > self._overtaken_until else self._overtaken + 1
            self._overtaken_until = now + _DOUBT

    @property
    def load(self) -> int:
        """Requests under way."""
        load = self._alone + self.stream_load()
        if self._overtaken and time.monotonic() < self._overtaken_until:
            load += self._overtaken
        return load

    def _count(self, change: int) -> None:
        with self._lock:
            self._alone += change

    def close(self) -> None:
        self._closed.set()
        self.channel.close()

    def _watch(self) -> None:
        refused = False
        while not self._closed.is_set():
            known = False
            try:
                method: Any = self.channel.unary_stream(_WATCH)
                # Of a server that tells nothing, it must be found out when it is gone.
                for answer in method(b"", metadata=self._metadata, wait_for_ready=not refused):
                    known = True
                    self._notice(reachable=True, serving=health_of(answer) == SERVING)
            except ValueError:  # the channel is closed
                return
            except grpc.RpcError as error:
                refused = error.code() not in _GONE
                if refused:  # it has an answer, if not to this
                    self._notice(reachable=True, serving=True)
                    self._closed.wait(_LONG_PAUSE)
                    continue
            self._notice(reachable=False, serving=False)
            if not known:
                self._closed.wait(_PAUSE)

    def _notice(self, *, reachable: bool, serving: bool) -> None:
        self.reachable, self.serving = reachable, serving
        self._changed()


def metadata(options: Options) -> Metadata:
    """Of every call."""
    return () if options.token is None else (("authorization", f"Bearer {options.token}"),)


def health_of(answer: bytes) -> int:
    """The status in a HealthCheckResponse, whose only field it is. Raises ServerError."""
    state = 0
    try:
        for field, start, _ in fields(answer, 0, len(answer)):
            if field == 1:
                state = read_varint(answer, start)[0]
    except ValueError as error:
        raise ServerError(f"the answer is no HealthCheckResponse: {error}") from error
    return state


def late() -> NeuronaError:
    return DeadlineError(SAYS_NOTHING[0])


def _nothing() -> None:
    pass
