"""neurona-serve as a process of its own, and callers that do not let it rest."""

import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path

import grpc
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse
from grpc_health.v1.health_pb2_grpc import HealthStub

from neurona_protos.prediction_pb2 import PredictRequest
from neurona_protos.prediction_pb2_grpc import PredictionStub

BIN = Path(sys.executable).parent


def free_address() -> str:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{one.getsockname()[1]}"


class Replica:
    """At the same addresses however often it is started. Its log goes to the test's."""

    def __init__(self, repository: Path, *flags: str) -> None:
        self.address, self.metrics_address = free_address(), free_address()
        self.flags: tuple[str, ...] = flags
        self._repository = repository
        self._process: subprocess.Popen[bytes] | None = None
        self.channel = grpc.insecure_channel(self.address)

    def start(self) -> None:
        command = [BIN / "neurona-serve", "--repository", self._repository]
        addresses = ["--address", self.address, "--metrics-address", self.metrics_address]
        self._process = subprocess.Popen([*command, *addresses, *self.flags])
        end = time.monotonic() + 120
        health = HealthStub(self.channel)
        while time.monotonic() < end:
            assert self._process.poll() is None, "the server has ended"
            try:
                state = health.Check(HealthCheckRequest(), timeout=1, wait_for_ready=True)
            except grpc.RpcError:
                continue
            if state.status == HealthCheckResponse.SERVING:
                return
        raise AssertionError("not SERVING after two minutes")

    def terminate(self) -> None:
        assert self._process is not None
        self._process.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def close(self) -> None:
        self.channel.close()
        self.kill()


class Load:
    """So many callers, each with one request under way at a time, while the block runs. Errors are
    as good an answer as any."""

    def __init__(
        self, replica: Replica, *requests: PredictRequest, callers: int = 1, pause: float = 0.0
    ) -> None:
        """Each caller sends the requests in turn, with `pause` seconds in between."""
        self._stub = PredictionStub(replica.channel)
        self._requests: Sequence[PredictRequest] = requests
        self._pause = pause
        self._over = threading.Event()
        self._callers = [threading.Thread(target=self._call) for _ in range(callers)]

    def __enter__(self) -> "Load":
        for caller in self._callers:
            caller.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        for caller in self._callers:
            caller.join()

    def _call(self) -> None:
        while not self._over.is_set():
            for request in self._requests:
                try:
                    self._stub.Predict(request, timeout=20)
                except grpc.RpcError:
                    self._over.wait(0.01)
                if self._over.wait(self._pause):
                    return
