"""Compares the Open Inference Protocol over REST with gRPC, in one run; prints Markdown.

    python tests/benchmarks/rest.py                    # five minutes
    python tests/benchmarks/rest.py --models mlp --loads 8 --rounds 1 --seconds 0.3

All servers of a model run at the same time, idle while another is measured. Over HTTP/1.1 each
request in flight has a connection of its own.
"""

import argparse
import json
import shutil
import signal
import socket
import sys
import tempfile
import urllib.request
from collections import defaultdict
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import h2load
import numpy as np
from measurements import Spread, environment_line
from models import FACTORIES, Model, create_model
from processes import INFER, PREDICT, Command, RunningServer, Server, request_bytes, start_server
from servers import BASELINE, copy_model, neurona_command
from table import grid, number

ROOT = Path(__file__).parents[2]
LOADS = (1, 8, 64)
BINARY, TYPED = "REST, binary", "REST, JSON"

Measure = Callable[[int, float], h2load.Sample]


@dataclass(frozen=True)
class RestRequest:
    """A request to a model over HTTP, and its response."""

    url: str
    headers: dict[str, str]
    body: bytes
    response: bytes


def main() -> None:
    arguments = _arguments()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("stopped"))  # stops the servers too
    if shutil.which("h2load") is None:
        sys.exit("h2load is not installed (Debian: apt-get install nghttp2-client)")
    parts = [f"# REST and gRPC\n\n{environment_line()}."]
    parts.append(
        f"Responses per second, median of the rounds; in brackets the ratio to {BASELINE} in the "
        "same round: median, lowest to highest."
    )
    for name in arguments.models:
        model = create_model(name, arguments.folder / "models")
        samples = measure_model(model, arguments.rounds, arguments.seconds, arguments.loads)
        parts.append(f"## {name}\n\n{_table(samples)}")
    print("\n\n".join(parts))


def measure_model(
    model: Model, rounds: int, seconds: float, loads: Sequence[int]
) -> dict[tuple[str, int], list[h2load.Sample]]:
    """Returns samples by the row of the table and requests in flight, one for each round."""
    samples = defaultdict(list)
    for round_number in range(rounds):
        with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
            targets = list(_start(model, Path(folder), stack).items())
            # Each round begins with another target, so that none is always measured first.
            offset = round_number % len(targets)
            for load in loads:
                for row, measure in targets[offset:] + targets[:offset]:
                    sample = measure(load, seconds)
                    samples[row, load].append(sample)
                    print(
                        f"round {round_number + 1}: {model.name}, {load} in flight, {row}: "
                        f"{sample.rate:.0f} per second",
                        file=sys.stderr,
                    )
    return samples


def _start(model: Model, folder: Path, stack: ExitStack) -> dict[str, Measure]:
    """Starts the servers; returns how each row of the table is measured."""
    http_address = f"127.0.0.1:{_free_port()}"
    neurona = Server("neurona", (PREDICT,), partial(_neurona, http_address))
    aio = Server(BASELINE, (PREDICT,), _aio)
    running = stack.enter_context(start_server(neurona, model, folder / "neurona"))
    baseline = stack.enter_context(start_server(aio, model, folder / "aio"))
    bodies = {method: request_bytes(model, method) for method in (PREDICT, INFER)}
    rows: dict[str, Measure] = {
        BASELINE: partial(h2load.measure, baseline, PREDICT, bodies[PREDICT]),
        "neurona, Predict": partial(h2load.measure, running, PREDICT, bodies[PREDICT]),
        "neurona, ModelInfer": partial(h2load.measure, running, INFER, bodies[INFER]),
    }
    expected = np.frombuffer(_call(rest_request(model, http_address, is_binary=True))[1], "<f4")
    for row, is_binary in ((BINARY, True), (TYPED, False)):
        request = rest_request(model, http_address, is_binary=is_binary)
        outputs, data = _call(request)
        values = np.frombuffer(data, "<f4") if is_binary else np.ravel(outputs[0]["data"])
        if not np.allclose(values, expected):
            raise RuntimeError(f"{row} has another response: {values} (expected {expected})")
        rows[f"neurona, {row}"] = partial(_measure_rest, running, request)
    return rows


def _measure_rest(
    running: RunningServer, request: RestRequest, in_flight: int, seconds: float
) -> h2load.Sample:
    return h2load.measure_http(
        running,
        request.url,
        request.headers,
        request.body,
        len(request.response),
        in_flight,
        seconds,
    )


def rest_request(model: Model, address: str, *, is_binary: bool) -> RestRequest:
    """Makes the request of a model, and calls the server once for its response."""
    values = model.batch(model.rows)
    tensor = {"name": model.graph.input[0].name, "datatype": "FP32", "shape": values.shape}
    url = f"http://{address}/v2/models/{model.name}/infer"
    headers = {"content-type": "application/json"}
    if is_binary:
        tensor["parameters"] = {"binary_data_size": values.nbytes}
        text = json.dumps({"inputs": [tensor], "parameters": {"binary_data_output": True}})
        headers = {
            "content-type": "application/octet-stream",
            "inference-header-content-length": str(len(text)),
        }
        body = text.encode() + values.tobytes()
    else:
        body = json.dumps({"inputs": [tensor | {"data": values.ravel().tolist()}]}).encode()
    request = urllib.request.Request(url, body, headers)
    with urllib.request.urlopen(request, timeout=60) as response:  # noqa: S310
        return RestRequest(url, headers, body, response.read())


def _call(request: RestRequest) -> tuple[list[dict], bytes]:
    """Returns the outputs of a response and its binary data."""
    text = request.response.decode("latin-1")
    outputs, end = json.JSONDecoder().raw_decode(text)
    return outputs["outputs"], request.response[end:]


def _neurona(http_address: str, model: Model, folder: Path, address: str) -> Command:
    copy_model(model, folder / "models")
    return neurona_command(folder / "models", address, "--http-address", http_address)


def _aio(model: Model, _: Path, address: str) -> Command:
    return Command([sys.executable, Path(__file__).with_name("aio_server.py"), model.file, address])


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def _table(samples: dict[tuple[str, int], list[h2load.Sample]]) -> str:
    rows = list(dict.fromkeys(row for row, _ in samples))
    loads = sorted({load for _, load in samples})
    lines = []
    for row in rows:
        cells = [row]
        for load in loads:
            rates = [sample.rate for sample in samples[row, load]]
            base = [sample.rate for sample in samples[BASELINE, load]]
            ratio = Spread.of([rate / other for rate, other in zip(rates, base, strict=True)])
            cells.append(number(Spread.of(rates).median))
            if row != BASELINE:
                cells[-1] += f" ({ratio.median:.2f}, {ratio.lowest:.2f} to {ratio.highest:.2f})"
        cpu = Spread.of([sample.cpu for sample in samples[row, loads[-1]]])
        lines.append([*cells, number(cpu.median)])
    head = ["", *(f"{load} in flight" for load in loads)]
    return grid([*head, f"CPU s for 1,000 requests, {loads[-1]} in flight"], lines)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--models",
        type=lambda text: text.split(","),
        default=["mlp", "lenet5"],
        help=f"of {', '.join(FACTORIES)}",
    )
    parser.add_argument(
        "--loads", type=lambda text: [int(load) for load in text.split(",")], default=LOADS
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=1.5, help="of each measurement")
    parser.add_argument("--folder", type=Path, default=ROOT / "bench")
    return parser.parse_args()


if __name__ == "__main__":
    main()
