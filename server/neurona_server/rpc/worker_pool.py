"""Threads for work that grows with a message and takes too long for the transport's thread.

Strings and typed contents are decoded there, and large responses of models that run on the
transport's thread are written there. The pool stands alone because both protocols share it.
"""

import logging
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from neurona_server.errors import QueueFullError
from neurona_server.rpc.image_workers import ImageWorkers

log = logging.getLogger(__name__)

THREADS = 2
"""More would wait for the interpreter's lock; with one, short tasks would wait for long ones."""

MAX_WAITING_BYTES = 256 << 20
"""Bytes of the messages whose tasks have not ended."""

RETRY_AFTER = 0.1
"""Seconds after which a message that exceeds MAX_WAITING_BYTES may be sent again."""


class WorkerPool:
    """Runs tasks in a few threads, in the order of their submission."""

    def __init__(self, images: ImageWorkers | None = None) -> None:
        self.images = images or ImageWorkers()
        """Other threads, for encoded images."""

        self._executor = ThreadPoolExecutor(THREADS, "request-worker")
        # Now, not when there is a task: a system without threads would lose that.
        started = threading.Barrier(THREADS + 1)
        for _ in range(THREADS):
            self._executor.submit(started.wait)
        started.wait()
        self._lock = threading.Lock()
        self._bytes = 0

    def submit(self, task: Callable[[], None], nbytes: int = 0) -> None:
        """Run a task, which decodes `nbytes` of a message. Thread-safe.

        Raises:
            QueueFullError: Too many bytes are waiting. A single task, and one without bytes, is
                always accepted.
        """
        with self._lock:
            if nbytes and self._bytes and self._bytes + nbytes > MAX_WAITING_BYTES:
                raise QueueFullError(
                    f"{self._bytes} bytes of messages are being decoded "
                    f"(expected at most {MAX_WAITING_BYTES} with this one)",
                    RETRY_AFTER,
                )
            self._bytes += nbytes
        self._executor.submit(self._run, task, nbytes)

    def close(self) -> None:
        """End the threads, once the tasks that were submitted have run; accept no more of them."""
        self._executor.shutdown()

    def _run(self, task: Callable[[], None], nbytes: int) -> None:
        try:
            task()
        except Exception:  # a bug: the thread has other tasks
            log.exception("uncaught exception in a task of the worker pool")
        finally:
            with self._lock:
                self._bytes -= nbytes
