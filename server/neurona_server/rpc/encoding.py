"""Pieces of protobuf messages, written by hand.

An answer is mostly the same bytes each time, and a message object would be made, filled and
copied for every one of them. See protobuf.dev, "Encoding".
"""

from functools import lru_cache

BYTES = 2  # the wire type of what has a length: bytes, text, messages, packed numbers


def varint(number: int) -> bytes:
    """Of a number that is not negative."""
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


@lru_cache(maxsize=4096)
def prefix(field: int, length: int) -> bytes:
    """What stands before a field of so many bytes: its tag, and its length."""
    if length < 0x80 and field < 16:
        return bytes((field << 3 | BYTES, length))
    return varint(field << 3 | BYTES) + varint(length)


def within(field: int, content: bytes) -> bytes:
    """A field that holds `content`."""
    return prefix(field, len(content)) + content
