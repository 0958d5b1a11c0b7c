"""The demo, run once, and neurona-serve as a process of its own."""

import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import grpc
import pytest
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse
from grpc_health.v1.health_pb2_grpc import HealthStub

BIN = Path(sys.executable).parent
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="session")
def demo(tmp_path_factory):
    """The demo from an empty repository to the end: the repository, and what it printed."""
    repository = tmp_path_factory.mktemp("demo") / "models"
    command = [sys.executable, ROOT / "deploy" / "demo.py", "--repository", repository]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr[-3000:]
    return repository, done.stdout


class Served:
    """neurona-serve as a process of its own."""

    def __init__(self, repository, *flags, trusting=None):
        ports = []
        sockets = [socket.socket() for _ in range(2)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
            ports.append(one.getsockname()[1])
        for one in sockets:
            one.close()
        self.address, self.metrics_address = (f"127.0.0.1:{port}" for port in ports)
        if "--address" in flags:
            self.address = flags[flags.index("--address") + 1]
        self._command = [
            *(BIN / "neurona-serve", "--repository", repository),
            *("--address", self.address, "--metrics-address", self.metrics_address),
            *flags,
        ]
        self.start()
        if trusting is None:
            self.channel = grpc.insecure_channel(self.address)
        else:
            credentials = grpc.ssl_channel_credentials(trusting.read_bytes())
            self.channel = grpc.secure_channel(self.address, credentials)
        self.health = HealthStub(self.channel)

    def start(self):
        """Again, after its end, at the same addresses."""
        self.process = subprocess.Popen(self._command, stderr=subprocess.PIPE, text=True)

    def wait_until_serving(self):
        end = time.monotonic() + 60
        while time.monotonic() < end:
            assert self.process.poll() is None, self.process.stderr.read()
            try:
                state = self.health.Check(HealthCheckRequest(), timeout=1, wait_for_ready=True)
            except grpc.RpcError:
                continue
            if state.status == HealthCheckResponse.SERVING:
                return self
        raise AssertionError("not SERVING after a minute")

    def metrics(self):
        with urllib.request.urlopen(f"http://{self.metrics_address}/metrics") as page:
            return page.read().decode()

    def stop(self, number=signal.SIGTERM):
        self.process.send_signal(number)
        return self.end()

    def end(self):
        """The exit status and the log."""
        log = self.process.communicate(timeout=60)[1]
        return self.process.returncode, log

    def close(self):
        self.channel.close()
        self.process.kill()
        self.process.wait()
        self.process.stderr.close()


@pytest.fixture
def serve():
    yield from _serving()


@pytest.fixture(scope="module")
def serve_for_all():
    """As `serve`, for a server that the tests of a file share."""
    yield from _serving()


@pytest.fixture
def begin_serving():
    """As `serve`, for a test that sees the server start."""
    yield from _serving(wait=False)


def _serving(*, wait=True):
    started = []

    def serve(repository, *flags, **options):
        started.append(Served(repository, *flags, **options))
        return started[-1].wait_until_serving() if wait else started[-1]

    yield serve
    for one in started:
        one.close()
