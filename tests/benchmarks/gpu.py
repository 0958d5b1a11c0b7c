"""Measures serving on a GPU in one call of some minutes; prints tables, writes JSON.

    make bench-gpu-models                      # once, on a machine that needs no GPU
    python tests/benchmarks/gpu.py             # on the machine with the GPU
    python tests/benchmarks/gpu.py --device cpu --networks lenet5 --rows 1,8 --seconds 0.3

For each network and batch size: what the server answers per second, by gRPC and by system shared
memory, over what ONNX Runtime alone runs on batches that are on the device already, and over torch
in eager mode and compiled; latencies at 50 and 90 % of the server's capacity; the server with one
of its ways of running a batch turned off; the CPU cores that it uses at its limit. results.json and
results.md are written again after each part, so that a run that is cut short leaves what it has.
Parts that no longer fit into --budget seconds are left out, and listed.

It is one file since it is the plan of one run: what is measured, in which order, and for how long.
"""

import argparse
import contextlib
import json
import math
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import traceback
import urllib.request
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import onnxruntime
from gpu_load import Job, LoadProcesses, Sample
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse
from grpc_health.v1.health_pb2_grpc import HealthStub
from measurements import environment_line
from processes import RunningServer
from seeded_weights import LIST, MODEL, expand_network, make_rows
from table import grid, number

from neurona_protos.prediction_pb2 import (
    DescribeModelRequest,
    ListModelsRequest,
    PredictRequest,
    State,
)
from neurona_protos.prediction_pb2_grpc import ModelsStub, PredictionStub
from neurona_protos.tensors import to_array, to_tensor
from neurona_server.models.onnx import runtime

ROOT = Path(__file__).parents[2]
HERE = Path(__file__).parent
ROWS = (1, 8, 32, 128)
LATENCY_ROWS = 32
"""Largest batch of the models whose latencies are measured."""

QUEUED_BATCHES = 4
"""Batches whose rows are in flight at the server's limit: two run, two wait."""

MAX_REQUEST_BYTES = 24 << 20
"""A larger batch is put together from several requests."""

MANY_BYTES = 100 << 10
"""Bytes of a row from which on requests are measured in shared memory, too."""

ARCHITECTURES = {"resnet50-float16": ("resnet50", "float16")}


@dataclass(frozen=True)
class Variant:
    """A server without one of its ways of running a batch.

    Attributes:
        networks: That it is measured with.
        flags: Of the server.
        prelude: Python that is run in the server's process before it starts: for what has no option
            since nobody would want it.
    """

    networks: tuple[str, ...]
    flags: tuple[str, ...] = ()
    prelude: str = ""


VARIANTS = {
    "graphs": Variant(
        ("lenet5", "lstm256", "resnet18"), ("--provider-options", "cuda.enable_cuda_graph=0")
    ),
    "overlap": Variant(
        ("resnet50", "resnet50-float16"),
        prelude="from neurona_server.models.onnx import devices; devices.CUDA_SLOTS = 1",
    ),
    "bound buffers": Variant(
        ("resnet50", "lenet5", "lstm256"),
        prelude="from neurona_server.models.onnx.session import Session; "
        "Session.choose_methods = lambda *_: None",
    ),
}
"""By what they turn off, the most important first."""

COMPILED = ("resnet50", "resnet50-float16")
COMPILE_SECONDS = 100.0
FIRST_LOAD = 150.0  # seconds


_START = "import sys; from neurona_server.cli import main; sys.exit(main())"


@dataclass
class Results:
    """What has been measured so far; `save` writes all of it."""

    folder: Path
    environment: dict[str, Any]
    parts: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    left_out: list[str] = field(default_factory=list)

    def add(self, part: str, **entry: Any) -> None:
        self.parts.setdefault(part, []).append(entry)
        values = ", ".join(f"{key} {_shown(value)}" for key, value in entry.items())
        print(f"{part}: {values}", file=sys.stderr, flush=True)
        self.save()

    def save(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        content = {"environment": self.environment, "left_out": self.left_out, **self.parts}
        self._write("results.json", json.dumps(_without_nan(content), indent=1))
        self._write("results.md", document(self))

    def _write(self, name: str, text: str) -> None:
        partial = self.folder / f".{name}.part"
        partial.write_text(text)
        partial.replace(self.folder / name)

    def find(self, part: str, **wanted: Any) -> dict[str, Any] | None:
        """Returns the first entry with these values."""
        for entry in self.parts.get(part, []):
            if wanted.items() <= entry.items():
                return entry
        return None

    @contextlib.contextmanager
    def guard(self, what: str) -> Iterator[None]:
        """Notes an error of a part as left out; the next parts are worth measuring."""
        try:
            yield
        except Exception as error:
            traceback.print_exc()
            text = " ".join(str(error).split())[:300]
            self.left_out.append(f"{what} ({type(error).__name__}: {text})")
            self.save()


class Budget:
    """The time that is left."""

    def __init__(self, seconds: float, results: Results) -> None:
        self.end = time.monotonic() + seconds
        self._results = results

    @property
    def left(self) -> float:
        return self.end - time.monotonic()

    def has(self, seconds: float, what: str) -> bool:
        """Returns whether something that takes so long still fits; notes it if it does not."""
        if self.left >= seconds:
            return True
        self._results.left_out.append(what)
        return False


@dataclass(frozen=True)
class Network:
    """A network of `make bench-gpu-models`, with its weights."""

    name: str
    row: tuple[int, ...]
    folder: Path
    tolerance: float

    @property
    def row_bytes(self) -> int:
        return 4 * math.prod(self.row)

    def batch_model(self, rows: int) -> str:
        """Returns the name of its copy whose batches have up to so many rows."""
        return f"{self.name}-b{rows}"

    def request_rows(self, rows: int) -> int:
        """Returns the rows of a request of which some make a batch of `rows`."""
        while rows * self.row_bytes > MAX_REQUEST_BYTES and rows % 2 == 0:
            rows //= 2
        return rows


class Server:
    """neurona-serve with copies of networks, each for a largest batch."""

    def __init__(self, address: str, metrics: str, process: subprocess.Popen[bytes]) -> None:
        self.address = address
        self.process = process
        self._metrics = metrics
        self._running = RunningServer(process, address)
        self.channel = grpc.insecure_channel(
            address, [("grpc.max_send_message_length", -1), ("grpc.max_receive_message_length", -1)]
        )

    def is_serving(self, model: str) -> bool:
        try:
            check = HealthStub(self.channel).Check(HealthCheckRequest(service=model), timeout=5)
        except grpc.RpcError:
            return False
        return bool(check.status == HealthCheckResponse.SERVING)

    def cpu_seconds(self) -> float:
        return self._running.cpu_seconds()

    def batches(self, model: str) -> tuple[float, float]:
        """Returns how many batches a model has run, and their rows."""
        with urllib.request.urlopen(f"http://{self._metrics}/metrics", timeout=10) as page:
            text = page.read().decode()
        values = [
            re.search(
                rf'^neurona_batch_rows_{kind}{{model="{model}",.*}} (\S+)$', text, re.MULTILINE
            )
            for kind in ("count", "sum")
        ]
        counts, rows = (0.0 if value is None else float(value[1]) for value in values)
        return counts, rows

    def failure(self, models: Sequence[str]) -> str:
        """Returns why one of the models failed to load, "" if none did so far."""
        try:
            summaries = ModelsStub(self.channel).List(ListModelsRequest(), timeout=5).models
        except grpc.RpcError:
            return ""
        for summary in summaries:
            for version in summary.versions if summary.model in models else ():
                if version.state == State.STATE_FAILED:
                    return f"{summary.model}: {version.reason}"
        return ""

    def describe(self, model: str) -> str:
        """Returns what Describe says about how a model runs, in one line."""
        response = ModelsStub(self.channel).Describe(DescribeModelRequest(model=model), timeout=10)
        values = {
            one.name: value
            for one, value in response.version.ListFields()
            if one.name not in ("version", "state", "share", "labels")
        }
        return ", ".join(f"{name} {' '.join(str(v).split())}" for name, v in values.items())


@contextlib.contextmanager
def serving(
    networks: Sequence[Network],
    rows: Sequence[int],
    device: str,
    log: Path,
    *flags: str,
    prelude: str = "",
) -> Iterator[Server]:
    """Starts a server of a copy of each network for each of `rows`, and yields it at once."""
    ports = _free_ports(2)
    address, metrics = (f"127.0.0.1:{port}" for port in ports)
    with tempfile.TemporaryDirectory(prefix="bench-gpu-") as folder:
        repository = Path(folder)
        for network in networks:
            for count in rows:
                model = repository / network.batch_model(count)
                (model / "1").mkdir(parents=True)
                for file in network.folder.iterdir():
                    _link(file, model / "1" / file.name)
                (model / "model.toml").write_text(f"max_batch_rows = {count}\n")
        command = [
            *(sys.executable, "-c", f"{prelude}\n{_START}"),
            *("--repository", repository, "--address", address),
            *("--metrics-address", metrics, "--http-address", "off"),
            *("--model-control", "none", "--cache", "off"),
            *("--load-check", "false", "--shared-memory", "true", "--log-level", "info"),
            *("--max-message-bytes", str(128 << 20), "--max-queue-bytes", str(2 << 30)),
            *("--max-queue-rows", str(1 << 16)),
            *("--providers", "cuda,cpu" if device == "cuda" else "cpu"),
            *("--require-gpu", "true" if device == "cuda" else "false", "--load-threads", "2"),
            *flags,
        ]
        with log.open("wb") as output:
            process = subprocess.Popen([str(word) for word in command], stderr=output)
        server = Server(address, metrics, process)
        try:
            yield server
        finally:
            server.channel.close()
            process.terminate()
            try:
                process.wait(timeout=15)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _link(file: Path, target: Path) -> None:
    try:
        os.link(file, target)
    except OSError:  # another file system
        shutil.copyfile(file, target)


def _free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    try:
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]
    finally:
        for one in sockets:
            one.close()


class Benchmark:
    """One run of all parts."""

    def __init__(self, arguments: argparse.Namespace, results: Results, budget: Budget) -> None:
        self.arguments = arguments
        self.device: str = arguments.device
        self.logs: Path = arguments.logs or arguments.out / "logs"
        self.logs.mkdir(parents=True, exist_ok=True)
        self.rows: tuple[int, ...] = arguments.rows
        self.latency_rows = min(LATENCY_ROWS, max(self.rows))
        self.model_rows = sorted({*self.rows, self.latency_rows})
        self.seconds: float = arguments.seconds
        self.results = results
        self.budget = budget
        self.networks: list[Network] = []

    def expand(self, folder: Path) -> None:
        listed = json.loads((self.arguments.models / LIST).read_text())
        for name in self.arguments.networks:
            if name not in listed:
                sys.exit(f"no network {name} in {self.arguments.models} (make bench-gpu-models)")
            expand_network(self.arguments.models / name, folder / name)
            entry = listed[name]
            network = Network(name, tuple(entry["row"]), folder / name, entry["tolerance"])
            self.networks.append(network)

    def run(self, load: LoadProcesses) -> None:
        self.reference("onnxruntime", self.networks, 90.0)
        self.serve(load)
        parts, names = self.arguments.parts, [network.name for network in self.networks]
        compiled = [one for one in COMPILED if one in names] if "compile" in parts else []
        # In turn, so that of each kind the most important one is measured before time is over.
        for position, name in enumerate(VARIANTS):
            if name in self.arguments.variants:
                with self.results.guard(f"without {name}"):
                    self.serve_variant(load, name, VARIANTS[name])
            if position == 0 and "torch" in parts:
                self.reference("torch", self.networks, 60.0)
            if position < len(compiled):
                network = self.networks[names.index(compiled[position])]
                self.reference("compile", [network], COMPILE_SECONDS)

    def reference(self, kind: str, networks: Sequence[Network], limit: float) -> None:
        """Runs gpu_reference.py for at most `limit` seconds, and adds what it prints."""
        what = f"{kind} of {', '.join(network.name for network in networks)}"
        if not self.budget.has(10.0, what):
            return
        limit = min(limit, self.budget.left)
        options = {
            "device": self.device,
            "rows": self.model_rows,
            "seconds": self.seconds / 3,
            "end": time.time() + limit,
            "networks": {network.name: _for_reference(network) for network in networks},
        }
        command = [sys.executable, HERE / "gpu_reference.py", kind, json.dumps(options)]
        log = self.logs / f"{kind}.log"
        with log.open("ab") as errors:
            process = subprocess.Popen(
                [str(word) for word in command], stdout=subprocess.PIPE, stderr=errors, text=True
            )
            with process:
                # A process that prints nothing for too long is ended, so that reading ends too.
                killer = _kill_after(process, limit + 5)
                assert process.stdout is not None
                for line in process.stdout:
                    self.results.add("reference", **json.loads(line))
                killer.cancel()
        if process.returncode:
            end = log.read_text(errors="replace").strip().splitlines()[-1:]
            self.results.left_out.append(f"{what} (status {process.returncode}: {' '.join(end)})")
            self.results.save()

    def serve(self, load: LoadProcesses) -> None:
        rows = self.model_rows
        if not self.budget.has(30.0, "the server"):
            return
        log = self.logs / "server.log"
        with serving(self.networks, rows, self.device, log) as server:
            served = self.wait(server, self.networks, rows)
            for network in served:
                with self.results.guard(f"served {network.name}"):
                    for count in self.rows:
                        self.capacity(load, server, network, count, "")
                    self.one_in_flight(load, server, network, "")
            for network in served:
                with self.results.guard(f"latency of {network.name}"):
                    self.latency(load, server, network, self.latency_rows)
                    self.single_rows(load, server, network, max(self.rows))

    def serve_variant(self, load: LoadProcesses, name: str, variant: Variant) -> None:
        """Measures the smallest and the largest batch again without something."""
        networks = [one for one in self.networks if one.name in variant.networks]
        if not networks or not self.budget.has(40.0, f"without {name}"):
            return
        rows = sorted({min(self.rows), max(self.rows)})
        log = self.logs / f"server-without-{name.replace(' ', '-')}.log"
        with serving(
            networks, rows, self.device, log, *variant.flags, prelude=variant.prelude
        ) as server:
            for network in self.wait(server, networks, rows):
                with self.results.guard(f"{network.name} without {name}"):
                    for count in rows:
                        self.capacity(load, server, network, count, name)
                        if count == 1:
                            self.one_in_flight(load, server, network, name)

    def wait(
        self, server: Server, networks: Sequence[Network], rows: Sequence[int]
    ) -> list[Network]:
        """Waits until all networks serve, and checks their answers.

        Returns those that do. Nothing is measured while others are still being loaded.
        """
        end = time.monotonic() + min(FIRST_LOAD, max(1.0, self.budget.left))
        served = []
        for network in networks:
            with self.results.guard(f"the server of {network.name}"):
                self._wait_for(server, [network.batch_model(count) for count in rows], end)
                served.append(network)
        for network in served.copy():
            with self.results.guard(f"answers of {network.name}"):
                self._check_answers(server, network, rows)
        return served

    def _wait_for(self, server: Server, models: Sequence[str], end: float) -> None:
        while not all(server.is_serving(model) for model in models):
            reason = server.failure(models)
            if time.monotonic() > end or server.process.poll() is not None:
                reason = reason or "it did not serve in time"
            if reason:
                raise RuntimeError(f"{reason}; see the server's log")
            time.sleep(0.1)

    def _check_answers(self, server: Server, network: Network, rows: Sequence[int]) -> None:
        session = onnxruntime.InferenceSession(
            network.folder / MODEL, providers=["CPUExecutionProvider"]
        )
        for count in rows:
            model = network.batch_model(count)
            batch = make_rows(network.row, min(count, 4), seed=7)
            expected = session.run(None, {"x": batch})[0]
            request = PredictRequest(model=model, inputs=[to_tensor("x", batch)], raw_outputs=True)
            (output,) = PredictionStub(server.channel).Predict(request, timeout=60).outputs
            error = float(
                np.linalg.norm(to_array(output) - expected, axis=-1).max()
                / np.linalg.norm(expected, axis=-1).mean()
            )
            self.results.add(
                "models",
                model=model,
                error=error,
                right=error < network.tolerance,
                described=server.describe(model),
            )

    def capacity(
        self, load: LoadProcesses, server: Server, network: Network, rows: int, variant: str
    ) -> None:
        """Measures responses per second at the limit, with requests that make full batches."""
        in_request = network.request_rows(rows)
        in_flight = max(QUEUED_BATCHES, QUEUED_BATCHES * rows // in_request)
        for shared in self.transports(network):
            job = Job(
                server.address, network.batch_model(rows), network.row, in_request, in_flight,
                seconds=self.seconds, in_shared_memory=shared,
            )  # fmt: skip
            self.measure("served", load, server, job, network, rows, variant=variant)

    def one_in_flight(
        self, load: LoadProcesses, server: Server, network: Network, variant: str
    ) -> None:
        """Measures how long a single request of one row takes while nothing else is done."""
        model = network.batch_model(min(self.rows))
        job = Job(server.address, model, network.row, 1, 1, seconds=self.seconds / 2)
        self.measure("alone", load, server, job, network, 1, variant=variant)

    def single_rows(self, load: LoadProcesses, server: Server, network: Network, rows: int) -> None:
        """The same with requests of one row, which the server puts into batches."""
        job = Job(
            server.address, network.batch_model(rows), network.row, 1, QUEUED_BATCHES * rows,
            seconds=self.seconds, in_shared_memory=self.transports(network)[-1],
        )  # fmt: skip
        self.measure("single rows", load, server, job, network, rows)

    def latency(self, load: LoadProcesses, server: Server, network: Network, rows: int) -> None:
        """Measures latencies of requests of one row at 50 and 90 % of what is possible."""
        shared = self.transports(network)[-1]
        model = network.batch_model(rows)
        job = Job(
            server.address, model, network.row, 1, QUEUED_BATCHES * rows,
            seconds=self.seconds, in_shared_memory=shared,
        )  # fmt: skip
        # Twice, since the loads of all other measurements depend on it.
        samples = [
            self.measure("latency", load, server, job, network, rows, percent=100) for _ in range(2)
        ]
        rate = max((sample.rate for sample in samples if sample is not None), default=0.0)
        for percent in (50, 90) if rate else ():
            job = Job(
                server.address, model, network.row, 1, rate=rate * percent / 100,
                seconds=1.5 * self.seconds, in_shared_memory=shared,
            )  # fmt: skip
            self.measure("latency", load, server, job, network, rows, percent=percent)

    def transports(self, network: Network) -> tuple[bool, ...]:
        """Returns whether requests are in shared memory: not, or both."""
        return (False, True) if network.row_bytes >= MANY_BYTES else (False,)

    def measure(
        self,
        part: str,
        load: LoadProcesses,
        server: Server,
        job: Job,
        network: Network,
        rows: int,
        **further: Any,
    ) -> Sample | None:
        """Runs a job and adds what it has measured; returns None without a response."""
        what = f"{part} {job.model}{' in shared memory' if job.in_shared_memory else ''}"
        if not self.budget.has(job.seconds + 5, what):
            return None
        cpu: list[float] = []
        batches: list[tuple[float, float]] = []

        def note() -> None:
            cpu.append(server.cpu_seconds())
            batches.append(server.batches(job.model))

        sample = load.run(replace(job, warm_up=min(job.warm_up, job.seconds)), note)
        runs, run_rows = (after - before for before, after in zip(*batches, strict=True))
        self.results.add(
            part,
            network=network.name,
            rows=rows,
            **further,
            request_rows=job.rows,
            in_flight=job.in_flight,
            shared_memory=job.in_shared_memory,
            rows_per_second=sample.rate * job.rows,
            p50_ms=1000 * sample.percentile(50),
            p99_ms=1000 * sample.percentile(99),
            rows_in_a_batch=run_rows / runs if runs else math.nan,
            cpu_cores=(cpu[1] - cpu[0]) / job.seconds,
            failed=sample.failed,
            errors=sample.errors,
        )
        return sample if len(sample.latencies) else None


def _for_reference(network: Network) -> dict[str, Any]:
    architecture, variant = ARCHITECTURES.get(network.name, (network.name, ""))
    return {
        "folder": str(network.folder),
        "row": network.row,
        "architecture": architecture,
        "variant": variant,
    }


def _kill_after(process: subprocess.Popen[str], seconds: float) -> Any:
    from threading import Timer

    timer = Timer(seconds, process.kill)
    timer.daemon = True
    timer.start()
    return timer


def document(results: Results) -> str:
    """Returns the tables as Markdown."""
    lines = [f"# Serving on {results.environment['device']}", results.environment["line"] + "."]
    if gpu := results.environment.get("gpu"):
        lines.append(f"{gpu}.")
    lines += [_throughput(results), _latencies(results), _ways(results), _single(results)]
    wrong = [entry["model"] for entry in results.parts.get("models", []) if not entry["right"]]
    checked = len(results.parts.get("models", []))
    lines.append(
        f"Wrong answers: {', '.join(wrong)}."
        if wrong
        else f"Answers of {checked} models are right."
    )
    failed = sum(e.get("failed", 0) for part in results.parts.values() for e in part)
    lines.append(f"Failed calls: {failed}.")
    if results.left_out:
        lines.append("Not measured: " + "; ".join(results.left_out) + ".")
    return "\n\n".join(line for line in lines if line) + "\n"


def _throughput(results: Results) -> str:
    rows = []
    for entry in results.parts.get("reference", []):
        if entry["kind"] != "onnxruntime":
            continue
        network, count = entry["network"], entry["rows"]
        others = [
            results.find("reference", kind=kind, network=network, rows=count)
            for kind in ("onnxruntime, with copies", "torch", "torch.compile")
        ]
        served = [
            results.find("served", network=network, rows=count, shared_memory=shared, variant="")
            for shared in (False, True)
        ]
        best = max((s["rows_per_second"] for s in served if s), default=math.nan)
        cores = [s["cpu_cores"] for s in served if s]
        rows.append(
            [
                network,
                str(count),
                number(entry["rows_per_second"]),
                *(number(o["rows_per_second"]) if o else "" for o in others),
                *(number(s["rows_per_second"]) if s else "" for s in served),
                f"{_ratio(best, entry['rows_per_second']):.2f}" if cores else "",
                " / ".join(f"{value:.1f}" for value in cores),
            ]
        )
    head = [
        *("network", "rows", "ONNX Runtime alone", "with copies", "torch", "torch.compile"),
        *("served, gRPC", "served, shared memory", "share of ONNX Runtime alone", "CPU cores"),
    ]
    return "## Rows per second\n\n" + grid(head, rows) if rows else ""


def _latencies(results: Results) -> str:
    rows = []
    for entry in results.parts.get("latency", []):
        alone = results.find(
            "reference", kind="onnxruntime", network=entry["network"], rows=entry["rows"]
        )
        batch = 1000 * alone["run_seconds"] if alone else math.nan
        rows.append(
            [
                f"{entry['network']}, up to {entry['rows']} rows",
                f"{entry['percent']} %",
                number(entry["rows_per_second"]),
                number(entry["p50_ms"]),
                number(entry["p99_ms"]),
                number(batch),
                f"{_ratio(entry['p99_ms'], batch):.1f}",
                f"{entry['rows_in_a_batch']:.1f}",
            ]
        )
    head = [
        *("network", "load", "rows per second", "p50, ms", "p99, ms"),
        *("a full batch by ONNX Runtime alone, ms", "p99 in such batches", "rows in a batch"),
    ]
    title = "## Latency of requests of one row\n\n"
    return title + grid(head, rows) if rows else ""


def _ways(results: Results) -> str:
    rows = []
    for part in ("served", "alone"):
        for entry in results.parts.get(part, []):
            same = {key: entry[key] for key in ("network", "rows", "shared_memory")}
            usual = results.find(part, variant="", **same)
            if not entry["variant"] or usual is None:
                continue
            rows.append(
                [
                    f"{entry['network']}{', shared memory' if entry['shared_memory'] else ''}",
                    str(entry["rows"]),
                    "one request" if part == "alone" else "full batches",
                    entry["variant"],
                    f"{_ratio(usual['rows_per_second'], entry['rows_per_second']):.2f}",
                    f"{usual['p50_ms']:.3g} / {entry['p50_ms']:.3g}",
                    f"{1 - _ratio(usual['p50_ms'], entry['p50_ms']):.0%}",
                ]
            )
    head = [
        *("network", "rows", "in flight", "without", "rate with / without"),
        *("p50 with / without, ms", "p50 lower by"),
    ]
    return "## Ways of running a batch\n\n" + grid(head, rows) if rows else ""


def _single(results: Results) -> str:
    rows = [
        [
            entry["network"],
            number(entry["rows_per_second"]),
            f"{entry['rows_in_a_batch']:.0f}",
            number(entry["p50_ms"]),
            f"{entry['cpu_cores']:.1f}",
        ]
        for entry in results.parts.get("single rows", [])
    ]
    head = ["network", "rows per second", "rows in a batch", "p50, ms", "CPU cores"]
    return "## Requests of one row, at the limit\n\n" + grid(head, rows) if rows else ""


def _without_nan(value: Any) -> Any:
    """Returns a structure with None for NaN, which JSON does not have."""
    if isinstance(value, dict):
        return {key: _without_nan(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(one) for one in value]
    return None if isinstance(value, float) and math.isnan(value) else value


def _ratio(value: float, to: float) -> float:
    return value / to if to else math.nan


def _shown(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def describe_environment(device: str) -> dict[str, Any]:
    """Returns what the figures depend on."""
    entries: dict[str, Any] = {"device": "the CPU" if device == "cpu" else "a GPU"}
    entries["line"] = environment_line()
    query = "name,driver_version,memory.total,clocks.sm,clocks.max.sm"
    if device == "cuda" and (smi := shutil.which("nvidia-smi")):
        command = [smi, f"--query-gpu={query}", "--format=csv,noheader"]
        result = subprocess.run(command, check=False, capture_output=True, text=True)
        entries["gpu"] = result.stdout.strip().splitlines()[0] if result.stdout else ""
        entries["device"] = entries["gpu"].partition(",")[0]
    return entries


def main() -> None:
    arguments = _arguments()
    if arguments.device == "cuda" and (reason := runtime.missing_gpu_reason()):
        sys.exit(f"no GPU can be used: {reason} (--device cpu rehearses the benchmark)")
    results = Results(arguments.out, describe_environment(arguments.device))
    results.save()
    budget = Budget(arguments.budget, results)
    benchmark = Benchmark(arguments, results, budget)
    with (
        tempfile.TemporaryDirectory(prefix="bench-gpu-") as folder,
        LoadProcesses(arguments.callers) as load,
    ):
        benchmark.expand(Path(folder))
        benchmark.run(load)
    results.save()
    print(document(results))
    print(f"Written: {arguments.out / 'results.json'}, {arguments.out / 'results.md'}")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    default = ROOT / "bench" / "gpu"
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--models", type=Path, default=default / "models")
    parser.add_argument("--out", type=Path, default=default / "results")
    parser.add_argument("--logs", type=Path, help="folder of logs (default: logs in --out)")
    parser.add_argument(
        "--networks",
        type=lambda text: text.split(","),
        default=["resnet50", "resnet50-float16", "lenet5", "lstm256", "resnet18"],
    )
    parser.add_argument("--rows", type=_numbers, default=ROWS, help="sizes of batches")
    parser.add_argument("--seconds", type=float, default=1.2, help="seconds of each measurement")
    parser.add_argument(
        "--variants",
        type=lambda text: [name for name in text.split(",") if name],
        default=list(VARIANTS),
        help=f"what to turn off: {', '.join(VARIANTS)}",
    )
    parser.add_argument("--budget", type=float, default=400.0, help="seconds of the whole run")
    parser.add_argument("--parts", type=lambda text: text.split(","), default=["torch", "compile"])
    parser.add_argument(
        "--callers",
        type=int,
        default=max(1, min(8, len(os.sched_getaffinity(0)) // 2)),
        help="processes that make the load",
    )
    return parser.parse_args()


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(sorted({int(word) for word in text.split(",")}))


if __name__ == "__main__":
    main()
