"""Files of many small parts, which Pillow would read for minutes or expand to gigabytes."""

import struct
import zlib

import pytest

pytest.importorskip("PIL", reason="needs Pillow")

from PIL import Image
from support.pictures import GREY, encode, pictures

from neurona_server.models.image_structure import find_structure_problem

PNG = encode(Image.fromarray(GREY), "PNG")
JPEG = encode(Image.fromarray(GREY), "JPEG")
PNG_HEADER_END = 33


def chunk(kind, data=b""):
    checksum = struct.pack(">I", zlib.crc32(kind + data))
    return struct.pack(">I", len(data)) + kind + data + checksum


def png(*chunks):
    return PNG[:PNG_HEADER_END] + b"".join(chunks) + PNG[PNG_HEADER_END:]


def segment(marker, data=b""):
    return bytes([0xFF, marker]) + struct.pack(">H", len(data) + 2) + data


def jpeg(*segments):
    return JPEG[:2] + b"".join(segments) + JPEG[2:]


def directory(count, nbytes, end=60_000):
    """Return EXIF data whose values are all the same bytes."""
    entries = [struct.pack("<HHII", tag, 7, nbytes, 8) for tag in range(1000, 1000 + count)]
    start = b"II*\0\x08\0\0\0" + struct.pack("<H", count) + b"".join(entries)
    return start.ljust(end, b"\0")


EXIF = b"Exif\0\0"
PROFILE = b"k\0\0" + zlib.compress(bytes(1 << 16))


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (png(*[chunk(b"IDAT")] * 2000), "too many chunks"),
        (PNG[:-12] + chunk(b"none") * 2000 + PNG[-12:], "too many chunks"),
        (png(*[chunk(b"iCCP", PROFILE)] * 33), "too many texts and profiles"),
        (png(*[chunk(b"zTXt", PROFILE)] * 33), "too many texts and profiles"),
        (png(chunk(b"eXIf", directory(4000, 50_000))), "EXIF data too large"),
        (png(chunk(b"eXIf", EXIF * 1000)), "EXIF data within EXIF data"),
        (jpeg(*[segment(0xFE)] * 1001), "too many segments"),
        (jpeg(*[segment(0xE1, EXIF + b"x")] * 1001), "too many segments"),
        (jpeg(b"\xff" * 2000), "too many segments"),
        (jpeg(segment(0xFE), b"junk" * 500), "too many segments"),
        (jpeg(*[b"\xff\xd0"] * 2000), "too many segments"),
        (jpeg(*[segment(0xE5, bytes(65_000))] * 300), "too many segments"),
        (jpeg(segment(0xE1, EXIF + directory(4000, 50_000))), "EXIF data too large"),
        (jpeg(segment(0xE1, EXIF + b"II+\0" + bytes(30))), "as of BigTIFF"),
        (jpeg(segment(0xE2, b"MPF\0" + directory(4000, 50_000))), "EXIF data too large"),
        (JPEG + 101 * b"\xff\xda", "too many scans"),
        (png(chunk(b"IDAT", b"\xff\xda" * 1000)), ""),
        (jpeg(segment(0xE2, b"\xff\xda" * 1000)), ""),
        (jpeg(*[segment(0xE2, b"ICC_PROFILE\0" + bytes(60_000))] * 200), ""),
        (png(*[chunk(b"IDAT", bytes(8192))] * 3000), ""),
        (jpeg(segment(0xE1, EXIF + directory(40, 50_000))), ""),
        (png(chunk(b"eXIf", directory(40, 50_000))), ""),
    ],
)
def test_files_of_too_many_parts_are_refused_and_large_ones_are_not(content, problem):
    if problem:
        assert problem in find_structure_problem(content)
    else:
        assert find_structure_problem(content) == ""


def test_files_of_all_kinds_and_their_beginnings_are_left_to_pillow():
    for content, _ in pictures().values():
        for end in (len(content), len(content) // 2, 40, 20, 5, 2, 0):
            assert find_structure_problem(content[:end]) == ""
