"""External data: weights in files beside the model, protected from changes while it serves.

ONNX Runtime maps such a file into memory. Writing over it then changes the model's outputs, and
truncating it ends the process with SIGBUS at the next run. (The model's own file is read, not
mapped.) So ONNX Runtime never opens the repository's files: it gets their contents, and copies
what it needs, or else a copy in a folder of the server's own.

ONNX Runtime refuses a path that leads out of the model's folder, but follows some links, depending
on its version: here no link may lead out, whatever the version. The format is that of
https://github.com/onnx/onnx/blob/main/docs/ExternalData.md.
"""

import os
import shutil
import stat
import tempfile
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from neurona_server.errors import LoadError, quoted


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


@contextmanager
def temporary_copy(path: Path, files: Mapping[str, Path]) -> Iterator[Path]:
    """Copy the model and these files, yield the path of the copy, and delete it afterwards.

    What has been mapped from it by then stays readable: the kernel keeps a deleted file as long
    as it is mapped.
    """
    try:
        with tempfile.TemporaryDirectory(prefix="neurona-") as folder:
            copy = Path(folder) / "model.onnx"
            shutil.copyfile(path, copy)
            for location, file in files.items():
                # Not normalised: for a/../w.bin, the folder a must exist, too.
                os.makedirs(os.path.join(folder, os.path.dirname(location)), exist_ok=True)
                shutil.copyfile(file, os.path.join(folder, location))
            yield copy
    except OSError as error:
        raise LoadError(f"its external data cannot be copied: {error.strerror}") from error


def _read_file(path: Path) -> bytes:
    try:
        with open(path, "rb", opener=_open_without_links) as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise LoadError("its external data cannot be read: not a regular file")
            return file.read()
    except OSError as error:
        raise LoadError(f"its external data cannot be read: {error.strerror}") from error


def _open_without_links(path: str, flags: int) -> int:
    # All links have been resolved: a link found now was created since.
    return os.open(path, flags | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0))
