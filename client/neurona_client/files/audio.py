"""Recordings as samples from -1 to 1: WAV files, as RIFF stores them.

Python's own `wave` module reads neither floating point nor, before Python 3.12, the extensible
form that most programs write for more than 16 bits; and it returns a truncated recording as if it
were whole. Another rate of samples needs scipy: neurona[sound].
"""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from neurona_client.files.content import FileContentError

SUFFIXES = (".wav", ".wave")
"""Of files that are recordings, in lower case."""

_PCM, _FLOAT, _EXTENSIBLE = 1, 3, 0xFFFE
_ENCODINGS = {2: "ADPCM", 6: "A-law", 7: "mu-law", 0x11: "ADPCM", 0x50: "MPEG", 0x55: "MP3"}
_CONTAINERS = {b"RF64": "RF64", b"BW64": "BW64", b"riff": "Wave64", b"fLaC": "FLAC"}
_EXTENSIBLE_TAIL = bytes.fromhex("000000001000800000aa00389b71")
"""What follows the number of the encoding in the extensible form's identifier."""

_MIN_UNKNOWN_SIZE = 0x7FFF0000
"""A program that writes to a pipe cannot know the size: it leaves 4 GiB, or 2 GiB and less."""


@dataclass(frozen=True)
class Sound:
    """A recording.

    Attributes:
        samples: float32 of shape (samples, channels). Integers are divided by their full scale,
            so that they are from -1 to below 1; floating point is as stored.
        rate: samples a second.
    """

    samples: NDArray[np.float32]
    rate: int

    @property
    def channels(self) -> int:
        """How many channels it has."""
        return int(self.samples.shape[1])

    def mono(self, rate: int | None = None) -> NDArray[np.float32]:
        """Return the samples of the only channel, of shape (samples,).

        Args:
            rate: samples a second that the recording must have; None: any.

        Raises:
            FileContentError: more channels, another rate, or samples beyond -1 and 1.
        """
        if self.channels != 1 or rate not in (None, self.rate):
            expected_rate = self.rate if rate is None else rate
            raise FileContentError(
                f"sound has {self.channels} channel{'s' * (self.channels != 1)} at {self.rate} Hz "
                f"(expected 1 channel at {expected_rate} Hz)"
            )
        self._check_levels()
        return self.samples[:, 0]

    def mix(self, rate: int) -> NDArray[np.float32]:
        """Return the mean of all channels at another rate, of shape (samples,).

        Sampling theory's low-pass filter removes what the new rate cannot represent; where the
        filter overshoots, samples are cut to -1 and 1.

        Args:
            rate: samples a second of the result.

        Raises:
            FileContentError: samples beyond -1 and 1, or another rate without scipy.
        """
        self._check_levels()
        samples = self.samples[:, 0]
        if self.channels > 1:
            samples = self.samples.mean(axis=1, dtype=np.float32)
        if rate == self.rate:
            return samples
        try:
            from scipy.signal import resample_poly
        except ImportError as error:
            raise FileContentError(
                f"sound has {self.rate} Hz (expected {rate} Hz; neurona[sound] resamples it)"
            ) from error
        divisor = math.gcd(rate, self.rate)
        resampled = resample_poly(samples, rate // divisor, self.rate // divisor)
        return np.clip(np.asarray(resampled, np.float32), -1, 1)

    def _check_levels(self) -> None:
        low, high = float(self.samples.min()), float(self.samples.max())
        if low < -1 or high > 1:
            raise FileContentError(f"samples from {low:g} to {high:g} (expected -1 to 1)")


@dataclass(frozen=True)
class _Format:
    encoding: int
    channels: int
    rate: int
    bits: int  # of the container of a sample
    byte_order: str

    @property
    def frame_size(self) -> int:
        return self.channels * self.bits // 8


def read_sound(path: Path) -> Sound:
    """Read a WAV file of integers of 8, 16, 24 or 32 bits or of floating point.

    Raises:
        FileContentError: another format or encoding, a truncated file, or one without samples.
        OSError: the file cannot be opened.
    """
    content = path.read_bytes()
    byte_order = {b"RIFF": "<", b"RIFX": ">"}.get(content[:4])
    if byte_order is None or content[8:12] != b"WAVE":
        kind = _CONTAINERS.get(content[:4], "another format" if content else "an empty file")
        raise FileContentError(f"not a WAV file: {kind} (expected RIFF with WAVE)")
    sound_format: _Format | None = None
    offset = 12
    while offset + 8 <= len(content):
        name, size = struct.unpack_from(byte_order + "4sI", content, offset)
        offset += 8
        if name == b"data":
            if sound_format is None:
                raise FileContentError(
                    "WAV file has no format before its samples (expected 'fmt ')"
                )
            return Sound(_read_samples(content, offset, size, sound_format), sound_format.rate)
        if name == b"fmt ":
            sound_format = _read_format(content[offset : offset + size], byte_order)
        offset += size + size % 2  # chunks begin at even offsets
    raise FileContentError("WAV file is truncated: no samples (expected a 'data' chunk)")


def _read_format(chunk: bytes, byte_order: str) -> _Format:
    if len(chunk) < 16:
        raise FileContentError("WAV file is truncated: format incomplete (expected 16 bytes)")
    encoding, channels, rate, _, frame_size, bits = struct.unpack_from(byte_order + "HHIIHH", chunk)
    if encoding == _EXTENSIBLE:
        if len(chunk) < 40:
            raise FileContentError(
                "WAV file has an incomplete extensible format (expected 40 bytes)"
            )
        (encoding,) = struct.unpack_from(byte_order + "H", chunk, 24)
        if chunk[26:40] != _EXTENSIBLE_TAIL:
            raise FileContentError("WAV file has an unknown encoding (expected PCM or float)")
    if encoding not in (_PCM, _FLOAT):
        name = _ENCODINGS.get(encoding, f"number {encoding}")
        raise FileContentError(f"WAV file has the encoding {name} (expected PCM or float)")
    # Fewer bits than their bytes, such as 12 in 2 bytes, are the upper ones.
    container_bits = 8 * frame_size // channels if channels else 0
    allowed = (8, 16, 24, 32) if encoding == _PCM else (32, 64)
    if container_bits not in allowed or not 0 < bits <= container_bits or not rate:
        raise FileContentError(
            f"WAV file has {channels} channels of {bits} bits in {frame_size} bytes at {rate} Hz "
            f"(expected {', '.join(map(str, allowed))} bits)"
        )
    return _Format(encoding, channels, rate, container_bits, byte_order)


def _read_samples(
    content: bytes, offset: int, size: int, sound_format: _Format
) -> NDArray[np.float32]:
    available = len(content) - offset
    if size >= _MIN_UNKNOWN_SIZE and available < size:
        size = available - available % sound_format.frame_size
    if available < size:
        raise FileContentError(
            f"WAV file is truncated: {available} bytes of samples (expected {size})"
        )
    if size % sound_format.frame_size:
        raise FileContentError(
            f"WAV file has {size} bytes of samples (expected a multiple of "
            f"{sound_format.frame_size}, the bytes of a sample of all channels)"
        )
    if not size:
        raise FileContentError("WAV file has no samples (expected at least one)")
    samples = _to_floats(content[offset : offset + size], sound_format)
    if not np.isfinite(samples).all():
        raise FileContentError("WAV file has samples that are not finite (expected -1 to 1)")
    return samples.reshape(-1, sound_format.channels)


def _to_floats(content: bytes, sound_format: _Format) -> NDArray[np.float32]:
    order, width = sound_format.byte_order, sound_format.bits // 8
    if sound_format.encoding == _FLOAT:
        with np.errstate(over="ignore"):  # what is too large becomes infinite, and is rejected
            return np.frombuffer(content, f"{order}f{width}").astype(np.float32)
    if width == 1:  # alone without a sign
        return (np.frombuffer(content, np.uint8).astype(np.float32) - 128) / np.float32(128)
    if width == 3:
        widened = np.zeros((len(content) // 3, 4), np.uint8)  # the upper bytes of 32 bits
        upper = slice(1, 4) if order == "<" else slice(0, 3)
        widened[:, upper] = np.frombuffer(content, np.uint8).reshape(-1, 3)
        integers = widened.view(f"{order}i4").ravel()
        return integers.astype(np.float32) / np.float32(2**31)
    integers = np.frombuffer(content, f"{order}i{width}")
    return integers.astype(np.float32) / np.float32(2 ** (sound_format.bits - 1))
