"""Runs neurona-serve as a process, and puts load on it."""

import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

import grpc
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse
from grpc_health.v1.health_pb2_grpc import HealthStub

from neurona_protos.prediction_pb2 import PredictRequest
from neurona_protos.prediction_pb2_grpc import PredictionStub

NEURONA_SERVE = Path(sys.executable).with_name("neurona-serve")


def free_addresses(count: int) -> list[str]:
    """Return different addresses of loopback whose ports are free."""
    sockets = [socket.socket() for _ in range(count)]
    for listener in sockets:
        listener.bind(("127.0.0.1", 0))
    addresses = [f"127.0.0.1:{listener.getsockname()[1]}" for listener in sockets]
    for listener in sockets:
        listener.close()
    return addresses


def run_neurona_serve(*arguments: object, **options: Any) -> subprocess.CompletedProcess[str]:
    """Run the command to its end, for arguments with which it does not serve.

    With a repository, its ports are any free ones unless the arguments name others. `options` are
    those of `subprocess.run`.
    """
    command = [str(argument) for argument in (NEURONA_SERVE, *arguments)]
    for flag in ("--address", "--metrics-address"):
        if "--repository" in command and flag not in command:
            command += [flag, "127.0.0.1:0"]
    return subprocess.run(
        command, check=False, capture_output=True, text=True, timeout=180, **options
    )


class ServerProcess:
    """A neurona-serve at addresses that stay the same however often it is started.

    The ports are free ones of loopback unless the flags name an address. A context manager starts
    the server, waits until it serves, and ends it.
    """

    def __init__(
        self,
        repository: Path,
        *flags: object,
        trusted_ca: Path | None = None,
        client_certificate: tuple[Path, Path] | None = None,
    ) -> None:
        """The tests' channel uses TLS with `trusted_ca`, and shows `client_certificate` with its
        key if there is one."""
        self.flags: tuple[object, ...] = flags
        free = free_addresses(2)
        self.address = self._flag("--address") or free[0]
        self.metrics_address = self._flag("--metrics-address") or free[1]
        self.http_address = self._flag("--http-address") or "off"
        self._repository = repository
        self._process: subprocess.Popen[bytes] | None = None
        self._folder = tempfile.TemporaryDirectory(prefix="neurona-serve-")
        self._log_file = Path(self._folder.name) / "log"
        if trusted_ca is None:
            self.channel = grpc.insecure_channel(self.address)
        else:
            chain, key = (
                [path.read_bytes() for path in client_certificate]
                if client_certificate
                else (None, None)
            )
            credentials = grpc.ssl_channel_credentials(trusted_ca.read_bytes(), key, chain)
            self.channel = grpc.secure_channel(self.address, credentials)
        self.health = HealthStub(self.channel)

    def __enter__(self) -> Self:
        return self.start().wait_until_serving()

    def __exit__(self, *_: object) -> None:
        self.close()

    def start(self) -> Self:
        """Start the process, for the first time or after its end; its log starts empty."""
        command = [
            *(NEURONA_SERVE, "--repository", self._repository),
            *("--address", self.address, "--metrics-address", self.metrics_address),
            *("--http-address", self.http_address),
            *self.flags,
        ]
        self._log_file.write_bytes(b"")
        with self._log_file.open("ab") as log:
            self._process = subprocess.Popen([str(word) for word in command], stderr=log)
        return self

    def wait_until_serving(self, timeout: float = 120.0) -> Self:
        """Wait until the health service says SERVING; fails if the process ends before."""
        end = time.monotonic() + timeout
        while time.monotonic() < end:
            assert self.is_running, f"the server has ended:\n{self.log}"
            try:
                response = self.health.Check(HealthCheckRequest(), timeout=1, wait_for_ready=True)
            except grpc.RpcError:
                continue
            if response.status == HealthCheckResponse.SERVING:
                return self
        raise AssertionError(f"not SERVING after {timeout:g} s:\n{self.log}")

    @property
    def is_running(self) -> bool:
        """Whether the process has been started and has not ended."""
        return self._process is not None and self._process.poll() is None

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    @property
    def port(self) -> int:
        """The port of gRPC."""
        return int(self.address.rpartition(":")[2])

    @property
    def log(self) -> str:
        """The log of the process since it was last started."""
        return self._log_file.read_text(errors="replace")

    def metrics(self) -> str:
        """Return the metrics in Prometheus' text format."""
        with urllib.request.urlopen(f"http://{self.metrics_address}/metrics") as response:
            text: str = response.read().decode()
        return text

    def sample(self, series: str) -> float:
        """Return the value of a series of the metrics, its labels included in the name."""
        (value,) = re.findall(rf"^{re.escape(series)} (\S+)$", self.metrics(), re.MULTILINE)
        return float(value)

    def send_signal(self, number: int) -> None:
        """Send a signal; after SIGSTOP, wait until no thread of the process runs any more."""
        assert self._process is not None
        self._process.send_signal(number)
        if number == signal.SIGSTOP:
            # Without that, a busy machine has it answer one more request.
            os.waitid(os.P_PID, self.pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)

    def terminate(self) -> None:
        """Send SIGTERM, and return at once."""
        self.send_signal(signal.SIGTERM)

    def wait(self) -> int:
        """Wait for the end of the process and return its exit status."""
        assert self._process is not None
        return self._process.wait(timeout=60)

    def stop(self, number: int = signal.SIGTERM) -> int:
        """Send a signal, wait for the end of the process and return its exit status."""
        self.send_signal(number)
        return self.wait()

    def kill(self) -> None:
        """End the process by SIGKILL, if it runs."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    def close(self) -> None:
        """Kill the process and delete its log."""
        self.channel.close()
        self.kill()
        self._folder.cleanup()

    def _flag(self, name: str) -> str | None:
        return str(self.flags[self.flags.index(name) + 1]) if name in self.flags else None


class LoadGenerator:
    """Sends Predict requests from several threads while its block runs, and ignores errors.

    Each caller has one request in flight at a time and sends the requests in turn.
    """

    def __init__(
        self,
        channels: Sequence[grpc.Channel],
        *requests: PredictRequest,
        callers: int = 1,
        pause: float = 0.0,
        wait_for_ready: bool = False,
    ) -> None:
        """There are `callers` on each channel, which pause `pause` seconds after each call."""
        self.answered = 0
        """Calls that succeeded."""
        self.error: grpc.RpcError | None = None
        """The error of the first call that failed."""
        self._requests = requests
        self._pause = pause
        self._wait_for_ready = wait_for_ready
        self._counting = threading.Lock()
        self._stopping = threading.Event()
        self._threads = [
            threading.Thread(target=self._call, args=[PredictionStub(channel)])
            for channel in channels
            for _ in range(callers)
        ]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping.set()
        for thread in self._threads:
            thread.join()

    def _call(self, stub: PredictionStub) -> None:
        while not self._stopping.is_set():
            for request in self._requests:
                try:
                    stub.Predict(request, timeout=20, wait_for_ready=self._wait_for_ready)
                except grpc.RpcError as error:
                    self.error = self.error or error
                    self._stopping.wait(0.01)
                else:
                    with self._counting:
                        self.answered += 1
                if self._stopping.wait(self._pause):
                    return
