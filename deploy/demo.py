"""Demonstrates Neurona: trains and exports models, serves them, predicts, prints metrics, stops.

    python deploy/demo.py [--repository models]

The exit status is 0 if every prediction succeeded and the server shut down cleanly.
"""

import argparse
import contextlib
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import grpc
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse
from grpc_health.v1.health_pb2_grpc import HealthStub
from prometheus_client.parser import text_string_to_metric_families
from tqdm import tqdm

from neurona_client import PredictionStub, PredictRequest, PredictResponse, to_tensor
from neurona_training.data import Dataset
from neurona_training.recipes import RECIPES

MODELS = ("lenet5", "lstm", "rnn")
SAMPLES_SHOWN = 5  # per model
PAGE = "http://127.0.0.1:8000/"  # of the option http_address
BIN = Path(sys.executable).parent


@dataclass(frozen=True)
class Server:
    address: str
    metrics_address: str


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--repository", type=Path, default=Path("models"), metavar="DIR")
    repository: Path = parser.parse_args().repository
    for name in MODELS:
        train(name, repository)
    with serving(repository) as server, connect(server.address) as channel:
        stub = PredictionStub(channel)
        for name in MODELS:
            data = RECIPES[name].load()
            print_table(name, data, predict_all(stub, name, data))
        print_metrics(server)
    print(f"To try the models in a browser: make serve (or neurona-serve {repository}), then open")
    print(f"  {PAGE}")
    return 0


def connect(address: str) -> grpc.Channel:
    """Opens a channel to this machine, where the proxy of the environment has no business."""
    return grpc.insecure_channel(address, [("grpc.enable_http_proxy", 0)])


def train(name: str, repository: Path) -> None:
    path = repository / name / "1" / "model.onnx"
    if path.exists():
        print(f"{name}: {path} exists")
    else:
        done = subprocess.run([BIN / "neurona-train", name, "--out", repository], check=False)
        if done.returncode:
            raise SystemExit(
                f"training of {name} failed: exit status {done.returncode} (expected 0)"
            )


@contextlib.contextmanager
def serving(repository: Path) -> Iterator[Server]:
    """Starts neurona-serve, yields once it is SERVING, and stops it by SIGTERM."""
    with contextlib.ExitStack() as stack:  # two free ports
        sockets = [stack.enter_context(socket.socket()) for _ in range(2)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        server = Server(*(f"127.0.0.1:{one.getsockname()[1]}" for one in sockets))
    command = [BIN / "neurona-serve", "--repository", repository]
    addresses = ["--address", server.address, "--metrics-address", server.metrics_address]
    addresses += ["--http-address", "off"]
    print(f"\nneurona-serve --repository {repository} {' '.join(addresses)}", flush=True)
    process = subprocess.Popen([*command, *addresses])
    try:
        wait_until_serving(server.address, process)
        yield server
        process.send_signal(signal.SIGTERM)
        if status := process.wait(timeout=60):
            raise SystemExit(f"server exited: status {status} (expected 0)")
    finally:
        process.kill()
        process.wait()


def wait_until_serving(address: str, process: subprocess.Popen[bytes]) -> None:
    with connect(address) as channel:
        health = HealthStub(channel)
        end = time.monotonic() + 60
        while time.monotonic() < end:
            if (status := process.poll()) is not None:
                raise SystemExit(f"server exited: status {status} (expected 0)")
            with contextlib.suppress(grpc.RpcError):
                response = health.Check(HealthCheckRequest(), timeout=1)
                if response.status == HealthCheckResponse.SERVING:
                    return
            time.sleep(0.05)
    raise SystemExit("server not SERVING after 60 s")


def predict_all(stub: PredictionStub, name: str, data: Dataset) -> list[PredictResponse]:
    """Predicts each test sample in its own call, with all calls in flight at once."""
    calls = []
    for sample in data.test.inputs:
        tensor = to_tensor(data.input.name, sample[None])
        calls.append(stub.Predict.future(PredictRequest(model=name, inputs=[tensor]), timeout=60))
    return [call.result() for call in tqdm(calls, desc=f"predict {name}", unit="request")]


def print_table(name: str, data: Dataset, responses: Sequence[PredictResponse]) -> None:
    classes = data.labels
    samples = []
    for target, response in zip(data.test.targets, responses, strict=True):
        if classes:
            row = response.classification.rows[0]
            samples.append((classes[target], row.labels[0], f"{row.probabilities[0]:.3f}", ""))
        else:
            description, row = response.regression.values[0], response.regression.rows[0]
            samples.append((f"{target[0]:.1f}", "", "", f"{row.values[0]:.1f} {description.unit}"))
    print(f"\n{name}, version {responses[0].version}: {len(samples)} test samples")
    print(f"  {'truth':>8} {'label':>8} {'probability':>12}  value")
    for truth, label, probability, value in samples[:SAMPLES_SHOWN]:
        print(f"  {truth:>8} {label:>8} {probability:>12}  {value}")
    if classes:
        correct = sum(truth == label for truth, label, *_ in samples)
        print(f"  {correct} of {len(samples)} labels are correct ({correct / len(samples):.1%})")


def print_metrics(server: Server) -> None:
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(f"http://{server.metrics_address}/metrics", timeout=10) as page:
        families = list(text_string_to_metric_families(page.read().decode()))
    values = {
        (sample.name, sample.labels["model"]): sample.value
        for family in families
        for sample in family.samples
        if sample.labels.get("outcome", "ok") == "ok" and "model" in sample.labels
    }
    print(f"\nhttp://{server.metrics_address}/metrics")
    for name in MODELS:
        requests = values["neurona_requests_total", name]
        batches = values["neurona_batch_rows_count", name]
        print(f"  {name}: {requests:.0f} requests in {batches:.0f} batches")
    print(flush=True)


if __name__ == "__main__":
    sys.exit(main())
