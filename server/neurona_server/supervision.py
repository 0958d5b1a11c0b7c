"""The process that neurona-serve becomes when it is to serve with several: it puts the supervisor
together. `python -m neurona_server.supervision [options of neurona-serve]`"""

import logging
import os
import sys
import threading

from prometheus_client import CollectorRegistry, disable_created_metrics

from neurona_server import logs, sources
from neurona_server.errors import ConfigError
from neurona_server.gathered import GatheredPages
from neurona_server.models.cpus import available_cpus
from neurona_server.processes import HeldPorts, check_processes
from neurona_server.signals import StopSignals
from neurona_server.supervisor import Happened, Supervisor
from neurona_server.web.port import Port
from neurona_server.worker_process import WorkerProcess

log = logging.getLogger("neurona_server.supervision")

LEAVING = 10.0
"""Seconds, beside those of the drain, that a process has to stop in."""


def main() -> int:
    options = sys.argv[1:]
    logging.getLogger(sources.__name__).setLevel(logging.ERROR)  # what it warns of is said already
    try:
        config = sources.load(options, os.environ)
        check_processes(config)
        logs.set_up(config.log_format, config.log_level, alone=False)
        ports = HeldPorts(config.address, shared=config.reuse_port)
        disable_created_metrics()  # type: ignore[no-untyped-call]
        registry = CollectorRegistry()
        pages = GatheredPages(config.processes)
        registry.register(pages)
        metrics = Port(config.metrics_address, registry, pages.state)
    except ConfigError as error:
        logs.give_up(error)
        return 1

    def start(number: int, happened: Happened) -> WorkerProcess:
        def tell(kind: str, worker: WorkerProcess) -> None:
            if kind == "gone":
                pages.remove(worker)
            happened(kind, worker)

        arguments = [str(config.processes), ports.addresses, *options]
        worker = WorkerProcess(number, arguments, tell, pages.replace)
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
