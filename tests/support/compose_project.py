"""deploy/compose.yaml as a project of its own, and a load that counts what it lost."""

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
    """The plug-in, or the older command of its own; None where there is neither."""
    if docker := shutil.which("docker"):
        plugged = subprocess.run([docker, "compose", "version"], check=False, capture_output=True)
        if plugged.returncode == 0:
            return [docker, "compose"]
    older = shutil.which("docker-compose")
    return [older] if older else None


class Project:
    """The services of a profile, with volumes of their own, on free ports of loopback."""

    def __init__(self, engine, images, name="neurona-test"):
        command = compose_command()
        assert command, "there is neither docker compose nor docker-compose"
        self._engine = engine
        self._command = [*command, "-p", name]
        for file in FILES:
            self._command += ["-f", str(ROOT / file)]
        ports = [f"127.0.0.1:{port}" for port in free_ports(2)]
        self.address, self.prometheus = ports
        self._variables = images | {"NEURONA_PORT": ports[0], "PROMETHEUS_PORT": ports[1]}
        self._profile = "cpu"

    def __call__(self, *arguments, check=True, timeout=600):
        command = [*self._command, "--profile", self._profile, *arguments]
        return self._engine.docker(
            *command[1:], command=command[0], check=check, timeout=timeout, **self._variables
        )

    def up(self, profile):
        """Stops what another profile has, and waits until the servers of this one are healthy."""
        if profile != self._profile:
            self("rm", "--stop", "--force", *self._services(self._profile))
        self._profile = profile
        self("up", "-d", "--no-build")
        until(lambda: all(map(self.healthy, self.servers())))

    def servers(self):
        """Ids of the containers that serve."""
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
    """Predicts from several threads, each call after the last one's answer, until it is left.

    Calls are not tried again by the client: what a server or Envoy loses is in `failures`.
    """

    def __init__(self, address, threads=8):
        options = [("grpc.enable_retries", 0)]
        self._channels = [grpc.insecure_channel(address, options) for _ in range(2)]
        self._stubs = [PredictionStub(channel) for channel in self._channels]
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._run, args=(n,)) for n in range(threads)]
        self.answers = collections.Counter()
        """How many answers, by version."""
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

    def wait_for(self, more, version=None):
        """Until so many more answers have come, of the version if one is given."""
        count = self._count(version) + more
        until(lambda: self._count(version) >= count or self.failures, every=0.05)

    def _count(self, version):
        return self.answers[version] if version else self.answers.total()

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
                    self.answers[version] += 1
