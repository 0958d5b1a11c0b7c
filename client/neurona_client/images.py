"""Images as inputs of models. Needs Pillow: pip install neurona[images]."""

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from neurona_client.descriptions import TensorSpec
from neurona_client.errors import InvalidInputError
from neurona_client.files.content import FileContentError
from neurona_client.files.images import fit_image, read_image, scale_levels

if TYPE_CHECKING:  # Pillow is an optional extra
    from PIL.Image import Image as PillowImage

_TWO_SIZES = re.compile(r"brought to (\d+) x (\d+) from (\d+) x (\d+)")
"""In the description of an input whose training data were scaled."""

_UNIT_RANGE = re.compile(r"(-?\d+(?:\.\d+)?)\s*\.\.\s*(-?\d+(?:\.\d+)?)")


def image_to_array(source: bytes | bytearray | Path, spec: TensorSpec) -> NDArray[Any]:
    """Decode an image into one sample of a model's input.

    As in training, the largest centred part of the image with the model's proportions is scaled
    to the model's size with a box filter; where the description of the input says "brought to
    32 x 32 from 28 x 28", to the second size, and from there bilinearly to the first. Where it says
    "0 is paper", an image with a bright border is inverted, so that ink has the high levels.

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
    image = _open_image(source, spec).convert("RGB" if channels == 3 else "L")
    size = (image.width if width < 0 else width, image.height if height < 0 else height)
    match = _TWO_SIZES.search(spec.description)
    sizes = tuple(map(int, match.groups())) if match else ()
    levels = np.asarray(fit_image(image, *(sizes[2:] if sizes[:2] == size else size)), np.float32)
    if "0 is paper" in spec.description and _border_level(levels) > 127.5:
        levels = 255 - levels
    low, high = _level_range(spec)
    if (low, high) != (0.0, 255.0):
        levels = low + levels * np.float32((high - low) / 255)
    planes = levels if levels.ndim == 2 else levels.transpose(2, 0, 1)
    if planes.shape[-2:] != (size[1], size[0]):
        planes = scale_levels(planes, *size)
    if spec.dtype not in ("FLOAT", "FLOAT16", "DOUBLE", "BFLOAT16"):
        planes = np.rint(planes)
    if channels and planes.ndim == 2:
        planes = planes[np.newaxis]
    return np.ascontiguousarray(planes.transpose(1, 2, 0) if channels_last else planes)


def scale_as_trained(levels: NDArray[Any], spec: TensorSpec) -> NDArray[Any]:
    """Scale pixels of the stored size to the size that training brought them to.

    Args:
        levels: of shape (height, width), or with any axes before these.
        spec: the input; its description may say "brought to 32 x 32 from 28 x 28".

    Returns:
        Float32 of the size of training, or `levels` if they are of another size than the stored.

    Raises:
        InvalidInputError: Pillow is not installed.
    """
    match = _TWO_SIZES.search(spec.description)
    if match is None:
        return levels
    width, height, stored_width, stored_height = map(int, match.groups())
    if levels.shape[-2:] != (stored_height, stored_width) or levels.dtype.kind not in "fiub":
        return levels
    try:
        return scale_levels(levels.astype(np.float32), width, height)
    except ImportError as error:
        raise _pillow_error(spec) from error


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


def _open_image(source: bytes | bytearray | Path, spec: TensorSpec) -> "PillowImage":
    image_name = f"image {str(source)!r}" if isinstance(source, Path) else "image"
    try:
        return read_image(source)
    except ImportError as error:
        raise _pillow_error(spec) from error
    except FileContentError as error:
        raise InvalidInputError(f"{image_name}: {error}") from error
    except OSError as error:
        reason = error.strerror or error
        raise InvalidInputError(f"{image_name} cannot be read: {reason}") from error


def _pillow_error(spec: TensorSpec) -> InvalidInputError:
    return InvalidInputError(
        f"input {spec.name!r} is an image, which needs Pillow: pip install neurona[images]"
    )


def _border_level(levels: NDArray[np.float32]) -> float:
    """Return the median level of the outermost pixels."""
    edges = (levels[0], levels[-1], levels[:, 0], levels[:, -1])
    return float(np.median(np.concatenate([edge.ravel() for edge in edges])))
