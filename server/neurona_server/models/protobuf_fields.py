"""The fields of a protobuf message in a file, found by seeking: what they hold is not read.

The wire format is https://protobuf.dev/programming-guides/encoding/: a message is a row of fields,
each a tag (number and wire type, as a varint) and a value of which the wire type tells the length.
"""

from collections.abc import Iterator
from typing import BinaryIO, NamedTuple

VARINT, FIXED64, LENGTH, FIXED32 = 0, 1, 2, 5
_SIZES = {FIXED64: 8, FIXED32: 4}
_LONGEST_VARINT = 10  # bytes, for 64 bits
MOST_FIELDS = 2_000_000
"""Of one message: more would be seconds of looking at what nobody made in earnest."""


class NotProtobufError(ValueError):
    """These bytes are no protobuf message."""


class CutOffError(ValueError):
    """The message ends too early. `expected` is the byte at which it should end, or more."""

    def __init__(self, expected: int) -> None:
        super().__init__(f"expected at least {expected} bytes")
        self.expected = expected


class Field(NamedTuple):
    number: int
    wire_type: int
    start: int
    """Where its value begins, in bytes from the file's start."""
    end: int
    value: int
    """Of a varint; else 0."""


def fields(file: BinaryIO, start: int, end: int) -> Iterator[Field]:
    """The fields between two places. The caller may seek between two of them.

    Raises NotProtobufError, or CutOffError when a field reaches over `end`.
    """
    count = 0
    while start < end:
        count += 1
        if count > MOST_FIELDS:
            raise NotProtobufError(f"more than {MOST_FIELDS:,} fields")
        file.seek(start)
        tag, start = _varint(file, start, end)
        number, wire_type = tag >> 3, tag & 7
        value = 0
        if wire_type == VARINT:
            value, stop = _varint(file, start, end)
        elif wire_type == LENGTH:
            size, start = _varint(file, start, end)
            stop = start + size
        elif wire_type in _SIZES:
            stop = start + _SIZES[wire_type]
        else:
            raise NotProtobufError(f"wire type {wire_type}")
        if number == 0:
            raise NotProtobufError("field number 0")
        if stop > end:
            raise CutOffError(stop)
        yield Field(number, wire_type, start, stop, value)
        start = stop


def _varint(file: BinaryIO, at: int, end: int) -> tuple[int, int]:
    value = 0
    for count in range(_LONGEST_VARINT):
        if at + count >= end:
            raise CutOffError(end + 1)
        byte = file.read(1)
        if not byte:
            raise CutOffError(end + 1)
        value |= (byte[0] & 0x7F) << (7 * count)
        if byte[0] < 0x80:
            return value, at + count + 1
    raise NotProtobufError("a varint of more than 64 bits")
