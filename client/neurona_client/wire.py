"""The few parts of protobuf's wire format that requests are written with by hand.

protobuf.dev/programming-guides/encoding
"""

from collections.abc import Iterator

BYTES = 2  # the wire type of strings, bytes and messages


def varint(number: int) -> bytes:
    """Seven bits a byte, the lowest first; of a number that is not negative."""
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    out.append(number)
    return bytes(out)


def signed(number: int) -> bytes:
    """An int64: a negative one as its 64 bits."""
    return varint(number & 0xFFFF_FFFF_FFFF_FFFF)


def prefix(field: int, length: int) -> bytes:
    """What stands in front of `length` bytes in a field."""
    return varint(field << 3 | BYTES) + varint(length)


def within(field: int, content: bytes) -> bytes:
    return prefix(field, len(content)) + content


def read_varint(data: bytes, at: int) -> tuple[int, int]:
    """The number, and where it ends. Raises ValueError at the end of the data."""
    number = shift = 0
    while True:
        if at >= len(data) or shift > 63:
            raise ValueError("the message ends inside a number")
        byte = data[at]
        at += 1
        number |= (byte & 0x7F) << shift
        if byte < 0x80:
            return number, at
        shift += 7


def fields(data: bytes, at: int, end: int) -> Iterator[tuple[int, int, int]]:
    """Of each field between: its number, and where its content starts and stops; of a number,
    where that stands. Raises ValueError for what is no message."""
    while at < end:
        tag, at = read_varint(data, at)
        kind = tag & 7
        if kind == BYTES:
            length, at = read_varint(data, at)
        elif kind == 0:
            length = read_varint(data, at)[1] - at
        elif kind in (1, 5):
            length = 8 if kind == 1 else 4
        else:
            raise ValueError(f"the message has a field of kind {kind}")
        if at + length > end:
            raise ValueError("the message ends inside a field")
        yield tag >> 3, at, at + length
        at += length
