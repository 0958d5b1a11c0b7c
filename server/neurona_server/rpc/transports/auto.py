"""Which transport serves: the one on grpcio's completion queue, or the one on its public API.

The first is several times quicker and rests on what grpcio does not promise. So it is tried,
with calls of every kind, before it is used; where it does not do what it should, the other one
takes its place, and the log and a metric say so.
"""

import logging
import threading
from collections.abc import Callable
from typing import Protocol

import grpc

from neurona_server.errors import InvalidArgumentError
from neurona_server.rpc.call import Call, Methods, StreamCall, Streaming, Unary
from neurona_server.rpc.transports.aio import AioListener
from neurona_server.rpc.transports.cygrpc import CygrpcServer
from neurona_server.rpc.transports.listener import ListenerOptions

log = logging.getLogger(__name__)

PATIENCE = 10.0
"""Seconds for each call of the trial."""


class Listener(Protocol):
    name: str
    """Of the transport, for metrics: core or aio."""

    def start(self, address: str) -> int:
        """Listens; the port, which the system chose if `address` ended in ":0".

        Raises ConfigError when the address cannot be had.
        """

    def stop(self, timeout: float) -> None:
        """Accepts no more calls, waits `timeout` seconds for those under way, cancels the rest.

        A second call does nothing.
        """


def open_transport(which: str, methods: Methods, options: ListenerOptions) -> Listener:
    """`which` is core, aio or auto: core if it passes its trial."""
    if which == "aio":
        return AioListener(methods, options)
    if which == "auto" and (reason := self_test()):
        log.warning(
            "the quick transport does not work with grpcio %s (%s); the one on grpc.aio serves, "
            "slower",
            grpc.__version__,
            reason,
        )
        return AioListener(methods, options)
    return CygrpcServer(methods, options)


def self_test() -> str:
    """What the core transport failed at in its trial; "" if it passed."""
    step = "starting"
    try:
        trial = _SelfTest()
        listener = CygrpcServer(trial.methods(), ListenerOptions())
        port = listener.start("127.0.0.1:0")
        try:
            with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
                for step, run in trial.steps().items():  # noqa: B007  it is said if it fails
                    run(channel)
        finally:
            listener.stop(1.0)
    except Exception as error:
        log.debug("the trial of the core transport failed", exc_info=True)
        return f"{step}: {type(error).__name__}"
    return ""


class _SelfTest:
    """Calls of every kind, and what they must come to."""

    def __init__(self) -> None:
        self._arrived = threading.Event()
        self._gone = threading.Event()

    def methods(self) -> Methods:
        return {
            "/trial/Echo": Unary(lambda call: call.reply(call.request), None),
            "/trial/Fail": Unary(
                lambda call: call.fail(InvalidArgumentError("as it should")), None
            ),
            "/trial/Wait": Unary(self._wait, None),
            "/trial/Stream": Streaming(_Echoes, None),
        }

    def steps(self) -> dict[str, Callable[[grpc.Channel], None]]:
        return {
            "unary calls": self._unary,
            "errors": self._errors,
            "cancellation": self._cancellation,
            "streams": self._streams,
        }

    def _wait(self, call: Call) -> None:
        call.on_cancel(self._gone.set)
        self._arrived.set()

    def _unary(self, channel: grpc.Channel) -> None:
        echo: grpc.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary("/trial/Echo")
        answers = [echo.future(bytes([n]) * n, timeout=PATIENCE) for n in range(20)]
        if [answer.result() for answer in answers] != [bytes([n]) * n for n in range(20)]:
            raise ValueError("other answers came than were sent")

    def _errors(self, channel: grpc.Channel) -> None:
        for path, code in (
            ("/trial/Fail", grpc.StatusCode.INVALID_ARGUMENT),
            ("/trial/Nothing", grpc.StatusCode.UNIMPLEMENTED),
        ):
            call: grpc.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(path)
            try:
                call(b"", timeout=PATIENCE)
            except grpc.RpcError as error:
                if error.code() == code:
                    continue
            raise ValueError(f"{path} did not end with {code.name}")

    def _cancellation(self, channel: grpc.Channel) -> None:
        wait: grpc.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary("/trial/Wait")
        call = wait.future(b"", timeout=PATIENCE)
        if not self._arrived.wait(PATIENCE):
            raise TimeoutError("a call did not arrive")
        call.cancel()
        if not self._gone.wait(PATIENCE):
            raise TimeoutError("a cancellation was not noticed")

    def _streams(self, channel: grpc.Channel) -> None:
        sent = [b"a", b"bc", b"def"]
        stream: grpc.StreamStreamMultiCallable[bytes, bytes] = channel.stream_stream(
            "/trial/Stream"
        )
        if list(stream(iter(sent), timeout=PATIENCE)) != sent:
            raise ValueError("other messages came than were sent")


class _Echoes:
    """A stream that sends back what it gets, from another thread."""

    def __init__(self, call: StreamCall) -> None:
        self._call = call
        self._messages: list[bytes] = []
        self._over = False

    def receive(self, message: bytes) -> None:
        self._messages.append(message)
        threading.Thread(target=self._call.wake, daemon=True).start()

    def half_close(self) -> None:
        self._over = True

    def take_message(self) -> bytes | None:
        return self._messages.pop(0) if self._messages else None

    @property
    def congested(self) -> bool:
        return False

    @property
    def finished(self) -> bool:
        return self._over and not self._messages

    def drain(self) -> None:
        """Nothing is under way."""

    def cancel(self) -> None:
        """Nothing is under way."""
