"""Marks on disk for the loads in progress, by which the next server notices that one ended it.

A load that crashes the server would crash each of its successors, too. So a mark exists while a
file is loaded; its process holds a lock on it, which the system releases at the end of the process,
however it ends. A mark without a lock is a death. After the first one the file is loaded while no
other file with a death is, so that the second one is its own: then it is not loaded any more, until
its files or settings change.

An ordinary stop withdraws the marks of its process before it ends.
"""

import atexit
import contextlib
import hashlib
import logging
import os
import secrets
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from neurona_server.models.load_cancellation import LoadCancellation
from neurona_server.models.repository.scanner import ModelSource
from neurona_server.models.repository.settings import Traffic

if sys.platform != "win32":  # where there are no marks
    import fcntl

log = logging.getLogger(__name__)

MAX_DEATHS = 2
"""Ends of the server during the load of a file after which the file is not loaded any more."""

KEEP_SECONDS = 30 * 86400.0
"""Age after which a mark without a lock is deleted: its file is probably gone."""

REJECTION = (
    "load rejected: the server ended {deaths} times while it was loading this file "
    "(change or touch the file to load it again)"
)

_SUFFIX, _UNFINISHED = ".loading", ".part"
_POLL_SECONDS = 0.1
_WITHDRAWAL_SECONDS = 1.0

_own_marks: set[Path] = set()
_lock = threading.Lock()


def withdraw_marks() -> None:
    """Delete the marks of this process, which is going to end."""
    # A thread that holds the lock may have been stopped in the middle.
    acquired = _lock.acquire(timeout=_WITHDRAWAL_SECONDS)
    for path in [*_own_marks]:
        with contextlib.suppress(OSError):
            path.unlink()
    if acquired:
        _lock.release()


class LoadMarks:
    """The marks in one folder, which several processes may share.

    Args:
        folder: A folder that belongs to this user alone.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._suspect: LoadCancellation | None = None  # the load of a file with a death
        self._choosing = threading.Lock()
        atexit.register(withdraw_marks)
        for path in [*folder.glob(f"*{_SUFFIX}"), *folder.glob(f"*{_UNFINISHED}")]:
            with contextlib.suppress(OSError):
                if path.stat().st_mtime < time.time() - KEEP_SECONDS and _is_dead(path):
                    path.unlink()

    def find_rejection(self, source: ModelSource) -> str:
        """Return why a file must not be loaded, or ""."""
        deaths = self._deaths(source)
        if len(deaths) < MAX_DEATHS:
            return ""
        for path in deaths:  # so that it is kept as long as the file exists
            with contextlib.suppress(OSError):
                os.utime(path)
        return REJECTION.format(deaths=len(deaths))

    @contextlib.contextmanager
    def mark(self, source: ModelSource, cancellation: LoadCancellation) -> Iterator[None]:
        """Mark a file while it is loaded.

        Raises:
            LoadError: The load was cancelled before it could start.
        """
        with contextlib.ExitStack() as stack:
            if self._deaths(source):
                stack.enter_context(self._wait_for_turn(cancellation))
            stack.enter_context(self._hold_mark(source))
            yield
            for path in self._deaths(source):  # it can be loaded, so it was something else
                with contextlib.suppress(OSError):
                    path.unlink()

    @contextlib.contextmanager
    def _wait_for_turn(self, cancellation: LoadCancellation) -> Iterator[None]:
        """Be the only load of a file with a death, apart from those that were given up."""
        while not self._take_turn(cancellation):
            cancellation.raise_if_cancelled()
            cancellation.note_progress()  # the time limit is that of the load before this one
            time.sleep(_POLL_SECONDS)
        try:
            yield
        finally:
            with self._choosing:
                if self._suspect is cancellation:
                    self._suspect = None

    def _take_turn(self, cancellation: LoadCancellation) -> bool:
        with self._choosing:
            if self._suspect is not None and not self._suspect.is_cancelled:
                return False
            self._suspect = cancellation
            return True

    @contextlib.contextmanager
    def _hold_mark(self, source: ModelSource) -> Iterator[None]:
        path = self._folder / f"{_key(source)}-{secrets.token_hex(8)}{_SUFFIX}"
        with contextlib.ExitStack() as stack:
            try:
                stack.enter_context(_lock_mark(path))
            except OSError as error:  # a full disk must not keep models from being loaded
                log.info("%s: loaded without a mark: %s", source, error.strerror)
            yield

    def _deaths(self, source: ModelSource) -> list[Path]:
        return [path for path in self._folder.glob(f"{_key(source)}-*{_SUFFIX}") if _is_dead(path)]


@contextlib.contextmanager
def _lock_mark(path: Path) -> Iterator[None]:
    unfinished = path.with_suffix(_UNFINISHED)
    with unfinished.open("x") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX)  # some network file systems have no locks
            with _lock:
                _own_marks.add(path)
                unfinished.rename(path)  # after it is locked: nobody sees it without its lock
            yield
        finally:
            with _lock:
                _own_marks.discard(path)
                for one in (path, unfinished):
                    with contextlib.suppress(OSError):  # its folder may be read-only by now
                        one.unlink()


def _is_dead(path: Path) -> bool:
    """Return whether the process that made the mark has ended."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
    except OSError:  # deleted meanwhile
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:  # it still loads, here or in another process
        return False
    finally:
        os.close(descriptor)
    return True


def _key(source: ModelSource) -> str:
    """Return what changes with the files of a version and the settings for loading them."""
    settings = replace(source.settings, versions=None, version_labels={}, traffic=Traffic())
    text = repr((source.name, source.version, source.fingerprint, settings))
    return hashlib.sha256(text.encode(errors="replace")).hexdigest()[:32]
