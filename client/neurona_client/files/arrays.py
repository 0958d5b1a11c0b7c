"""Arrays of numpy by name, as NPY and NPZ files store them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from neurona_client.files.errors import FileContentError

PICKLE_STARTS = (b"\x80", b"(", b"c", b"]", b"}")
"""First bytes of a pickle: protocol 2 and later, or what protocol 0 begins with."""


def read_arrays(path: Path) -> NDArray[Any] | dict[str, NDArray[Any]]:
    """Read one array (NPY), or arrays by name (NPZ), whichever the file has.

    Raises:
        FileContentError: another format, a damaged file, or objects, which could run code.
        OSError: the file cannot be opened.
    """
    with path.open("rb") as file:
        start = file.read(6)
        file.seek(0)
        if not start:
            raise FileContentError("file is empty (expected arrays of numpy)")
        if not start.startswith((b"\x93NUMPY", b"PK\x03\x04", b"PK\x05\x06")):
            pickled = start.startswith(PICKLE_STARTS)
            raise FileContentError(
                f"content is {'a pickle, which could run code' if pickled else 'no array'} "
                "(expected numbers or text as numpy.save or numpy.savez writes them)"
            )
        name = ""
        try:
            content = np.load(file, allow_pickle=False)
            if isinstance(content, np.ndarray):
                return content
            arrays = {}
            with content:
                for name in content.files:
                    arrays[name] = content[name]
        except OSError:
            raise
        except Exception as error:  # numpy and zipfile raise anything when a file is damaged
            raise FileContentError(_describe_failure(name, error)) from error
    for name, array in arrays.items():
        if not isinstance(array, np.ndarray):  # any other entry of a zip file: its bytes
            raise FileContentError(f"entry {name!r} is no array (expected an NPZ file)")
    return arrays


def _describe_failure(name: str, error: Exception) -> str:
    where = f"array {name!r}" if name else "array"
    reason = " ".join(str(error).split()) or type(error).__name__
    if "allow_pickle" in reason:
        return (
            f"{where} has Python objects, which could run code (expected a dtype of numbers or "
            "text: array.astype(float), array.astype(str))"
        )
    return f"{where} cannot be read: {reason}"
