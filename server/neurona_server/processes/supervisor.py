"""The process that neurona-serve becomes to serve by worker processes, one or several.

    python -m neurona_server.processes.supervisor [OPTIONS of neurona-serve]

It starts the workers, restarts those that die or hang, replaces all at SIGHUP, stops them, keeps
new ones from loading a model that makes them crash, and serves their merged metrics. It imports
neither grpc nor ONNX Runtime: the process that outlives all others is small.
"""

import contextlib
import logging
import math
import os
import queue
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Set
from dataclasses import dataclass
from enum import Enum, auto

from prometheus_client import CollectorRegistry, disable_created_metrics

from neurona_server.address import UNIX
from neurona_server.config import sources
from neurona_server.config.options import Config
from neurona_server.config.parsers import OFF
from neurona_server.errors import ConfigError
from neurona_server.models.repository.file_versions import FileVersions
from neurona_server.processes.channel import LoadedModels, Message, MetricsReport, StartOptions
from neurona_server.processes.multiprocess_collector import MultiprocessCollector
from neurona_server.processes.ports import reserve_ports
from neurona_server.processes.quarantine import Quarantine
from neurona_server.processes.signals import StopSignals
from neurona_server.processes.worker_handle import WorkerEvent, WorkerHandle
from neurona_server.resources import MemoryKills, available_cpus
from neurona_server.telemetry import logs
from neurona_server.telemetry.run_journal import ModelKey
from neurona_server.web.metrics_server import MetricsServer

log = logging.getLogger("neurona_server.processes.supervisor")

MAX_FAILED_STARTS = 5
"""Failed starts of one slot in a row that end the server."""

STEADY_SECONDS = 30.0
"""A worker that has served for this long is restarted without a pause."""

MIN_RESTART_PAUSE, MAX_RESTART_PAUSE = 0.1, 10.0
"""Seconds before a worker that has died is restarted; the pause doubles each time."""

CONFIG_OR_LOAD_ERROR = 1
"""Exit status of a worker that has logged itself why it cannot serve."""

CHECK_SECONDS = 1.0
"""Time between two checks of the workers' heartbeats."""

REPLACE_SECONDS = 60.0
"""Least time between two replacements of a worker that has lost its GPUs: what it did to lose them
may happen again."""

EXIT_SECONDS = 10.0
"""Seconds for a worker to exit, in addition to those of draining."""

OnEvent = Callable[[WorkerEvent, WorkerHandle], None]


class _Request(Enum):
    STOP = auto()
    RELOAD = auto()


@dataclass
class Slot:
    """The place of one worker, taken by its successors in turn."""

    number: int
    worker: WorkerHandle | None = None
    deaths: int = 0
    """Deaths in a row of workers that had not served for long."""
    failed_starts: int = 0
    """Deaths in a row of workers that had not begun to serve."""
    restart_at: float = 0.0
    """Monotonic time of the next start; 0.0 if none is planned."""
    replace_at: float = 0.0
    """Monotonic time at which its worker is replaced, which has lost its GPUs; 0.0: it has not."""
    replaced_at: float = -math.inf
    """Monotonic time at which one was last replaced for that."""


class Supervisor:
    """Keeps one worker in each slot.

    Its only thread is in `run`; any other thread may call `stop`, `reload` and `kill`.
    """

    def __init__(
        self,
        processes: int,
        start_worker: Callable[[int, OnEvent], WorkerHandle],
        on_restart: Callable[[], None],
        stop_seconds: float,
        quarantine: Quarantine,
        *,
        overlap: bool = True,
    ) -> None:
        """Prepare the slots; `run` starts the workers.

        Args:
            processes: Number of slots.
            start_worker: Starts the worker of the slot with that number, which reports its events
                to the callback.
            on_restart: Called before each start of a worker that replaces one that has died.
            stop_seconds: Time for workers to stop in, before they are killed.
            quarantine: Learns of crashes.
            overlap: Whether a worker may be replaced by one that starts while it still serves;
                else it is stopped first.
        """
        self._start_worker, self._on_restart = start_worker, on_restart
        self._stop_seconds = stop_seconds
        self._quarantine, self._overlap = quarantine, overlap
        self._slots = [Slot(number) for number in range(processes)]
        self._events: queue.SimpleQueue[tuple[WorkerEvent, WorkerHandle] | _Request]
        self._events = queue.SimpleQueue()
        self._slot_of: dict[WorkerHandle, Slot] = {}  # of each worker that runs
        self._stopping: set[WorkerHandle] = set()
        # A reload: the slots still to reload, the worker that starts, and the one it replaces.
        self._to_reload: deque[Slot] = deque()
        self._replacement: WorkerHandle | None = None
        self._replaced: WorkerHandle | None = None
        self._started = False  # all workers have served at the same time
        self._kill_at = 0.0  # 0.0: the supervisor is not stopping
        self._status = 0
        self._check_at = 0.0

    def run(self) -> int:
        """Start the workers, and return when all have ended.

        Returns:
            The exit status: 0 if all workers stopped as requested.
        """
        # The first worker starts alone: an error of the options is logged once, and the others
        # find what the first one has cached.
        self._fill(self._slots[0])
        while self._slot_of or not self._kill_at:
            self._act_on_time()
            try:
                event = self._events.get(timeout=self._seconds_to_next_action())
            except queue.Empty:
                continue
            if event is _Request.STOP:
                self._stop_all()
            elif event is _Request.RELOAD:
                self._start_reload()
            else:
                kind, worker = event
                if kind is WorkerEvent.READY:
                    self._handle_ready(worker)
                elif kind is WorkerEvent.DEVICES_LOST:
                    self._handle_lost_devices(worker)
                else:
                    self._handle_exit(worker)
        return self._status

    def stop(self) -> None:
        """Make all workers drain and stop, and `run` return."""
        self._events.put(_Request.STOP)

    def reload(self) -> None:
        """Replace all workers, one after the other."""
        self._events.put(_Request.RELOAD)

    def kill(self) -> None:
        """Kill all workers."""
        for worker in list(self._slot_of):
            worker.kill()

    def _post(self, event: WorkerEvent, worker: WorkerHandle) -> None:
        self._events.put((event, worker))

    def _fill(self, slot: Slot) -> None:
        if self._kill_at:
            return
        slot.replace_at = 0.0
        slot.worker = self._start(slot)
        if slot.worker is None:
            slot.deaths += 1
            self._plan_restart(slot)

    def _start(self, slot: Slot) -> WorkerHandle | None:
        slot.restart_at = 0.0
        try:
            worker = self._start_worker(slot.number, self._post)
        except OSError as error:  # for example at the limit of processes
            log.error("worker %d cannot be started: %s", slot.number, error.strerror)
            return None
        self._slot_of[worker] = slot
        return worker

    def _handle_ready(self, worker: WorkerHandle) -> None:
        slot = self._slot_of[worker]
        slot.failed_starts = 0
        log.info("worker %d serving (pid %d)", slot.number, worker.pid)
        if self._kill_at:
            return
        if worker is self._replacement:
            self._replacement, self._replaced, slot.worker = None, slot.worker, worker
            slot.replace_at = 0.0
            if self._replaced is not None:
                self._stop_worker(self._replaced)
            self._reload_next()
        if not self._started:
            self._continue_start()

    def _handle_lost_devices(self, worker: WorkerHandle) -> None:
        """Plan to replace a worker that cannot use any GPU any more.

        It is stopped before the new one starts, which needs the memory that it has on the GPUs.
        """
        slot = self._slot_of.get(worker)
        if slot is None or worker in self._stopping or worker is not slot.worker:
            return
        now = time.monotonic()
        slot.replace_at = max(now, slot.replaced_at + REPLACE_SECONDS)
        log.error(
            "worker %d has lost its GPUs; replacing it in %.0f s",
            *(slot.number, slot.replace_at - now),
        )

    def _replace_due_workers(self, now: float) -> None:
        """Stop a worker that has lost its GPUs; `_handle_exit` starts its successor."""
        for slot in self._slots:
            if self._kill_at or self._replacement is not None or self._replaced is not None:
                return  # one at a time
            worker = slot.worker
            if 0.0 < slot.replace_at <= now and worker is not None and worker.ready_since:
                slot.replace_at, slot.replaced_at = 0.0, now
                self._replaced = worker
                self._stop_worker(worker)

    def _continue_start(self) -> None:
        reloading = self._slot_of.get(self._replacement) if self._replacement else None
        for slot in self._slots:
            if slot.worker is None and not slot.restart_at and slot is not reloading:
                self._fill(slot)
        if all(slot.worker and slot.worker.ready_since for slot in self._slots):
            self._started = True
            if len(self._slots) > 1:
                log.info("all %d workers serving", len(self._slots))

    def _handle_exit(self, worker: WorkerHandle) -> None:
        slot = self._slot_of.pop(worker)
        key = None if worker.crash is None else self._quarantine.record(worker.crash)
        if worker in self._stopping:
            self._stopping.discard(worker)
            if worker.ready_since and worker.status:
                log.error("worker %d %s while stopping", slot.number, worker.exit_reason)
                self._status = 1 if self._kill_at else self._status
            if worker is self._replaced:
                self._replaced = None
                if worker is slot.worker:  # its successor could not start before
                    self._fill(slot)
                self._reload_next()
        elif worker is self._replacement:
            self._replacement = None
            self._to_reload.clear()
            log.error(
                "reload aborted: new worker %d %s before it served; running workers keep serving",
                *(slot.number, worker.exit_reason),
            )
            if slot.worker is None:
                self._plan_restart(slot)
        else:
            slot.worker = None
            self._handle_death(slot, worker, explained=key is not None)
        if key is not None:
            self._enforce_quarantine(key)

    def _enforce_quarantine(self, key: ModelKey) -> None:
        """Replace the workers that still serve a model that is quarantined from now on."""
        fields = {"model": key.name, "version": key.version}
        log.error("%s: %s", key, self._quarantine.reasons[key], extra=fields)
        if self._started and not self._kill_at:
            self._to_reload = deque(slot for slot in self._slots if slot.worker is not None)
            self._reload_next()

    def _handle_death(self, slot: Slot, worker: WorkerHandle, *, explained: bool) -> None:
        """Restart a worker that ended by itself, or give up.

        `explained` if a model is quarantined for it: the next start may succeed without.
        """
        lived = time.monotonic() - worker.ready_since if worker.ready_since else 0.0
        slot.deaths = 0 if lived >= STEADY_SECONDS else slot.deaths + 1
        slot.failed_starts = 0 if explained else slot.failed_starts + (not worker.ready_since)
        logged_its_error = worker.status == CONFIG_OR_LOAD_ERROR
        first_start_failed = not self._started and slot.failed_starts and logged_its_error
        if first_start_failed or slot.failed_starts >= MAX_FAILED_STARTS:
            self._status = 1
            if not first_start_failed:
                log.error(
                    "worker %d %s: failed to start %d times in a row; stopping",
                    *(slot.number, worker.exit_reason, slot.failed_starts),
                )
            self._stop_all()
            return
        log.error("worker %d %s; restarting", slot.number, worker.exit_reason)
        self._plan_restart(slot)

    def _plan_restart(self, slot: Slot) -> None:
        pause = min(MAX_RESTART_PAUSE, MIN_RESTART_PAUSE * 2.0 ** min(slot.deaths, 16))
        slot.restart_at = time.monotonic() + pause

    def _stop_all(self) -> None:
        if self._kill_at:
            return
        self._kill_at = time.monotonic() + self._stop_seconds
        self._to_reload.clear()
        for slot in self._slots:
            slot.restart_at = 0.0
        for worker in self._slot_of:
            self._stop_worker(worker)

    def _stop_worker(self, worker: WorkerHandle) -> None:
        if worker not in self._stopping:
            self._stopping.add(worker)
            worker.stop()

    def _start_reload(self) -> None:
        if self._kill_at:
            return
        log.info("reloading: replacing all workers, one after the other")
        self._to_reload = deque(self._slots)
        self._reload_next()

    def _reload_next(self) -> None:
        if self._replacement is None and self._replaced is None and self._to_reload:
            slot = self._to_reload.popleft()
            if not self._overlap and slot.worker is not None:
                self._replaced = slot.worker
                self._stop_worker(slot.worker)
                return
            self._replacement = self._start(slot)
            if self._replacement is None:
                self._to_reload.clear()
                if slot.worker is None:
                    self._plan_restart(slot)

    def _seconds_to_next_action(self) -> float | None:
        times = [slot.restart_at for slot in self._slots if slot.restart_at]
        if self._slot_of:
            times.append(self._check_at)
        if self._kill_at:
            times.append(self._kill_at)
        return max(0.0, min(times) - time.monotonic()) if times else None

    def _act_on_time(self) -> None:
        """Restart the workers whose pause is over; kill those that hang or do not stop in time."""
        now = time.monotonic()
        if self._check_at <= now:
            self._check_at = now + CHECK_SECONDS
            self._kill_hanging()
            self._replace_due_workers(now)
            if os.getpid() == 1:  # of a container: it gets the orphans of its workers
                reap_orphans({worker.pid for worker in self._slot_of})
        for slot in self._slots:
            if slot.restart_at and slot.restart_at <= now:
                self._on_restart()
                self._fill(slot)
        if self._kill_at and self._kill_at <= now:
            log.error("%d workers did not stop in time; killing them", len(self._slot_of))
            self._status = 1
            self._kill_at = now + self._stop_seconds
            self.kill()

    def _kill_hanging(self) -> None:
        for worker in list(self._slot_of):
            if reason := worker.check_heartbeat():
                log.error(
                    "worker %d (pid %d) %s; killing it",
                    *(worker.number, worker.pid, reason),
                )
                threading.Thread(target=worker.kill_hanging, daemon=True).start()


def reap_orphans(children: Set[int]) -> None:
    """Remove processes that have ended and whose parents have ended, other than `children`.

    Each of `children` has a thread that waits for its status.
    """
    with contextlib.suppress(ChildProcessError):
        while ended := os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT):
            if ended.si_pid in children:
                return
            os.waitpid(ended.si_pid, os.WNOHANG)


def _serve_metrics(
    config: Config, registry: CollectorRegistry, collector: MultiprocessCollector
) -> Callable[[], None]:
    if not (address := config.metrics_address):
        return lambda: None
    server = MetricsServer(address, registry, collector.state, hosts=config.metrics_hosts)
    log.info("metrics on http://%s:%d/", address.rpartition(":")[0], server.port)
    return server.close


def report_addresses(config: Config, grpc: str, http: str) -> None:
    """Log where the server serves. A single worker logs the addresses of its transports itself."""
    if config.processes > 1:
        log.info("serving gRPC on %s with %d processes", grpc, config.processes)
        if http != OFF:
            log.info("serving HTTP on %s with %d processes", http, config.processes)


def main() -> int:
    options = sys.argv[1:]
    logging.getLogger(sources.__name__).setLevel(logging.ERROR)  # neurona-serve has warned
    try:
        config = sources.load(options, os.environ)
        sources.check_processes(config)
        logs.set_up(config.log_format, config.log_level, starts_processes=True)
        ports = reserve_ports(config)
        disable_created_metrics()  # type: ignore[no-untyped-call]
        registry = CollectorRegistry()
        collector = MultiprocessCollector(config.processes)
        registry.register(collector)
        close_metrics = _serve_metrics(config, registry, collector)
    except ConfigError as error:
        logs.report_fatal(error)
        return 1

    grpc_addresses, http_address, *_ = [*(one.addresses for one in ports), OFF]
    file_versions = FileVersions.create_shared()
    quarantine = Quarantine()
    memory_kills = MemoryKills()
    loaded_models: list[LoadedModels] = []  # the newest message, or none yet

    def handle_message(worker: WorkerHandle, message: Message) -> None:
        if isinstance(message, MetricsReport):
            collector.replace(worker, message.snapshot)
        elif isinstance(message, LoadedModels):
            loaded_models[:] = [message]

    def start_worker(number: int, on_event: OnEvent) -> WorkerHandle:
        def forward(event: WorkerEvent, worker: WorkerHandle) -> None:
            if event is WorkerEvent.EXITED:
                collector.remove(worker)
            on_event(event, worker)

        worker = WorkerHandle(
            number,
            [str(config.processes), grpc_addresses, http_address, *options],
            StartOptions(
                quarantine.reasons,
                loaded_models[0].requested if loaded_models else None,
                loaded_models[0].served if loaded_models else None,
                file_versions.descriptor,
            ),
            memory_kills,
            forward,
            handle_message,
        )
        collector.add(worker)
        return worker

    if config.processes > available_cpus():
        log.warning(
            "more processes than CPUs: %d workers share %d CPUs", config.processes, available_cpus()
        )
    stop_seconds = (config.drain_delay_ms + config.drain_timeout_ms) / 1000 + EXIT_SECONDS
    supervisor = Supervisor(
        config.processes,
        start_worker,
        collector.record_restart,
        stop_seconds,
        quarantine,
        overlap=UNIX not in config.address,  # which has one owner
    )
    signals = StopSignals(on_hang_up=supervisor.reload, on_forced_stop=supervisor.kill)
    signals.mark_serving()  # the supervisor accepts no requests, so it never ends immediately

    def stop_at_signal() -> None:
        log.info("received %s", signals.wait().name)
        collector.stopping = True
        supervisor.stop()

    threading.Thread(target=stop_at_signal, name="stopping", daemon=True).start()
    report_addresses(config, grpc_addresses, http_address)
    status = supervisor.run()
    close_metrics()
    file_versions.close()
    for one in ports:
        one.close()
    log.info("stopped")
    return status


if __name__ == "__main__":
    sys.exit(main())
