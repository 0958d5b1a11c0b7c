"""A cache of the engines that TensorRT compiles, so that a restart need not compile them again.

An engine takes seconds to minutes to compile, and is valid for one model, one range of shapes, one
kind of GPU and one version of TensorRT. ONNX Runtime finds engines by names of nodes and tensors
only, so two models of one architecture would get each other's: here each model has a folder of its
own, named by a hash of all that its engine depends on. How long kernels took (the timing cache) is
shared by all, and makes further models of an architecture faster to compile.

The contents of the cache are not trusted: its folder must belong to this user alone, and a file of
an engine must have the hash that was written when it was complete. A process that was killed while
it wrote leaves a file without one, which is deleted.
"""

import contextlib
import hashlib
import json
import logging
import os
import shutil
import sys
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Final

from neurona_server.models.load_cancellation import LoadCancellation
from neurona_server.models.onnx.graph_cache import make_private_folder

if sys.platform != "win32":
    import fcntl

log = logging.getLogger(__name__)

MAX_ENGINE_BYTES: Final = 16 << 30
"""Size of the folder; the least recently used models are deleted first."""

MAX_WAIT_SECONDS: Final = 1800.0
"""Time to wait for others that compile; one that never returns must not keep all models away."""

_MANIFEST = "manifest.json"
_TIMING, _LOCK = "timing", "lock"
_CHUNK_BYTES = 1 << 24
_WAIT_SECONDS = 0.1  # between two looks whether another process has compiled


def engine_key(files: Iterable[Path], settings: Iterable[str]) -> str:
    """Return the key of a model's engines: a hash of its files and of all other texts.

    Raises:
        OSError: A file cannot be read.
    """
    digest = hashlib.sha256()
    for path in files:
        digest.update(_hash_file(path).encode())
    for text in settings:
        digest.update(b"\0" + text.encode())
    return digest.hexdigest()


class EngineFolder:
    """The engines of one model.

    Attributes:
        path: The folder.
        timing_path: The folder of the timing cache.
    """

    def __init__(self, path: Path, timing_path: Path) -> None:
        self.path = path
        self.timing_path = timing_path

    def seal(self) -> None:
        """Note that the files are complete, as they are now; a full disk means they are not kept.

        For ONNX Runtime may write them after the load: in the first run of a shape.
        """
        try:
            for folder in (self.path, self.timing_path):
                _write_manifest(folder)
        except OSError as error:
            log.info("engine cache: not written: %s", error.strerror or error)

    def is_complete(self) -> bool:
        """Return whether there are engines and all files are as they were sealed."""
        try:
            files = _list_files(self.path)
        except OSError:  # another process has just deleted it
            return False
        return bool(files) and files.keys() <= _sound_files(self.path)

    def delete_unsound(self) -> None:
        """Delete the files that are not as they were sealed."""
        for folder in (self.path, self.timing_path):
            sound = _sound_files(folder)
            for name, path in _list_files(folder).items():
                if name not in sound:
                    log.warning("engine cache: deleting an incomplete file")
                    path.unlink(missing_ok=True)

    def discard(self) -> None:
        """Delete all engines of the model, which could not be loaded."""
        shutil.rmtree(self.path, ignore_errors=True)
        with contextlib.suppress(OSError):
            make_private_folder(self.path)


class EngineCache:
    """Folders of engines by key. Several processes may share it.

    Raises:
        OSError: The folder cannot be created, or others may access it.
    """

    def __init__(self, folder: Path, max_bytes: int = MAX_ENGINE_BYTES) -> None:
        make_private_folder(folder)
        make_private_folder(folder / _TIMING)
        self._folder = folder
        self._max_bytes = max_bytes
        self._lock = threading.Lock()

    @contextmanager
    def open(self, key: str, cancellation: LoadCancellation) -> Iterator[EngineFolder]:
        """Yield the folder of one model's engines.

        Only one thread of one process at a time compiles a model: what the others wait for is what
        they need, or would disturb the measurements by which TensorRT chooses kernels.

        Raises:
            LoadError: The load was cancelled.
            OSError: The folder cannot be created.
        """
        path = self.folder(key)
        engines = EngineFolder(path, self._folder / _TIMING)
        if engines.is_complete():
            yield engines
            return
        with self._locked(cancellation):
            if engines.is_complete():  # another process has compiled it meanwhile
                yield engines
                return
            engines.delete_unsound()
            yield engines
            engines.seal()
            with contextlib.suppress(OSError):
                self._evict(path)

    def folder(self, key: str) -> Path:
        """Return the folder of one model, made if it is not there.

        Raises:
            OSError: It cannot be created.
        """
        # All of them: the cache may have been deleted meanwhile.
        for folder in (self._folder, self._folder / _TIMING, self._folder / key):
            make_private_folder(folder)
        os.utime(self._folder / key)  # most recently used
        return self._folder / key

    @contextmanager
    def _locked(self, cancellation: LoadCancellation) -> Iterator[None]:
        end = time.monotonic() + MAX_WAIT_SECONDS
        with open(self._folder / _LOCK, "wb") as file:
            while not (locked := self._try_lock(file.fileno())) and time.monotonic() < end:
                cancellation.raise_if_cancelled()
                cancellation.note_progress()
                time.sleep(_WAIT_SECONDS)
            try:
                yield
            finally:
                if locked:
                    self._lock.release()  # closing the file releases the other one

    def _try_lock(self, descriptor: int) -> bool:
        if not self._lock.acquire(blocking=False):
            return False
        if sys.platform != "win32":
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                self._lock.release()
                return False
            except OSError:  # some network file systems have no locks
                pass
        return True

    def _evict(self, used: Path) -> None:
        folders = []
        for path in self._folder.iterdir():
            if path.is_dir() and path.name != _TIMING:
                with contextlib.suppress(OSError):  # deleted by another process
                    size = sum(file.stat().st_size for file in _list_files(path).values())
                    folders.append((path.stat().st_mtime, size, path))
        total = sum(size for _, size, _ in folders)
        for _, size, path in sorted(folders):
            if total <= self._max_bytes:
                break
            if path != used:
                shutil.rmtree(path, ignore_errors=True)
                total -= size


_opening = threading.Lock()  # without it, two threads could both log


def open_engine_cache(folder: Path) -> EngineCache | None:
    """Return the cache in `folder`, or None, logged once, if there cannot be one."""
    with _opening:
        return _open_once(folder)


@cache
def _open_once(folder: Path) -> EngineCache | None:
    try:
        make_private_folder(folder.parent)
        return EngineCache(folder)
    except OSError as error:
        log.info("no engine cache in %s: %s", folder, error.strerror or error)
        return None


def _list_files(folder: Path) -> dict[str, Path]:
    """Return the files in a folder by their relative paths, without the manifest."""
    files = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*")}
    return {name: path for name, path in files.items() if name != _MANIFEST and path.is_file()}


def _write_manifest(folder: Path) -> None:
    hashes = {name: _hash_file(path) for name, path in _list_files(folder).items()}
    target = folder / _MANIFEST
    unfinished = target.with_suffix(f".{os.getpid()}-{threading.get_ident()}")
    try:
        unfinished.write_text(json.dumps(hashes), encoding="utf-8")
        unfinished.replace(target)
    finally:
        unfinished.unlink(missing_ok=True)


def _sound_files(folder: Path) -> set[str]:
    """Return the names of the files that have the hash in the manifest."""
    try:
        hashes = json.loads((folder / _MANIFEST).read_text(encoding="utf-8"))
        files = _list_files(folder)
        return {
            name
            for name, path in files.items()
            if not path.is_symlink() and _hash_file(path) == hashes.get(name)
        }
    except (OSError, ValueError, AttributeError):
        return set()


def _hash_file(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()
