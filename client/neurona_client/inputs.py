"""Inputs of a call: converted to the model's dtypes and checked against its shapes."""

import contextlib
import importlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from neurona_client.descriptions import ModelDescription, TensorSpec
from neurona_client.errors import InvalidInputError
from neurona_protos.prediction_pb2 import (
    DATA_TYPE_BFLOAT16,
    DATA_TYPE_FLOAT,
    DATA_TYPE_STRING,
    IMAGE_LAYOUT_HW,
    DataType,
)
from neurona_protos.tensors import NUMPY_DTYPES, TensorError, data_type

Array = NDArray[Any]


@dataclass(frozen=True)
class EncodedImage:
    """A PNG or JPEG file that is sent as it is: the server decodes it.

    Attributes:
        source: its content, or its path.
    """

    source: bytes | bytearray | Path


InputValue = Array | float | str | bytes | Path | EncodedImage | list[Any] | tuple[Any, ...]
"""One input: an array, a number, text, an image (bytes, Path or EncodedImage), or nested lists."""

Inputs = InputValue | Mapping[str, InputValue]
"""The only input of a model, or inputs by name."""

PreparedTensors = list[tuple[str, DataType, Array]]
"""Name, number of the dtype and array of each tensor of a request."""

_MAX_SHOWN_VALUES = 3


def prepare_inputs(description: ModelDescription, inputs: Inputs) -> tuple[PreparedTensors, bool]:
    """Convert inputs to what a model takes.

    Args:
        description: the model.
        inputs: one sample or a batch; of a model with several inputs, a dict by name.

    Returns:
        The tensors of the request, each with a batch axis, and whether the inputs were one sample
        without it.

    Raises:
        InvalidInputError: a name, dtype, shape or value does not fit.
    """
    specs = {spec.name: spec for spec in description.inputs}
    required = [spec for spec in description.inputs if not spec.optional]
    if isinstance(inputs, Mapping):
        values = dict(inputs)
    elif len(required) == 1 or (not required and len(specs) == 1):
        values = {(required or description.inputs)[0].name: inputs}
    else:
        raise InvalidInputError(
            f"model {description.name!r} takes {_listed_inputs(description)} (expected a dict with "
            "an array for each name)"
        )
    unknown = [name for name in values if name not in specs]
    missing = [spec.name for spec in required if spec.name not in values]
    if unknown or missing:
        problems = [f"unknown input {name!r}" for name in unknown]
        problems += [f"missing input {name!r}" for name in missing]
        raise InvalidInputError(
            f"{', '.join(problems)}: model {description.name!r} takes {_listed_inputs(description)}"
        )
    tensors: PreparedTensors = []
    is_sample: dict[str, bool] = {}
    for name, value in values.items():
        spec = specs[name]
        if (images := _encoded_images(value, spec)) is not None:
            if not spec.optional:
                is_sample[name] = not isinstance(value, (list, tuple)) and _has_rows(spec)
            tensors.append((name, DATA_TYPE_STRING, images))
            continue
        array = _convert(value, spec)
        if not spec.optional:
            is_sample[name] = _lacks_batch_axis(array.shape, spec, description)
            if is_sample[name]:
                array = array[np.newaxis]
        _check_shape(array.shape, spec, value, description)
        tensors.append((name, spec.data_type, array))
    if len(set(is_sample.values())) > 1:
        sample = next(name for name, single in is_sample.items() if single)
        batch = next(name for name, single in is_sample.items() if not single)
        raise InvalidInputError(
            f"input {sample!r} is one sample and input {batch!r} is a batch (expected a batch axis "
            "on all inputs or on none)"
        )
    return tensors, any(is_sample.values())


def prepare_steps(description: ModelDescription, inputs: Inputs) -> tuple[PreparedTensors, bool]:
    """Convert the next steps of a sequence to what a recurrent model takes.

    Args:
        description: the model.
        inputs: as of `prepare_inputs`. One step of one sequence may be without the axis of time,
            too; lengths may be left out, where all rows have all steps.

    Returns:
        As `prepare_inputs`.

    Raises:
        InvalidInputError: a name, dtype, shape or value does not fit.
    """
    time_axes = dict(description.message.sequences.time_axes)
    specs = {spec.name: spec for spec in description.inputs}
    if not isinstance(inputs, Mapping):
        required = [one for one in description.inputs if not one.optional and not _has_lengths(one)]
        if len(required) != 1:
            return prepare_inputs(description, inputs)
        inputs = {required[0].name: inputs}
    values = dict(inputs)
    lengths: Array | None = None
    for name, axis in time_axes.items():
        if name not in values or name not in specs or is_image(values[name], specs[name]):
            continue
        array = _to_numpy(values[name], specs[name])
        missing_axes = len(specs[name].shape) - array.ndim
        if missing_axes == 2:
            values[name] = array = np.expand_dims(array, axis - 1)
            missing_axes = 1
        if missing_axes == 1 and axis - 1 < array.ndim:
            lengths = np.asarray(array.shape[axis - 1])
        elif not missing_axes and axis < array.ndim:
            lengths = np.full(array.shape[0], array.shape[axis])
    for spec in description.inputs:
        if lengths is not None and spec.name not in values and _has_lengths(spec):
            values[spec.name] = lengths
    return prepare_inputs(description, values)


def _has_lengths(spec: TensorSpec) -> bool:
    """Whether an input has the lengths of sequences: it says so, or is named and typed like it."""
    is_named_so = "len" in spec.name.lower() and "INT" in spec.dtype and len(spec.shape) == 1
    return bool(spec.lengths_of) or (is_named_so and not spec.optional)


def prepare_undescribed_inputs(inputs: Inputs) -> PreparedTensors:
    """Take arrays by name as they are, for a model whose description the token may not read.

    Raises:
        InvalidInputError: the inputs are not a dict of arrays of dtypes that can be sent.
    """
    tensors: PreparedTensors = []
    for name, array in inputs.items() if isinstance(inputs, Mapping) else ():
        if isinstance(array, np.ndarray):
            try:
                tensors.append((name, data_type(array.dtype), array))
            except TensorError as error:
                raise InvalidInputError(f"input {name!r}: {error}") from error
    if not isinstance(inputs, Mapping) or len(tensors) < len(inputs):
        raise InvalidInputError(
            "model description not available to this token: pass a dict of numpy arrays by input "
            "name, each with the model's dtype and the batch axis first"
        )
    return tensors


def is_image(value: object, spec: TensorSpec) -> bool:
    """Whether a value is an encoded image; bytes for a STRING input are text."""
    return (
        isinstance(value, (bytes, bytearray, Path, EncodedImage))
        and spec.data_type != DATA_TYPE_STRING
    )


def as_array(value: Any, spec: TensorSpec) -> Array:
    """Convert a value to the dtype of an input without losing information.

    Numbers may be rounded to the precision of a floating dtype, but are neither truncated to
    integers nor wrapped into a smaller range.

    Args:
        value: an array, a number, text, or nested lists of these.
        spec: the input.

    Returns:
        An array of the numpy dtype of the input: object for STRING; for BFLOAT16 its bits, uint16.

    Raises:
        InvalidInputError: a value that the dtype cannot hold.
    """
    array = _to_numpy(value, spec)
    if spec.data_type == DATA_TYPE_STRING:
        return _to_strings(array, spec)
    if spec.data_type == DATA_TYPE_BFLOAT16:
        return _to_bfloat16_bits(array, spec)
    dtype = NUMPY_DTYPES.get(spec.data_type)
    if dtype is None:
        raise InvalidInputError(
            f"input {spec.name!r} has dtype {spec.dtype}, unknown to this client: update the client"
        )
    if array.dtype == dtype:
        return array
    if array.size == 0 and isinstance(value, (list, tuple)):
        return array.astype(dtype)  # an empty list has no dtype
    if isinstance(value, (list, tuple)) and array.dtype.kind == "f" and dtype.kind in "iu":
        array = _exact_integers(value, array)
    if array.dtype.kind not in "biuf":
        raise InvalidInputError(
            f"input {spec.name!r} has values of {_kind(array)} (expected numbers, {spec.dtype})"
        )
    with np.errstate(all="ignore"):
        converted = array.astype(dtype)
        if dtype.kind == "f":
            inexact = _loses_float_information(array, converted)
        else:
            # Compared in the original dtype, so that 2**63 differs from what it was rounded to.
            inexact = (converted.astype(array.dtype) != array) | ((converted < 0) != (array < 0))
            if array.dtype.kind == "f":
                inexact |= ~np.isfinite(array) | ~_in_integer_range(array, dtype)
    if np.any(inexact):
        values = ", ".join(str(one) for one in array[inexact].ravel()[:_MAX_SHOWN_VALUES].tolist())
        raise InvalidInputError(
            f"input {spec.name!r} has {array.dtype} values that {spec.dtype} cannot hold: {values} "
            "(convert them before the call if that is intended)"
        )
    return converted


def _to_numpy(value: Any, spec: TensorSpec) -> Array:
    if isinstance(value, np.ma.MaskedArray) and np.ma.is_masked(value):
        raise InvalidInputError(
            f"input {spec.name!r} has masked values: fill them (expected a value everywhere)"
        )
    # numpy's own text dtype drops trailing zeros, and turns numbers in the same list into text.
    keeps_objects = spec.data_type == DATA_TYPE_STRING and not isinstance(value, np.ndarray)
    try:
        return np.asarray(value, dtype=object if keeps_objects else None)
    except ValueError as error:
        raise InvalidInputError(
            f"input {spec.name!r} has nested lists that differ in length (expected a regular "
            f"array): {error}"
        ) from error


def _exact_integers(value: Any, array: Array) -> Array:
    """Return a list of integers exactly, where numpy made floats of it (as of [2**64 - 1, 0])."""
    exact = np.asarray(value, dtype=object)
    if all(isinstance(one, int) for one in exact.ravel()):
        for dtype in (np.int64, np.uint64):
            with contextlib.suppress(OverflowError):
                return exact.astype(dtype)
    return array


def _loses_float_information(array: Array, converted: Array) -> NDArray[np.bool_]:
    if array.dtype.kind == "f":  # finite numbers that became infinite
        return np.asarray(np.isinf(converted) & np.isfinite(array))
    inexact = ~np.isfinite(converted) | ~_in_integer_range(converted, array.dtype)
    return np.asarray(inexact | (converted.astype(array.dtype) != array))


def _in_integer_range(floats: Array, integer_dtype: np.dtype[Any]) -> NDArray[np.bool_]:
    """Where floats are in the range of an integer dtype, whose limits need not be floats."""
    if integer_dtype.kind == "b":
        return np.isin(floats, (0, 1))
    limits = np.iinfo(integer_dtype)
    return np.asarray((floats >= float(limits.min)) & (floats < float(limits.max) + 1))


def _to_strings(array: Array, spec: TensorSpec) -> Array:
    if array.dtype.kind in "US":
        return array.astype(object)
    if array.dtype.kind == "O" and all(isinstance(one, (str, bytes)) for one in array.ravel()):
        return array
    if array.size == 0:
        return array.astype(object)
    raise InvalidInputError(
        f"input {spec.name!r} has values of {_kind(array)} (expected text, STRING)"
    )


def _to_bfloat16_bits(array: Array, spec: TensorSpec) -> Array:
    """Return the upper half of float32, rounded to the nearest, ties to even."""
    if array.dtype.name == "bfloat16":
        return array.view(np.uint16)
    if array.dtype == np.uint16:
        return array
    if array.dtype.kind not in "fiu":
        raise InvalidInputError(
            f"input {spec.name!r} has values of {_kind(array)} (expected numbers, BFLOAT16, or "
            "their bits as uint16)"
        )
    single = as_array(array, TensorSpec(spec.name, "FLOAT", (), data_type=DATA_TYPE_FLOAT))
    bits = np.ascontiguousarray(single).view(np.uint32).reshape(single.shape)
    rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
    rounded = np.where(np.isnan(single), (bits >> 16) | 0x40, rounded).astype(np.uint16)
    is_infinite = (rounded & 0x7FFF) == 0x7F80
    if np.any(np.isfinite(single) & is_infinite):
        raise InvalidInputError(f"input {spec.name!r} has values that BFLOAT16 cannot hold")
    return rounded


def _kind(array: Array) -> str:
    if array.dtype.kind == "O":
        first = array.ravel()[0] if array.size else None
        return f"type {type(first).__name__}"
    return f"dtype {array.dtype}"


def _encoded_images(value: object, spec: TensorSpec) -> Array | None:
    """Return the files that the server is to decode, None if there are none.

    Without Pillow all images are sent so, where the server takes them.
    """
    images = value if isinstance(value, (list, tuple)) else [value]
    if not images or not all(isinstance(one, EncodedImage) for one in images):
        is_encoded = is_image(value, spec) and spec.image is not None and not _has_pillow()
        if not is_encoded:
            return None
    if spec.image is None:
        raise InvalidInputError(
            f"input {spec.name!r} takes no encoded images: its model says nothing of images "
            "(expected an array, or bytes or a path for the client to decode)"
        )
    contents = np.empty(len(images), dtype=object)
    for index, one in enumerate(images):
        source = one.source if isinstance(one, EncodedImage) else one
        try:
            contents[index] = source.read_bytes() if isinstance(source, Path) else bytes(source)
        except OSError as error:
            reason = error.strerror or error
            raise InvalidInputError(f"image {str(source)!r} cannot be read: {reason}") from error
    return contents


def _has_pillow() -> bool:
    try:
        importlib.import_module("PIL")
    except ImportError:
        return False
    return True


def _has_rows(spec: TensorSpec) -> bool:
    """Whether axis 0 of an input of images counts them."""
    is_grey = spec.image is not None and spec.image.layout == IMAGE_LAYOUT_HW
    return len(spec.shape) > (2 if is_grey else 3)


def _convert(value: Any, spec: TensorSpec) -> Array:
    if is_image(value, spec):
        from neurona_client.images import image_to_array

        return as_array(image_to_array(value, spec), spec)
    return as_array(value, spec)


def _lacks_batch_axis(
    shape: tuple[int, ...], spec: TensorSpec, description: ModelDescription
) -> bool:
    """Whether only the batch axis is missing.

    The first axis of a model that is not batched may be anything, such as time, unless it is 1.
    """
    if not spec.shape or len(shape) != len(spec.shape) - 1:
        return False
    return description.batched or spec.shape[0] == 1


def _check_shape(
    shape: tuple[int, ...], spec: TensorSpec, value: object, description: ModelDescription
) -> None:
    expected = spec.shape
    if spec.any_shape:
        return
    if len(shape) == len(expected) and all(
        size in (-1, actual) for size, actual in zip(expected, shape, strict=True)
    ):
        return
    received = list(np.shape(value)) if isinstance(value, np.ndarray) else list(shape)
    hint = f"expected {list(expected)}"
    if description.batched and len(expected) > 1:
        hint += f", or {list(expected[1:])} for one sample"
    if -1 in expected:
        hint += "; -1: any size"
    raise InvalidInputError(f"input {spec.name!r} has shape {received} ({hint})")


def _listed_inputs(description: ModelDescription) -> str:
    return ", ".join(
        f"{spec.name!r} ({spec.dtype} {'of any shape' if spec.any_shape else list(spec.shape)}"
        f"{', optional' if spec.optional else ''})"
        for spec in description.inputs
    )
