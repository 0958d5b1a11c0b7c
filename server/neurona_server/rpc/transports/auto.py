"""Chooses the transport: cygrpc, on grpcio's completion queue, or aio, on its public API.

The first is several times faster, but depends on internals of grpcio. So it is tested with calls of
every kind before it is used. If the test fails, the server falls back to aio, which the log and a
metric report.
"""

import logging
import threading
from collections.abc import Callable
from typing import Protocol

import grpc

from neurona_server.errors import InvalidArgumentError
from neurona_server.rpc.call import Call, Methods, StreamCall, Streaming, Unary
from neurona_server.rpc.transports.aio import AioListener
from neurona_server.rpc.transports.buffer_budget import BufferBudget
from neurona_server.rpc.transports.connection_guard import ConnectionGuard
from neurona_server.rpc.transports.cygrpc import CygrpcServer
from neurona_server.rpc.transports.listener import ListenerOptions

log = logging.getLogger(__name__)

STEP_TIMEOUT = 10.0
"""Seconds for each call of the self-test."""


class Listener(Protocol):
    """A transport that listens."""

    name: str
    """The transport's name for metrics: cygrpc or aio."""
    guard: ConnectionGuard
    """Counts its connections, and the bytes that it has received."""
    budget: BufferBudget
    """Counts the bytes of messages that are being received and answered."""

    def start(self, address: str) -> int:
        """Listen; return the port, which the system chose if `address` ends in ":0".

        Raises:
            ConfigError: The address is not available.
        """

    def stop(self, timeout: float) -> bool:
        """Accept no more calls, wait `timeout` seconds for those in flight, cancel the others.

        A second call does nothing.

        Returns:
            False if the thread of the transport still runs: it is hung.
        """

    def has_turned(self) -> bool:
        """Return whether its thread has turned since the last call, or waits for events.

        For one caller only, the `Heartbeat`.
        """


def open_transport(name: str, methods: Methods, options: ListenerOptions) -> Listener:
    """Return the transport of that name: cygrpc, aio, or auto (cygrpc if it passes its test)."""
    if name == "aio":
        return AioListener(methods, options)
    if name == "auto" and (failure := self_test()):
        log.warning(
            "the cygrpc transport failed its self-test with grpcio %s (%s); falling back to "
            "grpc.aio, which is slower",
            grpc.__version__,
            failure,
        )
        return AioListener(methods, options)
    return CygrpcServer(methods, options)


def self_test() -> str:
    """Test the cygrpc transport; return what failed, "" if nothing."""
    step = "start"
    try:
        test = _SelfTest()
        listener = CygrpcServer(test.methods(), ListenerOptions())
        port = listener.start("127.0.0.1:0")
        try:
            # Otherwise the proxy of the environment, which is for other machines, would be asked.
            without_proxy = [("grpc.enable_http_proxy", 0)]
            with grpc.insecure_channel(f"127.0.0.1:{port}", without_proxy) as channel:
                for step, run in test.steps().items():  # noqa: B007  named in the failure
                    run(channel)
        finally:
            listener.stop(1.0)
    except Exception as error:
        log.debug("the self-test of the cygrpc transport failed", exc_info=True)
        return f"{step}: {type(error).__name__}"
    return ""


class _SelfTest:
    """Calls of every kind, and how each must end."""

    def __init__(self) -> None:
        self._call_arrived = threading.Event()
        self._call_cancelled = threading.Event()

    def methods(self) -> Methods:
        return {
            "/self_test/Echo": Unary(lambda call: call.reply(call.request), None),
            "/self_test/Fail": Unary(
                lambda call: call.fail(InvalidArgumentError("expected by the self-test")), None
            ),
            "/self_test/Wait": Unary(self._wait, None),
            "/self_test/Stream": Streaming(_EchoStream, None),
        }

    def steps(self) -> dict[str, Callable[[grpc.Channel], None]]:
        return {
            "unary calls": self._test_unary_calls,
            "errors": self._test_errors,
            "cancellation": self._test_cancellation,
            "streams": self._test_streams,
        }

    def _wait(self, call: Call) -> None:
        call.on_cancel(self._call_cancelled.set)
        self._call_arrived.set()

    def _test_unary_calls(self, channel: grpc.Channel) -> None:
        echo: grpc.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary("/self_test/Echo")
        responses = [echo.future(bytes([n]) * n, timeout=STEP_TIMEOUT) for n in range(20)]
        if [response.result() for response in responses] != [bytes([n]) * n for n in range(20)]:
            raise ValueError("responses differ from the requests")

    def _test_errors(self, channel: grpc.Channel) -> None:
        for path, code in (
            ("/self_test/Fail", grpc.StatusCode.INVALID_ARGUMENT),
            ("/self_test/Unknown", grpc.StatusCode.UNIMPLEMENTED),
        ):
            call: grpc.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(path)
            try:
                call(b"", timeout=STEP_TIMEOUT)
            except grpc.RpcError as error:
                if error.code() == code:
                    continue
            raise ValueError(f"{path} did not end with {code.name}")

    def _test_cancellation(self, channel: grpc.Channel) -> None:
        wait: grpc.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary("/self_test/Wait")
        call = wait.future(b"", timeout=STEP_TIMEOUT)
        if not self._call_arrived.wait(STEP_TIMEOUT):
            raise TimeoutError("the call did not arrive")
        call.cancel()
        if not self._call_cancelled.wait(STEP_TIMEOUT):
            raise TimeoutError("the cancellation was not noticed")

    def _test_streams(self, channel: grpc.Channel) -> None:
        requests = [b"a", b"bc", b"def"]
        stream: grpc.StreamStreamMultiCallable[bytes, bytes] = channel.stream_stream(
            "/self_test/Stream"
        )
        if list(stream(iter(requests), timeout=STEP_TIMEOUT)) != requests:
            raise ValueError("responses differ from the requests")


class _EchoStream:
    """A `Stream` that sends back what it receives, woken from another thread."""

    def __init__(self, call: StreamCall) -> None:
        self._call = call
        self._messages: list[bytes] = []
        self._half_closed = False

    def receive(self, message: bytes) -> None:
        self._messages.append(message)
        threading.Thread(target=self._call.wake, daemon=True).start()

    def half_close(self) -> None:
        self._half_closed = True

    def take_message(self) -> bytes | None:
        return self._messages.pop(0) if self._messages else None

    @property
    def buffered_bytes(self) -> int:
        return 0

    @property
    def congested(self) -> bool:
        return False

    @property
    def finished(self) -> bool:
        return self._half_closed and not self._messages

    def drain(self) -> None:
        """Do nothing: no request is in flight."""

    def cancel(self) -> None:
        """Do nothing: no request is in flight."""
