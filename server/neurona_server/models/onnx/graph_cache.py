"""Optimised graphs on disk, so that a start need not optimise them again.

Only a graph with many nodes and few weights gains. Optimising costs about 35 us a node (61 ms for
1,728 nodes and 9 MB), while hashing costs as much for ResNet-50's 112 MB (120 ms) as loading it
does (85 ms). What is saved on disk is optimised for one processor by one ONNX Runtime: both are
in the key.

Nothing here trusts what it finds: the folder must be this user's alone, and an entry must hold
what was written to it. A model that cannot use the cache is loaded as if there were none.
"""

import hashlib
import logging
import os
import platform
import stat
import tempfile
import threading
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path

log = logging.getLogger(__name__)

LIMIT = 1 << 30
"""Bytes in the folder; the entries used longest ago go first."""
LEAST_GAIN = 0.02
"""Seconds."""

_FORMAT = "1"
_ENTRY, _UNFINISHED = ".graph", ".part"
_ABANDONED = 3600.0  # seconds after which an unfinished file is nobody's
_SECONDS_A_NODE = 35e-6
_SECONDS_A_BYTE = 3e-9  # the model and the entry are hashed, the entry is copied
_DIGEST = hashlib.sha256().digest_size


def saves_time(nodes: int, size: int) -> bool:
    return nodes * _SECONDS_A_NODE - size * _SECONDS_A_BYTE > LEAST_GAIN


def key(content: bytes, *settings: str) -> str:
    """Names an entry by the model, what optimises it, and what it is optimised for."""
    digest = hashlib.sha256(content)
    for text in (_FORMAT, *settings, *_processor()):
        digest.update(b"\0" + text.encode())
    return digest.hexdigest()


class GraphCache:
    """Entries by key in a folder that is this user's alone. Many processes may share it."""

    def __init__(self, folder: Path, limit: int = LIMIT) -> None:
        """Raises OSError when there can be no such folder."""
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        status = os.lstat(folder)
        if not stat.S_ISDIR(status.st_mode):
            raise NotADirectoryError("it is no folder")
        owner = os.geteuid() if hasattr(os, "geteuid") else status.st_uid
        if status.st_uid != owner or (os.name == "posix" and status.st_mode & 0o077):
            raise PermissionError("others than its owner may use it: expected mode 0700")
        if not os.access(folder, os.W_OK | os.X_OK):
            raise PermissionError("it cannot be written to")
        self._folder = folder
        self._limit = limit

    def get(self, key: str) -> bytes | None:
        """What was put there: a model, or nothing for one of which no graph can be kept. An entry
        that is damaged is discarded."""
        path = self._folder / (key + _ENTRY)
        try:
            number = os.open(path, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0))
            with open(number, "rb") as file:
                digest, content = file.read(_DIGEST), file.read()
            if hashlib.sha256(content).digest() != digest:
                log.warning("an optimised graph in the cache is damaged: it is discarded")
                self.discard(key)
                return None
            os.utime(path)  # used just now
        except OSError:
            return None
        return content

    def put(self, key: str, write: Callable[[Path], None]) -> None:
        """Has `write` make the model's file, and keeps that, whole or not at all.

        What `write` raises goes through. A full disk is no error: then nothing is kept.
        """
        try:
            unfinished = [self._new_file(), self._new_file()]
        except OSError as error:
            log.info("an optimised graph is not kept: %s", error.strerror)
            return
        try:
            write(unfinished[0])
            content = unfinished[0].read_bytes()
            unfinished[1].write_bytes(hashlib.sha256(content).digest() + content)
            unfinished[1].replace(self._folder / (key + _ENTRY))
            self._clear()
        except OSError as error:
            log.info("an optimised graph is not kept: %s", error.strerror)
        finally:
            for path in unfinished:
                path.unlink(missing_ok=True)

    def discard(self, key: str) -> None:
        (self._folder / (key + _ENTRY)).unlink(missing_ok=True)

    def _new_file(self) -> Path:
        number, name = tempfile.mkstemp(suffix=_UNFINISHED, dir=self._folder)
        os.close(number)
        return Path(name)

    def _clear(self) -> None:
        entries = []
        for path in self._folder.iterdir():
            try:
                status = path.stat(follow_symlinks=False)
            except FileNotFoundError:  # another process was quicker
                continue
            if path.suffix == _ENTRY:
                entries.append((status.st_mtime, status.st_size, path))
            elif path.suffix == _UNFINISHED and status.st_mtime < time.time() - _ABANDONED:
                path.unlink(missing_ok=True)
        size = sum(entry[1] for entry in entries)
        for _, freed, path in sorted(entries):
            if size <= self._limit:
                break
            path.unlink(missing_ok=True)
            size -= freed


_opening = threading.Lock()  # without it the log might say it twice


def open_cache(folder: Path) -> GraphCache | None:
    """None where there can be none, which the log says once."""
    with _opening:
        return _open_once(folder)


@cache
def _open_once(folder: Path) -> GraphCache | None:
    try:
        return GraphCache(folder)
    except OSError as error:
        log.info("no cache of optimised graphs in %s: %s", folder, error.strerror or error)
        return None


def default_cache_folder() -> Path | None:
    """$XDG_CACHE_HOME/neurona, else ~/.cache/neurona (XDG Base Directory Specification 0.8: a
    relative path there is not valid). None for a user without a home."""
    if (base := os.environ.get("XDG_CACHE_HOME", "")) and os.path.isabs(base):
        return Path(base) / "neurona"
    try:
        return Path.home() / ".cache" / "neurona"
    except RuntimeError:
        return None


@cache
def _processor() -> tuple[str, ...]:
    """What ONNX Runtime may choose kernels by: the kind, and all it says that it can do."""
    kind = (platform.system(), platform.machine(), platform.processor())
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return kind
    told: dict[str, str] = {}
    for line in lines:
        name, _, value = line.partition(":")
        if name.strip() in ("model name", "flags", "Features", "CPU part", "CPU implementer"):
            told.setdefault(name.strip(), value.strip())
    return (*kind, *(f"{name}:{value}" for name, value in sorted(told.items())))
