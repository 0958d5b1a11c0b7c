"""A worker process, as its supervisor sees it."""

import contextlib
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from enum import Enum, auto

from neurona_server.processes.channel import (
    Channel,
    Command,
    Message,
    MetricsReport,
    StartOptions,
    WorkerState,
)
from neurona_server.processes.quarantine import Crash
from neurona_server.resources import MemoryKills
from neurona_server.telemetry.run_journal import DUMP_SIGNAL, RunJournal, RunningModel

log = logging.getLogger(__name__)

EXIT_TIMEOUT = 10.0
"""Seconds within which a process that has closed its channel must have ended."""

CHECKS_PER_HANG, CHECKS_PER_HANG_AT_START = 10, 60
"""Checks in a row without a heartbeat between them after which a worker hangs: while it serves, and
while it starts or loads a model. They are counted, not timed: when the whole machine was suspended,
no worker hangs."""

STALLED_SECONDS = 10.0
"""A worker whose transport has been hung for so long, in addition to the time in which it notices
that, is killed."""

DUMP_SECONDS = 0.5
"""Time for a process that hangs to write its stacks."""

TRANSPORTS = f"neurona_server{os.sep}rpc{os.sep}transports"
"""In the stack of the thread that takes events: a model that it runs inline is to blame for a
hang."""

CRASH_SIGNALS = {
    getattr(signal, name)
    for name in ("SIGSEGV", "SIGFPE", "SIGABRT", "SIGBUS", "SIGILL")
    if hasattr(signal, name)
}
"""Signals by which a process ends because of what it did itself."""


class WorkerEvent(Enum):
    """A change of a worker that its supervisor reacts to."""

    READY = auto()
    DEVICES_LOST = auto()
    EXITED = auto()


class WorkerHandle:
    """Starts a worker process and follows it in a thread of its own."""

    def __init__(
        self,
        number: int,
        arguments: Sequence[str],
        start_options: StartOptions,
        memory_kills: MemoryKills,
        on_event: Callable[[WorkerEvent, "WorkerHandle"], None],
        on_message: Callable[["WorkerHandle", Message], None],
    ) -> None:
        """Start the process.

        Args:
            number: Its slot, 0 to processes - 1. A worker that replaces another has the same.
            arguments: Arguments of the module `worker` after its number.
            start_options: The first message to it.
            memory_kills: Shared by all workers.
            on_event: Called when the worker serves, and when it has ended.
            on_message: Called with each report that it sends.

        Raises:
            OSError: The process cannot be started.
        """
        self.number = number
        self.ready_since = 0.0
        """Monotonic time since which it serves; 0.0 if it never did."""
        self.crash: Crash | None = None
        """How it ended, if that was a crash."""
        self._on_event, self._on_message = on_event, on_message
        self._connected = self._exited = False
        self._requested = self._reported = 0
        self._changed = threading.Condition()
        self._hang_reason = ""
        self._hang_suspects: list[RunningModel] = []
        self._heartbeats = self._missed = 0
        self._memory_kills = memory_kills
        self._journal = RunJournal.create()
        self._channel, theirs = Channel.pair()
        with theirs:
            inherited = [theirs.fileno(), *self._journal.descriptors]
            shared = [] if start_options.file_versions < 0 else [start_options.file_versions]
            command = [*python_command("processes.worker"), *map(str, inherited), str(number)]
            try:
                # In a session of its own: a terminal's Ctrl-C reaches the supervisor alone.
                self._process = subprocess.Popen(  # noqa: S603  our own command
                    [*command, *arguments],
                    pass_fds=[*inherited, *shared],
                    stdin=subprocess.DEVNULL,
                    start_new_session=True,
                )
            except OSError:
                self._channel.close()
                self._journal.close()
                raise
        self.pid = self._process.pid
        self._channel.send(start_options)
        threading.Thread(target=self._listen, name=f"worker {number}", daemon=True).start()

    @property
    def status(self) -> int:
        """Its exit status; the negative number of a signal that killed it."""
        return self._process.returncode or 0

    @property
    def exit_reason(self) -> str:
        """How it ended, for a log line."""
        if self._hang_reason:
            return f"killed because it {self._hang_reason}"
        if self.crash is not None:
            ran = ", ".join(sorted({str(model.key) for model in self.crash.suspects}))
            return f"{self.crash.reason} while it ran {ran}" if ran else self.crash.reason
        if self.status < 0:
            return f"killed by {_signal_name(-self.status)}"
        return f"exited with status {self.status}"

    @property
    def is_serving(self) -> bool:
        """Whether it serves, as far as its last heartbeats tell."""
        with self._changed:
            if self._exited or not self.ready_since or self._missed >= CHECKS_PER_HANG // 2:
                return False
            return not self._journal.stalled_seconds

    def stop(self) -> None:
        """Make the worker drain and end; one that does not serve yet ends immediately."""
        if self.ready_since:
            self._channel.send(Command.STOP)
        else:
            self._process.terminate()

    def kill(self) -> None:
        self._process.kill()

    def check_heartbeat(self) -> str:
        """Return why the worker hangs, or ""; call it once a second."""
        with self._changed:
            if self._exited or self._hang_reason:
                return ""
            heartbeats = self._journal.heartbeats
            self._missed = 0 if heartbeats != self._heartbeats else self._missed + 1
            self._heartbeats = heartbeats
            starting = not self.ready_since or self._journal.is_loading
            limit = CHECKS_PER_HANG_AT_START if starting else CHECKS_PER_HANG
            if self._missed >= limit:
                self._hang_reason = f"gave no sign of life for {self._missed} s"
            elif self._journal.stalled_seconds >= STALLED_SECONDS:
                stalled = self._journal.stalled_seconds
                self._hang_reason = f"accepted no calls for {stalled:.0f} s"
            return self._hang_reason

    def kill_hanging(self) -> None:
        """Log what the threads of a worker that hangs do, and kill it; blocks for a moment."""
        try:
            if DUMP_SIGNAL is not None:
                self._process.send_signal(DUMP_SIGNAL)  # does nothing if the process is stopped
                time.sleep(DUMP_SECONDS)
                with self._changed:
                    stacks = [] if self._exited else self._journal.stacks()
                    for stack in stacks:
                        if TRANSPORTS in stack:
                            self._hang_suspects += self._journal.models_in_stack(stack)
                for stack in stacks:
                    log.error("worker %d hangs: thread in %s", self.number, stack)
        finally:
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
            elif message is WorkerState.DEVICES_LOST:
                self._on_event(WorkerEvent.DEVICES_LOST, self)
            else:
                self._on_message(self, message)
                requested = isinstance(message, MetricsReport) and message.requested
            with self._changed:
                self._connected = True
                self._reported += requested
                self._changed.notify_all()

    def _reap(self) -> None:
        self._wait_for_exit()
        # Before its pid can be that of another process: what it had started ends with it.
        with contextlib.suppress(OSError):
            os.killpg(self.pid, signal.SIGKILL)
        self._process.wait()
        self._channel.close()
        try:
            self.crash = self._find_crash()
        except Exception:  # whatever the journal holds after a crash, the worker has ended
            log.exception("worker %d has left an invalid journal", self.number)
        with self._changed:
            self._exited = True
            self._journal.close()
            self._changed.notify_all()
        self._on_event(WorkerEvent.EXITED, self)

    def _wait_for_exit(self) -> None:
        """Wait until the process has ended, and leave its status to be read."""
        if not hasattr(os, "waitid"):
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(EXIT_TIMEOUT)
            self._process.kill()
            return
        end = time.monotonic() + EXIT_TIMEOUT
        # A signal to a process that has just ended reads its status in another thread.
        with contextlib.suppress(ChildProcessError):
            while os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOWAIT | os.WNOHANG) is None:
                if time.monotonic() >= end:
                    self._process.kill()
                    end = float("inf")
                time.sleep(0.005)

    def _find_crash(self) -> Crash | None:
        number = -self.status
        if self._hang_suspects:
            return Crash("killed for a hang", self._hang_suspects, time.monotonic())
        if number in CRASH_SIGNALS:
            reason = f"killed by {_signal_name(number)}"
            suspects = self._journal.models_at_crash()
            if not suspects and (stack := self._journal.stack_at_crash()):
                log.error("worker %d %s in %s", self.number, reason, stack)
            return Crash(reason, suspects, time.monotonic())
        # The kernel sends SIGKILL when memory is short; so may an operator.
        killed = number == signal.SIGKILL and not self._hang_reason
        if killed and self._memory_kills.have_grown():
            suspects = self._journal.running_models()
            reason = "killed for lack of memory"
            return Crash(reason, suspects, time.monotonic(), out_of_memory=True)
        return None


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:  # a real-time signal
        return f"signal {number}"


def python_command(module: str) -> list[str]:
    """Return the command that runs a module of this package.

    -P keeps it from running a module of the current folder.
    """
    return [sys.executable, "-P", "-m", f"neurona_server.{module}"]
