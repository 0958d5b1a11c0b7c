"""A cache of optimised graphs on disk, so that a restart need not optimise them again.

Only graphs with many nodes and few weights gain. Optimising costs about 35 us per node (61 ms for
1,728 nodes and 9 MB), while hashing ResNet-50's 112 MB (120 ms) costs as much as loading them does
(85 ms). An entry is optimised for one processor by one ONNX Runtime: both are part of its key.

The contents of the cache are not trusted: its folder must belong to this user alone, and an entry
must have the hash that was written with it. A model that cannot use the cache is loaded without.
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

MAX_BYTES = 1 << 30
"""Size of the folder; the least recently used entries are deleted first."""

MIN_GAIN = 0.02
"""Seconds that a cached load must save."""

_FORMAT = "1"
_ENTRY, _UNFINISHED = ".graph", ".part"
_ABANDONED_AFTER = 3600.0  # seconds until an unfinished file is deleted
_SECONDS_PER_NODE = 35e-6
_SECONDS_PER_BYTE = 3e-9  # the model and the entry are hashed, the entry is copied
_DIGEST_SIZE = hashlib.sha256().digest_size


def saves_time(nodes: int, size: int) -> bool:
    """Return whether caching pays for a graph of `nodes` nodes in a file of `size` bytes."""
    return nodes * _SECONDS_PER_NODE - size * _SECONDS_PER_BYTE > MIN_GAIN


def cache_key(content: bytes, *settings: str) -> str:
    """Return the key of an entry, for the model and everything that its optimisation depends on."""
    digest = hashlib.sha256(content)
    for text in (_FORMAT, *settings, *_describe_processor()):
        digest.update(b"\0" + text.encode())
    return digest.hexdigest()


def make_private_folder(folder: Path) -> None:
    """Make a folder that belongs to this user alone, or check that an existing one does.

    Raises:
        OSError: It cannot be created, or others may access it.
    """
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    status = os.lstat(folder)
    if not stat.S_ISDIR(status.st_mode):
        raise NotADirectoryError("it is not a folder")
    owner = os.geteuid() if hasattr(os, "geteuid") else status.st_uid
    if status.st_uid != owner or (os.name == "posix" and status.st_mode & 0o077):
        raise PermissionError("others than its owner may use it (expected mode 0700)")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise PermissionError("it is not writable")


class GraphCache:
    """Entries by key, in a folder that belongs to this user alone.

    Several processes may share the folder.

    Raises:
        OSError: The folder cannot be created, or others may access it.
    """

    def __init__(self, folder: Path, max_bytes: int = MAX_BYTES) -> None:
        make_private_folder(folder)
        self._folder = folder
        self._max_bytes = max_bytes

    def get(self, key: str) -> bytes | None:
        """Return an optimised model, or b"" for a model that cannot be cached.

        A damaged entry is deleted.
        """
        path = self._folder / (key + _ENTRY)
        try:
            descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0))
            with open(descriptor, "rb") as file:
                digest, content = file.read(_DIGEST_SIZE), file.read()
            if hashlib.sha256(content).digest() != digest:
                log.warning("graph cache: deleting a damaged entry")
                self.discard(key)
                return None
            os.utime(path)  # most recently used
        except OSError:
            return None
        return content

    def put(self, key: str, write: Callable[[Path], None]) -> None:
        """Let `write` create the model's file, and keep it completely or not at all.

        An error in `write` is raised; a full disk only means that nothing is kept.
        """
        try:
            unfinished = [self._create_file(), self._create_file()]
        except OSError as error:
            log.info("graph cache: entry not written: %s", error.strerror)
            return
        try:
            write(unfinished[0])
            content = unfinished[0].read_bytes()
            unfinished[1].write_bytes(hashlib.sha256(content).digest() + content)
            unfinished[1].replace(self._folder / (key + _ENTRY))
            self._evict()
        except OSError as error:
            log.info("graph cache: entry not written: %s", error.strerror)
        finally:
            for path in unfinished:
                path.unlink(missing_ok=True)

    def discard(self, key: str) -> None:
        (self._folder / (key + _ENTRY)).unlink(missing_ok=True)

    def _create_file(self) -> Path:
        descriptor, name = tempfile.mkstemp(suffix=_UNFINISHED, dir=self._folder)
        os.close(descriptor)
        return Path(name)

    def _evict(self) -> None:
        entries = []
        for path in self._folder.iterdir():
            try:
                status = path.stat(follow_symlinks=False)
            except FileNotFoundError:  # deleted by another process
                continue
            if path.suffix == _ENTRY:
                entries.append((status.st_mtime, status.st_size, path))
            elif path.suffix == _UNFINISHED and status.st_mtime < time.time() - _ABANDONED_AFTER:
                path.unlink(missing_ok=True)
        total = sum(size for _, size, _ in entries)
        for _, size, path in sorted(entries):
            if total <= self._max_bytes:
                break
            path.unlink(missing_ok=True)
            total -= size


_opening = threading.Lock()  # without it, two threads could both log


def open_cache(folder: Path) -> GraphCache | None:
    """Return the cache in `folder`, or None, logged once, if there cannot be one."""
    with _opening:
        return _open_once(folder)


@cache
def _open_once(folder: Path) -> GraphCache | None:
    try:
        return GraphCache(folder)
    except OSError as error:
        log.info("no graph cache in %s: %s", folder, error.strerror or error)
        return None


def default_cache_folder() -> Path | None:
    """Return $XDG_CACHE_HOME/neurona or ~/.cache/neurona, None for a user without a home.

    The source is the XDG Base Directory Specification 0.8, by which a relative path in the
    variable is invalid.
    """
    if (base := os.environ.get("XDG_CACHE_HOME", "")) and os.path.isabs(base):
        return Path(base) / "neurona"
    try:
        return Path.home() / ".cache" / "neurona"
    except RuntimeError:
        return None


@cache
def _describe_processor() -> tuple[str, ...]:
    """Return what ONNX Runtime may choose kernels by: the processor's kind and features."""
    kind = (platform.system(), platform.machine(), platform.processor())
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return kind
    features: dict[str, str] = {}
    for line in lines:
        name, _, value = line.partition(":")
        if name.strip() in ("model name", "flags", "Features", "CPU part", "CPU implementer"):
            features.setdefault(name.strip(), value.strip())
    return (*kind, *(f"{name}:{value}" for name, value in sorted(features.items())))
