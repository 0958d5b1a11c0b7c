"""Pictures as grey levels or colours, from 0 (black) to 255. Needs Pillow: neurona[images].

Whatever a file stores becomes what a viewer of pictures shows on white paper:

- a file that stores grey levels is grey, any other is red, green and blue; the first frame counts;
- EXIF's orientation is applied; colour profiles are not;
- what is transparent shows white below it;
- more than 256 levels are rounded to 256: 16 bits from 0 to 65535; floating point from 0 to 1, or
  to the highest level of the picture where that is above 1.
"""

from __future__ import annotations

import io
import re
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from neurona_client.files.content import FileContentError, begins_with

if TYPE_CHECKING:  # Pillow is an optional extra
    from PIL.Image import Image as PillowImage
    from PIL.Image import Resampling, Transpose

FORMATS = (
    *("PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP", "AVIF", "JPEG2000"),
    *("PPM", "TGA", "PCX", "SGI", "ICO", "ICNS", "DIB", "DDS", "PSD", "QOI", "XBM", "XPM"),
)
"""Formats that are read, as Pillow names them. For some others Pillow starts other programs."""

SUFFIXES = (
    *(".png", ".jpg", ".jpeg", ".gif", ".bmp", ".tif", ".tiff", ".webp", ".avif", ".jp2"),
    *(
        ".ppm",
        ".pgm",
        ".pbm",
        ".pnm",
        ".tga",
        ".icb",
        ".vda",
        ".vst",
        ".pcx",
        ".sgi",
        ".ico",
        ".icns",
        ".dib",
        ".dds",
    ),
    *(".psd", ".qoi", ".xbm", ".xpm"),
)
"""Of files that are pictures, in lower case."""

_SIGNATURES = re.compile(
    rb"\x89PNG|\xff\xd8\xff|GIF8|BM|II[*+]\0|MM\0[*+]|RIFF....WEBP|....ftypavi|"
    rb"....ftypm[is]f1|\0\0\0\x0cjP  |\xff\x4f\xff\x51|P[1-6f]\s|\0\0[\x01\x02]\0|8BPS|qoif|DDS |"
    rb"icns|\x01\xda[\0\x01]|\n[\0\x02\x03\x05]\x01|/\* XPM",
    re.DOTALL,
)
"""What the files of all formats but TGA, DIB and XBM begin with."""

_PNG_OR_JPEG = re.compile(rb"\x89PNG|\xff\xd8\xff")

_GREY_MODES = ("1", "L", "LA", "La")
_INTEGER_LEVELS = ("I;16", "I;16B", "I;16L", "I;16N", "I")
_BITS_PER_SAMPLE, _PHOTOMETRIC = 258, 262  # tags of TIFF
_WHITE_IS_ZERO = 0
_ORIENTATION = 0x0112  # a tag of EXIF

_PART_PIXELS = 1 << 18
"""Pixels that are made opaque, or brought to 8 bits, at a time."""


def read_image(
    source: bytes | bytearray | Path,
    formats: Sequence[str] | None = None,
    max_pixels: int | None = None,
    reserve: Callable[[int, int, int], object] | None = None,
) -> PillowImage:
    """Decode a picture.

    Args:
        source: the content of a file, or its path.
        formats: those that are read, of FORMATS; by default all that Pillow has been built with.
        max_pixels: width x height up to which a picture is decoded, instead of Pillow's limit; not
            above twice that.
        reserve: called before the picture is decoded, with its width, its height and the bytes of
            memory that this takes; it may raise FileContentError.

    Returns:
        The upright picture in Pillow's mode "L" if the file has grey levels only, else "RGB".

    Raises:
        FileContentError: not a picture, damaged, too large, or with levels that have no meaning.
        ImportError: Pillow is not installed.
        OSError: the file cannot be opened.
    """
    from PIL import Image, UnidentifiedImageError

    signatures = _SIGNATURES if formats is None else _PNG_OR_JPEG
    if formats is None:
        Image.init()
        formats = [name for name in FORMATS if name in Image.OPEN]  # depends on Pillow's version
    if max_pixels is None:
        max_pixels = Image.MAX_IMAGE_PIXELS or sys.maxsize
    with source.open("rb") if isinstance(source, Path) else io.BytesIO(source) as file:
        try:
            with Image.open(file, formats=[*formats]) as image:
                # Pillow only warns of a huge picture, and all threads share the warning filters.
                if image.width * image.height > max_pixels:
                    raise FileContentError(
                        f"too large, {image.width} x {image.height} pixels "
                        f"(expected at most {max_pixels} in all)"
                    )
                if reserve is not None:
                    reserve(*image.size, image.width * image.height * _bytes_per_pixel(image))
                return _to_8_bit_levels(image)
        except UnidentifiedImageError as error:
            file.seek(0)
            if signatures.match(file.read(16)):
                raise FileContentError(
                    "unreadable image: damaged, or a variant of its format that Pillow does not "
                    "read (such as 64-bit TIFF)"
                ) from error
            raise FileContentError(
                f"unknown image format (expected {', '.join(formats[:-1])} or {formats[-1]})"
            ) from error
        except FileContentError:
            raise
        except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
            raise FileContentError(
                f"too large (expected at most {max_pixels} pixels in all)"
            ) from error
        except Exception as error:  # a decoder raises anything when its input is damaged
            reason = " ".join(str(error).split()) or type(error).__name__
            raise FileContentError(f"unreadable image: {reason}") from error


def is_image_file(path: Path) -> bool:
    """Whether a file begins as a picture does, whatever its name."""
    return begins_with(path, _SIGNATURES)


def fit_image(
    image: PillowImage, width: int, height: int, resampling: Resampling | None = None
) -> PillowImage:
    """Scale the largest centred part with the proportions of a size to it.

    Without a `resampling` it is a box filter's.
    """
    if image.size == (width, height):
        return image
    from PIL import Image, ImageOps

    return ImageOps.fit(
        image, (width, height), Image.Resampling.BOX if resampling is None else resampling
    )


def scale_levels(levels: NDArray[np.float32], width: int, height: int) -> NDArray[np.float32]:
    """Scale levels of pixels to a size, bilinearly; pixels of a smaller size are means.

    Args:
        levels: of shape (height, width), or with any axes before these.
        width: of the result.
        height: of the result.

    Returns:
        float32 of the same shape, with other sizes of the last two axes.
    """
    from PIL import Image

    planes = levels.reshape(-1, *levels.shape[-2:])
    scaled = np.empty((len(planes), height, width), np.float32)
    for plane, result in zip(planes, scaled, strict=True):
        image = Image.fromarray(np.ascontiguousarray(plane))
        result[:] = np.asarray(image.resize((width, height), Image.Resampling.BILINEAR))
    return scaled.reshape(*levels.shape[:-2], height, width)


def _bytes_per_pixel(image: PillowImage) -> int:
    """Return the bytes that a picture takes at most while it is decoded, for each of its pixels."""
    stored = {"1": 1, "L": 1, "P": 1, "I;16": 2}.get(image.mode, 4)
    # A JPEG of several scans has two bytes for each coefficient until all are read.
    coefficients = 2 * len(image.getbands()) if image.format in ("JPEG", "MPO") else 0
    return stored + max(4, coefficients)  # 4: one more picture in colours, upright or converted


def _to_8_bit_levels(image: PillowImage) -> PillowImage:
    from PIL import Image

    mode = "L" if image.mode in (*_GREY_MODES, *_INTEGER_LEVELS, "F") else "RGB"
    key = _transparent_key(image)
    highest = _highest_level(image)
    is_negative = _is_negative(image)
    image.load()  # before EXIF is read, whose errors are not those of the picture
    orientation = _find_orientation(image)
    is_deep = image.mode in (*_INTEGER_LEVELS, "F")
    if is_deep or key is not None or _has_transparency(image):
        # A part at a time, since the steps take several copies; the highest level is that of all.
        rows = image.height if highest is None else max(1, _PART_PIXELS // image.width)
        levels = Image.new(mode, image.size)
        for top in range(0, image.height, rows):
            bottom = min(top + rows, image.height)
            part = image.crop((0, top, image.width, bottom))
            levels.paste(_part_levels(part, mode, key, highest, is_negative), (0, top))
    elif image.mode != mode:
        image.info.pop("transparency", None)
        levels = image.convert(mode)
    else:
        levels = image
    if orientation is None:
        return levels
    if levels is not image:
        image.close()  # its pixels
    return levels.transpose(orientation)


def _part_levels(
    part: PillowImage,
    mode: str,
    key: NDArray[np.int64] | None,
    highest: float | None,
    is_negative: bool,
) -> PillowImage:
    from PIL import Image

    if key is not None:
        stored = np.asarray(part)
        is_transparent = (stored == key).reshape(*stored.shape[:2], -1).all(axis=2)
    if part.mode in (*_INTEGER_LEVELS, "F"):
        values = _to_256_levels(np.asarray(part), highest)
        part = Image.fromarray(255 - values if is_negative else values)
    elif key is None:
        if part.mode == "La":  # Pillow converts premultiplied grey levels to LA alone
            part = part.convert("LA")
        part = part.convert("RGBA")
        part = Image.alpha_composite(Image.new("RGBA", part.size, "white"), part)
    part.info.pop("transparency", None)  # the key, which is replaced below
    part = part.convert(mode)
    if key is not None:
        on_white = np.array(part)
        on_white[is_transparent] = 255
        part = Image.fromarray(on_white)
    return part


def _transparent_key(image: PillowImage) -> NDArray[np.int64] | None:
    """Return the one grey level or colour that a PNG or GIF calls transparent, as it is stored."""
    key = image.info.get("transparency")
    if key is None or image.mode not in ("1", "L", "RGB", *_INTEGER_LEVELS):
        return None  # of a palette it is an index, which Pillow applies
    # Pillow brings the pixels of a PNG to 8 bits, and leaves the key as the file has it.
    tiles = getattr(image, "tile", [])  # how the file stores them
    stored = str(tiles[0][3]) if tiles else ""
    levels = np.array(key, np.int64)
    if stored == "RGB;16B":
        return levels >> 8
    return levels * {"1": 1, "L;2": 85, "L;4": 17}.get(stored, 1)


def _has_transparency(image: PillowImage) -> bool:
    """Whether pixels may be transparent: an alpha channel, or entries of the palette."""
    palette = image.palette if image.mode == "P" else None
    return (
        image.mode in ("LA", "La", "PA", "RGBA", "RGBa")
        or (image.mode == "P" and "transparency" in image.info)
        or (palette is not None and palette.mode.endswith("A"))
    )


def _highest_level(image: PillowImage) -> float | None:
    """Return the level of white; None: floating point, where it depends on the picture."""
    if image.mode == "F":
        return None
    bits = getattr(image, "tag_v2", {}).get(_BITS_PER_SAMPLE, (16,))
    return float(2 ** min(bits[0], 16) - 1)


def _is_negative(image: PillowImage) -> bool:
    """Whether 0 is white, which Pillow applies to pixels of up to 8 bits alone."""
    is_deep = image.mode in (*_INTEGER_LEVELS, "F")
    return is_deep and getattr(image, "tag_v2", {}).get(_PHOTOMETRIC) == _WHITE_IS_ZERO


def _find_orientation(image: PillowImage) -> Transpose | None:
    """Return how EXIF turns a picture upright, None if it says nothing that can be read."""
    from PIL.Image import Transpose

    orientation = None
    with suppress(Exception):  # the reader raises anything
        orientation = image.getexif().get(_ORIENTATION)
    methods = {
        2: Transpose.FLIP_LEFT_RIGHT,
        3: Transpose.ROTATE_180,
        4: Transpose.FLIP_TOP_BOTTOM,
        5: Transpose.TRANSPOSE,
        6: Transpose.ROTATE_270,
        7: Transpose.TRANSVERSE,
        8: Transpose.ROTATE_90,
    }
    return methods.get(orientation) if isinstance(orientation, int) else None


def _to_256_levels(stored: NDArray[Any], highest: float | None) -> NDArray[np.uint8]:
    if stored.dtype == np.uint16 and highest == 65535:  # most are, and large ones take memory
        table: NDArray[np.uint8] = np.rint(np.arange(65536) * (255 / highest)).astype(np.uint8)
        levels: NDArray[np.uint8] = table[stored]
        return levels
    stored = stored.astype(np.float64)
    if not np.isfinite(stored).all():
        raise FileContentError("image has levels that are not finite (expected numbers)")
    low, high = float(stored.min()), float(stored.max())
    white = max(high, 1.0) if highest is None else highest
    if low < 0 or high > white:
        limit = "" if highest is None else f" to {white:g}"
        raise FileContentError(
            f"image has levels from {low:g} to {high:g} (expected from 0{limit})"
        )
    return np.rint(stored * (255 / white)).astype(np.uint8)
