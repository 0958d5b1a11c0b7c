"""The bytes in which a caller keeps the state of its session, to go on from it on any replica.

A state belongs to the file of a model: the bytes name the model, its version and the digest of the
file's content, and end with a checksum. All numbers are little-endian:

    4 bytes   b"NRS" and the version of this format
    8         length of all bytes
    16        digest of the content of the model's files
    8         the model's version
    8         steps that the session has had
    4, 4      rows, and numbers of the state of a row
    2, n      length of the model's name in UTF-8, and the name
    4 each    the state, float32, row by row
    16        BLAKE2b of all bytes before
"""

import struct
from hashlib import blake2b
from typing import NamedTuple

import numpy as np

from neurona_server.batching.request import Array
from neurona_server.errors import InvalidArgumentError, quoted

FORMAT = b"NRS\x01"

DIGEST_BYTES = 16
"""Bytes of the digest of a model's files, and of the checksum."""

MAX_STEPS = 1 << 62
"""Steps of a state that are accepted: no session adds so many that 8 bytes do not hold them."""

_LENGTH = struct.Struct("<4sQ")
_ORIGIN = struct.Struct(f"<{DIGEST_BYTES}sq")
_COUNTS = struct.Struct("<QII")
_NAME = struct.Struct("<H")
_FIXED_BYTES = _LENGTH.size + _ORIGIN.size + _COUNTS.size + _NAME.size + DIGEST_BYTES


class SequenceState(NamedTuple):
    """The state of a session: float32 `values` of shape (rows, size), after `steps` steps."""

    values: Array
    steps: int


class StateCodec:
    """Writes and reads the states of one model version."""

    def __init__(self, model: str, version: int, digest: bytes, state_size: int) -> None:
        """Make it.

        Args:
            model: The model's name.
            version: Its version.
            digest: That of the content of its files, DIGEST_BYTES long.
            state_size: Numbers of the state of a row.
        """
        self._model = model
        self._version = version
        self._digest = digest
        self._size = state_size
        self._origin = _ORIGIN.pack(digest, version)
        name = model.encode()
        self._name = _NAME.pack(len(name)) + name

    def count_bytes(self, rows: int) -> int:
        """Return the size of an encoded state."""
        return _FIXED_BYTES + len(self._name) - _NAME.size + 4 * rows * self._size

    def encode(self, state: SequenceState) -> bytes:
        """Return the bytes of a state."""
        values = np.ascontiguousarray(state.values, "<f4")
        rows, size = values.shape
        content = b"".join(
            (
                _LENGTH.pack(FORMAT, self.count_bytes(rows)),
                self._origin,
                _COUNTS.pack(state.steps, rows, size),
                self._name,
                values.tobytes(),
            )
        )
        return content + _checksum(content)

    def decode(self, data: bytes) -> SequenceState:
        """Return the state in bytes that a caller has kept.

        Raises:
            InvalidArgumentError: They are no state, incomplete or changed, or the state of another
                model, version or file.
        """
        if data[: len(FORMAT) - 1] != FORMAT[:-1]:
            raise InvalidArgumentError(
                f"state unknown: {len(data)} bytes that no server has made (expected those of a "
                "SessionResponse)"
            )
        if len(data) < _LENGTH.size or len(data) != (length := _LENGTH.unpack_from(data)[1]):
            expected = f"{length} bytes" if len(data) >= _LENGTH.size else "more"
            raise InvalidArgumentError(
                f"state truncated or extended: it has {len(data)} bytes (expected {expected})"
            )
        if data[len(FORMAT) - 1] != FORMAT[-1]:
            raise InvalidArgumentError(
                f"state unknown: its format is {data[len(FORMAT) - 1]} (expected {FORMAT[-1]})"
            )
        content, checksum = data[:-DIGEST_BYTES], data[-DIGEST_BYTES:]
        if len(data) < _FIXED_BYTES or checksum != _checksum(content):
            raise InvalidArgumentError(
                "state damaged: its checksum differs (expected the bytes of a SessionResponse, "
                "unchanged)"
            )
        return self._read(content)

    def _read(self, content: bytes) -> SequenceState:
        """Read bytes whose checksum is right, which need not be those of a server."""
        offset = _LENGTH.size
        digest, version = _ORIGIN.unpack_from(content, offset)
        offset += _ORIGIN.size
        steps, rows, size = _COUNTS.unpack_from(content, offset)
        offset += _COUNTS.size
        (length,) = _NAME.unpack_from(content, offset)
        offset += _NAME.size
        model = content[offset : offset + length].decode(errors="replace")
        offset += length
        if (model, version) != (self._model, self._version):
            raise InvalidArgumentError(
                f"state of another model: {quoted(model)} version {version} "
                f"(expected {self._model!r} version {self._version})"
            )
        if digest != self._digest:
            raise InvalidArgumentError(
                f"state of another file: {model!r} version {version} had another content then "
                "(expected a state of the file that is served)"
            )
        if steps > MAX_STEPS:
            raise InvalidArgumentError(
                f"state invalid: it is that after {steps} steps (expected at most {MAX_STEPS})"
            )
        if size != self._size or rows < 1 or len(content) - offset != 4 * rows * size:
            raise InvalidArgumentError(
                f"state invalid: {rows} rows of {size} numbers in {len(content) - offset} bytes "
                f"(expected 1 row or more of {self._size} numbers)"
            )
        values = np.frombuffer(content, "<f4", rows * size, offset).reshape(rows, size)
        return SequenceState(values.astype(np.float32), steps)


def _checksum(content: bytes) -> bytes:
    return blake2b(content, digest_size=DIGEST_BYTES).digest()
