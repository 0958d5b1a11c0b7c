"""Files that are reloaded when they change: certificates and tokens."""

import logging
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Generic, TypeVar

from neurona_server.errors import ConfigError

log = logging.getLogger(__name__)

Content = TypeVar("Content")
_Fingerprint = tuple[tuple[int, int, int], ...]


class ReloadedFiles(Generic[Content]):
    """The content of files, reloaded when they change. Any thread may use it."""

    def __init__(
        self, subject: str, files: Sequence[Path], read: Callable[[], Content], pause: float = 0.0
    ) -> None:
        """Read the files for the first time.

        Args:
            subject: The content in a word, for log messages.
            files: The files to watch.
            read: Reads the files; raises ConfigError if they are invalid.
            pause: Minimum seconds between two checks for changes.

        Raises:
            ConfigError: The files are invalid. Later this is logged, and the content stays.
        """
        self._subject = subject
        self._files = files
        self._read_files = read
        self._pause = pause
        self._fingerprint = self._current_fingerprint()
        self._content = read()
        self._next_check = time.monotonic() + pause

    def current(self) -> Content:
        """Return the content, after a check for changes unless the last check was just now."""
        now = time.monotonic()
        if now < self._next_check:
            return self._content
        self._next_check = now + self._pause
        try:
            fingerprint = self._current_fingerprint()
            if fingerprint != self._fingerprint:
                self._fingerprint = fingerprint  # before reading: a later change is read too
                self._content = self._read_files()
                log.info("%s reloaded from %s", self._subject, self._files[0])
        except ConfigError as error:
            log.error("%s not reloaded, keeping the last valid one: %s", self._subject, error)
        except Exception:  # calls go on, whatever is wrong with the files
            log.exception("%s not reloaded, keeping the last valid one", self._subject)
        return self._content

    def _current_fingerprint(self) -> _Fingerprint | None:
        """Return a value that differs when a file has changed; None while one is missing."""
        try:
            states = [file.stat() for file in self._files]
        except OSError:
            return None
        return tuple((state.st_mtime_ns, state.st_size, state.st_ino) for state in states)


def read_file(file: Path) -> bytes:
    """Return the content of a file.

    Raises:
        ConfigError: It cannot be read.
    """
    try:
        return file.read_bytes()
    except OSError as error:
        raise ConfigError(f"cannot read {file}: {error.strerror}") from error
