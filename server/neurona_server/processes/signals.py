"""SIGTERM and SIGINT: the first one stops the server, the second one ends it immediately."""

import os
import queue
import signal
import threading
from collections.abc import Callable

from neurona_server.telemetry import logs


class StopSignals:
    """Handles both signals from its construction on.

    Until `mark_serving` is called no request was accepted, and the first signal ends the process
    immediately.
    """

    def __init__(
        self,
        on_hang_up: Callable[[], None] | None = None,
        on_forced_stop: Callable[[], None] = lambda: None,
    ) -> None:
        """Install the handlers. The callbacks are called in a thread of this object.

        Args:
            on_hang_up: Called at each SIGHUP; without it SIGHUP keeps its default action.
            on_forced_stop: Called before the second signal ends the process.
        """
        # Python calls a handler between two instructions of the main thread: a signal just before
        # that thread starts to wait would be handled after the wait, which is never. A pipe keeps
        # what was written to it until it is read.
        self._reader, writer = os.pipe()
        os.set_blocking(writer, False)
        signal.set_wakeup_fd(writer)
        self._on_hang_up, self._on_forced_stop = on_hang_up, on_forced_stop
        self.before_exit: Callable[[], None] = lambda: None
        """Called in a thread of this object before it ends the process."""
        numbers = [signal.SIGTERM, signal.SIGINT]
        if on_hang_up is not None:
            numbers.append(signal.SIGHUP)
        for number in numbers:
            signal.signal(number, lambda _number, _frame: None)
        self._first: queue.SimpleQueue[int] = queue.SimpleQueue()
        self._serving = threading.Event()
        threading.Thread(target=self._listen, name="signals", daemon=True).start()

    def mark_serving(self) -> None:
        """Let the first signal only end `wait` from now on."""
        self._serving.set()

    def wait(self) -> signal.Signals:
        """Wait for the first signal."""
        return signal.Signals(self._first.get())

    def stop(self) -> None:
        """Act as at the first signal.

        A signal after it counts as the first, not as the second: a signal to a whole process
        group is not meant to force workers that are stopping already.
        """
        self._first.put(signal.SIGTERM)
        self._end_if_starting()

    def _listen(self) -> None:
        self._first.put(self._read_signal())
        self._end_if_starting()
        self._read_signal()
        self._on_forced_stop()
        self.before_exit()
        logs.report_end("second signal: ending without draining")
        os._exit(1)

    def _read_signal(self) -> int:
        """Wait for the next signal other than SIGHUP."""
        while (number := os.read(self._reader, 1)[0]) == getattr(signal, "SIGHUP", None):
            if self._on_hang_up is not None:
                self._on_hang_up()
        return number

    def _end_if_starting(self) -> None:
        if not self._serving.is_set():
            self.before_exit()
            logs.report_end("stopped during start-up")
            os._exit(0)
