"""Picture files of many formats and kinds, each with the levels that a viewer shows on white."""

import io
import struct
import zlib
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

SIDE = 8
GREY: NDArray[np.uint8] = np.arange(SIDE * SIDE, dtype=np.uint8).reshape(SIDE, SIDE) * 4
COLOUR: NDArray[np.uint8] = np.stack([GREY, 255 - GREY, GREY // 2], axis=2)
ALPHA: NDArray[np.uint8] = np.where(GREY // 4 % 3, 255, 0).astype(np.uint8)
KEY = COLOUR[0, 2]
"""The colour that files with one transparent colour name."""

DEEP = GREY.astype(np.int64) * 257
"""16-bit levels of the same grey."""

Picture = tuple[bytes, NDArray[np.uint8] | None]
"""A file, and its levels; None: only that all readers agree."""


def encode(image: Image.Image, kind: str, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def png(rows: bytes, depth: int, colour_type: int, *chunks: tuple[bytes, bytes]) -> bytes:
    """Write a PNG of rows as they are stored, without filters: Pillow does not write all kinds."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        )

    stride = len(rows) // SIDE
    lines = b"".join(b"\0" + rows[y * stride : (y + 1) * stride] for y in range(SIDE))
    header = struct.pack(">IIBBBBB", SIDE, SIDE, depth, colour_type, 0, 0, 0)
    named = ((b"IHDR", header), *chunks, (b"IDAT", zlib.compress(lines)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(name, data) for name, data in named)


def tiff(
    rows: bytes, bits: int, sample_format: int = 1, order: str = "<", photometric: int = 1
) -> bytes:
    """Write a TIFF of one grey channel without compression.

    Args:
        rows: the pixels as they are stored.
        bits: of a pixel.
        sample_format: 1: unsigned, 2: signed, 3: floating point.
        order: of bytes.
        photometric: 0: the level 0 is white, 1: black.
    """
    entries = (
        *(
            (256, 3, SIDE),
            (257, 3, SIDE),
            (258, 3, bits),
            (259, 3, 1),
            (262, 3, photometric),
            (273, 4, 8),
        ),
        *((277, 3, 1), (278, 3, SIDE), (279, 4, len(rows)), (339, 3, sample_format)),
    )
    magic = b"II*\0" if order == "<" else b"MM\0*"
    directory = struct.pack(order + "H", len(entries))
    for tag, kind, value in entries:
        packed = struct.pack(order + ("HH" if kind == 3 else "I"), *((value, 0)[: 5 - kind]))
        directory += struct.pack(order + "HHI", tag, kind, 1) + packed
    return magic + struct.pack(order + "I", 8 + len(rows)) + rows + directory + bytes(4)


def pictures() -> dict[str, Picture]:
    """Return files by a name that says what is in them."""
    over_white = np.where(ALPHA, GREY, 255).astype(np.uint8)
    colour_over_white = np.where(ALPHA[..., None], COLOUR, 255).astype(np.uint8)
    grey, colour = Image.fromarray(GREY), Image.fromarray(COLOUR)
    rgba = Image.fromarray(np.dstack([COLOUR, ALPHA]))
    la = Image.fromarray(np.dstack([GREY, ALPHA]))
    palette = colour.quantize(64)
    palette_levels = np.asarray(palette.convert("RGB"))
    indices = np.asarray(palette)
    palette_alpha = bytes(255 * (index % 2) for index in range(64))
    palette_over_white = np.where(indices[..., None] % 2, palette_levels, 255).astype(np.uint8)
    half = Image.fromarray(np.dstack([COLOUR, np.full_like(GREY, 128)]))
    half_over_white = np.asarray(
        Image.alpha_composite(Image.new("RGBA", half.size, "white"), half).convert("RGB")
    )
    is_key = (KEY == COLOUR).all(axis=2)[..., None]
    bit = Image.fromarray(GREY > 128)
    rotated = Image.Exif()
    rotated[0x0112] = 6  # the camera was turned
    turned = np.rot90(GREY, -1)
    files: dict[str, Picture] = {
        "grey.png": (encode(grey, "PNG"), GREY),
        "grey.bmp": (encode(grey, "BMP"), GREY),
        "grey.tif": (encode(grey, "TIFF"), GREY),
        "grey.pgm": (encode(grey, "PPM"), GREY),
        "grey.tga": (encode(grey, "TGA"), GREY),
        "grey.jp2": (encode(grey, "JPEG2000"), GREY),
        "grey.jpg": (encode(grey, "JPEG"), None),
        "grey.gif": (encode(grey, "GIF"), np.dstack([GREY] * 3)),
        "bits.png": (encode(bit, "PNG"), np.where(GREY > 128, 255, 0).astype(np.uint8)),
        "bits.tif": (encode(bit, "TIFF"), np.where(GREY > 128, 255, 0).astype(np.uint8)),
        "bits-group4.tif": (
            encode(bit, "TIFF", compression="group4"),
            np.where(GREY > 128, 255, 0).astype(np.uint8),
        ),
        "colour.png": (encode(colour, "PNG"), COLOUR),
        "colour.webp": (encode(colour, "WEBP", lossless=True), COLOUR),
        "colour.jpg": (encode(colour, "JPEG"), None),
        "colour.ppm": (encode(colour, "PPM"), COLOUR),
        "colour-lzw.tif": (encode(colour, "TIFF", compression="tiff_lzw"), COLOUR),
        "colour-cmyk.tif": (encode(colour.convert("CMYK"), "TIFF"), COLOUR),
        "colour-cmyk.jpg": (encode(colour.convert("CMYK"), "JPEG"), None),
        "colour-ycbcr.tif": (encode(colour.convert("YCbCr"), "TIFF"), None),
        "palette.png": (encode(palette, "PNG"), palette_levels),
        "palette.gif": (encode(palette, "GIF"), palette_levels),
        "palette.bmp": (encode(palette, "BMP"), palette_levels),
        "palette.tif": (encode(palette, "TIFF"), palette_levels),
        "palette-transparent-index.png": (
            encode(palette, "PNG", transparency=int(indices[0, 0])),
            np.where((indices == indices[0, 0])[..., None], 255, palette_levels).astype(np.uint8),
        ),
        "palette-transparent-entries.png": (
            encode(palette, "PNG", transparency=palette_alpha),
            palette_over_white,
        ),
        "palette-transparent-index.gif": (
            encode(palette, "GIF", transparency=int(indices[0, 0]), optimize=False),
            np.where((indices == indices[0, 0])[..., None], 255, palette_levels).astype(np.uint8),
        ),
        "animation.gif": (
            encode(palette, "GIF", save_all=True, append_images=[bit.convert("L")]),
            palette_levels,
        ),
        "pages.tif": (encode(grey, "TIFF", save_all=True, append_images=[bit.convert("L")]), GREY),
        "alpha.png": (encode(rgba, "PNG"), colour_over_white),
        "alpha.tif": (encode(rgba, "TIFF"), colour_over_white),
        "alpha.webp": (encode(rgba, "WEBP", lossless=True, exact=True), colour_over_white),
        "alpha.tga": (encode(rgba, "TGA"), colour_over_white),
        "alpha-half.png": (encode(half, "PNG"), half_over_white),
        "alpha-grey.png": (encode(la, "PNG"), over_white),
        "alpha-grey.tif": (encode(la, "TIFF"), over_white),
        "key-grey.png": (
            png(GREY.tobytes(), 8, 0, (b"tRNS", struct.pack(">H", 8))),
            np.where(GREY == 8, 255, GREY).astype(np.uint8),
        ),
        "key-grey-2-bits.png": (
            png(bytes([0b00011011] * 2 * SIDE), 2, 0, (b"tRNS", struct.pack(">H", 1))),
            np.tile(np.array([0, 255, 170, 255], np.uint8), (SIDE, 2)),
        ),
        "key-bits.png": (
            png(bytes([0b10101010] * SIDE), 1, 0, (b"tRNS", struct.pack(">H", 0))),
            np.full((SIDE, SIDE), 255, np.uint8),
        ),
        "key-colour.png": (
            png(COLOUR.tobytes(), 8, 2, (b"tRNS", struct.pack(">HHH", *map(int, KEY)))),
            np.where(is_key, 255, COLOUR).astype(np.uint8),
        ),
        "key-16-bits.png": (
            png(DEEP.astype(">u2").tobytes(), 16, 0, (b"tRNS", struct.pack(">H", int(DEEP[0, 2])))),
            np.where(GREY == 8, 255, GREY).astype(np.uint8),
        ),
        "key-colour-16-bits.png": (
            png(
                (COLOUR.astype(np.int64) * 257).astype(">u2").tobytes(),
                *(16, 2),
                (b"tRNS", struct.pack(">HHH", *(int(level) * 257 for level in KEY))),
            ),
            np.where(is_key, 255, COLOUR).astype(np.uint8),
        ),
        "alpha-16-bits.png": (
            png((np.dstack([COLOUR, ALPHA]).astype(np.int64) * 257).astype(">u2").tobytes(), 16, 6),
            colour_over_white,
        ),
        "alpha-grey-16-bits.png": (
            png((np.dstack([GREY, ALPHA]).astype(np.int64) * 257).astype(">u2").tobytes(), 16, 4),
            np.dstack([over_white] * 3),
        ),
        "16-bits.png": (png(DEEP.astype(">u2").tobytes(), 16, 0), GREY),
        "16-bits.pgm": (b"P5 8 8 65535\n" + DEEP.astype(">u2").tobytes(), GREY),
        "12-bits.pgm": (b"P5 8 8 4095\n" + (GREY.astype(int) * 16).astype(">u2").tobytes(), None),
        "float-high.tif": (
            tiff((GREY.astype(int) * 4).astype("<f4").tobytes(), 32, 3),
            np.rint(GREY * (255 / 252)).astype(np.uint8),
        ),
        "turned.jpg": (encode(grey, "JPEG", exif=rotated), None),
        "turned.png": (encode(grey, "PNG", exif=rotated), turned),
        "turned.webp": (
            encode(grey, "WEBP", lossless=True, exif=rotated),
            np.dstack([turned] * 3),
        ),
        "turned-alpha.png": (encode(la, "PNG", exif=rotated), np.rot90(over_white, -1)),
        "no-suffix": (encode(grey, "PNG"), GREY),
        "wrong-suffix.jpg": (encode(grey, "PNG"), GREY),
    }
    for order, name in (("<", "little"), (">", "big")):
        for bits, kind, dtype in ((16, 1, "u2"), (16, 2, "i2"), (32, 2, "i4")):
            levels = DEEP if kind == 1 or bits == 32 else DEEP // 2
            expected = GREY if levels is DEEP else np.rint(levels / 257).astype(np.uint8)
            stored = levels.astype(order + dtype).tobytes()
            files[f"{dtype}-{name}.tif"] = (tiff(stored, bits, kind, order), expected)
        stored = (GREY / 255).astype(f"{order}f4").tobytes()
        files[f"f4-{name}.tif"] = (tiff(stored, 32, 3, order), GREY)
    negative = (65535 - DEEP).astype("<u2").tobytes()
    files["u2-white-is-zero.tif"] = (tiff(negative, 16, photometric=0), GREY)
    files["u4.tif"] = (tiff(DEEP.astype("<u4").tobytes(), 32), GREY)
    return files


def peculiar_picture() -> bytes:
    """Return a grey JPEG whose metadata ends early, of which Pillow warns."""
    cut = b"Exif\0\0II*\0\x08\0\0\0\x05\0"
    return encode(Image.fromarray(np.full((SIDE, SIDE), 51, np.uint8)), "JPEG", exif=cut)


def rejected_pictures() -> dict[str, tuple[bytes, str]]:
    """Return files that no reader takes, each with a part of the error."""
    levels = np.linspace(-1, 1, SIDE * SIDE)
    return {
        "negative.tif": (tiff(levels.astype("<f4").tobytes(), 32, 3), "levels from -1 to 1"),
        "nan.tif": (tiff((levels * np.nan).astype("<f4").tobytes(), 32, 3), "not finite"),
        "i4-high.tif": (
            tiff((DEEP * 20000).astype("<i4").tobytes(), 32, 2),
            "(expected from 0 to 65535)",
        ),
        "f8.tif": (tiff(levels.astype("<f8").tobytes(), 64, 3), "Pillow does not read"),
        "half.tif": (encode(Image.fromarray(GREY), "TIFF")[:60], "unreadable image"),
        "half.jpg": (encode(Image.fromarray(COLOUR), "JPEG")[:-60], "unreadable image"),
        "empty.png": (b"", "unknown image format"),
        "text.png": (b"no picture", "unknown image format"),
        "program.eps": (b"%!PS-Adobe-3.0 EPSF-3.0\n", "unknown image format"),
    }
