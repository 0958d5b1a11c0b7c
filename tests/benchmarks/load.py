"""The load of batching.py: a server for each measurement, and a closed loop.

That is h2load (Debian: nghttp2-client), which sends a request for each response.
"""

import contextlib
import re
import socket
import struct
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import grpc
from grpc_health.v1.health_pb2 import HealthCheckRequest
from grpc_health.v1.health_pb2_grpc import HealthStub

from neurona_protos.prediction_pb2 import PredictRequest

BIN = Path(sys.executable).parent
PREDICT = "/neurona.v1.Prediction/Predict"


@contextlib.contextmanager
def serving(repository: Path, *flags: str) -> Iterator[str]:
    """Starts a server, yields its address once it is SERVING, and stops it."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    command = [BIN / "neurona-serve", "--repository", repository, "--address", address]
    process = subprocess.Popen(
        [
            *command,
            *("--metrics-address", "127.0.0.1:0", "--http-address", "off"),
            *("--log-level", "error", *flags),
        ]
    )
    try:
        with grpc.insecure_channel(address) as channel:
            HealthStub(channel).Check(HealthCheckRequest(), timeout=60, wait_for_ready=True)
        yield address
    finally:
        process.terminate()
        process.wait()


def closed_loop(
    address: str, requests: Sequence[PredictRequest], in_flight: int, seconds: float
) -> float:
    """Returns responses per second with `in_flight` requests, equally many of each kind."""
    with contextlib.ExitStack() as stack:
        processes = []
        for request in requests:
            body = request.SerializeToString()
            file = stack.enter_context(tempfile.NamedTemporaryFile())
            file.write(struct.pack(">BI", 0, len(body)) + body)
            file.flush()
            streams = in_flight // len(requests)
            command = ["h2load", f"http://{address}{PREDICT}", "-d", file.name, "-c", "1"]
            command += [
                "-m",
                str(streams),
                "-D",
                str(max(1, round(seconds))),
                "--warm-up-time",
                "1",
            ]
            command += ["-H", "content-type: application/grpc", "-H", "te: trailers"]
            processes.append(subprocess.Popen(command, stdout=subprocess.PIPE, text=True))
        outputs = [process.communicate()[0] for process in processes]
    total = 0.0
    for output in outputs:
        errors = re.search(r"(\d+) failed, (\d+) errored", output)
        if errors is None or errors.groups() != ("0", "0"):
            raise RuntimeError(f"h2load had failures:\n{output}")
        total += float(re.search(r"finished in [\d.]+\w+, ([\d.]+) req/s", output)[1])
    return total
