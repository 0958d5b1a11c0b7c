"""Pictures as rows of a model's input, as an ImageDescription of neurona.v1 says.

The client, the server and training read pictures by this file, so that all three have the same
numbers. Scaling needs Pillow: neurona[images].
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from neurona_client.files.images import fit_image, scale_levels
from neurona_protos.prediction_pb2 import (
    IMAGE_COLOURS_BGR,
    IMAGE_COLOURS_GREY,
    IMAGE_COLOURS_RGB,
    IMAGE_FILTER_BICUBIC,
    IMAGE_FILTER_BILINEAR,
    IMAGE_FILTER_BOX,
    IMAGE_INVERSION_ALWAYS,
    IMAGE_INVERSION_BRIGHT_BORDER,
    IMAGE_INVERSION_NEVER,
    IMAGE_LAYOUT_CHW,
    IMAGE_LAYOUT_HW,
    IMAGE_LAYOUT_HWC,
    IMAGE_RESIZE_FIT,
    IMAGE_RESIZE_SHORTER_SIDE,
    ImageColours,
    ImageDescription,
    ImageLayout,
)

if TYPE_CHECKING:  # Pillow is an optional extra
    from PIL.Image import Image as PillowImage
    from PIL.Image import Resampling

_TWO_SIZES = re.compile(r"brought to (\d+) x (\d+) from (\d+) x (\d+)")
"""In the description of an input whose training data were scaled."""

_UNIT_RANGE = re.compile(r"(-?\d+(?:\.\d+)?)\s*\.\.\s*(-?\d+(?:\.\d+)?)")

_HIGHEST_LEVEL = 255


def find_layout(sample_shape: Sequence[int]) -> tuple[ImageLayout, ImageColours] | None:
    """Return the layout that the shape of one sample has, None if it is not that of an image.

    Args:
        sample_shape: (height, width), (channels, height, width) or (height, width, channels) with
            1 or 3 channels; -1 for an axis of free size.
    """
    if len(sample_shape) == 2:
        return IMAGE_LAYOUT_HW, IMAGE_COLOURS_GREY
    if len(sample_shape) == 3 and sample_shape[0] in (1, 3):
        return IMAGE_LAYOUT_CHW, _colours(sample_shape[0])
    if len(sample_shape) == 3 and sample_shape[2] in (1, 3):
        return IMAGE_LAYOUT_HWC, _colours(sample_shape[2])
    return None


def find_levels(unit: str) -> tuple[float, float] | None:
    """Return the values of black and white that a unit such as "grey level 0..16" names."""
    match = _UNIT_RANGE.search(unit)
    return None if match is None else (float(match[1]), float(match[2]))


def describe_images(
    sample_shape: Sequence[int], levels: tuple[float, float], description: str
) -> ImageDescription | None:
    """Return how pictures become an input that a data set describes, None if they cannot.

    Args:
        sample_shape: see `find_layout`.
        levels: the values of black and white.
        description: the text that describes the input. Where it has "brought to 32 x 32 from
            28 x 28", pictures are scaled to the second size, and from there bilinearly to the
            first; where it has "0 is paper", those with a bright border are inverted, so that ink
            has the high levels.
    """
    found_layout = find_layout(sample_shape)
    if found_layout is None:
        return None
    layout, colours = found_layout
    first = 1 if layout == IMAGE_LAYOUT_CHW else 0
    height, width = (max(0, size) for size in sample_shape[first : first + 2])
    sizes = stored_sizes(description)
    stored_width, stored_height = sizes[2:] if sizes[:2] == (width, height) else (0, 0)
    return ImageDescription(
        layout=layout,
        colours=colours,
        width=width,
        height=height,
        resize=IMAGE_RESIZE_FIT,
        filter=IMAGE_FILTER_BOX,
        stored_width=stored_width,
        stored_height=stored_height,
        inversion=IMAGE_INVERSION_BRIGHT_BORDER
        if "0 is paper" in description
        else IMAGE_INVERSION_NEVER,
        black=levels[0],
        white=levels[1],
    )


def stored_sizes(description: str) -> tuple[int, ...]:
    """Return width and height after and before the scaling that a description names, () if none."""
    match = _TWO_SIZES.search(description)
    return tuple(map(int, match.groups())) if match else ()


def image_values(image: PillowImage, described: ImageDescription) -> NDArray[np.float32]:
    """Make one row of an input of a picture.

    Args:
        image: as `files.images.read_image` returns it.
        described: the input; the sizes and numbers of channels must be valid.

    Returns:
        An array with the axes that the description names.

    Raises:
        ImportError: Pillow is not installed.
    """
    is_grey = described.colours == IMAGE_COLOURS_GREY
    mode = "L" if is_grey else "RGB"
    if image.mode != mode:
        image = image.convert(mode)
    width, height = described.width or image.width, described.height or image.height
    stored = described.stored_width, described.stored_height
    image = _resize(image, *(stored if all(stored) else (width, height)), described)
    pixels = np.asarray(image)
    # Contiguous channels first: a pass over numbers that are not takes ten times as long.
    planes = np.array(
        pixels[np.newaxis] if is_grey else pixels.transpose(2, 0, 1), np.float32, order="C"
    )
    if described.inversion == IMAGE_INVERSION_ALWAYS or (
        described.inversion == IMAGE_INVERSION_BRIGHT_BORDER and _border_level(planes) > 127.5
    ):
        np.subtract(_HIGHEST_LEVEL, planes, out=planes)
    black, white = described.black, described.white
    if (black, white) not in ((0, 0), (0, _HIGHEST_LEVEL)):
        planes *= np.float32((white - black) / _HIGHEST_LEVEL)
        planes += np.float32(black)
    if described.colours == IMAGE_COLOURS_BGR:
        planes = planes[::-1]
    if planes.shape[-2:] != (height, width):
        planes = scale_levels(planes, width, height)
    if described.mean:
        planes -= np.array(described.mean, np.float32)[:, np.newaxis, np.newaxis]
    if described.std:
        planes /= np.array(described.std, np.float32)[:, np.newaxis, np.newaxis]
    if described.layout == IMAGE_LAYOUT_HW:
        planes = planes[0]
    elif described.layout == IMAGE_LAYOUT_HWC:
        planes = planes.transpose(1, 2, 0)
    return np.ascontiguousarray(planes)


def _colours(channels: int) -> ImageColours:
    return IMAGE_COLOURS_GREY if channels == 1 else IMAGE_COLOURS_RGB


def _resize(
    image: PillowImage, width: int, height: int, described: ImageDescription
) -> PillowImage:
    if described.resize == IMAGE_RESIZE_SHORTER_SIDE:
        return _resize_shorter_side(image, width, height, described)
    if image.size == (width, height):
        return image
    if described.resize == IMAGE_RESIZE_FIT:
        return fit_image(image, width, height, _resampling(described))
    if width > 4 * image.width and height < image.height:
        # Pillow scales the width first, which would make a high and narrow picture huge.
        image = image.resize((image.width, height), _resampling(described))
    return image.resize((width, height), _resampling(described))


def _resize_shorter_side(
    image: PillowImage, width: int, height: int, described: ImageDescription
) -> PillowImage:
    """Scale the shorter side and cut out the centre, with the rounding of torchvision."""
    shorter = described.shorter_side
    if image.width <= image.height:
        size = shorter, int(shorter * image.height / image.width)
    else:
        size = int(shorter * image.width / image.height), shorter
    left, top = round((size[0] - width) / 2), round((size[1] - height) / 2)
    # Only what is cut out is computed: the longer side of a narrow picture may be very long.
    across, down = image.width / size[0], image.height / size[1]
    box = (left * across, top * down, (left + width) * across, (top + height) * down)
    inside = (
        max(0.0, box[0]),
        max(0.0, box[1]),
        min(box[2], image.width),
        min(box[3], image.height),
    )
    return image.resize((width, height), _resampling(described), box=inside)


def _resampling(described: ImageDescription) -> Resampling:
    from PIL import Image

    if described.filter == IMAGE_FILTER_BILINEAR:
        return Image.Resampling.BILINEAR
    if described.filter == IMAGE_FILTER_BICUBIC:
        return Image.Resampling.BICUBIC
    return Image.Resampling.BOX


def _border_level(planes: NDArray[np.float32]) -> float:
    """Return the median level of the outermost pixels of all channels."""
    edges = (planes[:, 0], planes[:, -1], planes[:, :, 0], planes[:, :, -1])
    return float(np.median(np.concatenate([edge.ravel() for edge in edges])))
