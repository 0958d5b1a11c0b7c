"""Files that are reloaded when they change: certificates and tokens.

They are read in a thread of their own, never where calls and handshakes are served: a volume that
does not respond delays a change, and nothing else. Each group of files has its own thread, so that
a volume with certificates that does not respond does not keep a revoked token valid.
"""

import logging
import threading
import time
import weakref
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any, Generic, TypeVar

from neurona_server.errors import ConfigError
from neurona_server.files import read_file

log = logging.getLogger(__name__)

CHECK_INTERVAL = 1.0
"""Seconds between two checks for changes."""

FIRST_READ_TIMEOUT = 10.0
"""Seconds for the first reading of the files."""

Content = TypeVar("Content")
_Fingerprint = tuple[tuple[int, ...], ...]


class ReloadedFiles(Generic[Content]):
    """The content of files, reloaded when they change, until this object is garbage-collected."""

    content: Content
    """The last valid content. A thread replaces it as a whole; any thread may read it."""

    def __init__(
        self, subject: str, files: Sequence[Path], parse: Callable[[list[bytes]], Content]
    ) -> None:
        """Read the files for the first time.

        Args:
            subject: The content in a word, for log messages.
            files: The files to watch.
            parse: Makes the content from the bytes of the files; raises ConfigError if they are
                invalid. It must not hold this object, nor what holds this object.

        Raises:
            ConfigError: The files are invalid, or cannot be read within FIRST_READ_TIMEOUT. Later
                this is logged, and the content stays.
        """
        self._subject = subject
        self._files = files
        self._parse = parse
        self._fingerprint: _Fingerprint | None = None
        self._problem = ""
        self._reading: Path = files[0]
        first: Future[Content] = Future()
        # The thread holds this object only while it checks.
        threading.Thread(
            target=_watch, args=(weakref.ref(self), first), name=f"watch {subject}", daemon=True
        ).start()
        try:
            self.content = first.result(FIRST_READ_TIMEOUT)
        except TimeoutError:
            raise ConfigError(
                f"cannot read {self._reading}: no answer within {FIRST_READ_TIMEOUT:g} s"
            ) from None

    def read(self) -> Content:
        """Read the files.

        Raises:
            ConfigError: They are invalid.
        """
        # Before reading, so that a later change is read too.
        fingerprint = self._current_fingerprint()
        contents = []
        for file in self._files:
            self._reading = file
            contents.append(read_file(file))
        # Not before: files that could not be read are tried again.
        self._fingerprint = fingerprint
        return self._parse(contents)

    def check(self) -> None:
        """Read the files again if they have changed."""
        try:
            fingerprint = self._current_fingerprint()
            if fingerprint is not None and fingerprint == self._fingerprint:
                return
            self.content = self.read()
        except ConfigError as error:
            self._report(error)
        except Exception as error:  # the files are watched on, whatever is wrong
            self._fingerprint = None  # tried again: the files may be valid
            self._report(error)
        else:
            self._problem = ""
            log.info("%s reloaded from %s", self._subject, self._files[0])

    def _report(self, error: Exception) -> None:
        """Log an error once, however often it is found again."""
        problem = str(error) or type(error).__name__
        if problem == self._problem:
            return
        self._problem = problem
        unexpected = None if isinstance(error, ConfigError) else error
        log.error(
            "%s not reloaded, keeping the last valid one: %s",
            self._subject,
            problem,
            exc_info=unexpected,
        )

    def _current_fingerprint(self) -> _Fingerprint | None:
        """Return a value that differs when a file has changed; None while one is missing."""
        states = []
        for file in self._files:
            self._reading = file
            try:
                states.append(file.stat())
            except (OSError, ValueError):
                return None
        # A tool may give a file of the same size the old time of change, or the same to all files:
        # nothing but a change sets st_ctime.
        return tuple(
            (one.st_dev, one.st_ino, one.st_size, one.st_mtime_ns, one.st_ctime_ns)
            for one in states
        )


def _watch(reference: "weakref.ref[ReloadedFiles[Any]]", first: "Future[Any]") -> None:
    """Read the files for the first time, then check them until their object is gone."""
    files = reference()
    try:
        first.set_result(files.read() if files is not None else None)
    except BaseException as error:  # raised again where the result is awaited
        first.set_exception(error)
        return
    del first
    while files is not None:
        del files
        time.sleep(CHECK_INTERVAL)
        if (files := reference()) is not None:
            files.check()
