"""Load from h2load (Debian: nghttp2-client), a C client that sends a request for each response."""

import re
import struct
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from processes import RunningServer

CONNECTIONS = {1: 1, 8: 1, 64: 4, 256: 8, 1000: 10, 10_000: 100}
"""Connections by requests in flight, shared evenly; otherwise one."""

_FRAME = struct.Struct(">BI")  # gRPC's frame: a compression flag and the length of the message
_MINIMUM_RESPONSES, _MINIMUM_PER_CALLER = 12, 8  # of a measurement
_MAXIMUM_SECONDS = 10.0
_UNITS = {"us": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0}


class FailedCallsError(RuntimeError):
    """Calls ended without the expected response."""


@dataclass(frozen=True)
class Sample:
    """A measurement.

    Attributes:
        rate: Responses per second.
        latency: Mean latency in seconds.
        cpu: CPU seconds of the server for 1,000 requests.
        memory: Bytes of memory of the server afterwards.
    """

    rate: float
    latency: float
    cpu: float
    memory: int


def measure(
    running: RunningServer,
    method: str,
    body: bytes,
    in_flight: int,
    seconds: float,
    warm_up: float = 0.3,
) -> Sample:
    """Measures for `seconds`, or longer until there are enough responses.

    h2load counts every HTTP 200 as success, also gRPC errors; but those have no data, so the
    response sizes are checked.

    Raises:
        FailedCallsError: Responses are shorter than the expected response.
    """
    expected_bytes = len(running.call(method, body)) + _FRAME.size
    connections = CONNECTIONS.get(in_flight, 1)
    command = ["h2load", f"http://{running.address}{method}"]
    command += ["-c", str(connections), "-m", str(in_flight // connections)]
    command += ["-H", "content-type: application/grpc", "-H", "te: trailers"]
    framed = _FRAME.pack(0, len(body)) + body
    return _repeat(running, command, framed, expected_bytes, in_flight, seconds, warm_up)


def measure_http(
    running: RunningServer,
    url: str,
    headers: Mapping[str, str],
    body: bytes,
    expected_bytes: int,
    in_flight: int,
    seconds: float,
    warm_up: float = 0.3,
) -> Sample:
    """Measures requests over HTTP/1.1, each in flight on a connection of its own.

    Args:
        running: The server.
        url: Where to send them.
        headers: Their headers.
        body: Their body.
        expected_bytes: The bytes of the body of a right response.
        in_flight: The connections.
        seconds: See `measure`.
        warm_up: See `measure`.

    Raises:
        FailedCallsError: There are responses with another status or shorter bodies.
    """
    command = ["h2load", url, "--h1", "-c", str(in_flight), "-m", "1"]
    for name, value in headers.items():
        command += ["-H", f"{name}: {value}"]
    return _repeat(running, command, body, expected_bytes, in_flight, seconds, warm_up)


def _repeat(
    running: RunningServer,
    command: Sequence[str],
    content: bytes,
    expected_bytes: int,
    in_flight: int,
    seconds: float,
    warm_up: float,
) -> Sample:
    """Measures with more and more time, until there are enough responses."""
    with tempfile.NamedTemporaryFile() as file:
        file.write(content)
        file.flush()
        command = [*command, "-d", file.name]
        while True:
            sample, done = _measure(running, command, expected_bytes, in_flight, seconds, warm_up)
            minimum = max(_MINIMUM_RESPONSES, _MINIMUM_PER_CALLER * in_flight)
            if done >= minimum or seconds >= _MAXIMUM_SECONDS:
                return sample
            seconds = min(
                _MAXIMUM_SECONDS, max(2 * seconds, 1.2 * seconds * minimum / max(1, done))
            )


def _measure(
    running: RunningServer,
    command: Sequence[str],
    expected_bytes: int,
    in_flight: int,
    seconds: float,
    warm_up: float,
) -> tuple[Sample, int]:
    """Returns the sample and the number of finished requests."""
    duration = ["-D", f"{round(1000 * seconds)}ms", "--warm-up-time", f"{round(1000 * warm_up)}ms"]
    with subprocess.Popen([*command, *duration], stdout=subprocess.PIPE, text=True) as process:
        time.sleep(warm_up)
        cpu = running.cpu_seconds()
        output = process.communicate()[0]
        cpu = running.cpu_seconds() - cpu
    counts = re.search(r"(\d+) done, (\d+) succeeded, (\d+) failed, (\d+) errored", output)
    data = re.search(r"headers \(.*?\), \S+ \((\d+)\) data", output)
    latency = re.search(r"time for request: +\S+ +\S+ +([\d.]+)(us|ms|s|m) ", output)
    if counts is None or data is None or latency is None:
        raise RuntimeError(f"unexpected output of h2load:\n{output}")
    done, succeeded = int(counts[1]), int(counts[2])
    # Requests in flight at the end of the warm-up may have received data before.
    if succeeded != done or int(data[1]) < (done - in_flight) * expected_bytes:
        raise FailedCallsError(
            f"{done} requests with {in_flight} in flight got {data[1]} bytes of responses "
            f"(expected {expected_bytes} each):\n{output}"
        )
    sample = Sample(
        rate=done / seconds,
        latency=float(latency[1]) * _UNITS[latency[2]],
        cpu=1000 * cpu / max(1, done),
        memory=running.memory_bytes(),
    )
    return sample, done
