"""Pictures as the inputs of image models. Needs Pillow: pip install neurona[images]."""

import io
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from neurona_client.descriptions import TensorSpec
from neurona_client.errors import InvalidInputError

_RANGE = re.compile(r"(-?\d+(?:\.\d+)?)\s*\.\.\s*(-?\d+(?:\.\d+)?)")
_DEEP = ("I;16", "I;16B", "I;16L", "I", "F")  # more than 256 levels


def pixels(source: bytes | bytearray | Path, spec: TensorSpec) -> NDArray[Any]:
    """One sample of the shape that the model takes after its batch axis: (height, width),
    (channels, height, width) or (height, width, channels), in the levels that its unit names.

    As in training, the largest part of the picture that has the model's proportions is brought
    to its size by the means of boxes. Where the model says that 0 is paper, a picture whose
    edge is bright is turned around, so that ink is what stands out. Raises InvalidInputError.
    """
    height, width, channels, channels_last = _layout(spec)
    image = _opened(source, spec, channels)
    size = (image.width if width < 0 else width, image.height if height < 0 else height)
    if image.size != size:
        from PIL import Image, ImageOps

        image = ImageOps.fit(image, size, Image.Resampling.BOX)
    levels = np.asarray(image, np.float32)
    if "0 is paper" in spec.description and _paper(levels) > 127.5:
        levels = 255 - levels
    low, high = _levels(spec)
    if (low, high) != (0.0, 255.0):
        levels = low + levels * np.float32((high - low) / 255)
    if spec.dtype not in ("FLOAT", "FLOAT16", "DOUBLE", "BFLOAT16"):
        levels = np.rint(levels)
    if channels and levels.ndim == 2:
        levels = levels[:, :, np.newaxis]
    if channels and not channels_last:
        levels = levels.transpose(2, 0, 1)
    return np.ascontiguousarray(levels)


def _layout(spec: TensorSpec) -> tuple[int, int, int, bool]:
    """Height, width, channels (0: no axis for them) and whether these come last."""
    shape = spec.shape[1:]
    if len(shape) == 2:
        return shape[0], shape[1], 0, False
    if len(shape) == 3 and shape[0] in (1, 3):
        return shape[1], shape[2], shape[0], False
    if len(shape) == 3 and shape[2] in (1, 3):
        return shape[0], shape[1], shape[2], True
    raise InvalidInputError(
        f"input {spec.name!r} has shape {list(spec.shape)}, which is not that of images (grey or "
        "of three colours): give an array"
    )


FORMATS = ("PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP")
"""Pillow starts other programs for some others."""


def _levels(spec: TensorSpec) -> tuple[float, float]:
    """What the model calls black and white."""
    found = _RANGE.search(spec.unit)
    if found is not None:
        return float(found[1]), float(found[2])
    if spec.dtype == "UINT8":
        return 0.0, 255.0
    raise InvalidInputError(
        f"input {spec.name!r} does not say which levels its pixels have (its unit is "
        f"{spec.unit!r}): decode the image yourself and give an array"
    )


def _opened(source: bytes | bytearray | Path, spec: TensorSpec, channels: int) -> Any:
    try:
        from PIL import Image, ImageOps, UnidentifiedImageError
    except ImportError as error:
        raise InvalidInputError(
            f"input {spec.name!r} is a picture, and Pillow is not there to read it: "
            "pip install neurona[images]"
        ) from error
    named = f"the picture {str(source)!r}" if isinstance(source, Path) else "the picture"
    try:
        place = source if isinstance(source, Path) else io.BytesIO(source)
        with Image.open(place, formats=FORMATS) as file:
            # Pillow only warns of them. Filters of warnings are those of all threads: let alone.
            if file.width * file.height > (Image.MAX_IMAGE_PIXELS or math.inf):
                raise ValueError(f"it has {file.width} x {file.height} pixels")
            image = ImageOps.exif_transpose(file)
            if image.mode in _DEEP:
                image = _shallow(image)
            if "A" in image.mode or "transparency" in image.info:
                image = image.convert("RGBA")  # what is transparent lies on white
                image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
            return image.convert("RGB" if channels == 3 else "L")
    except UnidentifiedImageError as error:
        raise InvalidInputError(
            f"{named} is of no format that can be read; expected {', '.join(FORMATS)}"
        ) from error
    except (OSError, ValueError, SyntaxError, Warning, Image.DecompressionBombError) as error:
        said = " ".join(str(error).split())
        raise InvalidInputError(f"{named} cannot be read: {said}") from error


def _shallow(image: Any) -> Any:
    """With 256 levels."""
    from PIL import Image

    levels = np.asarray(image, np.float32)
    most = max(float(levels.max()), 1.0) if image.mode == "F" else 65535.0
    return Image.fromarray((levels * (255 / most)).clip(0, 255).astype(np.uint8))


def _paper(levels: NDArray[np.float32]) -> float:
    """How bright most of the edge is."""
    edge = (levels[0], levels[-1], levels[:, 0], levels[:, -1])
    return float(np.median(np.concatenate([part.ravel() for part in edge])))
