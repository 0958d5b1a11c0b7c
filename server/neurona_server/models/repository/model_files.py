"""Files that stand beside a model's versions: settings, labels, warm-up data.

What they are called may come from a settings file, so nothing outside the model's folder is read.
"""

from pathlib import Path

from neurona_server.errors import LoadError, quoted

MOST_BYTES = 4 << 20
"""Of a file of settings or labels."""


def resolve_inside(folder: Path, name: str) -> Path:
    """The file `name` inside `folder`, where it really stands.

    Raises LoadError when it leaves the folder, by its name or by a symbolic link, or is no file.
    """
    wanted = Path(name)
    if not name or "\0" in name or "\\" in name or wanted.is_absolute() or ".." in wanted.parts:
        raise LoadError(f"the file {quoted(name)} is not named from inside the model's folder")
    try:
        home, path = folder.resolve(strict=True), (folder / wanted).resolve(strict=True)
        if not path.is_relative_to(home):
            raise LoadError(f"the file {quoted(name)} leads out of the model's folder")
        if not path.is_file():
            raise LoadError(f"{quoted(name)} is no file")
    except (OSError, RuntimeError) as error:  # a RuntimeError is a circle of links
        reason = getattr(error, "strerror", None) or "a circle of links"
        raise LoadError(f"the file {quoted(name)} cannot be read: {reason}") from error
    return path


def read_text(folder: Path, name: str) -> str:
    """A file of UTF-8 text. Raises LoadError."""
    path = resolve_inside(folder, name)
    try:
        with path.open("rb") as file:
            content = file.read(MOST_BYTES + 1)
    except OSError as error:
        reason = error.strerror
        raise LoadError(f"the file {quoted(name)} cannot be read: {reason}") from error
    if len(content) > MOST_BYTES:
        raise LoadError(f"the file {quoted(name)} has more than {MOST_BYTES} bytes")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise LoadError(
            f"the file {quoted(name)} is not UTF-8: byte {error.start} cannot be read"
        ) from error


def read_labels(folder: Path, name: str) -> tuple[str, ...]:
    """One label a line; an empty last line is none. Raises LoadError."""
    # Not splitlines: a label may hold what Unicode calls a line separator.
    lines = [line.removesuffix("\r") for line in read_text(folder, name).split("\n")]
    while lines and not lines[-1].strip():
        lines.pop()
    if not lines:
        raise LoadError(f"the file {quoted(name)} is empty; expected one label a line")
    for number, line in enumerate(lines, 1):
        if not line.strip():
            raise LoadError(f"the file {quoted(name)} has no label in line {number}")
    return tuple(line.strip() for line in lines)
