"""The process that neurona-serve becomes when it is to serve with several: it puts the supervisor
together. `python -m neurona_server.processes.supervisor [options of neurona-serve]`"""

import logging
import os
import queue
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from prometheus_client import CollectorRegistry, disable_created_metrics

from neurona_server.config import sources
from neurona_server.config.sources import check_processes
from neurona_server.errors import ConfigError
from neurona_server.processes.collector import MultiprocessCollector
from neurona_server.processes.ports import ReservedPorts
from neurona_server.processes.signals import StopSignals
from neurona_server.processes.worker_handle import WorkerHandle
from neurona_server.resources import available_cpus
from neurona_server.telemetry import logs
from neurona_server.web.server import MetricsServer

log = logging.getLogger(__name__)

ATTEMPTS = 5
"""A worker that so many times in a row does not come to serve ends the whole."""

STEADY = 30.0
"""Seconds: who has served for so long is started again without waiting."""

FIRST_PAUSE, LONGEST_PAUSE = 0.1, 10.0
"""Seconds before a worker that has died is started again: twice as long each time."""

CONFIG_OR_LOAD = 1
"""The status of a worker that has said itself why it cannot serve."""


@dataclass
class Slot:
    """The place of one worker."""

    number: int
    worker: WorkerHandle | None = None
    deaths: int = 0
    """In a row, of workers that did not serve for long."""
    failures: int = 0
    """In a row, of workers that did not come to serve."""
    due: float = 0.0
    """When the next one is started, monotonic; 0.0: not by itself."""


WorkerEvent = Callable[[str, WorkerHandle | None], None]


class Supervisor:
    """`run` is its one thread; `stop`, `reload` and `kill` may be called by any other."""

    def __init__(
        self,
        processes: int,
        start: Callable[[int, WorkerEvent], WorkerHandle],
        restarted: Callable[[], None],
        drain: float,
    ) -> None:
        """`start` takes a slot's number, and whom to tell "ready" and "gone"; `restarted` is
        called for each worker that takes the place of one that has died; `drain` is how many
        seconds they have to stop in."""
        self._start, self._restarted, self._drain = start, restarted, drain
        self._slots = [Slot(number) for number in range(processes)]
        self._events: queue.SimpleQueue[tuple[str, WorkerHandle | None]] = queue.SimpleQueue()
        self._live: dict[WorkerHandle, Slot] = {}
        self._leaving: set[WorkerHandle] = set()
        # Of a reload: slots that are left to do, the worker that starts, the one that it replaces.
        self._to_reload: deque[Slot] = deque()
        self._fresh: WorkerHandle | None = None
        self._replaced: WorkerHandle | None = None
        self._complete = False  # all have served at a time
        self._kill_at = 0.0  # 0.0: it is not stopping
        self._status = 0

    def run(self) -> int:
        """The status to exit with: 0 if all have stopped when they were told to."""
        handlers: dict[str, Callable[[WorkerHandle], None]] = {
            "ready": self._ready,
            "gone": self._gone,
        }
        # The first alone: what it cannot do is said once, and what it has cached is there then.
        self._fill(self._slots[0])
        while self._live or not self._kill_at:
            try:
                kind, worker = self._events.get(timeout=self._next_due())
            except queue.Empty:
                self._do_what_is_due()
                continue
            if worker is not None:
                handlers[kind](worker)
            elif kind == "stop":
                self._stop()
            else:
                self._reload()
        return self._status

    def stop(self) -> None:
        self._events.put(("stop", None))

    def reload(self) -> None:
        self._events.put(("reload", None))

    def kill(self) -> None:
        for worker in list(self._live):
            worker.kill()

    def _happened(self, kind: str, worker: WorkerHandle | None) -> None:
        self._events.put((kind, worker))

    def _fill(self, slot: Slot) -> None:
        slot.worker = self._begin(slot)
        if slot.worker is None:
            slot.deaths += 1
            self._plan(slot)

    def _begin(self, slot: Slot) -> WorkerHandle | None:
        slot.due = 0.0
        try:
            worker = self._start(slot.number, self._happened)
        except OSError as error:  # as when there may be no more processes
            log.error("process %d cannot be started: %s", slot.number, error.strerror)
            return None
        self._live[worker] = slot
        return worker

    def _ready(self, worker: WorkerHandle) -> None:
        slot = self._live[worker]
        slot.failures = 0
        log.info("process %d serves (pid %d)", slot.number, worker.pid)
        if self._kill_at:
            return
        if worker is self._fresh:
            self._fresh, self._replaced, slot.worker = None, slot.worker, worker
            if self._replaced is not None:
                self._leave(self._replaced)
            self._reload_next()
        if not self._complete:
            self._complete_start()

    def _complete_start(self) -> None:
        taken = self._live.get(self._fresh) if self._fresh else None
        for slot in self._slots:
            if slot.worker is None and not slot.due and slot is not taken:
                self._fill(slot)
        if all(slot.worker and slot.worker.ready_since for slot in self._slots):
            self._complete = True
            log.info("all %d processes serve", len(self._slots))

    def _gone(self, worker: WorkerHandle) -> None:
        slot = self._live.pop(worker)
        if worker in self._leaving:
            self._leaving.discard(worker)
            if worker.ready_since and worker.status:
                log.error("process %d %s while it stopped", slot.number, worker.end)
                self._status = 1 if self._kill_at else self._status
            if worker is self._replaced:
                self._replaced = None
                self._reload_next()
        elif worker is self._fresh:
            self._fresh = None
            self._to_reload.clear()
            log.error(
                "process %d %s before it served: no reload; what serves goes on",
                *(slot.number, worker.end),
            )
            if slot.worker is None:
                self._plan(slot)
        else:
            slot.worker = None
            self._died(slot, worker)

    def _died(self, slot: Slot, worker: WorkerHandle) -> None:
        lived = time.monotonic() - worker.ready_since if worker.ready_since else 0.0
        slot.deaths = 0 if lived >= STEADY else slot.deaths + 1
        slot.failures += not worker.ready_since
        hopeless = not self._complete and slot.failures and worker.status == CONFIG_OR_LOAD
        if hopeless or slot.failures >= ATTEMPTS:
            self._status = 1
            if not hopeless:
                log.error(
                    "process %d %s, and did not come to serve %d times in a row: giving up",
                    *(slot.number, worker.end, slot.failures),
                )
            self._stop()
            return
        log.error("process %d %s; it is started again", slot.number, worker.end)
        self._plan(slot)

    def _plan(self, slot: Slot) -> None:
        pause = min(LONGEST_PAUSE, FIRST_PAUSE * 2.0 ** min(slot.deaths, 16))
        slot.due = time.monotonic() + pause

    def _stop(self) -> None:
        if self._kill_at:
            return
        self._kill_at = time.monotonic() + self._drain
        self._to_reload.clear()
        for slot in self._slots:
            slot.due = 0.0
        for worker in self._live:
            self._leave(worker)

    def _leave(self, worker: WorkerHandle) -> None:
        if worker not in self._leaving:
            self._leaving.add(worker)
            worker.stop()

    def _reload(self) -> None:
        if self._kill_at:
            return
        log.info("replacing all processes, one after the other")
        self._to_reload = deque(self._slots)
        self._reload_next()

    def _reload_next(self) -> None:
        if self._fresh is None and self._replaced is None and self._to_reload:
            slot = self._to_reload.popleft()
            self._fresh = self._begin(slot)
            if self._fresh is None:
                self._to_reload.clear()
                if slot.worker is None:
                    self._plan(slot)

    def _next_due(self) -> float | None:
        times = [slot.due for slot in self._slots if slot.due]
        if self._kill_at:
            times.append(self._kill_at)
        return max(0.0, min(times) - time.monotonic()) if times else None

    def _do_what_is_due(self) -> None:
        now = time.monotonic()
        for slot in self._slots:
            if slot.due and slot.due <= now:
                self._restarted()
                self._fill(slot)
        if self._kill_at and self._kill_at <= now:
            log.error("processes are left that do not stop: they are killed")
            self._status = 1
            self._kill_at = now + self._drain
            self.kill()


log = logging.getLogger("neurona_server.processes.supervisor")

LEAVING = 10.0
"""Seconds, beside those of the drain, that a process has to stop in."""


def main() -> int:
    options = sys.argv[1:]
    logging.getLogger(sources.__name__).setLevel(logging.ERROR)  # what it warns of is said already
    try:
        config = sources.load(options, os.environ)
        check_processes(config)
        logs.set_up(config.log_format, config.log_level, alone=False)
        ports = ReservedPorts(config.address, shared=config.reuse_port)
        disable_created_metrics()  # type: ignore[no-untyped-call]
        registry = CollectorRegistry()
        pages = MultiprocessCollector(config.processes)
        registry.register(pages)
        metrics = MetricsServer(config.metrics_address, registry, pages.state)
    except ConfigError as error:
        logs.give_up(error)
        return 1

    def start(number: int, happened: WorkerEvent) -> WorkerHandle:
        def tell(kind: str, worker: WorkerHandle) -> None:
            if kind == "gone":
                pages.remove(worker)
            happened(kind, worker)

        arguments = [str(config.processes), ports.addresses, *options]
        worker = WorkerHandle(number, arguments, tell, pages.replace)
        pages.add(worker)
        return worker

    if config.processes > available_cpus():
        log.warning("%d processes share %d CPUs", config.processes, available_cpus())
    drain = (config.drain_delay_ms + config.drain_timeout_ms) / 1000 + LEAVING
    supervisor = Supervisor(config.processes, start, pages.restarted, drain)
    signals = StopSignals(hang_up=supervisor.reload, forced=supervisor.kill)
    signals.serving()  # what has been accepted, its workers know

    def wait() -> None:
        log.info("%s", signals.wait().name)
        pages.stopping = True
        supervisor.stop()

    threading.Thread(target=wait, name="stopping", daemon=True).start()
    log.info("serving gRPC on %s with %d processes", ports.addresses, config.processes)
    host = config.metrics_address.rpartition(":")[0]
    log.info("metrics on http://%s:%d/", host, metrics.port)
    status = supervisor.run()
    metrics.close()
    ports.close()
    log.info("stopped")
    return status


if __name__ == "__main__":
    sys.exit(main())
