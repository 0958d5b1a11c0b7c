"""Images as inputs of models. Needs Pillow: pip install neurona[images]."""

import io
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from neurona_client.descriptions import TensorSpec
from neurona_client.errors import InvalidInputError

FORMATS = ("PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP")
"""Formats that are read. For some others Pillow starts other programs."""

_UNIT_RANGE = re.compile(r"(-?\d+(?:\.\d+)?)\s*\.\.\s*(-?\d+(?:\.\d+)?)")
_DEEP_MODES = ("I;16", "I;16B", "I;16L", "I", "F")  # more than 256 levels


def image_to_array(source: bytes | bytearray | Path, spec: TensorSpec) -> NDArray[Any]:
    """Decode an image into one sample of a model's input.

    As in training, the largest centred part of the image with the model's proportions is scaled
    to the model's size with a box filter. Where the description of the input says "0 is paper", an
    image with a bright border is inverted, so that ink has the high levels.

    Args:
        source: the content of an image file, or its path.
        spec: the input. Its shape without the batch axis is (height, width),
            (channels, height, width) or (height, width, channels) with 1 or 3 channels; its unit
            names the levels of black and white, such as "grey level 0..255".

    Returns:
        An array of that shape, float32, with the levels that the unit names.

    Raises:
        InvalidInputError: the image cannot be read, the input is not an image, its levels are
            unknown, or Pillow is not installed.
    """
    height, width, channels, channels_last = _image_layout(spec)
    image = _open_image(source, spec, channels)
    size = (image.width if width < 0 else width, image.height if height < 0 else height)
    if image.size != size:
        from PIL import Image, ImageOps

        image = ImageOps.fit(image, size, Image.Resampling.BOX)
    levels = np.asarray(image, np.float32)
    if "0 is paper" in spec.description and _border_level(levels) > 127.5:
        levels = 255 - levels
    low, high = _level_range(spec)
    if (low, high) != (0.0, 255.0):
        levels = low + levels * np.float32((high - low) / 255)
    if spec.dtype not in ("FLOAT", "FLOAT16", "DOUBLE", "BFLOAT16"):
        levels = np.rint(levels)
    if channels and levels.ndim == 2:
        levels = levels[:, :, np.newaxis]
    if channels and not channels_last:
        levels = levels.transpose(2, 0, 1)
    return np.ascontiguousarray(levels)


def _image_layout(spec: TensorSpec) -> tuple[int, int, int, bool]:
    """Return height, width, channels (0: no axis for them) and whether channels are last."""
    shape = spec.shape[1:]
    if len(shape) == 2:
        return shape[0], shape[1], 0, False
    if len(shape) == 3 and shape[0] in (1, 3):
        return shape[1], shape[2], shape[0], False
    if len(shape) == 3 and shape[2] in (1, 3):
        return shape[0], shape[1], shape[2], True
    raise InvalidInputError(
        f"input {spec.name!r} has shape {list(spec.shape)}, which does not take images: pass an "
        "array (expected height and width, with 1 or 3 channels or none)"
    )


def _level_range(spec: TensorSpec) -> tuple[float, float]:
    """Return the model's levels of black and white."""
    match = _UNIT_RANGE.search(spec.unit)
    if match is not None:
        return float(match[1]), float(match[2])
    if spec.dtype == "UINT8":
        return 0.0, 255.0
    raise InvalidInputError(
        f"pixel levels of input {spec.name!r} unknown: decode the image yourself and pass an array "
        f"(expected a unit with a range such as '0..255'; the unit is {spec.unit!r})"
    )


def _open_image(source: bytes | bytearray | Path, spec: TensorSpec, channels: int) -> Any:
    try:
        from PIL import Image, ImageOps, UnidentifiedImageError
    except ImportError as error:
        raise InvalidInputError(
            f"input {spec.name!r} is an image, which needs Pillow: pip install neurona[images]"
        ) from error
    image_name = f"image {str(source)!r}" if isinstance(source, Path) else "image"
    try:
        file = source if isinstance(source, Path) else io.BytesIO(source)
        with Image.open(file, formats=FORMATS) as image:
            # Pillow only warns of a huge image, and warning filters are shared by all threads.
            if image.width * image.height > (Image.MAX_IMAGE_PIXELS or math.inf):
                raise ValueError(f"too large, {image.width} x {image.height} pixels")
            upright = ImageOps.exif_transpose(image)
            if upright.mode in _DEEP_MODES:
                upright = _to_256_levels(upright)
            if "A" in upright.mode or "transparency" in upright.info:
                upright = upright.convert("RGBA")
                background = Image.new("RGBA", upright.size, "white")
                upright = Image.alpha_composite(background, upright)
            return upright.convert("RGB" if channels == 3 else "L")
    except UnidentifiedImageError as error:
        raise InvalidInputError(
            f"unknown format of {image_name} (expected {', '.join(FORMATS)})"
        ) from error
    except (OSError, ValueError, SyntaxError, Warning, Image.DecompressionBombError) as error:
        reason = " ".join(str(error).split())
        raise InvalidInputError(f"{image_name} cannot be read: {reason}") from error


def _to_256_levels(image: Any) -> Any:
    from PIL import Image

    levels = np.asarray(image, np.float32)
    highest = max(float(levels.max()), 1.0) if image.mode == "F" else 65535.0
    return Image.fromarray((levels * (255 / highest)).clip(0, 255).astype(np.uint8))


def _border_level(levels: NDArray[np.float32]) -> float:
    """Return the median level of the outermost pixels."""
    edges = (levels[0], levels[-1], levels[:, 0], levels[:, -1])
    return float(np.median(np.concatenate([edge.ravel() for edge in edges])))
