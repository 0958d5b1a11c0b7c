"""Files in a model's folder that settings name: labels, and the settings files themselves.

Nothing outside the folder is read, since the names may come from a settings file.
"""

from pathlib import Path

from neurona_server.errors import LoadError, quoted
from neurona_server.files import decode_text

MAX_FILE_BYTES = 4 << 20
"""Limit for a file of settings or labels."""


def resolve_inside(folder: Path, name: str) -> Path:
    """Return the real path of the file `name` inside `folder`.

    Raises:
        LoadError: The name or a symbolic link leads out of the folder, or it is not a file.
    """
    wanted = Path(name)
    if not name or "\0" in name or "\\" in name or wanted.is_absolute() or ".." in wanted.parts:
        raise LoadError(f"the file name {quoted(name)} is not a path inside the model's folder")
    try:
        home, path = folder.resolve(strict=True), (folder / wanted).resolve(strict=True)
        if not path.is_relative_to(home):
            raise LoadError(f"the file {quoted(name)} leads out of the model's folder")
        if not path.is_file():
            raise LoadError(f"{quoted(name)} is not a file")
    except (OSError, RuntimeError) as error:  # RuntimeError: a loop of links
        reason = getattr(error, "strerror", None) or "a loop of symbolic links"
        raise LoadError(f"the file {quoted(name)} cannot be read: {reason}") from error
    return path


def read_text(folder: Path, name: str) -> str:
    """Read a text file in UTF-8, or in what its byte order mark says.

    Raises:
        LoadError: The file cannot be read, is too large or is no text.
    """
    path = resolve_inside(folder, name)
    try:
        with path.open("rb") as file:
            content = file.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        reason = error.strerror
        raise LoadError(f"the file {quoted(name)} cannot be read: {reason}") from error
    if len(content) > MAX_FILE_BYTES:
        raise LoadError(f"the file {quoted(name)} has more than {MAX_FILE_BYTES} bytes")
    try:
        return decode_text(content)
    except ValueError as error:
        raise LoadError(f"the file {quoted(name)} is not UTF-8: {error}") from error


def read_labels(folder: Path, name: str, *, allow_gaps: bool = False) -> tuple[str, ...]:
    """Read one label per line; empty lines at the end are ignored.

    Args:
        folder: The model's folder.
        name: The file in it.
        allow_gaps: Accept a file without labels, and take an empty line for a class without one.

    Raises:
        LoadError: The file cannot be read, or has no label in one of its lines.
    """
    # Not splitlines: a label may contain what Unicode calls a line separator.
    lines = [line.removesuffix("\r") for line in read_text(folder, name).split("\n")]
    while lines and not lines[-1].strip():
        lines.pop()
    if allow_gaps:
        return tuple(line.strip() for line in lines)
    if not lines:
        raise LoadError(f"the file {quoted(name)} is empty (expected one label per line)")
    for number, line in enumerate(lines, 1):
        if not line.strip():
            raise LoadError(f"the file {quoted(name)} has no label in line {number}")
    return tuple(line.strip() for line in lines)
