"""The parts of a PNG or JPEG file, counted before Pillow reads any: a small file may have millions.

Pillow spends microseconds of Python on each chunk or segment, expands compressed profiles and
texts, and copies each value of an EXIF directory, however often they overlap.
"""

import struct

MAX_SCANS = 100
"""Passes over its pixels that a progressive JPEG may have. Encoders write about ten; each takes as
long as the whole image, and a few bytes."""

MAX_SEGMENTS = 1000
"""Segments of a JPEG before its pixels, and bytes between them. A profile of 16 MB has 255."""

MAX_HEADER_BYTES = 16 << 20
"""Bytes of a JPEG before its pixels."""

MAX_COMPRESSED_TEXTS = 32
"""Chunks of a PNG that Pillow expands, each to at most 1 MiB: profiles, and compressed texts."""

MAX_EXIF_BYTES = 16 << 20
"""Bytes of all values of an EXIF directory, each of which may be the whole of the data."""

_PNG_START = b"\x89PNG\r\n\x1a\n"
_JPEG_START = b"\xff\xd8\xff"
_START_OF_SCAN, _SCAN_MARKER = 0xDA, b"\xff\xda"
_EXIF, _MULTIPLE_PICTURES = b"Exif\0\0", b"MPF\0"
_WITHOUT_LENGTH = {0x00, 0x01, *range(0xD0, 0xDA)}
_EXPANDED = (b"iCCP", b"zTXt", b"iTXt")
_UNIT_BYTES = {1: 1, 2: 1, 3: 2, 4: 4, 6: 1, 7: 1, 8: 2, 9: 4, 11: 4, 13: 4}


def find_structure_problem(content: bytes) -> str:
    """Return why a file is not given to Pillow, "" if it is; Pillow says what is damaged."""
    if content.startswith(_PNG_START):
        return _find_png_problem(content)
    if content.startswith(_JPEG_START):
        return _find_jpeg_problem(content)
    return ""


def _find_png_problem(content: bytes) -> str:
    most = MAX_SEGMENTS + len(content) // 1024
    count = expanded = 0
    place, end = len(_PNG_START), len(content)
    while place + 8 <= end:
        nbytes, kind = struct.unpack_from(">I4s", content, place)
        count += 1
        if count > most:
            return f"too many chunks (expected at most {most} in a file of {end} bytes)"
        if kind in _EXPANDED:
            expanded += 1
            if expanded > MAX_COMPRESSED_TEXTS:
                return f"too many texts and profiles (expected at most {MAX_COMPRESSED_TEXTS})"
        elif kind == b"eXIf":
            if problem := _find_exif_problem(content[place + 8 : place + 8 + nbytes]):
                return problem
        elif kind == b"IEND":
            break
        place += 12 + nbytes
    return ""


def _find_jpeg_problem(content: bytes) -> str:
    exif: list[bytes] = []
    count, place, end = 0, 2, len(content)
    while place + 4 <= end:
        count += 1
        if count > MAX_SEGMENTS or place > MAX_HEADER_BYTES:
            return (
                f"too many segments before its pixels (expected at most {MAX_SEGMENTS}, of "
                f"{MAX_HEADER_BYTES} bytes)"
            )
        marker = content[place + 1]
        if content[place] != 0xFF or marker == 0xFF:
            place += 1
            continue
        if marker in _WITHOUT_LENGTH:
            place += 2
            continue
        if marker == _START_OF_SCAN:
            break
        data, place = place + 4, place + 2 + int.from_bytes(content[place + 2 : place + 4], "big")
        if marker == 0xE1 and content.startswith(_EXIF, data):
            exif.append(content[data + len(_EXIF) : place])
        elif marker == 0xE2 and content.startswith(_MULTIPLE_PICTURES, data):
            directory = content[data + len(_MULTIPLE_PICTURES) : place]
            if problem := _find_exif_problem(directory):
                return problem
    if exif and (problem := _find_exif_problem(b"".join(exif))):
        return problem
    if content.count(_SCAN_MARKER, place) > MAX_SCANS:
        return f"too many scans (expected at most {MAX_SCANS})"
    return ""


def _find_exif_problem(data: bytes) -> str:
    """Return why Pillow may not read a directory of EXIF, "" if it may."""
    data = data.removeprefix(_EXIF)
    if data.startswith(_EXIF):
        return "EXIF data within EXIF data (expected one directory)"
    order = {b"II": "<", b"MM": ">"}.get(data[:2])
    if order is None or len(data) < 8:
        return ""
    if 43 in data[2:4]:
        return "EXIF data as of BigTIFF (expected as of TIFF)"
    (start,) = struct.unpack_from(order + "I", data, 4)
    if start + 2 > len(data):
        return ""
    (count,) = struct.unpack_from(order + "H", data, start)
    nbytes = 0
    for number in range(min(count, (len(data) - start - 2) // 12)):
        _, kind, values = struct.unpack_from(order + "HHI", data, start + 2 + 12 * number)
        size = values * _UNIT_BYTES.get(kind, 8)
        nbytes += size if size <= len(data) else 0
        if nbytes > MAX_EXIF_BYTES:
            return f"EXIF data too large (expected values of at most {MAX_EXIF_BYTES} bytes)"
    return ""
