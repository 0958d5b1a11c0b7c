"""Pieces of protobuf messages, written by hand.

An answer is mostly the same bytes each time, and a message object would be made, filled and
copied for every one of them. See protobuf.dev, "Encoding".
"""

from collections.abc import Iterator
from functools import lru_cache

from neurona_server.errors import InvalidError

LARGE = 4 << 20
"""Bytes from which on it is worth it."""

MAX_FIELDS = 1 << 18
"""Those of a message and of the messages in it. 4096 requests of several tensors have less."""

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5


def check_fields(message: bytes, *path: int, longest: tuple[int, int]) -> None:
    """Raises InvalidError when a message has too many fields.

    `path`: the field that holds messages, the field in those that holds messages, and so on.
    `longest`: of the innermost ones, a field and how many bytes it may have. What is no protobuf
    is left to the parser.
    """
    end = len(message)
    if end < LARGE:
        return
    count, position = 0, 0
    ends: list[int] = []  # of the messages around the one that is read now
    while True:
        while position >= end:
            if not ends:
                return
            end = ends.pop()
        count += 1
        if count > MAX_FIELDS:
            raise InvalidError(f"the message has more than {MAX_FIELDS} fields; send several")
        tag, position = _varint(message, position)
        number, wire = tag >> 3, tag & 7
        if wire == _BYTES:
            length, position = _varint(message, position)
            if len(ends) < len(path) and number == path[len(ends)]:
                ends.append(end)
                end = min(end, position + length)
                continue
            if len(ends) == len(path) and number == longest[0] and length > longest[1]:
                raise InvalidError(
                    f"field {number} has {length} bytes; expected at most {longest[1]}"
                )
            position += length
        elif wire == _VARINT:
            _, position = _varint(message, position)
        elif wire in (_FIXED64, _FIXED32):
            position += 8 if wire == _FIXED64 else 4
        else:
            return


def find_fields(message: bytes, path: tuple[int, ...]) -> Iterator[tuple[int, int]]:
    """Where the content of each field stands that `path` leads to, through messages in messages;
    in order. What is no protobuf has none from there on."""
    yield from _find(message, path, 0, len(message))


def _find(
    message: bytes, path: tuple[int, ...], position: int, end: int
) -> Iterator[tuple[int, int]]:
    while position < end:
        tag, position = _varint(message, position)
        number, wire = tag >> 3, tag & 7
        if wire == _BYTES:
            length, position = _varint(message, position)
            if number == path[0]:
                if len(path) == 1:
                    yield position, position + length
                else:
                    yield from _find(message, path[1:], position, min(end, position + length))
            position += length
        elif wire == _VARINT:
            _, position = _varint(message, position)
        elif wire in (_FIXED64, _FIXED32):
            position += 8 if wire == _FIXED64 else 4
        else:
            return


def _varint(message: bytes, position: int) -> tuple[int, int]:
    """The number, and where the next thing stands; beyond the end when it is cut off."""
    value = shift = 0
    while position < len(message) and shift < 70:
        byte = message[position]
        position += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, position
        shift += 7
    return value, len(message)


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
