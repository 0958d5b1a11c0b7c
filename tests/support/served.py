"""neurona-serve as a process of its own, for the tests of whatever speaks to it."""

import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import grpc
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse
from grpc_health.v1.health_pb2_grpc import HealthStub

BIN = Path(sys.executable).parent


class Served:
    """It listens on free ports, unless a flag says where. `own` is the key and the certificate of
    the tests' channel."""

    def __init__(self, repository, *flags, trusting=None, own=(None, None)):
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
            credentials = grpc.ssl_channel_credentials(
                trusting.read_bytes(), *(path and path.read_bytes() for path in own)
            )
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
