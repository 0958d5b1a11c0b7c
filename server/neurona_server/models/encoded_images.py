"""Inputs of images: how a PNG or JPEG file becomes a row of one, as the model's metadata say.

The reader is the client's own (`neurona_client.files`), so that a picture has the same numbers
whether the server decodes it or the client. It is imported when the first picture is decoded.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass

import numpy as np

from neurona_protos.prediction_pb2 import (
    IMAGE_COLOURS_BGR,
    IMAGE_COLOURS_GREY,
    IMAGE_COLOURS_RGB,
    IMAGE_LAYOUT_CHW,
    IMAGE_LAYOUT_HW,
    IMAGE_LAYOUT_HWC,
    IMAGE_RESIZE_SHORTER_SIDE,
    DataType,
    ImageColours,
    ImageDescription,
    ImageFilter,
    ImageInversion,
    ImageLayout,
    ImageResize,
    ModelMetadata,
)
from neurona_protos.tensors import NUMPY_DTYPES
from neurona_server.batching.request import Array
from neurona_server.errors import (
    InvalidArgumentError,
    InvalidValueError,
    LoadError,
    UnsupportedError,
)
from neurona_server.models.image_structure import find_structure_problem
from neurona_server.models.repository.settings import ImageSettings
from neurona_server.models.signature import Signature, TensorSpec, TensorType

FORMATS = ("PNG", "JPEG")
"""The only decoders that run, as Pillow names them."""

MAX_SIDE = 1 << 16
"""Pixels of a side of an input."""


@dataclass(frozen=True)
class ImageLimits:
    """The limits of decoding one image."""

    max_pixels: int
    """Width x height of the file."""

    max_row_bytes: int
    """Bytes of the row that it becomes."""

    reserve: Callable[[int], AbstractContextManager[None]]
    """Called with the bytes that decoding takes; held meanwhile."""


@dataclass(frozen=True)
class ImageInput:
    """An input that takes encoded images."""

    spec: TensorSpec
    described: ImageDescription

    @property
    def has_rows(self) -> bool:
        """Whether axis 0 counts images; else the whole input is one."""
        return len(self.spec.shape) > _RANKS[self.described.layout]

    @property
    def has_own_size(self) -> bool:
        """Whether the size of the images is that of the input, and not a fixed one."""
        return not (self.described.width and self.described.height)

    def count_images(self, shape: tuple[int, ...]) -> int:
        """Return the number of images in a tensor of strings.

        Raises:
            InvalidArgumentError: The shape is neither (rows) nor (rows, 1).
        """
        if len(shape) in (1, 2) and shape[1:] in ((), (1,)) and shape[0] > 0:
            if self.has_rows or shape[0] == 1:
                return shape[0]
        elif not shape and not self.has_rows:
            return 1
        expected = "[rows] or [rows, 1], each string a PNG or JPEG file"
        raise InvalidArgumentError(
            f"input {self.spec.name!r} has encoded images of shape {list(shape)} "
            f"(expected {expected if self.has_rows else '[1]: the model takes one image'})"
        )

    def array_shape(self, count: int, width: int, height: int) -> tuple[int, ...]:
        """Return the shape of the input with `count` images of a size."""
        described = self.described
        width, height = described.width or width, described.height or height
        sizes: tuple[int, ...] = (height, width)
        channels = _channels(described)
        if described.layout == IMAGE_LAYOUT_CHW:
            sizes = (channels, *sizes)
        elif described.layout == IMAGE_LAYOUT_HWC:
            sizes = (*sizes, channels)
        return (count, *sizes) if self.has_rows else sizes

    def image_size(self, row_shape: tuple[int, ...]) -> str:
        """Return the width and height of a row of this shape, for messages."""
        is_last = self.described.layout == IMAGE_LAYOUT_HWC
        height, width = row_shape[-3:-1] if is_last else row_shape[-2:]
        return f"{width} x {height}"

    def decode(self, content: bytes, row: int, limits: ImageLimits) -> Array:
        """Return one row of the input, of the model's dtype.

        Args:
            content: A PNG or JPEG file.
            row: Its number, for errors.
            limits: Of an image and of a row.

        Raises:
            InvalidValueError: The content is no such file, is damaged or too large.
            UnsupportedError: Pillow is not installed.
        """
        from neurona_client.files.content import FileContentError
        from neurona_client.files.image_inputs import image_values
        from neurona_client.files.images import read_image

        if problem := find_structure_problem(content):
            raise self._error(row, problem)
        dtype = NUMPY_DTYPES[self.spec.dtype]

        def reserve(width: int, height: int, nbytes: int) -> None:
            values = math.prod(self.array_shape(1, width, height))
            if (row_bytes := values * dtype.itemsize) > limits.max_row_bytes:
                raise FileContentError(
                    f"{row_bytes} bytes once decoded (expected at most {limits.max_row_bytes})"
                )
            # The values as floats, and once more in the order of the input.
            held.enter_context(limits.reserve(nbytes + 8 * values))

        held = ExitStack()
        try:
            with held:
                image = read_image(content, FORMATS, limits.max_pixels, reserve)
                return _to_dtype(image_values(image, self.described), self.spec.dtype)
        except FileContentError as error:
            raise self._error(row, str(error)) from None
        except ImportError:
            raise UnsupportedError(
                f"input {self.spec.name!r} has encoded images, and the server has no Pillow "
                "(expected decoded arrays, or the server installed with the extra 'images')"
            ) from None

    def _error(self, row: int, problem: str) -> InvalidValueError:
        return InvalidValueError(f"input {self.spec.name!r} row {row}: {problem}")


def find_image_inputs(
    metadata: ModelMetadata, inputs: Sequence[TensorSpec]
) -> Mapping[str, ImageInput]:
    """Return the inputs that take encoded images, by name.

    Raises:
        LoadError: What the metadata or settings say of images contradicts the input.
    """
    specs = {spec.name: spec for spec in inputs}
    image_inputs: dict[str, ImageInput] = {}
    for described in metadata.inputs:
        spec = specs.get(described.name)
        if spec is None or not described.HasField("image"):
            continue
        if problem := _find_problem(described.image, spec):
            raise LoadError(f"its metadata say of images for input {spec.name!r}: {problem}")
        image_inputs[spec.name] = ImageInput(spec, described.image)
    return image_inputs


def describe_image(settings: ImageSettings, spec: TensorSpec) -> ImageDescription:
    """Return the description of images that a model's settings and the shape of its input give.

    What the settings leave out is guessed from the shape; `find_image_inputs` checks the result.
    """
    layout, colours = _guess_layout(spec)
    if settings.layout:
        layout = _LAYOUTS[settings.layout]
        colours = IMAGE_COLOURS_GREY if layout == IMAGE_LAYOUT_HW else colours
        if layout != IMAGE_LAYOUT_HW and not settings.colours:
            axis = -3 if layout == IMAGE_LAYOUT_CHW else -1
            channels = spec.shape[axis] if len(spec.shape) >= -axis else 3
            colours = IMAGE_COLOURS_GREY if channels == 1 else IMAGE_COLOURS_RGB
    if settings.colours:
        colours = _COLOURS[settings.colours]
    axes = spec.shape[-3:-1] if layout == IMAGE_LAYOUT_HWC else spec.shape[-2:]
    height, width = (
        size if isinstance(size, int) and 0 <= size <= MAX_SIDE else 0 for size in (*axes, 0, 0)[:2]
    )
    resize = settings.resize or "fit"
    interpolation = settings.filter or ("box" if resize == "fit" else "bilinear")
    inversion = settings.inversion or "never"
    return ImageDescription(
        layout=layout,
        colours=colours,
        width=settings.width or width,
        height=settings.height or height,
        resize=_enum_name("resize", resize),
        filter=_enum_name("filter", interpolation),
        shorter_side=settings.shorter_side,
        inversion=_enum_name("inversion", inversion),
        black=settings.range[0],
        white=settings.range[1],
        mean=settings.mean,
        std=settings.std,
    )


def explain_strings(
    types: Mapping[str, TensorType], signature: Signature, error: InvalidArgumentError
) -> InvalidArgumentError:
    """Say how encoded images are declared, in an error of strings for an input of numbers."""
    for spec in (*signature.inputs, *signature.optional):
        dtype = types.get(spec.name, (spec.dtype, ()))[0]
        if dtype == DataType.DATA_TYPE_STRING != spec.dtype and len(spec.shape) > 1:
            return InvalidArgumentError(f"{error}; {how_to_declare(spec.name)}")
    return error


def how_to_declare(name: str) -> str:
    """Return how an input comes to take encoded images, for errors."""
    return f"for encoded images, declare them by [inputs.{name}.image] in the model's model.toml"


_LAYOUTS = {"hw": IMAGE_LAYOUT_HW, "chw": IMAGE_LAYOUT_CHW, "hwc": IMAGE_LAYOUT_HWC}
_COLOURS = {"grey": IMAGE_COLOURS_GREY, "rgb": IMAGE_COLOURS_RGB, "bgr": IMAGE_COLOURS_BGR}
_RANKS = {IMAGE_LAYOUT_HW: 2, IMAGE_LAYOUT_CHW: 3, IMAGE_LAYOUT_HWC: 3}


def _guess_layout(spec: TensorSpec) -> tuple[ImageLayout, ImageColours]:
    """Return the layout of a shape with a batch axis, or of three axes without one."""
    shape = spec.shape
    sample = shape[1:] if len(shape) == 4 else shape
    if len(sample) == 3 and sample[0] in (1, 3):
        return IMAGE_LAYOUT_CHW, IMAGE_COLOURS_GREY if sample[0] == 1 else IMAGE_COLOURS_RGB
    if len(sample) == 3 and (sample[2] in (1, 3) or len(shape) == 4):
        return IMAGE_LAYOUT_HWC, IMAGE_COLOURS_GREY if sample[2] == 1 else IMAGE_COLOURS_RGB
    return IMAGE_LAYOUT_HW, IMAGE_COLOURS_GREY


def _find_problem(described: ImageDescription, spec: TensorSpec) -> str:
    """Return what is wrong with a description, "" if nothing is."""
    for name, enum in (
        ("layout", ImageLayout),
        ("colours", ImageColours),
        ("resize", ImageResize),
        ("filter", ImageFilter),
        ("inversion", ImageInversion),
    ):
        if getattr(described, name) not in enum.values():
            return f"{name} is {getattr(described, name)} (expected one of {[*enum.values()]})"
    if NUMPY_DTYPES[spec.dtype].kind not in "fiu":
        return f"it is {spec} (expected numbers)"
    return (
        _find_shape_problem(described, spec)
        or _find_size_problem(described)
        or _find_value_problem(described, spec)
    )


def _find_shape_problem(described: ImageDescription, spec: TensorSpec) -> str:
    rank, layout = _RANKS[described.layout], _name(ImageLayout, described.layout)
    if described.layout == IMAGE_LAYOUT_HW and described.colours != IMAGE_COLOURS_GREY:
        return f"layout {layout} has no axis for colours (expected grey levels, or chw or hwc)"
    if spec.any_shape or len(spec.shape) not in (rank, rank + 1):
        return f"it is {spec} (expected {rank} axes for {layout}, and one for the batch)"
    axes = spec.shape[-rank:]
    expected = ImageInput(spec, described).array_shape(1, 0, 0)[-rank:]
    for size, wanted in zip(axes, expected, strict=True):
        if not isinstance(size, int):
            continue
        if size != wanted:
            shown = "x".join(str(one or "?") for one in expected)
            return f"it is {spec} (expected {shown} at its end, for {layout})"
    return ""


def _find_size_problem(described: ImageDescription) -> str:
    for name in ("width", "height", "shorter_side", "stored_width", "stored_height"):
        if getattr(described, name) > MAX_SIDE:
            return f"{name} is {getattr(described, name)} (expected at most {MAX_SIDE})"
    if described.resize == IMAGE_RESIZE_SHORTER_SIDE:
        longest = max(described.width, described.height)
        if not (described.width and described.height) or described.shorter_side < longest:
            return (
                f"shorter_side is {described.shorter_side}, the size {described.width} x "
                f"{described.height} (expected a fixed size, and at least its longer side)"
            )
    elif described.shorter_side:
        return f"shorter_side is {described.shorter_side} (expected none for this resize)"
    if bool(described.stored_width) != bool(described.stored_height):
        return "one of stored_width and stored_height is set (expected both or none)"
    if described.stored_width and not (described.width and described.height):
        return "stored_width is set and the size is free (expected a fixed size)"
    return ""


def _find_value_problem(described: ImageDescription, spec: TensorSpec) -> str:
    numbers = [described.black, described.white, *described.mean, *described.std]
    if not np.isfinite(np.array(numbers, np.float32)).all():
        return "a number is not finite, or too large for a float"
    if described.black == described.white != 0:
        return f"black and white are both {described.white:g} (expected two values)"
    channels = _channels(described)
    for name in ("mean", "std"):
        count = len(getattr(described, name))
        if count not in {0, 1, channels}:
            return f"{name} has {count} numbers (expected 1, or {channels}: one for each channel)"
    with np.errstate(all="ignore"):
        levels = np.array([[0.0], [255.0 if described.black == described.white else 1.0]])
        values = described.black + levels * ((described.white - described.black) or 1.0)
        values = values - np.array(described.mean or [0.0])
        values = (values / np.array(described.std or [1.0])).astype(np.float32)
        if spec.dtype == DataType.DATA_TYPE_FLOAT16:
            values = values.astype(np.float16)
    if not np.isfinite(values).all():
        return f"values from {values.min():g} to {values.max():g} (expected finite ones)"
    if is_integer(spec):
        limits = np.iinfo(NUMPY_DTYPES[spec.dtype])
        values = np.rint(values)
        if values.min() < limits.min or values.max() > limits.max:
            return (
                f"values from {values.min():g} to {values.max():g} "
                f"(expected {limits.min} to {limits.max} for {spec})"
            )
    return ""


def is_integer(spec: TensorSpec) -> bool:
    """Return whether a tensor has integers; the bits of BFLOAT16 are none."""
    return spec.dtype != DataType.DATA_TYPE_BFLOAT16 and NUMPY_DTYPES[spec.dtype].kind in "iu"


def _enum_name(enum: str, setting: str) -> str:
    """Return the name in ImageDescription of a setting such as shorter-side."""
    return f"IMAGE_{enum}_{setting}".upper().replace("-", "_")


def _channels(described: ImageDescription) -> int:
    return 1 if described.colours == IMAGE_COLOURS_GREY else 3


def _name(enum: type[ImageLayout], number: int) -> str:
    return enum.Name(number).rpartition("_")[2].lower()


def _to_dtype(values: Array, number: DataType) -> Array:
    if number == DataType.DATA_TYPE_BFLOAT16:  # the upper halves of floats, rounded to even
        bits = values.view(np.uint32)
        return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)
    dtype = NUMPY_DTYPES[number]
    return (values if dtype.kind == "f" else np.rint(values)).astype(dtype, copy=False)
