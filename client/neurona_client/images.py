"""Images as inputs of models. Needs Pillow: pip install neurona[images]."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from neurona_client.descriptions import TensorSpec
from neurona_client.errors import InvalidInputError
from neurona_client.files.content import FileContentError
from neurona_client.files.image_inputs import (
    describe_images,
    find_levels,
    image_values,
    stored_sizes,
)
from neurona_client.files.images import read_image, scale_levels
from neurona_protos.prediction_pb2 import ImageDescription

if TYPE_CHECKING:  # Pillow is an optional extra
    from PIL.Image import Image as PillowImage

_FLOATS = ("FLOAT", "FLOAT16", "DOUBLE", "BFLOAT16")


def image_to_array(source: bytes | bytearray | Path, spec: TensorSpec) -> NDArray[Any]:
    """Decode an image into one sample of a model's input.

    As the model's metadata say; where they say nothing, as in training: the largest centred part of
    the image with the model's proportions is scaled to the model's size with a box filter; where
    the description of the input says "brought to 32 x 32 from 28 x 28", to the second size, and
    from there bilinearly to the first. Where it says "0 is paper", an image with a bright border is
    inverted, so that ink has the high levels.

    Args:
        source: the content of an image file, or its path.
        spec: the input. Without an `image` its shape without the batch axis is (height, width),
            (channels, height, width) or (height, width, channels) with 1 or 3 channels; its unit
            names the levels of black and white, such as "grey level 0..255".

    Returns:
        An array of that shape, float32, with the levels that the unit names.

    Raises:
        InvalidInputError: the image cannot be read, the input is not an image, its levels are
            unknown, or Pillow is not installed.
    """
    described = spec.image or _describe_by_words(spec)
    values = image_values(_open_image(source, spec), described)
    return values if spec.dtype in _FLOATS else np.rint(values)


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
    sizes = stored_sizes(spec.description)
    if not sizes:
        return levels
    width, height, stored_width, stored_height = sizes
    if levels.shape[-2:] != (stored_height, stored_width) or levels.dtype.kind not in "fiub":
        return levels
    try:
        return scale_levels(levels.astype(np.float32), width, height)
    except ImportError as error:
        raise _pillow_error(spec) from error


def _describe_by_words(spec: TensorSpec) -> ImageDescription:
    """Return what the text and the unit of an input say about images."""
    levels = find_levels(spec.unit)
    if levels is None and spec.dtype == "UINT8":
        levels = (0.0, 255.0)
    described = describe_images(spec.shape[1:], levels or (0.0, 255.0), spec.description)
    if described is None:
        raise InvalidInputError(
            f"input {spec.name!r} has shape {list(spec.shape)}, which does not take images: pass "
            "an array (expected height and width, with 1 or 3 channels or none)"
        )
    if levels is None:
        raise InvalidInputError(
            f"pixel levels of input {spec.name!r} unknown: decode the image yourself and pass an "
            "array (expected a unit with a range such as '0..255'; the unit is "
            f"{spec.unit!r})"
        )
    return described


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
