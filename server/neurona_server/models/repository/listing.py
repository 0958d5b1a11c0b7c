"""Lists the folders of a repository, and takes fingerprints of files without reading them."""

import enum
import os
import re
import stat
from collections.abc import Iterable, Iterator
from pathlib import Path

MAX_FILES = 10_000
"""Files of one version that are looked at; a folder with more is not a model."""

Fingerprint = tuple[tuple[str | int, ...], ...]
"""Path, size, modification time, inode, mode and owners of each file.

A different fingerprint means different contents, or files that have become readable; it is
taken without reading the files.
"""


class Kind(enum.Enum):
    """What a name in a folder stands for, links followed."""

    FOLDER = "a folder"
    FILE = "a file"
    LINK_LOOP = "a link to itself"
    DANGLING_LINK = "a link to nothing"
    FORBIDDEN_LINK = "a link that cannot be followed"
    OTHER = "neither a file nor a folder"


def kind_of(path: Path) -> Kind | None:
    """Return what the path stands for, or None if there is nothing.

    Raises:
        OSError: The folder that holds it cannot be searched.
    """
    try:
        mode = os.stat(path).st_mode
    except OSError as error:
        try:
            status = os.lstat(path)
        except (FileNotFoundError, NotADirectoryError):
            return None
        if not stat.S_ISLNK(status.st_mode):
            raise
        if isinstance(error, FileNotFoundError | NotADirectoryError):
            return Kind.DANGLING_LINK
        return Kind.FORBIDDEN_LINK if isinstance(error, PermissionError) else Kind.LINK_LOOP
    if stat.S_ISDIR(mode):
        return Kind.FOLDER
    return Kind.FILE if stat.S_ISREG(mode) else Kind.OTHER


def list_kinds(folder: Path) -> dict[str, Kind]:
    """Return what the names in a folder stand for, sorted by name.

    Raises:
        OSError: The folder cannot be read.
    """
    kinds = {}
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):  # without a look at the file itself
                kind: Kind | None = Kind.FOLDER
            elif entry.is_file(follow_symlinks=False):
                kind = Kind.FILE
            else:
                kind = kind_of(Path(entry.path))
            if kind is not None:
                kinds[entry.name] = kind
    return dict(sorted(kinds.items()))


def list_files(
    folder: Path,
    *,
    recursive: bool,
    skip: re.Pattern[str] | None = None,
    limit: int = MAX_FILES,
) -> Iterator[os.DirEntry[str]]:
    """List at most `limit` files, leaving out subfolders whose names match `skip`.

    Links to folders are not followed: their contents do not belong to a version.
    """
    pending = [folder]
    count = 0
    while pending:
        with os.scandir(pending.pop()) as entries:
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    if recursive and not (skip and skip.fullmatch(entry.name)):
                        pending.append(Path(entry.path))
                    continue
                count += 1
                if count > limit:
                    return
                yield entry


def is_inside(path: Path, root: Path) -> bool:
    """Return whether `path` with all links followed is in `root`.

    Raises:
        RuntimeError: The links form a loop.
    """
    return path.resolve().is_relative_to(root.resolve())


def fingerprint_of(files: Iterable[os.DirEntry[str]]) -> Fingerprint:
    """Return the fingerprint of the files, in the order of their paths."""
    fingerprints = []
    for entry in files:
        try:
            status = entry.stat()
        except OSError:  # a dangling link or a loop; loading the file will fail with the reason
            status = entry.stat(follow_symlinks=False)
        fingerprints.append(describe_file(entry.path, status))
    return tuple(sorted(fingerprints))


def describe_file(path: str, status: os.stat_result) -> tuple[str | int, ...]:
    """Return the row of a fingerprint for one file."""
    content = (status.st_size, status.st_mtime_ns, status.st_ino)
    return (path, *content, status.st_mode, status.st_uid, status.st_gid)
