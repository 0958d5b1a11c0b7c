"""Pictures as grey levels or colours, from 0 (black) to 255. Needs Pillow: neurona[images].

Whatever a file stores becomes what a viewer of pictures shows on white paper:

- a file with grey levels only is grey, any other is red, green and blue; the first frame counts;
- EXIF's orientation is applied; colour profiles are not;
- what is transparent shows white below it;
- more than 256 levels are rounded to 256: 16 bits from 0 to 65535; floating point from 0 to 1, or
  to the highest level of the picture where that is above 1.
"""

from __future__ import annotations

import io
import math
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from neurona_client.files.errors import FileContentError

if TYPE_CHECKING:  # Pillow is an optional extra
    from PIL.Image import Image as PillowImage

FORMATS = (
    *("PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP", "AVIF", "JPEG2000"),
    *("PPM", "TGA", "PCX", "SGI", "ICO", "DIB"),
)
"""Formats that are read, as Pillow names them. For some others Pillow starts other programs."""

SUFFIXES = (
    *(".png", ".jpg", ".jpeg", ".gif", ".bmp", ".tif", ".tiff", ".webp", ".avif", ".jp2"),
    *(".ppm", ".pgm", ".pbm", ".pnm", ".tga", ".pcx", ".sgi", ".ico", ".dib"),
)
"""Of files that are pictures, in lower case."""

_GREY_MODES = ("1", "L", "LA", "La")
_INTEGER_LEVELS = ("I;16", "I;16B", "I;16L", "I;16N", "I")
_HIGHEST_16_BIT = 65535


def read_image(source: bytes | bytearray | Path) -> PillowImage:
    """Decode a picture.

    Args:
        source: the content of a file, or its path.

    Returns:
        The upright picture in Pillow's mode "L" if the file has grey levels only, else "RGB".

    Raises:
        FileContentError: not a picture, damaged, too large, or with levels that have no meaning.
        ImportError: Pillow is not installed.
        OSError: the file cannot be opened.
    """
    from PIL import Image, UnidentifiedImageError

    Image.init()
    formats = [name for name in FORMATS if name in Image.OPEN]  # depends on Pillow's version
    with source.open("rb") if isinstance(source, Path) else io.BytesIO(source) as file:
        try:
            with Image.open(file, formats=formats) as image:
                # Pillow only warns of a huge picture, and all threads share the warning filters.
                if image.width * image.height > (Image.MAX_IMAGE_PIXELS or math.inf):
                    raise FileContentError(f"too large, {image.width} x {image.height} pixels")
                return _to_8_bit_levels(image)
        except UnidentifiedImageError as error:
            raise FileContentError(
                f"unknown image format (expected {', '.join(formats)})"
            ) from error
        except FileContentError:
            raise
        except Exception as error:  # a decoder raises anything when its input is damaged
            reason = " ".join(str(error).split()) or type(error).__name__
            raise FileContentError(f"unreadable image: {reason}") from error


def fit_image(image: PillowImage, width: int, height: int) -> PillowImage:
    """Scale the largest centred part with the proportions of a size to it, with a box filter."""
    if image.size == (width, height):
        return image
    from PIL import Image, ImageOps

    return ImageOps.fit(image, (width, height), Image.Resampling.BOX)


def _to_8_bit_levels(image: PillowImage) -> PillowImage:
    from PIL import Image, ImageOps

    upright = ImageOps.exif_transpose(image)
    is_grey = image.mode in (*_GREY_MODES, *_INTEGER_LEVELS, "F")
    if upright.mode in (*_INTEGER_LEVELS, "F"):
        stored = np.asarray(upright, np.float64)
        levels = _round_levels(stored, upright.mode)
        transparent = upright.info.get("transparency")
        if transparent is not None:  # one level that is transparent
            levels[stored == transparent] = 255
        return Image.fromarray(levels)
    if _is_transparent(upright):
        if upright.mode == "La":  # Pillow converts premultiplied grey levels to LA alone
            upright = upright.convert("LA")
        upright = upright.convert("RGBA")
        background = Image.new("RGBA", upright.size, "white")
        upright = Image.alpha_composite(background, upright)
    return upright.convert("L" if is_grey else "RGB")


def _is_transparent(image: PillowImage) -> bool:
    """Whether pixels may be transparent: an alpha channel, a transparent colour or palette."""
    palette = image.palette if image.mode == "P" else None
    return (
        image.mode in ("LA", "La", "PA", "RGBA", "RGBa")
        or "transparency" in image.info
        or (palette is not None and palette.mode.endswith("A"))
    )


def _round_levels(stored: NDArray[np.float64], mode: str) -> NDArray[np.uint8]:
    if not np.isfinite(stored).all():
        raise FileContentError("pixels that are not finite (expected numbers)")
    low, high = float(stored.min()), float(stored.max())
    brightest = max(high, 1.0) if mode == "F" else float(_HIGHEST_16_BIT)
    if low < 0 or high > brightest:
        limit = "" if mode == "F" else f" to {_HIGHEST_16_BIT}"
        raise FileContentError(f"levels from {low:g} to {high:g} (expected from 0{limit})")
    return np.rint(stored * (255 / brightest)).astype(np.uint8)
