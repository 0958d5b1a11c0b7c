"""Arrays of a data set that may be larger than memory.

A large one is mapped to a temporary file: it is an array of numpy as any other, and the system
keeps in memory the part that is in use. The file has no name any more, so that it is gone with the
process, however that ends. It is alone because images and sound use it.
"""

from __future__ import annotations

import math
import mmap
import os
import tempfile
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from neurona_training.errors import DataError

MEMORY_SHARE = 0.25
"""Part of the memory that an array may take; training has copies of batches and weights besides."""

_MEMORY_LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")
"""Of a container: cgroup v2 and v1."""


def allocate(shape: tuple[int, ...], where: str, hint: str) -> NDArray[np.float32]:
    """Makes an array of zeros, in memory or, if it is too large for that, in a temporary file.

    Args:
        shape: of the array.
        where: whose array, for the error.
        hint: what makes it smaller, for the error.

    Raises:
        DataError: the folder for temporary files has no room; with the bytes that are needed.
    """
    nbytes = 4 * math.prod(shape)
    if nbytes <= MEMORY_SHARE * available_memory():
        return np.zeros(shape, np.float32)
    folder = _scratch_folder()
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            if hasattr(os, "posix_fallocate"):  # a full disk is an error now, not a crash later
                os.posix_fallocate(file.fileno(), 0, nbytes)
            else:
                file.truncate(nbytes)
            memory = mmap.mmap(file.fileno(), nbytes)  # keeps the file open
    except OSError as error:
        raise DataError(
            f"{where}: {nbytes / 1e9:,.1f} GB of numbers fit neither into memory nor into "
            f"{folder}: {error.strerror} (expected room there, or another folder in TMPDIR; {hint})"
        ) from error
    return np.frombuffer(memory, np.float32).reshape(shape)


def _scratch_folder() -> str:
    """The folder for large temporary files: /tmp may be in memory, /var/tmp is not."""
    large = "/var/tmp"  # noqa: S108  files there have no name
    usable = not os.environ.get("TMPDIR") and os.access(large, os.W_OK)
    return large if usable else tempfile.gettempdir()


def available_memory() -> int:
    """Bytes that programs may take without swapping, within the limit of a container."""
    sizes = [_limit(Path(path)) for path in _MEMORY_LIMITS]
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        sizes += [1024 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable")]
    except OSError:  # not Linux
        sizes.append(8 << 30)
    return min(size for size in sizes if size)


def _limit(path: Path) -> int:
    """The limit in a file of a control group; 0 without one."""
    try:
        text = path.read_text().strip()
    except OSError:
        return 0
    return int(text) if text.isdecimal() else 0
