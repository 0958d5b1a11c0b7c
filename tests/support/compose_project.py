"""deploy/compose.yaml as a test project, and a load generator that counts failed calls."""

import collections
import shutil
import subprocess
import threading

import grpc
import numpy as np

from neurona_client import PredictionStub, PredictRequest, to_tensor
from support.docker_engine import ROOT, free_ports, until

FILES = ("deploy/compose.yaml", "tests/deploy/compose.test.yaml")


def compose_command():
    """Returns the plug-in `docker compose`, or the older docker-compose; None without both."""
    if docker := shutil.which("docker"):
        version = subprocess.run([docker, "compose", "version"], check=False, capture_output=True)
        if version.returncode == 0:
            return [docker, "compose"]
    older = shutil.which("docker-compose")
    return [older] if older else None


class Project:
    """The services of a profile, with their own volumes, on free ports of loopback."""

    def __init__(self, engine, images, name="neurona-test"):
        command = compose_command()
        assert command, "docker compose is not installed"
        self._engine = engine
        self._command = [*command, "-p", name]
        for file in FILES:
            self._command += ["-f", str(ROOT / file)]
        ports = [f"127.0.0.1:{port}" for port in free_ports(3)]
        self.address, self.http, self.prometheus = ports
        names = ("NEURONA_PORT", "NEURONA_HTTP_PORT", "PROMETHEUS_PORT")
        self._variables = images | dict(zip(names, ports, strict=True))
        self._profile = "cpu"

    def __call__(self, *arguments, check=True, timeout=600):
        command = [*self._command, "--profile", self._profile, *arguments]
        return self._engine.docker(
            *command[1:], command=command[0], check=check, timeout=timeout, **self._variables
        )

    def up(self, profile):
        """Stops the servers of another profile, starts this one, and waits until it is healthy."""
        if profile != self._profile:
            self("rm", "--stop", "--force", *self._services(self._profile))
        self._profile = profile
        self("up", "-d", "--no-build")
        until(lambda: all(map(self.healthy, self.servers())))

    def servers(self):
        """Returns the ids of the server's containers."""
        service = {"cpu": "neurona", "scale": "replica"}[self._profile]
        return self("ps", "-q", service).stdout.split()

    def healthy(self, container):
        return self._engine.inspect(container, ".State.Health.Status") == "healthy"

    def down(self):
        self("down", "--volumes", "--timeout", "5", check=False)

    @staticmethod
    def _services(profile):
        return {"cpu": ["neurona"], "scale": ["envoy", "replica"]}[profile]


class Load:
    """Predicts from several threads, one call after another, until the context is left.

    The client does not retry: calls that a server or Envoy loses are in `failures`.
    """

    def __init__(self, address, threads=8):
        options = [("grpc.enable_retries", 0)]
        self._channels = [grpc.insecure_channel(address, options) for _ in range(2)]
        self._stubs = [PredictionStub(channel) for channel in self._channels]
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._run, args=(n,)) for n in range(threads)]
        self.responses = collections.Counter()
        """Number of responses by version."""
        self.failures = []
        self._lock = threading.Lock()

    def __enter__(self):
        for channel in self._channels:
            grpc.channel_ready_future(channel).result(timeout=30)
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_):
        self._stop.set()
        for thread in self._threads:
            thread.join()
        for channel in self._channels:
            channel.close()

    def wait_for(self, additional, version=None):
        """Waits for this number of additional responses (of a version), or a failure."""
        expected = self._count(version) + additional
        until(lambda: self._count(version) >= expected or self.failures, every=0.05)

    def _count(self, version):
        return self.responses[version] if version else self.responses.total()

    def _run(self, number):
        series = np.full((1, 4, 1), 10.0 + number, np.float32)
        request = PredictRequest(model="rnn", inputs=[to_tensor("series", series)])
        stub = self._stubs[number % len(self._stubs)]
        while not self._stop.is_set():
            try:
                version = stub.Predict(request, timeout=10).version
            except grpc.RpcError as error:
                self.failures.append((error.code(), error.details()))
            else:
                with self._lock:
                    self.responses[version] += 1
