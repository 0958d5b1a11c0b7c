"""Weights that lie in files beside the model, brought where nobody can change them.

ONNX Runtime maps such a file into memory. Somebody who then writes over it changes the model's
answers, and somebody who truncates it ends the process with SIGBUS at the next run. (The model's
own file is read, not mapped.) So ONNX Runtime never gets to see the repository's files: it gets
their bytes, and copies what it needs, or else a copy in a folder of the server's own.

It refuses a path that leads out of the model's folder, but follows some links, by version: here
none leads out, whatever the version.
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
    """The file at each location, which is relative to the folder of the model at `path`.

    Raises LoadError for one that is missing, or not inside this folder.
    """
    # A link to a model stands for it: what it needs may lie beside the one or the other.
    homes = [path.parent.resolve(), path.resolve().parent]
    files = {}
    for location in locations:
        name = quoted(location.replace("\\", "/").rpartition("/")[2])
        inner = os.path.normpath(location)
        if os.path.isabs(location) or inner.split(os.sep)[0] == os.pardir or not location:
            raise LoadError(f"External data path of {name} leads out of the model's folder")
        try:
            file = (path.parent / inner).resolve(strict=True)
        except (OSError, RuntimeError, ValueError):
            raise LoadError(
                f"External data path of {name} leads to no file: it must lie beside the model"
            ) from None
        if not any(file.is_relative_to(home) for home in homes):
            raise LoadError(f"External data path of {name} leads out of the model's folder")
        if not file.is_file():
            raise LoadError(f"External data path of {name} leads to what is no file")
        files[location] = file
    return files


def read_external(files: Mapping[str, Path]) -> dict[str, bytes]:
    """What is in each file. One that has several locations is read once."""
    contents = {file: _read(file) for file in set(files.values())}
    return {location: contents[file] for location, file in files.items()}


@contextmanager
def temporary_copy(path: Path, files: Mapping[str, Path]) -> Iterator[Path]:
    """The path of a copy of the model and these files, which is gone afterwards.

    What has been mapped from it by then stays readable: the kernel keeps a deleted file as long
    as it is mapped.
    """
    try:
        with tempfile.TemporaryDirectory(prefix="neurona-") as folder:
            copy = Path(folder) / "model.onnx"
            shutil.copyfile(path, copy)
            for location, file in files.items():
                # Not normalised: of a/../w.bin, a must be there too.
                os.makedirs(os.path.join(folder, os.path.dirname(location)), exist_ok=True)
                shutil.copyfile(file, os.path.join(folder, location))
            yield copy
    except OSError as error:
        raise LoadError(f"its external data cannot be copied: {error.strerror}") from error


def _read(path: Path) -> bytes:
    try:
        with open(path, "rb", opener=_open) as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise LoadError("its external data are no file")
            return file.read()
    except OSError as error:
        raise LoadError(f"its external data cannot be read: {error.strerror}") from error


def _open(path: str, flags: int) -> int:
    # All links have been followed: one that is here now was put here since.
    return os.open(path, flags | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0))
