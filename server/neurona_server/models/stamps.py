"""What tells the files of a folder from others that stand in the same place later."""

import os
import re
from collections.abc import Iterator
from pathlib import Path

MOST_FILES = 10_000
"""Of one version; a folder with more is somebody's home."""

Stamp = tuple[tuple[str | int, ...], ...]
"""Of every file: where it is, its size, its time, its inode, its mode and its owners. Another
stamp is another content, or one that may be read now; nothing is read for it."""


def files_in(
    folder: Path, *, deep: bool, but: re.Pattern[str] | None = None
) -> Iterator[os.DirEntry[str]]:
    """All in it, save what is in folders that are called like `but`.

    Links to folders are not followed: what is behind them does not belong to a version.
    """
    left = [folder]
    count = 0
    while left:
        with os.scandir(left.pop()) as entries:
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    if deep and not (but and but.fullmatch(entry.name)):
                        left.append(Path(entry.path))
                    continue
                count += 1
                if count > MOST_FILES:
                    return
                yield entry


def stamp_of(files: Iterator[os.DirEntry[str]] | list[os.DirEntry[str]]) -> Stamp:
    stamps = []
    for one in files:
        try:
            state = one.stat()
        except OSError:  # a link to nowhere or to itself; whoever needs it will say so
            state = one.stat(follow_symlinks=False)
        access = (state.st_mode, state.st_uid, state.st_gid)
        stamps.append((one.path, state.st_size, state.st_mtime_ns, state.st_ino, *access))
    return tuple(sorted(stamps))


def folders_in(parent: Path, pattern: re.Pattern[str]) -> list[str]:
    """Names of folders that match, in order. Raises OSError."""
    with os.scandir(parent) as entries:
        return sorted(e.name for e in entries if pattern.fullmatch(e.name) and _is_folder(e))


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself, or to where we may not look: reading it will tell
        return True
