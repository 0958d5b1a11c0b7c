"""Remembers which files have passed their check, so that a restart need not repeat it.

A file is identified by a hash of its contents and of everything else that its load depends on:
another ONNX Runtime or another processor may crash where this one did not.
"""

import hashlib
import logging
import os
from dataclasses import replace
from pathlib import Path

from neurona_server.errors import LoadError
from neurona_server.models.load_cancellation import LoadCancellation
from neurona_server.models.model_options import ModelOptions
from neurona_server.models.onnx.device_shares import DeviceShare
from neurona_server.models.onnx.external_data import find_external
from neurona_server.models.onnx.graph_cache import cache_key
from neurona_server.models.onnx.model_file import read_outline
from neurona_server.models.onnx.runtime import describe_runtime
from neurona_server.models.repository.scanner import ModelSource

log = logging.getLogger(__name__)

MAX_FILES = 10_000
"""Files that are remembered; the least recently loaded ones are forgotten first."""

_SUFFIX = ".checked"
_CHUNK_BYTES = 1 << 24


class CheckedFiles:
    """Empty files that are named by the keys of what passed its check.

    Args:
        folder: A folder that belongs to this user alone; several processes may share it.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def has(self, key: str) -> bool:
        """Return whether what the key stands for has passed, and note that it is in use."""
        try:
            os.utime(self._path(key))
        except OSError:
            return False
        return True

    def add(self, key: str) -> None:
        """Remember that what the key stands for has passed; a full disk only forgets it."""
        try:
            self._path(key).touch()
            paths = [*self._folder.glob(f"*{_SUFFIX}")]
            if len(paths) > MAX_FILES:
                paths.sort(key=lambda path: path.stat().st_mtime)
                for path in paths[: len(paths) - MAX_FILES]:
                    path.unlink(missing_ok=True)
        except OSError as error:
            log.info("checks of files cannot be remembered: %s", error.strerror)

    def _path(self, key: str) -> Path:
        return self._folder / (key + _SUFFIX)


def make_key(source: ModelSource, options: ModelOptions, cancellation: LoadCancellation) -> str:
    """Return the key of a file: a hash of all that its load depends on.

    Raises:
        LoadError: The file is not a model, one of its files cannot be read, or the load was
            cancelled.
    """
    outline = read_outline(source.path)
    inputs = [one for sample in source.settings.warm_up for one in sample.inputs.values()]
    files = [
        source.path,
        *find_external(source.path, outline.external).values(),
        *[one.file for one in inputs if one.file is not None],
    ]
    contents = b"".join([_hash_file(file, cancellation) for file in files])
    # Wherever the cache is, and whichever of equal devices the process has.
    runtime = replace(options.runtime, cache=None, device_share=DeviceShare())
    options = replace(options, runtime=runtime, tracer=None)
    return cache_key(contents, *describe_runtime(), repr(source.settings), repr(options))


def _hash_file(path: Path, cancellation: LoadCancellation) -> bytes:
    digest = hashlib.sha256()
    try:
        with path.open("rb") as file:
            while chunk := file.read(_CHUNK_BYTES):
                cancellation.raise_if_cancelled()
                cancellation.note_progress()
                digest.update(chunk)
    except OSError as error:
        raise LoadError(f"its file {path.name!r} cannot be read: {error.strerror}") from error
    return digest.digest()
