"""SIGTERM and SIGINT: the first one stops the server, the second one does not wait for it."""

import os
import queue
import signal
import threading


class StopSignals:
    """Takes both over from now on. Until `serving` is called nothing has been accepted, and the
    first of them ends the process there and then."""

    def __init__(self) -> None:
        # Python calls a handler only between two instructions of the main thread: a signal that
        # comes just before that thread starts to wait would be seen when the wait is over, which
        # is never. A pipe has what was written to it, whoever looks when.
        self._reader, writer = os.pipe()
        os.set_blocking(writer, False)
        signal.set_wakeup_fd(writer)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda _number, _frame: None)
        self._first: queue.SimpleQueue[int] = queue.SimpleQueue()
        self._serving = threading.Event()
        threading.Thread(target=self._listen, name="signals", daemon=True).start()

    def serving(self) -> None:
        self._serving.set()

    def wait(self) -> signal.Signals:
        """For the first one."""
        return signal.Signals(self._first.get())

    def _listen(self) -> None:
        self._first.put(os.read(self._reader, 1)[0])
        if not self._serving.is_set():
            os.write(2, b"neurona-serve: stopped while it was starting\n")
            os._exit(0)
        os.read(self._reader, 1)
        os.write(2, b"neurona-serve: second signal: stopping without waiting\n")
        os._exit(1)
