"""Requests to a server at given times, from one process that leaves the cores to the server.

    python open_loop.py < LOAD > ARRIVALS

reads a pickled `Load` and writes pickled `Arrivals`. A request's latency counts from when it should
have been sent, so that one that is late because of others is not excused; when it was sent is
recorded too, and so is how late the process itself was. Times are those of CLOCK_MONOTONIC, which
all processes of a machine share.
"""

import contextlib
import gc
import math
import os
import pickle
import select
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from http2 import OK, OTHER, Connection, EndedCall, encode_headers, encode_message, prepare_call
from numpy.typing import NDArray

PREDICT = "/neurona.v1.Prediction/Predict"
CONNECTIONS = 8
PRIORITY = -10
"""How nice the process is: on shared cores it must send and read on time, like another machine."""
MAX_SENT = 64
"""Requests that are sent before responses are read again."""

Array = NDArray[np.float64]


def poisson_times(rate: float, seconds: float, seed: int) -> Array:
    """Returns the times of a Poisson process of `rate` per second, ascending, below `seconds`."""
    generator = np.random.default_rng(seed)
    count = generator.poisson(rate * seconds)
    return np.sort(generator.uniform(0.0, seconds, count))


@dataclass(frozen=True)
class Bursts:
    """A Markov-modulated Poisson process of two states (MMPP-2, Fischer and Meier-Hellstern 1993).

    Attributes:
        peak: The rate in a burst by the mean rate.
        share: The share of the time that is in bursts, below 1 / peak.
        seconds: The mean length of a burst.
    """

    peak: float = 3.0
    share: float = 0.2
    seconds: float = 0.2

    def times(self, rate: float, seconds: float, seed: int) -> Array:
        """Returns times below `seconds`, ascending, whose mean rate is `rate` in the long run."""
        generator = np.random.default_rng(seed)
        between = self.seconds * (1 - self.share) / self.share
        calm_rate = rate * (1 - self.peak * self.share) / (1 - self.share)
        parts = []
        start, in_burst = 0.0, generator.random() < self.share
        while start < seconds:
            length = generator.exponential(self.seconds if in_burst else between)
            length = min(length, seconds - start)
            count = generator.poisson((self.peak * rate if in_burst else calm_rate) * length)
            parts.append(start + np.sort(generator.uniform(0.0, length, count)))
            start, in_burst = start + length, not in_burst
        return np.concatenate(parts)


@dataclass(frozen=True)
class Load:
    """Requests for a while.

    Attributes:
        address: The server's, HOST:PORT.
        bodies: Serialized requests, one of which is drawn for each arrival.
        times: Seconds from the start at which to send one, ascending, in the warm-up and after it.
        in_flight: If not 0, a request is sent for each response instead, so many at first.
        seconds: That are measured.
        warm_up_seconds: Before them.
        drain_seconds: After them, to wait for responses.
        seed: Of what is sent.
        method: The path of the method.
        timeout: Each request's, in seconds; 0 for none.
    """

    address: str
    bodies: Sequence[bytes]
    times: Sequence[float] | Array = ()
    in_flight: int = 0
    seconds: float = 1.0
    warm_up_seconds: float = 0.3
    drain_seconds: float = 5.0
    seed: int = 0
    method: str = PREDICT
    timeout: float = 0.0


def poisson_load(
    address: str, bodies: Sequence[bytes], rate: float, seconds: float, seed: int
) -> Load:
    """Returns a load of `rate` requests per second at random times, with a warm-up."""
    warm_up = min(0.3, seconds)
    times = poisson_times(rate, warm_up + seconds, seed)
    return Load(address, bodies, times, seconds=seconds, warm_up_seconds=warm_up, seed=seed)


@dataclass
class Arrivals:
    """What became of the requests of a load that were due while it was measured, in this order.

    Attributes:
        items: The index of what was sent, among the bodies.
        due: When it should have been sent, on the clock that all processes share.
        sent: When it was.
        ended: When its response was read, inf if none came.
        statuses: 0 for a response, else gRPC's number, -1 for none at all.
        retry_after: The hints of those without a response in seconds; 0.0 for none.
        seconds: That were measured.
        responded: Responses that came in these seconds.
        total: Responses that came at all, in the warm-up and afterwards too.
        responses: The latest response of each body, as bytes.
        gaps: Seconds of the process between two looks at what has come, without those in which
            it slept: so much later than it came may a response have been read.
        cpu_seconds: Of the process that made the load.
        wall_seconds: Of the same, from its first request to its end.
        all_sent: Requests that it sent at all, in the warm-up too.
    """

    items: NDArray[np.int64]
    due: Array
    sent: Array
    ended: Array
    statuses: NDArray[np.int64]
    retry_after: Array
    seconds: float = 0.0
    responded: int = 0
    total: int = 0
    responses: dict[int, bytes] = field(default_factory=dict)
    gaps: Array = field(default_factory=lambda: np.zeros(0))
    cpu_seconds: float = 0.0
    wall_seconds: float = 0.0
    all_sent: int = 0

    @property
    def latencies(self) -> Array:
        """Seconds from when each should have been sent to its response."""
        return self.ended - self.due

    @property
    def lateness(self) -> Array:
        """Seconds from when each should have been sent until it was."""
        return self.sent - self.due

    @property
    def failed(self) -> int:
        """The number of requests without a response."""
        return int(np.count_nonzero(self.statuses != OK))

    @property
    def rate(self) -> float:
        """Responses per second."""
        return self.responded / self.seconds


def send_load(load: Load) -> Arrivals:
    """Sends a load from a process of its own.

    Raises:
        RuntimeError: The process fails; the message has its error.
    """
    command = [sys.executable, str(Path(__file__).resolve())]
    result = subprocess.run(command, check=False, input=pickle.dumps(load), capture_output=True)
    if result.returncode:
        raise RuntimeError(f"the load failed: {result.stderr.decode(errors='replace')}")
    arrivals: Arrivals = pickle.loads(result.stdout)  # noqa: S301 of our own process
    return arrivals


def make_load(load: Load) -> Arrivals:
    """Sends a load from this process and returns what became of it."""
    return _LoadRun(load).run()


class _LoadRun:
    """A load while it is made: lists by the number of the request, in the order of sending."""

    def __init__(self, load: Load) -> None:
        self.load = load
        self.connections = [Connection(load.address) for _ in range(CONNECTIONS)]
        for one in self.connections:
            one.corked = True
        timeout = (("grpc-timeout", f"{round(1000 * load.timeout)}m"),) if load.timeout else ()
        headers = encode_headers(load.method, *timeout)
        self.prepared = [prepare_call(headers, encode_message(body)) for body in load.bodies]
        self.draws = self._draw_items()
        self.items: list[int] = []
        self.due: list[float] = []
        self.sent: list[float] = []
        self.ended: list[float] = []
        self.statuses: list[int] = []
        self.retry_after: list[float] = []
        self.unanswered = 0
        self.responses: dict[int, bytes] = {}
        self.gaps: list[float] = []

    def _draw_items(self) -> Iterator[int]:
        generator = np.random.default_rng(self.load.seed)
        while True:
            yield from generator.integers(len(self.prepared), size=1024).tolist()

    def run(self) -> Arrivals:
        load = self.load
        cpu = sum(os.times()[:2])
        begin = time.perf_counter() + 0.02
        measured_from = begin + load.warm_up_seconds
        until = measured_from + load.seconds
        times = (begin + np.asarray(load.times, np.float64)).tolist()
        times.append(math.inf)
        self._send_closed([begin] * load.in_flight)
        next_time = 0  # the index in `times`
        woken = time.perf_counter()
        while self.unanswered or times[next_time] < until:
            now = time.perf_counter()
            first = next_time
            while times[next_time] <= now and next_time - first < MAX_SENT:
                self._send(times[next_time], now)
                next_time += 1
            for one in self.connections:
                one.write_unsent()
            if now > until + load.drain_seconds:
                break
            wake = min(times[next_time], until + load.drain_seconds)
            writers = [one.socket for one in self.connections if one.wants_to_write]
            sleeping = time.perf_counter()
            self.gaps.append(sleeping - woken)
            sockets = [one.socket for one in self.connections]
            readable, _, _ = select.select(
                sockets, writers, (), min(max(0.0, wake - sleeping), 1.0)
            )
            woken = time.perf_counter()
            for one in self.connections:
                if one.socket in readable:
                    finished = self._finish(one.read())
                    if load.in_flight and woken < until:
                        self._send_closed([time.perf_counter()] * finished)
        wall = time.perf_counter() - begin
        arrivals = self._arrivals(measured_from, until)
        arrivals.cpu_seconds = sum(os.times()[:2]) - cpu
        arrivals.wall_seconds = wall
        for one in self.connections:
            one.socket.close()
        return arrivals

    def _send(self, due: float, now: float) -> None:
        number = len(self.items)
        item = next(self.draws)
        self.items.append(item)
        self.due.append(due)
        self.sent.append(now)
        self.ended.append(math.inf)
        self.statuses.append(OTHER)
        self.retry_after.append(0.0)
        self.unanswered += 1
        self.connections[number % CONNECTIONS].call(self.prepared[item], number)

    def _send_closed(self, due: Sequence[float]) -> None:
        for one in due:
            self._send(one, one)

    def _finish(self, calls: Sequence[EndedCall]) -> int:
        """Records calls that have ended and returns their number."""
        now = time.perf_counter()
        for number, status, retry_after, response in calls:
            assert isinstance(number, int)
            self.ended[number] = now
            self.statuses[number] = status
            if status == OK:
                self.responses[self.items[number]] = response
            else:
                self.retry_after[number] = retry_after
        self.unanswered -= len(calls)
        return len(calls)

    def _arrivals(self, measured_from: float, until: float) -> Arrivals:
        due, ended = np.array(self.due), np.array(self.ended)
        statuses = np.array(self.statuses, np.int64)
        measured = (due >= measured_from) & (due < until)
        answered = ended[statuses == OK]
        return Arrivals(
            items=np.array(self.items, np.int64)[measured],
            due=due[measured],
            sent=np.array(self.sent)[measured],
            ended=ended[measured],
            statuses=statuses[measured],
            retry_after=np.array(self.retry_after)[measured],
            seconds=self.load.seconds,
            responded=int(np.count_nonzero((answered >= measured_from) & (answered < until))),
            total=len(answered),
            responses=self.responses,
            gaps=np.array(self.gaps),
            all_sent=len(due),
        )


def serve_load() -> None:
    """Makes the load on the standard input, and writes what became of it to the output."""
    load = pickle.load(sys.stdin.buffer)  # noqa: S301 of the process that started this one
    with contextlib.suppress(PermissionError):
        os.nice(PRIORITY)
    gc.disable()  # its pauses would count as the server's
    sys.stdout.buffer.write(pickle.dumps(make_load(load)))


if __name__ == "__main__":
    # Pickled, the classes have the name of the module that others import.
    import open_loop

    open_loop.serve_load()
