"""Takes the tensors' data out of a serialized request, so that only the small rest is parsed.

The data stay where they are in the message. Each is replaced by its index in the rest, so that the
parser itself decides which data count and to which tensor they belong, also in an unusual message:
the last of two data, fields in another order, a tensor in two pieces. The structure is read by
hand, at a cost for each field and none for the bytes of the data.
"""

from collections.abc import Callable, Mapping
from typing import NamedTuple

from neurona_protos.wire_format import (
    BYTES,
    content_span,
    length_delimited,
    read_varint,
    varint,
)

WriteIndex = Callable[[int], bytes]
"""Writes the content of a field that stands for the data of an index."""

DataPaths = Mapping[int, "DataPaths | WriteIndex"]
"""The fields of a message that contain data: those that are data, and the messages around them."""

_INDEX_BYTES = 4


def bytes_index(index: int) -> bytes:
    """Write an index as the content of a field of type bytes."""
    return index.to_bytes(_INDEX_BYTES, "little")


def packed_index(field: int) -> WriteIndex:
    """Return a writer of an index as a message with one packed element in its integer `field`."""
    return lambda index: length_delimited(field, varint(index))


def read_bytes_index(content: bytes) -> int | None:
    """Read what `bytes_index` has written; None for an empty field."""
    return int.from_bytes(content, "little") if content else None


class DetachedMessage(NamedTuple):
    """A serialized message without its data."""

    rest: bytes
    """The message with indices in the places of the data: not larger than it was allowed to be."""

    spans: list[tuple[int, int]]
    """Where the data of each index start and end in the message."""


def detach_data(
    message: bytes, paths: DataPaths, *, max_fields: int, max_rest_bytes: int
) -> DetachedMessage:
    """Replace the data of a message by indices.

    Raises:
        ValueError: The bytes are not a message, or have a group, which no message of proto3 has;
            or there are more fields, or more bytes besides the data, than the limits allow. The
            text says which.
    """
    detacher = _Detacher(message, max_fields, max_rest_bytes)
    rest = detacher.copy(0, len(message), paths)
    return DetachedMessage(rest, detacher.spans)


class _Detacher:
    def __init__(self, message: bytes, max_fields: int, max_rest_bytes: int) -> None:
        self.spans: list[tuple[int, int]] = []
        self._message = message
        self._max_fields = max_fields
        self._fields = 0
        self._max_rest_bytes = max_rest_bytes
        self._rest_bytes = 0

    def copy(self, start: int, end: int, paths: DataPaths) -> bytes:
        """Return the bytes of a message from `start` to `end` without the data."""
        message = self._message
        pieces: list[bytes] = []
        copied = position = start
        while position < end:
            self._fields += 1
            if self._fields > self._max_fields:
                raise ValueError(f"the message has more than {self._max_fields} fields")
            tag, position = read_varint(message, position)
            content, stop = content_span(message, tag & 7, position)
            if stop > end:
                raise ValueError("the message ends inside a field")
            inner = paths.get(tag >> 3) if tag & 7 == BYTES else None
            if inner is not None:
                pieces.append(self._take(copied, position))
                copied = stop
                if callable(inner):
                    replacement = inner(len(self.spans))
                    self.spans.append((content, stop))
                else:
                    replacement = self.copy(content, stop, inner)
                pieces += (varint(len(replacement)), replacement)
            position = stop
        pieces.append(self._take(copied, end))
        return b"".join(pieces)

    def _take(self, start: int, stop: int) -> bytes:
        self._rest_bytes += stop - start
        if self._rest_bytes > self._max_rest_bytes:
            raise ValueError(
                f"the message has more than {self._max_rest_bytes} bytes besides the data of its "
                "tensors or files"
            )
        return self._message[start:stop]
