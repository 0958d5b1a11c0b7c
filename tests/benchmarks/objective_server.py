"""The servers of objectives.py: what they serve, what they can do, what they say of themselves."""

import contextlib
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import grpc
from models import Model, create_model
from open_loop import Load, send_load
from processes import PREDICT, Command, RunningServer, Server, start_server
from prometheus_client.parser import text_string_to_metric_families
from servers import copy_model, free_port, neurona_command

from neurona_protos.prediction_pb2 import DescribeModelRequest, DescribeModelResponse
from neurona_protos.prediction_pb2_grpc import ModelsStub

WORKLOADS = ("lenet5", "lstm", "resnet50", "small")
SMALL_MODELS = 100
WARM_UP_SECONDS = 1.0
SETTLE_SECONDS = 120.0
SETTLED_SECONDS = 1.0
"""A call is answered within this by a server that does nothing else."""
SETTLED_CALLS = 3
COUNTED = "neurona_objective_requests_total"


@dataclass(frozen=True)
class Workload:
    """Models that are served together, and their requests.

    Attributes:
        name: Its name on the command line.
        model: The model, of which there may be copies.
        names: The name of each copy.
        in_flight: Requests in flight with which the capacity is measured.
    """

    name: str
    model: Model
    names: tuple[str, ...]
    in_flight: tuple[int, ...]

    @property
    def bodies(self) -> list[bytes]:
        request = self.model.predict_request()
        bodies = []
        for name in self.names:
            request.model = name
            bodies.append(request.SerializeToString())
        return bodies


def create_workload(name: str, folder: Path) -> Workload:
    """Returns a workload by its name in WORKLOADS."""
    model = create_model("mlp" if name == "small" else name, folder / "models")
    names = (model.name,)
    if name == "small":
        names = (*(f"mlp{number:03}" for number in range(1, SMALL_MODELS)), model.name)
    return Workload(name, model, names, model.loads[-2:])


class ObjectiveServer:
    """A server that runs, and what it says of itself."""

    def __init__(self, running: RunningServer, metrics_address: str, workload: Workload) -> None:
        self.running = running
        self.address = running.address
        self.workload = workload
        self._metrics_url = f"http://{metrics_address}/metrics"

    def describe(self) -> DescribeModelResponse:
        """Returns what the server says of the first model."""
        with grpc.insecure_channel(self.address) as channel:
            request = DescribeModelRequest(model=self.workload.names[0])
            return ModelsStub(channel).Describe(request, timeout=20)

    def settle(self) -> bool:
        """Waits until the server has done with earlier requests, though their caller has gone.

        Returns:
            Whether it has, in SETTLE_SECONDS.
        """
        body = self.workload.bodies[0]
        until = time.perf_counter() + SETTLE_SECONDS
        prompt = 0
        while prompt < SETTLED_CALLS:
            start = time.perf_counter()
            with contextlib.suppress(grpc.RpcError):
                self.running.call(PREDICT, body)
                prompt = prompt + 1 if time.perf_counter() - start < SETTLED_SECONDS else 0
            if time.perf_counter() > until:
                return False
            time.sleep(0.05)
        return True

    def counted(self) -> dict[str, float]:
        """Returns the requests with an objective by result, of all models."""
        with urllib.request.urlopen(self._metrics_url, timeout=20) as response:  # noqa: S310 http
            text = response.read().decode()
        counts: dict[str, float] = {}
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                if sample.name == COUNTED:
                    result = sample.labels["result"]
                    counts[result] = counts.get(result, 0.0) + sample.value
        return counts


@contextlib.contextmanager
def objective_server(workload: Workload, objective_ms: float = 0.0) -> Iterator[ObjectiveServer]:
    """Starts a server of a workload's models, and stops it; it has no objective if that is 0."""
    metrics_address = f"127.0.0.1:{free_port()}"
    flags = ["--metrics-address", metrics_address]
    if objective_ms:
        flags += ["--latency-objective-ms", f"{objective_ms:g}"]
    server = Server("neurona", (PREDICT,), partial(_command, workload.names, flags))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "server"
        with start_server(server, workload.model, path) as running:
            yield ObjectiveServer(running, metrics_address, workload)


def _command(
    names: Sequence[str], flags: Sequence[str], model: Model, folder: Path, address: str
) -> Command:
    for name in names:
        copy_model(model, folder / "models", name)
    return neurona_command(folder / "models", address, *flags)


def measure_capacity(server: ObjectiveServer, seconds: float) -> float:
    """Returns the requests per second that a server answers, if others always wait."""
    rates = []
    for in_flight in server.workload.in_flight:
        load = Load(
            server.address,
            server.workload.bodies,
            in_flight=in_flight,
            seconds=seconds,
            warm_up_seconds=WARM_UP_SECONDS,
            drain_seconds=30.0,
        )
        arrivals = send_load(load)
        if arrivals.failed:
            raise RuntimeError(
                f"{arrivals.failed} requests of a closed loop failed (expected none)"
            )
        rates.append(arrivals.rate)
    return max(rates)


def cycle_seconds(description: DescribeModelResponse) -> float:
    """Returns the median seconds from the start of the largest allowed batch to its responses."""
    batching = description.batching
    seconds = 0.0
    for cost in batching.costs:
        if cost.rows <= batching.limit_rows:
            medians = [one.cycle_seconds for one in cost.quantiles if one.level == 0.5]
            seconds = max(seconds, *medians) if medians else max(seconds, cost.seconds)
    return seconds
