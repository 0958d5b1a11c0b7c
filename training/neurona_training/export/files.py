"""Files that a run leaves: put in place whole, or not at all."""

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

from neurona_training.errors import OutputError


def write(content: bytes, path: Path) -> None:
    """Puts the file in place in one step: who looks sees the old one or all of the new one.

    Raises OutputError.
    """
    with _told_of(path):
        _write(content, path)


def check_writable(path: Path) -> None:
    """Before the training, not after it. Raises OutputError; leaves nothing behind."""
    folder = path.parent
    while not folder.exists():
        folder = folder.parent
    with _told_of(path), tempfile.TemporaryFile(dir=folder):
        pass


def _write(content: bytes, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    temporary = Path(name)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())  # or a crash could leave the name without the bytes
        temporary.chmod(0o644)  # a temporary file is its owner's alone; a server reads this
        temporary.replace(path)
    except BaseException:
        temporary.unlink()
        raise


@contextlib.contextmanager
def _told_of(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise OutputError(f"{path} cannot be written: {error.strerror or error}") from error
