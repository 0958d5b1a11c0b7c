"""A worker, as its supervisor sees it."""

import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence

from neurona_server.processes import snapshot
from neurona_server.processes.channel import Channel
from neurona_server.processes.snapshot import MetricsSnapshot

GOING = 10.0
"""Seconds in which a process that has closed its channel must have ended."""


class WorkerHandle:
    """`happened` is called with "ready", once it listens, and with "gone", once it has ended;
    `printed` with each page of metrics. Both in a thread of the worker's own."""

    def __init__(
        self,
        number: int,
        arguments: Sequence[str],
        happened: Callable[[str, "WorkerHandle"], None],
        printed: Callable[["WorkerHandle", MetricsSnapshot], None],
    ) -> None:
        """`arguments` are those of `worker`, after its channel. The number is bounded, and one
        that takes another's place has the same."""
        self.number = number
        self.ready_since = 0.0
        """When it was; 0.0 if it never was."""
        self._happened, self._printed = happened, printed
        self._there = self._gone = False
        self._asked = self._answered = 0
        self._answer = threading.Condition()
        own, theirs = socket.socketpair()
        self._channel = Channel(own)
        with theirs:
            command = [*python("processes.worker"), str(theirs.fileno()), str(number), *arguments]
            # In a group of its own: a terminal's Ctrl-C is the supervisor's alone.
            self._process = subprocess.Popen(  # noqa: S603  our own command
                command,
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                start_new_session=True,
            )
        self.pid = self._process.pid
        threading.Thread(target=self._listen, name=f"process {number}", daemon=True).start()

    @property
    def status(self) -> int:
        """Of its end; the negative number of a signal that ended it."""
        return self._process.returncode or 0

    @property
    def end(self) -> str:
        """For a log."""
        if self.status < 0:
            return f"was ended by {signal.Signals(-self.status).name}"
        return f"ended with status {self.status}"

    def stop(self) -> None:
        """It drains; one that does not serve yet ends."""
        if self.ready_since:
            self._channel.send("stop")
        else:
            self._process.terminate()

    def kill(self) -> None:
        self._process.kill()

    def ask(self) -> None:
        """For a page, unless it owes one, or cannot give one yet."""
        with self._answer:
            if not self._there or self._asked > self._answered:
                return
            self._asked += 1
        self._channel.send("page")

    def wait_for_page(self, end: float) -> bool:
        """False if it has not given the page that it was asked for by then, monotonic."""
        with self._answer:
            return self._answer.wait_for(self._has_answered, max(0.0, end - time.monotonic()))

    def _has_answered(self) -> bool:
        return self._gone or self._answered >= self._asked

    def _listen(self) -> None:
        while message := self._channel.receive():
            kind, content = message
            if kind == "ready":
                self.ready_since = time.monotonic()
                self._happened("ready", self)
            elif kind in ("page", "last"):
                self._printed(self, snapshot.decode(content))
            with self._answer:
                self._there = True
                self._answered += kind == "page"
                self._answer.notify_all()
        try:
            self._process.wait(GOING)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._channel.close()
        with self._answer:
            self._gone = True
            self._answer.notify_all()
        self._happened("gone", self)


def python(module: str) -> list[str]:
    """-P: not from the folder that happens to be the current one."""
    return [sys.executable, "-P", "-m", f"neurona_server.{module}"]
