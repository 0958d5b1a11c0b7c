"""Messages that are like one that was read before, in all but the data of their tensors.

A caller's requests differ in little else. Where every byte around the data is the same, what was
found out about one of them holds for the next: nothing is parsed, and its arrays are views on the
message itself.
"""

from collections.abc import Callable, Sequence
from typing import Any

from google.protobuf.message import Message

from neurona_server.rpc.wire import find_fields

MOST_SHAPES = 1024
MOST_ALIKE = 16
"""Of equally long messages: each that comes is held against all of them."""

MOST_BYTES = 8 << 10
"""Of a message besides its data: that is what is kept of it."""

MOST_CREDIT = 256
"""Messages that are learned although none was like one before: those of a caller whose messages
all differ cost no more than these."""


class Shape:
    """All of a message but its data. Equal only to itself."""

    __slots__ = ("_head", "_middles", "_tail", "size", "spans", "which")

    def __init__(self, message: bytes, spans: Sequence[tuple[int, int]]) -> None:
        self.spans = tuple(spans)
        """Where the data stand, each from its first byte to before its last."""

        self.size = len(message)
        self.which: tuple[Any, ...] = ()
        """Which model is asked for, in the words of whoever reads it."""

        self._head = message[: spans[0][0]]
        self._tail = message[spans[-1][1] :]
        between = zip([stop for _, stop in spans], [start for start, _ in spans[1:]], strict=False)
        self._middles = [(start, stop, message[start:stop]) for start, stop in between]

    def fits(self, message: bytes) -> bool:
        """For a message of the right length."""
        if not (message.startswith(self._head) and message.endswith(self._tail)):
            return False
        if not self._middles:  # most have one tensor
            return True
        return all(message[start:stop] == same for start, stop, same in self._middles)


class Known:
    """Of one kind of message, whose tensors' data stand in the fields that `path` leads to.

    Used by the door's thread alone.
    """

    def __init__(self, parse: Callable[[bytes], Message], path: tuple[int, ...]) -> None:
        self._parse = parse
        self._path = path
        self._shapes: dict[int, list[Shape]] = {}  # by the length of their messages
        self._count = 0
        self._credit = MOST_CREDIT

    def find(self, message: bytes) -> Shape | None:
        for shape in self._shapes.get(len(message), ()):
            if shape.fits(message):
                if self._credit < MOST_CREDIT:
                    self._credit += 1
                return shape
        return None

    def learn(self, message: bytes, parsed: Message, data: Sequence[bytes]) -> Shape | None:
        """Of a message that was found good: `data` of its tensors, in order, none of them empty.

        None if that is not worth it, or if more than the data depends on the bytes where they
        seem to stand.
        """
        if self._credit <= 0 or not data:
            return None
        if len(message) - sum([len(each) for each in data]) > MOST_BYTES:
            return None
        self._credit -= 1
        spans = list(find_fields(message, self._path))
        if [message[start:stop] for start, stop in spans] != list(data):
            return None
        if not self._proves(message, parsed, spans):
            return None
        if self._count >= MOST_SHAPES:
            self._shapes.clear()
            self._count = 0
        shape = Shape(message, spans)
        alike = self._shapes.setdefault(len(message), [])
        if len(alike) < MOST_ALIKE:
            self._count += 1
        else:
            del alike[0]
        alike.append(shape)
        return shape

    def _proves(self, message: bytes, parsed: Message, spans: Sequence[tuple[int, int]]) -> bool:
        """With other bytes in the places of the data, the message says the same of all else."""
        other = bytearray(message)
        for start, stop in spans:
            other[start:stop] = bytes([byte ^ 0xFF for byte in message[start:stop]])
        written = bytearray(self._parse(bytes(other)).SerializeToString(deterministic=True))
        original = parsed.SerializeToString(deterministic=True)
        places = list(find_fields(bytes(written), self._path))
        if len(places) != len(spans) or len(written) != len(original):
            return False
        for (start, stop), (from_, to) in zip(places, spans, strict=True):
            if bytes(written[start:stop]) != bytes(other[from_:to]):
                return False
            written[start:stop] = message[from_:to]
        return bytes(written) == original
