"""The load: h2load (Debian: nghttp2-client) asks as fast as it is answered, from C."""

import re
import struct
import subprocess
import tempfile
import time
from dataclasses import dataclass

from processes import RunningBatch

CONNECTIONS = {1: 1, 8: 1, 64: 4, 256: 8, 1000: 10, 10_000: 100}
"""For so many in flight, shared evenly; others go over one."""

_FRAME = struct.Struct(">BI")  # gRPC's: compressed or not, and the length of what follows
_ENOUGH, _LAPS = 12, 8  # answers for a rate: at least so many, and for each that is in flight
_LONGEST = 10.0  # seconds
_UNITS = {"us": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0}


class LostError(RuntimeError):
    """Calls ended without the right answer."""


@dataclass(frozen=True)
class Sample:
    """rate: answers a second.  latency: seconds, the mean.  cpu: seconds of the server's for
    1,000 requests.  memory: bytes of the server's afterwards."""

    rate: float
    latency: float
    cpu: float
    memory: int


def measure(
    running: RunningBatch,
    method: str,
    body: bytes,
    in_flight: int,
    seconds: float,
    warm_up: float = 0.3,
) -> Sample:
    """For as long as `seconds`, or longer where so few are answered that it would be chance.

    Raises LostError unless every answer is as long as the right one: h2load takes any HTTP 200
    for an answer, and a gRPC error is one, but it has no bytes of data.
    """
    right = len(running.ask(method, body)) + _FRAME.size
    with tempfile.NamedTemporaryFile() as file:
        file.write(_FRAME.pack(0, len(body)) + body)
        file.flush()
        connections = CONNECTIONS.get(in_flight, 1)
        command = ["h2load", f"http://{running.address}{method}", "-d", file.name]
        command += ["-c", str(connections), "-m", str(in_flight // connections)]
        command += ["-H", "content-type: application/grpc", "-H", "te: trailers"]
        while True:
            sample, done = _measure(running, command, right, in_flight, seconds, warm_up)
            enough = max(_ENOUGH, _LAPS * in_flight)
            if done >= enough or seconds >= _LONGEST:
                return sample
            seconds = min(_LONGEST, max(2 * seconds, 1.2 * seconds * enough / max(1, done)))


def _measure(
    running: RunningBatch,
    command: list[str],
    right: int,
    in_flight: int,
    seconds: float,
    warm_up: float,
) -> tuple[Sample, int]:
    """What came out, and from how many requests.  right: the bytes of a right answer."""
    timed = ["-D", f"{round(1000 * seconds)}ms", "--warm-up-time", f"{round(1000 * warm_up)}ms"]
    with subprocess.Popen([*command, *timed], stdout=subprocess.PIPE, text=True) as process:
        time.sleep(warm_up)
        cpu = running.cpu_seconds()
        output = process.communicate()[0]
        cpu = running.cpu_seconds() - cpu
    counts = re.search(r"(\d+) done, (\d+) succeeded, (\d+) failed, (\d+) errored", output)
    data = re.search(r"headers \(.*?\), \S+ \((\d+)\) data", output)
    latency = re.search(r"time for request: +\S+ +\S+ +([\d.]+)(us|ms|s|m) ", output)
    if counts is None or data is None or latency is None:
        raise RuntimeError(f"h2load says what cannot be read:\n{output}")
    done, succeeded = int(counts[1]), int(counts[2])
    # What was under way when the warm-up ended may have brought its bytes before.
    if succeeded != done or int(data[1]) < (done - in_flight) * right:
        raise LostError(
            f"{done} requests with {in_flight} in flight got {data[1]} bytes of answers; "
            f"expected {right} for each:\n{output}"
        )
    sample = Sample(
        rate=done / seconds,
        latency=float(latency[1]) * _UNITS[latency[2]],
        cpu=1000 * cpu / max(1, done),
        memory=running.memory_bytes(),
    )
    return sample, done
