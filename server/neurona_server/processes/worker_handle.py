"""A worker process, as its supervisor sees it."""

import logging
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from enum import Enum, auto

from neurona_server.processes.channel import Channel, Command, MetricsReport, WorkerState
from neurona_server.processes.snapshot import MetricsSnapshot

log = logging.getLogger(__name__)

EXIT_TIMEOUT = 10.0
"""Seconds within which a process that has closed its channel must have ended."""


class WorkerEvent(Enum):
    """A change of a worker that its supervisor reacts to."""

    READY = auto()
    EXITED = auto()


class WorkerHandle:
    """Starts a worker process and follows it in a thread of its own."""

    def __init__(
        self,
        number: int,
        arguments: Sequence[str],
        on_event: Callable[[WorkerEvent, "WorkerHandle"], None],
        on_report: Callable[["WorkerHandle", MetricsSnapshot], None],
    ) -> None:
        """Start the process.

        Args:
            number: Its slot, 0 to processes - 1. A worker that replaces another has the same.
            arguments: Arguments of the module `worker` after its channel and number.
            on_event: Called when the worker serves, and when it has ended.
            on_report: Called with each report of its metrics.

        Raises:
            OSError: The process cannot be started.
        """
        self.number = number
        self.ready_since = 0.0
        """Monotonic time since which it serves; 0.0 if it never did."""
        self._on_event, self._on_report = on_event, on_report
        self._connected = self._exited = False
        self._requested = self._reported = 0
        self._changed = threading.Condition()
        self._channel, theirs = Channel.pair()
        with theirs:
            descriptor = theirs.fileno()
            command = [*python_command("processes.worker"), str(descriptor), str(number)]
            # In a session of its own: a terminal's Ctrl-C reaches the supervisor alone.
            self._process = subprocess.Popen(  # noqa: S603  our own command
                [*command, *arguments],
                pass_fds=[descriptor],
                stdin=subprocess.DEVNULL,
                start_new_session=True,
            )
        self.pid = self._process.pid
        threading.Thread(target=self._listen, name=f"worker {number}", daemon=True).start()

    @property
    def status(self) -> int:
        """Its exit status; the negative number of a signal that killed it."""
        return self._process.returncode or 0

    @property
    def exit_reason(self) -> str:
        """How it ended, for a log line."""
        if self.status < 0:
            return f"killed by {signal.Signals(-self.status).name}"
        return f"exited with status {self.status}"

    def stop(self) -> None:
        """Make the worker drain and end; one that does not serve yet ends immediately."""
        if self.ready_since:
            self._channel.send(Command.STOP)
        else:
            self._process.terminate()

    def kill(self) -> None:
        self._process.kill()

    def request_report(self) -> None:
        """Request the metrics, unless the worker owes a report or cannot report yet."""
        with self._changed:
            if not self._connected or self._requested > self._reported:
                return
            self._requested += 1
        self._channel.send(Command.REPORT_METRICS)

    def wait_for_report(self, deadline: float) -> bool:
        """Wait for the requested report; return False if it is late at `deadline` (monotonic)."""
        with self._changed:
            return self._changed.wait_for(self._has_reported, max(0.0, deadline - time.monotonic()))

    def _has_reported(self) -> bool:
        return self._exited or self._reported >= self._requested

    def _listen(self) -> None:
        try:
            self._receive_messages()
        except Exception:  # a broken report must not keep the worker from being reaped
            log.exception("worker %d sent an invalid message", self.number)
        self._reap()

    def _receive_messages(self) -> None:
        while message := self._channel.receive():
            requested = False
            if message is WorkerState.READY:
                self.ready_since = time.monotonic()
                self._on_event(WorkerEvent.READY, self)
            elif isinstance(message, MetricsReport):
                self._on_report(self, message.snapshot)
                requested = message.requested
            with self._changed:
                self._connected = True
                self._reported += requested
                self._changed.notify_all()

    def _reap(self) -> None:
        try:
            self._process.wait(EXIT_TIMEOUT)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._channel.close()
        with self._changed:
            self._exited = True
            self._changed.notify_all()
        self._on_event(WorkerEvent.EXITED, self)


def python_command(module: str) -> list[str]:
    """Return the command that runs a module of this package.

    -P keeps it from running a module of the current folder.
    """
    return [sys.executable, "-P", "-m", f"neurona_server.{module}"]
