"""One simulated server: the thread that reads requests, its models and the devices they share."""

from bisect import bisect_right
from collections import deque
from collections.abc import Callable, Hashable, Sequence
from random import Random
from typing import NamedTuple

from neurona_server.batching.batcher import Deferred
from neurona_server.batching.device_scheduler import DeviceScheduler
from neurona_server.batching.policy import Priority
from neurona_server.batching.watchdog import RunWatchdog
from neurona_server.simulation.kernel import Kernel
from neurona_server.simulation.model import Outcomes, SimulatedModel
from neurona_server.simulation.scenario import Scenario, Stall

MAX_EVENTS = 2048
"""Requests after which the transport does what was deferred although more could be read."""

DEFAULT_SLOTS = 2
"""Runs that a device does at once."""


class Arrival(NamedTuple):
    """A request on its way to a server."""

    time: float
    model: int
    """Its index in the scenario."""
    rows: int
    timeout: float
    priority: Priority
    group: Hashable


class StallSchedule:
    """When a machine stands still. Work that it does takes longer by the stalls within."""

    def __init__(self, stalls: Sequence[Stall], random: Random, now: float) -> None:
        """Make the schedule of random stalls, of which `stalls` are the rates."""
        by_length = sorted(stalls, key=lambda one: one.seconds)
        self._lengths = [one.seconds for one in by_length]
        self._rates = [one.per_second for one in by_length]  # of such a length or longer
        self._random = random
        self._starts: list[float] = []
        self._ends: list[float] = []
        self._known_until = now

    def finish(self, now: float, seconds: float) -> float:
        """Return when work is done that takes so long without stalls and begins now."""
        if not self._lengths or not self._rates[0]:
            return now + seconds
        end = now + seconds
        self._extend(end)
        index = bisect_right(self._ends, now)
        while index < len(self._starts) and self._starts[index] < end:
            end += self._ends[index] - max(now, self._starts[index])
            self._extend(end)
            index += 1
        return end

    def _extend(self, until: float) -> None:
        while self._known_until <= until:
            start = self._known_until + self._random.expovariate(self._rates[0])
            length = self._draw_length()
            self._starts.append(start)
            self._ends.append(start + length)
            self._known_until = start + length

    def _draw_length(self) -> float:
        draw = self._random.random() * self._rates[0]
        index = max(0, sum([rate > draw for rate in self._rates]) - 1)
        longer = self._lengths[index + 1] if index + 1 < len(self._lengths) else None
        shortest = self._lengths[index]
        return self._random.uniform(shortest, longer or 2 * shortest)


class Transport:
    """The thread that reads requests one after the other and runs inline models in between."""

    def __init__(self, kernel: Kernel, server: "SimulatedServer") -> None:
        """Make the transport of a server, and start its thread."""
        self._kernel = kernel
        self._server = server
        self._unread: deque[Arrival] = deque()
        self._deferred: dict[Deferred, None] = {}
        self._is_busy = False
        self._events = 0
        self.busy_seconds = 0.0
        """Spent with reading."""
        self._process = kernel.spawn(self._run, "transport")

    def receive(self, arrival: Arrival) -> None:
        """Have a request come, which is read in its turn."""
        self._unread.append(arrival)
        if not self._is_busy:
            self._is_busy = True
            self._read_all()

    def _read_all(self) -> None:
        """Read what can be read, up to the next request that takes time."""
        while True:
            while self._unread and self._events < MAX_EVENTS:
                if seconds := self._server.request_seconds[self._unread[0].model]:
                    self.busy_seconds += seconds
                    end = self._server.stalls.finish(self._kernel.now, seconds)
                    self._kernel.at(end, self._read_on)
                    return
                self._read()
            self._events = 0
            if self._deferred:
                self._kernel.wake(self._process)
                return
            if not self._unread:
                self._is_busy = False
                return

    def _read_on(self) -> None:
        self._read()
        self._read_all()

    def _read(self) -> None:
        self._events += 1
        arrival = self._unread.popleft()
        self._server.models[arrival.model].submit(
            arrival.time,
            rows=arrival.rows,
            timeout=arrival.timeout,
            priority=arrival.priority,
            group=arrival.group,
            defer=self._defer,
        )

    def _defer(self, callback: Deferred) -> None:
        self._deferred[callback] = None

    def _run(self) -> None:
        """Do what was deferred whenever all has been read: the loop of the thread."""
        while True:
            self._kernel.suspend()
            unfinished: dict[Deferred, None] = {}
            while self._deferred:
                deferred, self._deferred = self._deferred, {}
                for callback in deferred:
                    if callback():
                        unfinished[callback] = None
            self._deferred = unfinished
            self._read_all()  # which wakes this thread again if something is deferred


class SimulatedServer:
    """A server of a scenario."""

    def __init__(
        self,
        kernel: Kernel,
        scenario: Scenario,
        random: Random,
        outcomes: Sequence[Outcomes],
        measured: tuple[float, float],
    ) -> None:
        """Make and start a server.

        Args:
            kernel: The virtual time.
            scenario: What the server has.
            random: Where chance comes from.
            outcomes: Where the requests of each model are counted.
            measured: The times between which requests that arrive are counted.
        """
        self.stalls = StallSchedule(scenario.stalls, random, kernel.now)
        self.outstanding = 0
        """Requests that are not answered."""
        self.request_seconds = [model.batching.request_seconds for model in scenario.models]
        self.scheduler = DeviceScheduler(
            DEFAULT_SLOTS, scenario.slots, new_condition=kernel.new_condition
        )
        watchdog = RunWatchdog(kernel.clock)
        work: Callable[[float], None] = kernel.sleep
        if scenario.stalls:

            def work(seconds: float) -> None:
                kernel.sleep(self.stalls.finish(kernel.now, seconds) - kernel.now)

        self.models = [
            SimulatedModel(
                kernel,
                model.policy,
                model.batching.batch_costs(),
                random,
                name=model.name,
                devices=[
                    model.devices[number % len(model.devices)]
                    for number in range(model.batching.instances)
                ],
                batched=model.batched,
                scheduler=self.scheduler,
                watchdog=watchdog,
                group_factors={(index,): group.factor for index, group in enumerate(model.groups)},
                request_bytes=model.request_bytes,
                sleep=work,
                outcomes=counts,
                measured=measured,
                on_end=self._count_end,
            )
            for model, counts in zip(scenario.models, outcomes, strict=True)
        ]
        for model in self.models:
            model.start()
        self.transport = Transport(kernel, self)

    def receive(self, arrival: Arrival) -> None:
        """Have a request come."""
        self.outstanding += 1
        self.transport.receive(arrival)

    def _count_end(self) -> None:
        self.outstanding -= 1
