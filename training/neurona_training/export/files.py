"""Files that a run leaves, replaced in one step.

It is alone because models, reports and the charts of studies are all written by it.
"""

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

from neurona_training.errors import OutputError


def write_file(content: bytes, path: Path) -> None:
    """Replaces the file in one step: a reader sees the old content or all of the new one.

    Raises:
        OutputError: the file cannot be written.
    """
    with _output_errors(path):
        _replace_file(content, path)


def check_writable(path: Path) -> None:
    """Checks before a training that its file can be written; leaves nothing behind.

    Raises:
        OutputError: no file can be written there.
    """
    folder = path.parent
    while not folder.exists():
        folder = folder.parent
    with _output_errors(path), tempfile.TemporaryFile(dir=folder):
        pass


def _replace_file(content: bytes, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    temporary = Path(name)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())  # or a crash could leave the name without the bytes
        temporary.chmod(0o644)  # mkstemp's are readable by their owner only; a server reads this
        temporary.replace(path)
    except BaseException:
        temporary.unlink()
        raise


@contextlib.contextmanager
def _output_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise OutputError(f"cannot write {path}: {error.strerror or error}") from error
