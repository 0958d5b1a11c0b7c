"""Protobuf's wire format, read and written by hand where a message object would cost too much.

Most requests and responses repeat the same bytes; building, filling and copying a message object
for each of them takes several times as long as these functions. Imports neither numpy nor protobuf.
Source: protobuf.dev/programming-guides/encoding.
"""

from collections.abc import Iterator
from functools import lru_cache

VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5
"""Wire types. BYTES is the type of fields with a length: bytes, text, messages, packed numbers."""

_MAX_LENGTH_BYTES = 5


def varint(number: int) -> bytes:
    """Encode a non-negative integer, seven bits a byte, the lowest first.

    Args:
        number: from 0 to 2**64 - 1.

    Returns:
        1 to 10 bytes.
    """
    if number < 0x80:
        return bytes((number,))
    if number < 0x4000:
        return bytes((number & 0x7F | 0x80, number >> 7))
    octets = []
    while number > 0x7F:
        octets.append(number & 0x7F | 0x80)
        number >>= 7
    octets.append(number)
    return bytes(octets)


def signed_varint(number: int) -> bytes:
    """Encode an int64; a negative number as its 64 bits in two's complement."""
    return varint(number & 0xFFFF_FFFF_FFFF_FFFF)


@lru_cache(maxsize=4096)
def header(field: int, length: int) -> bytes:
    """Encode the tag and the length that precede the content of a length-delimited field."""
    if length < 0x80 and field < 16:
        return bytes((field << 3 | BYTES, length))
    return varint(field << 3 | BYTES) + varint(length)


def length_delimited(field: int, content: bytes) -> bytes:
    """Encode a whole length-delimited field: header and content."""
    return header(field, len(content)) + content


def read_varint(message: bytes, position: int) -> tuple[int, int]:
    """Decode the varint at a position.

    Args:
        message: the bytes that contain it.
        position: the offset of its first byte.

    Returns:
        The number, and the offset after it.

    Raises:
        ValueError: the message ends inside the number, or it has more than 64 bits.
    """
    number = shift = 0
    while True:
        if position >= len(message) or shift > 63:
            raise ValueError("the message ends inside a number")
        byte = message[position]
        position += 1
        number |= (byte & 0x7F) << shift
        if byte < 0x80:
            return number, position
        shift += 7


def fields(message: bytes, start: int, end: int) -> Iterator[tuple[int, int, int]]:
    """Iterate over the fields of a message.

    Args:
        message: the bytes that contain it.
        start: the offset of its first byte.
        end: the offset after its last byte.

    Yields:
        Each field's number, and the offsets where its content starts and ends. A varint's content
        is the varint itself.

    Raises:
        ValueError: the bytes are not a message.
    """
    while start < end:
        tag, start = read_varint(message, start)
        wire_type = tag & 7
        if wire_type == BYTES:
            length, start = read_varint(message, start)
        elif wire_type == VARINT:
            length = read_varint(message, start)[1] - start
        elif wire_type in (FIXED64, FIXED32):
            length = 8 if wire_type == FIXED64 else 4
        else:
            raise ValueError(f"the message has a field of wire type {wire_type}")
        if start + length > end:
            raise ValueError("the message ends inside a field")
        yield tag >> 3, start, start + length
        start += length


def content_span(message: bytes, wire_type: int, position: int) -> tuple[int, int]:
    """Return where the content of a field starts and ends.

    Args:
        message: the bytes that contain it.
        wire_type: the field's; a varint's content is the varint itself.
        position: the offset after the field's tag.

    Raises:
        ValueError: the message ends inside a number, or the field is a group or of an unknown type.
    """
    if wire_type == BYTES:
        length, start = read_varint(message, position)
        if start - position > _MAX_LENGTH_BYTES:
            raise ValueError("the message has a length of more than 32 bits")
        return start, start + length
    if wire_type == VARINT:
        return position, read_varint(message, position)[1]
    if wire_type in (FIXED64, FIXED32):
        return position, position + (8 if wire_type == FIXED64 else 4)
    raise ValueError(f"the message has a field of wire type {wire_type} (expected no groups)")
