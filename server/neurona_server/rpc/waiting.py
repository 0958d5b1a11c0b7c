"""Answers that a stream's reader has not taken: how many bytes they are, and will be."""

MAX_BYTES = 32 << 20
"""Of the answers of one stream that wait for the reader and those that are expected: then nothing
more of it is begun or read."""


class Waiting:
    """For the door's thread alone."""

    __slots__ = ("_bytes",)

    def __init__(self) -> None:
        self._bytes = 0

    def begun(self, expected: int) -> None:
        """An answer will come, of so many bytes as far as one can tell."""
        self._bytes += expected

    def came(self, expected: int, size: int) -> None:
        """It waits, and has so many."""
        self._bytes += size - expected

    def went(self, size: int) -> None:
        """It waits no more."""
        self._bytes -= size

    @property
    def full(self) -> bool:
        return self._bytes >= MAX_BYTES

    @property
    def low(self) -> bool:
        """So much has gone that it is worth it to begin more: single ones would not share runs."""
        return self._bytes < MAX_BYTES // 2
