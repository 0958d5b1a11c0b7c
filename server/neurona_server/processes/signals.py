"""SIGTERM and SIGINT: the first one stops the server, the second one does not wait for it."""

import contextlib
import os
import queue
import select
import signal
import threading
from collections.abc import Callable


class StopSignals:
    """Takes both over from now on. Until `serving` is called nothing has been accepted, and the
    first of them ends the process there and then."""

    def __init__(
        self,
        hang_up: Callable[[], None] | None = None,
        forced: Callable[[], None] = lambda: None,
    ) -> None:
        """`hang_up` is called at each SIGHUP, which without it is left as it is; `forced` before
        the second signal ends the process. Both in a thread of their own."""
        # Python calls a handler only between two instructions of the main thread: a signal that
        # comes just before that thread starts to wait would be seen when the wait is over, which
        # is never. A pipe has what was written to it, whoever looks when.
        self._reader, writer = os.pipe()
        os.set_blocking(writer, False)
        signal.set_wakeup_fd(writer)
        self._hang_up, self._forced = hang_up, forced
        numbers = [signal.SIGTERM, signal.SIGINT]
        if hang_up is not None:
            numbers.append(signal.SIGHUP)
        for number in numbers:
            signal.signal(number, lambda _number, _frame: None)
        self._first: queue.SimpleQueue[int] = queue.SimpleQueue()
        self._serving = threading.Event()
        threading.Thread(target=self._listen, name="signals", daemon=True).start()

    def serving(self) -> None:
        self._serving.set()

    def wait(self) -> signal.Signals:
        """For the first one."""
        return signal.Signals(self._first.get())

    def stop(self) -> None:
        """As the first signal does. A signal that comes after it is no second one: whoever sends
        one to a whole group of processes does not mean to force those that were told already."""
        self._first.put(signal.SIGTERM)
        self._end_if_starting()

    def _listen(self) -> None:
        self._first.put(self._read())
        self._end_if_starting()
        self._read()
        _say(b"neurona-serve: second signal: stopping without waiting\n")
        self._forced()
        os._exit(1)

    def _read(self) -> int:
        """The next signal that is to stop."""
        while (number := os.read(self._reader, 1)[0]) == getattr(signal, "SIGHUP", None):
            if self._hang_up is not None:
                self._hang_up()
        return number

    def _end_if_starting(self) -> None:
        if not self._serving.is_set():
            _say(b"neurona-serve: stopped while it was starting\n")
            os._exit(0)


def _say(line: bytes) -> None:
    """Unless it cannot be said now: that must not keep the process from ending."""
    with contextlib.suppress(OSError, ValueError):
        if select.select([], [2], [], 0.0)[1]:
            os.write(2, line)
