"""WAV files of many encodings, written byte by byte."""

import struct

import numpy as np
from numpy.typing import NDArray

RATE = 8000
WAVEFORM: NDArray[np.float64] = np.array([0, 0.5, -0.5, 0.25, -1, 0.75, 0.125, -0.125])
"""Samples that every encoding stores exactly."""

_PCM_IDENTIFIER = bytes.fromhex("000000001000800000aa00389b71")


def wav(
    data: bytes,
    bits: int,
    encoding: int = 1,
    *,
    channels: int = 1,
    rate: int = RATE,
    extensible: bool = False,
    size: int | None = None,
    before: bytes = b"",
    order: str = "<",
) -> bytes:
    """Return a file.

    Args:
        data: the samples as they are stored.
        bits: of a sample.
        encoding: 1: integers, 3: floating point.
        channels: how many.
        rate: samples a second.
        extensible: in the form that names the encoding by an identifier.
        size: what the header says about the bytes of data; None: the truth.
        before: chunks between the format and the data.
        order: of bytes.
    """
    frame = channels * ((bits + 7) // 8)
    code = 0xFFFE if extensible else encoding
    form = struct.pack(order + "HHIIHH", code, channels, rate, rate * frame, frame, bits)
    if extensible:
        form += struct.pack(order + "HHIH", 22, bits, 4, encoding) + _PCM_IDENTIFIER
    chunks = b"fmt " + struct.pack(order + "I", len(form)) + form + before
    chunks += b"data" + struct.pack(order + "I", len(data) if size is None else size) + data
    chunks += b"\0" * (len(data) % 2)
    magic = b"RIFF" if order == "<" else b"RIFX"
    return magic + struct.pack(order + "I", 4 + len(chunks)) + b"WAVE" + chunks


def pcm(waveform: NDArray[np.float64], bits: int, order: str = "<") -> bytes:
    """Return samples as integers of 8, 16, 24 or 32 bits."""
    if bits == 8:
        return (waveform * 128 + 128).astype(np.uint8).tobytes()
    integers = (waveform * 2 ** (bits - 1)).astype(np.int64)
    if bits == 24:
        return b"".join(
            int(one).to_bytes(3, "little" if order == "<" else "big", signed=True)
            for one in integers
        )
    return integers.astype(f"{order}i{bits // 8}").tobytes()


def sounds() -> dict[str, bytes]:
    """Return the same waveform in all encodings that are read."""
    half_cut = pcm(WAVEFORM, 16)
    comment = b"LIST" + struct.pack("<I", 5) + b"INFO!" + b"\0"  # chunks begin at even offsets
    floats = {bits: WAVEFORM.astype(f"<f{bits // 8}").tobytes() for bits in (32, 64)}
    return {
        **{f"{bits} bits": wav(pcm(WAVEFORM, bits), bits) for bits in (8, 16, 24, 32)},
        **{f"float {bits}": wav(floats[bits], bits, 3) for bits in (32, 64)},
        **{
            f"extensible {bits} bits": wav(pcm(WAVEFORM, bits), bits, extensible=True)
            for bits in (8, 16, 24, 32)
        },
        "extensible float": wav(floats[32], 32, 3, extensible=True),
        "12 bits in 2 bytes": wav(half_cut, 12),
        "big-endian 16 bits": wav(pcm(WAVEFORM, 16, ">"), 16, order=">"),
        "big-endian 24 bits": wav(pcm(WAVEFORM, 24, ">"), 24, order=">"),
        "with a comment": wav(half_cut, 16, before=comment),
        "from a pipe": wav(half_cut, 16, size=0xFFFFFFFF),
        "from another pipe": wav(half_cut, 16, size=0x7FFFFFFF),
    }


def rejected_sounds() -> dict[str, tuple[bytes, str]]:
    """Return files that are not read, each with a part of the error."""
    whole = wav(pcm(WAVEFORM, 16), 16)
    beyond = (WAVEFORM * 3).astype("<f4").tobytes()
    missing = np.full(8, np.nan, "<f4").tobytes()
    return {
        "stereo": (
            wav(pcm(WAVEFORM, 16), 16, channels=2),
            "sound has 2 channels at 8000 Hz (expected 1 channel at 8000 Hz)",
        ),
        "another rate": (
            wav(pcm(WAVEFORM, 16), 16, rate=44100),
            "sound has 1 channel at 44100 Hz (expected 1 channel at 8000 Hz)",
        ),
        "mu-law": (wav(bytes(8), 8, 7), "the encoding mu-law (expected PCM or float)"),
        "unknown encoding": (wav(bytes(8), 8, 99), "the encoding number 99"),
        "beyond 1": (wav(beyond, 32, 3), "samples from -3 to 2.25 (expected -1 to 1)"),
        "not finite": (wav(missing, 32, 3), "not finite"),
        "truncated samples": (whole[:-5], "truncated: 11 bytes of samples (expected 16)"),
        "truncated format": (whole[:30], "truncated"),
        "truncated header": (whole[:10], "not a WAV file"),
        "no data": (whole[:36], "truncated: no samples"),
        "no samples": (wav(b"", 16), "no samples (expected at least one)"),
        "half a sample": (wav(bytes(15), 16), "15 bytes of samples (expected a multiple of 2"),
        "no channels": (wav(bytes(16), 16, channels=0), "0 channels"),
        "no rate": (wav(bytes(16), 16, rate=0), "at 0 Hz"),
        "empty": (b"", "an empty file"),
        "another format": (b"OggS" + bytes(40), "not a WAV file: another format (expected RIFF"),
        "64-bit sizes": (b"RF64" + whole[4:], "not a WAV file: RF64"),
    }
