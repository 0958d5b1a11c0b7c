"""Numbers the versions of files that are served without folders of versions.

A file that is replaced becomes the next version. Several processes serve the same files and poll
them at different moments, one may miss what another has loaded, and one that is restarted has seen
nothing: so they share the numbers, in a file without a name that their supervisor holds. The file
is alone because the scanner and the processes both need it.
"""

import json
import os
import struct
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager

if sys.platform != "win32":  # which has no supervisor
    import fcntl

_HEADER = struct.Struct("=QQ")
"""Where the numbers are in the shared file: offset and length."""

_Entry = tuple[int, str, bool]
"""Number of the newest version, digest of its files, and whether these are complete."""


class FileVersions:
    """The newest version of each file, by the name of its model.

    One thread of each process may use it at a time.
    """

    def __init__(self, descriptor: int = -1) -> None:
        """Open the numbers.

        Args:
            descriptor: Of the file that the processes share; -1: this process is alone.
        """
        self.descriptor = descriptor
        self._entries: dict[str, _Entry] = {}
        self._last_digests: dict[str, str] = {}  # what this process found last

    @classmethod
    def create_shared(cls) -> "FileVersions":
        """Make numbers for processes that inherit the descriptor.

        Raises:
            OSError: There are no descriptors left.
        """
        if hasattr(os, "memfd_create"):
            return cls(os.memfd_create("neurona"))
        with tempfile.TemporaryFile() as file:
            return cls(os.dup(file.fileno()))

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep the other processes from numbering: what is found out inside is the newest state."""
        if self.descriptor < 0 or sys.platform == "win32":
            yield
            return
        # Not flock: descriptors that were inherited from one another share its lock.
        fcntl.lockf(self.descriptor, fcntl.LOCK_EX)
        try:
            before = self._read()
            self._entries = dict(before)
            yield
            if self._entries != before:
                self._write()
        finally:
            fcntl.lockf(self.descriptor, fcntl.LOCK_UN)

    def _read(self) -> dict[str, _Entry]:
        header = os.pread(self.descriptor, _HEADER.size, 0)
        if not header:
            return {}
        start, length = _HEADER.unpack(header)
        rows = json.loads(os.pread(self.descriptor, length, start))
        return {name: (number, digest, complete) for name, (number, digest, complete) in rows}

    def _write(self) -> None:
        """Write the numbers beside the old ones, then where they are.

        A process that is killed at any moment leaves the old numbers or the new ones.
        """
        content = json.dumps([*self._entries.items()]).encode()
        header = os.pread(self.descriptor, _HEADER.size, 0)
        old_start, old_length = _HEADER.unpack(header) if header else (_HEADER.size, 0)
        fits_before = _HEADER.size + len(content) <= old_start
        start = _HEADER.size if fits_before else old_start + old_length
        offset = 0
        while offset < len(content):
            offset += os.pwrite(self.descriptor, content[offset:], start + offset)
        os.pwrite(self.descriptor, _HEADER.pack(start, len(content)), 0)

    def number(self, name: str, digest: str, *, complete: bool) -> int:
        """Return the version of a model's files; call it while `locked`.

        Files that may still be being written have the next number, too, and keep it until they are
        complete: so no number is skipped, and none means two different files that were loaded.

        Args:
            name: The model.
            digest: Differs for different files.
            complete: Whether they are loaded at once; else they are complete when a process has
                found them equal twice.
        """
        number, newest, is_complete = self._entries.get(name, (0, "", True))
        if digest == newest:
            is_complete |= complete or self._last_digests.get(name) == digest
        else:
            number, is_complete = number + is_complete, complete
        self._entries[name] = (number, digest, is_complete)
        self._last_digests[name] = digest
        return number

    def close(self) -> None:
        """Close the file that the processes share."""
        if self.descriptor >= 0:
            os.close(self.descriptor)
            self.descriptor = -1
