"""The process in which a model's file is loaded and run for the first time.

    python -m neurona_server.models.load_check.child_process DESCRIPTOR

It gets its jobs over a connection that it has inherited, and does with each file what the server
would do. A file that ends or blocks this process has not ended or blocked the server. It imports
neither grpc nor what serves.

What it sends is JSON, so that a file which takes over this process cannot make the server unpickle
anything.
"""

import contextlib
import json
import logging
import os
import queue
import signal
import sys
import threading
from dataclasses import dataclass
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path

from prometheus_client import CollectorRegistry

from neurona_server.errors import LoadError
from neurona_server.models.load_cancellation import LoadCancellation
from neurona_server.models.model import Model
from neurona_server.models.model_options import ModelOptions
from neurona_server.models.repository.scanner import ModelSource
from neurona_server.telemetry.metrics import Metrics

if sys.platform != "win32":  # where there is no check
    import resource

log = logging.getLogger("neurona_server.models.load_check.child_process")

STEP = b"step"
"""Sent at the start of a check, so that the end of this process can be blamed on the file, and at
each step of it."""

IDLE_SECONDS = 5.0
"""Time without a job after which the process ends: it uses some 60 MB."""

GRACE_SECONDS = 10.0
"""Time after the limit of a load in which its server should have ended this process."""

MAX_LOG_RECORDS, MAX_LOG_CHARACTERS = 20, 4000
INTERNAL_ERROR = "internal error; see the server's log"


@dataclass(frozen=True)
class CheckJob:
    """A file to load, with the server's options and the time limit of each step (0: none)."""

    source: ModelSource
    options: ModelOptions
    timeout: float


class LogCollector(logging.Handler):
    """Keeps the records of one check: those of a file that fails belong in the server's log."""

    def __init__(self) -> None:
        super().__init__(logging.INFO)
        self.records: list[tuple[int, str]] = []

    def emit(self, record: logging.LogRecord) -> None:
        if len(self.records) < MAX_LOG_RECORDS:
            self.records.append((record.levelno, self.format(record)[-MAX_LOG_CHARACTERS:]))


def main() -> int:
    connection = Connection(int(sys.argv[1]))
    _become_harmless()
    collector = LogCollector()
    logging.basicConfig(level=logging.INFO, handlers=[collector], format="%(message)s")
    jobs: queue.SimpleQueue[CheckJob] = queue.SimpleQueue()
    threading.Thread(target=_receive, args=(connection, jobs), daemon=True).start()
    while True:
        try:
            job = jobs.get(timeout=IDLE_SECONDS)
        except queue.Empty:
            return 0
        collector.records.clear()
        reason = _check(job, LoadCancellation(partial(_report_step, connection, job.timeout)))
        signal.alarm(0)
        answer = {"reason": reason, "log": collector.records if reason else []}
        connection.send_bytes(json.dumps(answer).encode())


def _become_harmless() -> None:
    """Leave no file behind after a crash, and be the first to end when memory is short."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with contextlib.suppress(OSError):  # not Linux
        Path("/proc/self/oom_score_adj").write_text("1000")


def _receive(connection: Connection, jobs: "queue.SimpleQueue[CheckJob]") -> None:
    """Queue the jobs until the server ends, then end the process, whatever it does."""
    with contextlib.suppress(EOFError, OSError):
        while True:
            jobs.put(connection.recv())
    os._exit(0)


def _report_step(connection: Connection, timeout: float) -> None:
    connection.send_bytes(STEP)
    if timeout:  # in case that the server has died and the file blocks all threads
        signal.alarm(int(timeout + GRACE_SECONDS))


def _check(job: CheckJob, cancellation: LoadCancellation) -> str:
    """Load a file as the server does, and return why it cannot be loaded, or ""."""
    cancellation.note_progress()
    metrics = Metrics(CollectorRegistry())
    try:
        Model(job.source, job.options, metrics, cancellation=cancellation).close()
    except LoadError as error:
        return str(error) or INTERNAL_ERROR
    except Exception:
        log.exception("%s: failed to load", job.source)
        return INTERNAL_ERROR
    return ""


if __name__ == "__main__":
    sys.exit(main())
