"""External data: weights in files beside the model, protected from changes while it serves.

ONNX Runtime maps such a file into memory. Writing over it then changes the model's outputs, and
truncating it ends the process with SIGBUS at the next run. (The model's own file is read, not
mapped.) So ONNX Runtime never opens the repository's files. It gets the contents of small ones, of
which it makes a copy in turn; loading them takes three times their size in memory for a moment, and
no tensor may have more than 2 GiB. Of large ones it maps a copy in a folder of the server's own,
which is deleted as soon as it is mapped and takes no memory but for what is used of it.

ONNX Runtime refuses a path that leads out of the model's folder, but follows some links, depending
on its version: here no link may lead out, whatever the version. The format is that of
https://github.com/onnx/onnx/blob/main/docs/ExternalData.md.
"""

import contextlib
import errno
import os
import shutil
import stat
import sys
import tempfile
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from io import FileIO
from pathlib import Path

from neurona_server.errors import LoadError, quoted

if sys.platform != "win32":  # where nothing is locked
    import fcntl

COPY_BYTES = 512 << 20
"""Size of external data from which on ONNX Runtime maps a copy of them, if there is room for it."""

MAX_TENSOR_BYTES = 2**31 - 1
"""Size of a tensor whose contents may be passed; protobuf's limit."""

SPARE_BYTES = 64 << 20
"""Room that a copy leaves in its folder."""

_PREFIX = "neurona-weights-"
_ABANDONED_SECONDS = 60.0  # a folder is locked as soon as it is made
_CHUNK_BYTES = 16 << 20


class NoRoomError(LoadError):
    """A copy found less room than there was when it began."""


def find_external(path: Path, locations: Collection[str]) -> dict[str, Path]:
    """Return the file at each location, which is relative to the folder of the model at `path`.

    Raises:
        LoadError: A file is missing, or not inside the model's folder.
    """
    # A link to a model counts as the model: its data may be beside the link or its target.
    folders = [path.parent.resolve(), path.resolve().parent]
    files = {}
    for location in locations:
        name = quoted(location.replace("\\", "/").rpartition("/")[2])
        inner = os.path.normpath(location)
        if os.path.isabs(location) or inner.split(os.sep)[0] == os.pardir or not location:
            raise LoadError(f"its external data file {name} leads out of the model's folder")
        try:
            file = (path.parent / inner).resolve(strict=True)
        except (OSError, RuntimeError, ValueError):
            raise LoadError(
                f"its external data file {name} does not exist (expected it beside the model)"
            ) from None
        if not any(file.is_relative_to(folder) for folder in folders):
            raise LoadError(f"its external data file {name} leads out of the model's folder")
        if not file.is_file():
            raise LoadError(f"its external data file {name} is not a regular file")
        files[location] = file
    return files


def read_external(files: Mapping[str, Path]) -> dict[str, bytes]:
    """Return the contents of each file; one that has several locations is read once."""
    contents = {file: _read_file(file) for file in set(files.values())}
    return {location: contents[file] for location, file in files.items()}


def find_copy_folder(nbytes: int, folders: Iterable[Path]) -> Path | None:
    """Return the first folder in which so many bytes may be written, None if there is none."""
    for folder in folders:
        try:
            if shutil.disk_usage(folder).free >= nbytes + SPARE_BYTES and os.access(
                folder, os.W_OK | os.X_OK
            ):
                return folder
        except OSError:
            continue
    return None


@contextmanager
def temporary_copy(
    path: Path,
    files: Mapping[str, Path],
    parent: Path | None = None,
    on_progress: Callable[[], object] = lambda: None,
) -> Iterator[Path]:
    """Copy the model and these files, yield the path of the copy, and delete it afterwards.

    What has been mapped from it by then stays readable: the kernel keeps a deleted file as long
    as it is mapped.

    Args:
        path: The model's file.
        files: Its external data by location.
        parent: The folder to put the copy's folder in; by default that for temporary files.
        on_progress: Called after each part of a file; may raise to end the copy.

    Raises:
        LoadError: A file cannot be copied; `NoRoomError` if the disk is full.
    """
    parent = parent or Path(tempfile.gettempdir())
    _delete_abandoned(parent)
    try:
        with tempfile.TemporaryDirectory(prefix=_PREFIX, dir=parent) as folder, _locked(folder):
            copy = Path(folder) / "model.onnx"
            shutil.copyfile(path, copy)
            for location, file in files.items():
                # Not normalised: for a/../w.bin, the folder a must exist, too.
                os.makedirs(os.path.join(folder, os.path.dirname(location)), exist_ok=True)
                _copy_file(file, os.path.join(folder, location), on_progress)
            yield copy
    except OSError as error:
        kind = NoRoomError if error.errno in (errno.ENOSPC, errno.EDQUOT) else LoadError
        raise kind(f"its external data cannot be copied: {error.strerror}") from error


@contextmanager
def _locked(folder: str) -> Iterator[None]:
    """Hold a lock on a folder, which the end of the process releases, however it ends."""
    if sys.platform == "win32":
        yield
    else:
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            with contextlib.suppress(OSError):  # some network file systems have no locks
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            yield
        finally:
            os.close(descriptor)


def _delete_abandoned(parent: Path) -> None:
    """Delete copies that a process left which was killed, or crashed on a damaged model."""
    if sys.platform != "win32":
        for folder in parent.glob(f"{_PREFIX}*"):
            with contextlib.suppress(OSError):
                status = os.lstat(folder)
                age = time.time() - status.st_mtime
                if status.st_uid == os.geteuid() and age > _ABANDONED_SECONDS:
                    _delete_unlocked(folder)


def _delete_unlocked(folder: Path) -> None:
    if sys.platform != "win32":
        descriptor = os.open(folder, os.O_RDONLY | os.O_NOFOLLOW | os.O_DIRECTORY)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(folder, ignore_errors=True)
        finally:
            os.close(descriptor)


def _copy_file(source: Path, target: str, on_progress: Callable[[], object]) -> None:
    """Copy a regular file; holes stay holes. Raises LoadError if it changes meanwhile."""
    buffer = memoryview(bytearray(_CHUNK_BYTES))
    with _open_data(source) as file, open(target, "wb", buffering=0) as copy:
        before = os.fstat(file.fileno())
        size = before.st_size
        position = _next_data(file.fileno(), 0, size)
        while position < size:
            file.seek(position)
            count = file.readinto(buffer)
            if not count:
                break
            copy.seek(position)
            view = buffer[:count]
            while view:
                view = view[copy.write(view) :]
            on_progress()
            position = _next_data(file.fileno(), position + count, size)
        copy.truncate(size)
        after = os.fstat(file.fileno())
    if (after.st_size, after.st_mtime_ns) != (size, before.st_mtime_ns):  # missing parts are zeros
        raise LoadError("its external data were changed while they were copied")


def _next_data(descriptor: int, position: int, size: int) -> int:
    """Return the next position at which a file has data, or its size."""
    seek_data = getattr(os, "SEEK_DATA", None)
    if seek_data is None or position >= size:
        return position
    try:
        return os.lseek(descriptor, position, seek_data)
    except OSError as error:
        return size if error.errno == errno.ENXIO else position


def _read_file(path: Path) -> bytes:
    try:
        with _open_data(path) as file:
            return file.read()
    except OSError as error:
        raise LoadError(f"its external data cannot be read: {error.strerror}") from error


def _open_data(path: Path) -> FileIO:
    file = FileIO(path, "rb", opener=_open_without_links)
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        file.close()
        raise LoadError("its external data cannot be read: not a regular file")
    return file


def _open_without_links(path: str, flags: int) -> int:
    # All links have been resolved: a link found now was created since.
    return os.open(path, flags | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0))
