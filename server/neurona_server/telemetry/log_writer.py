"""Writes log lines in a thread of its own, so that a reader who stalls never stops another thread.

Lines wait in a queue of bounded size. What does not fit is dropped and counted, and a line says so
once the reader is back.
"""

import os
import queue
import select
import threading
from collections.abc import Callable

MAX_QUEUE_BYTES = 1 << 20
"""Bytes of lines that wait to be written. Once they are full, lines are dropped until half of them
are written: a slow reader gets whole passages, not a selection of single lines."""

LINE_OVERHEAD = 128
"""Bytes that a waiting line occupies beside its text."""

DroppedNotice = Callable[[int], bytes]
"""Makes the line that tells how many lines were dropped."""


class LogWriter:
    """Writes lines to a file descriptor, in the order in which they were put.

    No method waits for the descriptor except `flush`, for a limited time.
    """

    def __init__(self, descriptor: int, format_notice: DroppedNotice) -> None:
        self._descriptor = descriptor
        self._format_notice = format_notice
        # Destructors may log, and so call `put` while the same thread is inside `put`: this queue
        # allows that, and no lock is held.
        self._lines: queue.SimpleQueue[tuple[bytes, int] | threading.Event] = queue.SimpleQueue()
        # Each count has one writer: the threads that put, which the handler's lock makes one, or
        # the thread that writes.
        self._queued_bytes = self._overflowed = 0
        self._finished_bytes = self._failed = 0
        self._reported = 0
        self._full = False
        threading.Thread(target=self._run, name="log", daemon=True).start()

    @property
    def dropped(self) -> int:
        """Number of lines that were not written, because they did not fit or failed to be."""
        return self._overflowed + self._failed

    def put(self, line: bytes) -> None:
        """Queue a line, or drop it. Only one thread at a time may call this."""
        size = len(line) + LINE_OVERHEAD
        waiting = self._queued_bytes - self._finished_bytes
        limit = MAX_QUEUE_BYTES // 2 if self._full else MAX_QUEUE_BYTES
        # A line that is longer than the limit is written too if no other one waits.
        self._full = waiting > 0 and waiting + size > limit
        if self._full:
            self._overflowed += 1
            return
        self._queued_bytes += size
        self._lines.put((line, self.dropped))

    def flush(self, timeout: float) -> bool:
        """Wait until all lines put so far are written, `timeout` seconds at most.

        Returns:
            Whether they are.
        """
        reached = threading.Event()
        self._lines.put(reached)
        return reached.wait(timeout)

    def _run(self) -> None:
        while True:
            entry = self._lines.get()
            if isinstance(entry, threading.Event):
                entry.set()
                continue
            line, dropped_before = entry
            self._report_dropped(dropped_before)
            if not self._write(line):
                self._failed += 1
            self._finished_bytes += len(line) + LINE_OVERHEAD
            if self._lines.empty():
                self._report_dropped(self.dropped)

    def _report_dropped(self, count: int) -> None:
        if count > self._reported and self._write(self._format_notice(count - self._reported)):
            self._reported = count

    def _write(self, line: bytes) -> bool:
        """Write a line, however long that takes; return False if it fails."""
        rest = memoryview(line)
        while rest:
            try:
                rest = rest[os.write(self._descriptor, rest) :]
            except BlockingIOError:  # another process has made the descriptor non-blocking
                poll = select.poll()
                poll.register(self._descriptor, select.POLLOUT)
                poll.poll()
            except OSError:  # the reader has ended, or the disk is full
                return False
        return True
