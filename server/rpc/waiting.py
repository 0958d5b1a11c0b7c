"""Answers that wait for the reader of a stream: how many bytes they are."""

from collections import deque

MAX_BYTES = 32 << 20
"""Of the answers of one stream, with those that are expected: then nothing more is read of it."""


class Waiting:
    """`came` may be called from any thread, the rest in the door's."""

    __slots__ = ("_bytes", "_came", "_count", "_recent")

    def __init__(self) -> None:
        self._came: deque[int] = deque()  # not yet added to the others
        self._bytes = self._count = self._recent = 0

    def came(self, size: int) -> None:
        """An answer of so many bytes waits."""
        self._came.append(size)

    def went(self, size: int) -> None:
        """It waits no more."""
        self._bytes -= size
        self._count -= 1

    def full(self, outstanding: int) -> bool:
        """Whether so many answers, those that are still to come as large as the last one, are as
        much as may wait."""
        while self._came:
            self._recent = self._came.popleft()
            self._bytes += self._recent
            self._count += 1
        return self._bytes + (outstanding - self._count) * self._recent >= MAX_BYTES
