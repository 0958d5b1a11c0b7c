"""What is read from files, and read again when they have changed."""

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
    """`read` raises ConfigError for files that cannot be used: the first time it reaches the
    caller, later it is logged, and what was read before stays.

    `current` looks at the files at most every `pause` seconds. Any thread may call it.
    """

    def __init__(
        self, what: str, files: Sequence[Path], read: Callable[[], Content], pause: float = 0.0
    ) -> None:
        self._what = what
        self._files = files
        self._read = read
        self._pause = pause
        self._seen = self._fingerprint()
        self._content = read()
        self._look = time.monotonic() + pause

    def current(self) -> Content:
        now = time.monotonic()
        if now < self._look:
            return self._content
        self._look = now + self._pause
        try:
            seen = self._fingerprint()
            if seen != self._seen:
                self._seen = seen  # before it is read: what changes after this is read again
                self._content = self._read()
                log.info("%s: read again from %s", self._what, self._files[0])
        except ConfigError as error:
            log.error("%s; %s: what was read before stays", error, self._what)
        except Exception:  # whatever is wrong with a file, calls go on
            log.exception("%s: what was read before stays", self._what)
        return self._content

    def _fingerprint(self) -> _Fingerprint | None:
        """Another one when a file was changed; None while one is missing."""
        try:
            states = [file.stat() for file in self._files]
        except OSError:
            return None
        return tuple((state.st_mtime_ns, state.st_size, state.st_ino) for state in states)


def content(file: Path) -> bytes:
    """Raises ConfigError that names the file."""
    try:
        return file.read_bytes()
    except OSError as error:
        raise ConfigError(f"cannot read {file}: {error.strerror}") from error
