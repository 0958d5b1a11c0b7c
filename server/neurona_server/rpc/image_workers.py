"""Threads that decode encoded images of requests, before these are batched.

Pillow releases the interpreter's lock while it decodes and scales, so there is a thread for each
CPU. The requests take turns: one with many images does not delay one with few, and the images of
one request are decoded side by side. The threads start with the first image.
"""

import logging
import threading
import warnings
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

from neurona_server.errors import QueueFullError
from neurona_server.resources import available_cpus

log = logging.getLogger(__name__)

DEFAULT_MAX_PIXELS = 50_000_000
"""Pixels of an image, unless the option max_image_pixels says otherwise."""

MAX_THREADS = 8
"""More would compete with the models for the CPUs."""

MAX_WAITING_BYTES = 256 << 20
"""Bytes of the messages and of the decoded rows of requests that are not yet batched."""

MAX_DECODING_BYTES = 512 << 20
"""Bytes that all images that are decoded at the same time take; one is always decoded."""

IDLE_SECONDS = 30.0
"""Time after which a thread that has had nothing to do ends."""

RETRY_AFTER = 0.1
"""Seconds after which a request that exceeds MAX_WAITING_BYTES may be sent again."""


class ImageJob(Protocol):
    """The images of one request. No method raises anything, and no two threads prepare or finish.

    `prepare` is called first, then `decode` for each number below what it returned, in any threads;
    `finish` is called last.
    """

    @property
    def nbytes(self) -> int:
        """The bytes of the message and of what is decoded."""

    def prepare(self) -> int:
        """Return the number of images to decode."""

    def decode(self, index: int) -> None:
        """Decode an image, unless the request has failed already."""

    def finish(self) -> None:
        """Submit the request, or fail it."""


class _Turn:
    """A job, and how far it is."""

    def __init__(self, job: ImageJob) -> None:
        self.job = job
        self.nbytes = job.nbytes
        self.count = -1  # images; -1 before it is prepared
        self.started = 0
        self.unfinished = 0


class ImageWorkers:
    """Decodes the images of requests in a few threads."""

    def __init__(self, max_pixels: int = DEFAULT_MAX_PIXELS) -> None:
        self.max_pixels = max_pixels
        """Width x height up to which an image is decoded."""

        self._max_threads = max(1, min(available_cpus(), MAX_THREADS))
        self._threads = self._idle_threads = 0
        self._turns: deque[_Turn] = deque()
        self._lock = threading.Lock()
        self._has_turns = threading.Condition(self._lock)
        self._has_room = threading.Condition(self._lock)
        self._waiting_bytes = 0
        self._decoding_bytes = 0

    @property
    def waiting_bytes(self) -> int:
        """The bytes of the jobs that have not finished."""
        return self._waiting_bytes

    def submit(self, job: ImageJob) -> None:
        """Decode the images of a job in its turns. Thread-safe.

        Raises:
            QueueFullError: Too many bytes are waiting, or the system has no thread. A single job is
                always accepted.
        """
        turn = _Turn(job)
        with self._lock:
            if self._waiting_bytes and self._waiting_bytes + turn.nbytes > MAX_WAITING_BYTES:
                raise QueueFullError(
                    f"images of {self._waiting_bytes} bytes are being decoded "
                    f"(expected at most {MAX_WAITING_BYTES} with this request)",
                    RETRY_AFTER,
                )
            self._start_threads()
            self._waiting_bytes += turn.nbytes
            self._add_turn(turn)

    @contextmanager
    def reserve(self, nbytes: int) -> Iterator[None]:
        """Wait until there is room for an image that takes so many bytes, and hold it."""
        with self._lock:
            while self._decoding_bytes and self._decoding_bytes + nbytes > MAX_DECODING_BYTES:
                self._has_room.wait()
            self._decoding_bytes += nbytes
        try:
            yield
        finally:
            with self._lock:
                self._decoding_bytes -= nbytes
                self._has_room.notify_all()

    def _add_turn(self, turn: _Turn) -> None:
        self._turns.append(turn)
        self._has_turns.notify()

    def _start_threads(self) -> None:
        """Start as many threads as there may be, unless one is idle."""
        if not self._threads:
            # Pillow warns of peculiar files; each other text would stay in memory for ever.
            warnings.filterwarnings("ignore", module=r"PIL\.")
        while self._threads < self._max_threads and not self._idle_threads:
            thread = threading.Thread(target=self._run, name="image-worker", daemon=True)
            try:
                thread.start()
            except RuntimeError as error:
                if not self._threads:
                    raise QueueFullError("no thread to decode images", RETRY_AFTER) from error
                return
            self._threads += 1

    def _run(self) -> None:
        while (taken := self._take_turn()) is not None:
            turn, index = taken
            try:
                self._work(turn, index)
            except Exception:  # a bug: the thread has other jobs
                log.exception("uncaught exception in a thread that decodes images")
            del turn, taken  # its request may be large, and the next one far

    def _take_turn(self) -> tuple[_Turn, int] | None:
        """Return the next job and the number of the image to decode, -1 to prepare it.

        Returns None after IDLE_SECONDS without one: the thread ends.
        """
        with self._lock:
            while not self._turns:
                self._idle_threads += 1
                has_turns = self._has_turns.wait(IDLE_SECONDS)
                self._idle_threads -= 1
                if not has_turns and not self._turns:
                    self._threads -= 1
                    return None
            turn = self._turns.popleft()
            if turn.count < 0:
                return turn, -1
            index = turn.started
            turn.started += 1
            if turn.started < turn.count:
                self._add_turn(turn)
                self._start_threads()  # those that were idle for long have ended
            return turn, index

    def _work(self, turn: _Turn, index: int) -> None:
        if index >= 0:
            turn.job.decode(index)
        else:
            turn.unfinished = turn.count = turn.job.prepare()
        with self._lock:
            if index >= 0:
                turn.unfinished -= 1
            elif turn.count:
                self._add_turn(turn)
            if turn.unfinished:
                return
            self._waiting_bytes -= turn.nbytes
        turn.job.finish()
