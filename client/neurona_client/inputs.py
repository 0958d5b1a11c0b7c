"""Inputs of one call held against what the model takes: by name, with the batch axis."""

import contextlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from neurona_client.descriptions import Description, TensorSpec
from neurona_client.errors import InvalidInputError
from neurona_protos.prediction_pb2 import (
    DATA_TYPE_BFLOAT16,
    DATA_TYPE_FLOAT,
    DATA_TYPE_STRING,
    DataType,
)
from neurona_protos.tensors import NUMPY_DTYPES, TensorError, data_type

Array = NDArray[Any]

_EXACT = 3  # values are shown of those that do not fit


def as_array(value: Any, spec: TensorSpec) -> Array:
    """Numbers may be rounded to the precision of a floating dtype, but neither cut to whole
    numbers nor changed by a range that is too small. BFLOAT16 comes out as its bits, uint16.

    Raises InvalidInputError with the input's name.
    """
    number = spec.number
    array = _given(value, spec)
    if number == DATA_TYPE_STRING:
        return _strings(array, spec)
    if number == DATA_TYPE_BFLOAT16:
        return _bfloat16(array, spec)
    wanted = NUMPY_DTYPES.get(number)
    if wanted is None:
        raise InvalidInputError(
            f"input {spec.name!r} has dtype {spec.dtype}, which this client does not know"
        )
    if array.dtype == wanted:
        return array
    if array.size == 0 and isinstance(value, (list, tuple)):
        return array.astype(wanted)  # an empty list is of no dtype
    if isinstance(value, (list, tuple)) and array.dtype.kind == "f" and wanted.kind in "iu":
        array = _whole(value, array)
    if array.dtype.kind not in "biuf":
        raise InvalidInputError(
            f"input {spec.name!r} has values of {_kind(array)}; expected numbers ({spec.dtype})"
        )
    with np.errstate(all="ignore"):
        converted = array.astype(wanted)
        if wanted.kind == "f":
            lost = _rounded_too_far(array, converted)
        else:
            # Compared as they were, so that 2**63 is not equal to what it was rounded to.
            lost = (converted.astype(array.dtype) != array) | ((converted < 0) != (array < 0))
            if array.dtype.kind == "f":
                lost |= ~np.isfinite(array) | ~_inside(array, wanted)
    if np.any(lost):
        shown = ", ".join(str(one) for one in array[lost].ravel()[:_EXACT].tolist())
        raise InvalidInputError(
            f"input {spec.name!r} has dtype {spec.dtype}, and {array.dtype} values that it cannot "
            f"hold: {shown}; convert them yourself if that is meant"
        )
    return converted


def _given(value: Any, spec: TensorSpec) -> Array:
    """As numpy has it."""
    if isinstance(value, np.ma.MaskedArray) and np.ma.is_masked(value):
        raise InvalidInputError(
            f"input {spec.name!r} has masked values, which a model cannot be given: fill them"
        )
    # numpy's own text drops zeros at its end, and makes text of numbers beside it.
    text = spec.number == DATA_TYPE_STRING and not isinstance(value, np.ndarray)
    try:
        return np.asarray(value, dtype=object if text else None)
    except ValueError as error:
        raise InvalidInputError(
            f"input {spec.name!r} is no regular array: its lists differ in length ({error})"
        ) from error


def _whole(value: Any, array: Array) -> Array:
    """Of a list of whole numbers that numpy has made floats, as of [2**64 - 1, 0], the exact
    ones."""
    exact = np.asarray(value, dtype=object)
    if all(isinstance(one, int) for one in exact.ravel()):
        for dtype in (np.int64, np.uint64):
            with contextlib.suppress(OverflowError):
                return exact.astype(dtype)
    return array


def _rounded_too_far(array: Array, converted: Array) -> NDArray[np.bool_]:
    if array.dtype.kind == "f":  # finite numbers that became infinite
        return np.asarray(np.isinf(converted) & np.isfinite(array))
    lost = ~np.isfinite(converted) | ~_inside(converted, array.dtype)
    return np.asarray(lost | (converted.astype(array.dtype) != array))


def _inside(floats: Array, whole: np.dtype[Any]) -> NDArray[np.bool_]:
    """Where a float is in the range of an integer dtype, whose ends a float cannot always hold."""
    if whole.kind == "b":
        return np.isin(floats, (0, 1))
    about = np.iinfo(whole)
    return np.asarray((floats >= float(about.min)) & (floats < float(about.max) + 1))


def _strings(array: Array, spec: TensorSpec) -> Array:
    if array.dtype.kind in "US":
        return array.astype(object)
    if array.dtype.kind == "O" and all(isinstance(one, (str, bytes)) for one in array.ravel()):
        return array
    if array.size == 0:
        return array.astype(object)
    raise InvalidInputError(
        f"input {spec.name!r} has values of {_kind(array)}; expected text (STRING)"
    )


def _bfloat16(array: Array, spec: TensorSpec) -> Array:
    """The upper half of a float32, rounded to the nearest, halves to the even one."""
    if array.dtype.name == "bfloat16":
        return array.view(np.uint16)
    if array.dtype == np.uint16:
        return array
    if array.dtype.kind not in "fiu":
        raise InvalidInputError(
            f"input {spec.name!r} has values of {_kind(array)}; expected numbers (BFLOAT16), or "
            "their bits as uint16"
        )
    single = as_array(array, TensorSpec(spec.name, "FLOAT", (), number=DATA_TYPE_FLOAT))
    bits = np.ascontiguousarray(single).view(np.uint32).reshape(single.shape)
    rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
    rounded = np.where(np.isnan(single), (bits >> 16) | 0x40, rounded).astype(np.uint16)
    if np.any(np.isfinite(single) & np.isinf(from_bfloat16(rounded))):
        raise InvalidInputError(f"input {spec.name!r} has values that BFLOAT16 cannot hold")
    return rounded


def from_bfloat16(bits: Array) -> NDArray[np.float32]:
    return (bits.astype(np.uint32) << 16).view(np.float32)


def _kind(array: Array) -> str:
    if array.dtype.kind == "O":
        first = array.ravel()[0] if array.size else None
        return f"type {type(first).__name__}"
    return f"dtype {array.dtype}"


Given = NDArray[Any] | float | str | bytes | Path | list[Any] | tuple[Any, ...]
Inputs = Given | Mapping[str, Given]

Ready = list[tuple[str, DataType, Array]]
"""Of each tensor: its name, its dtype's number, its array."""


def ready(described: Description, inputs: Inputs) -> tuple[Ready, bool]:
    """The tensors of a request, and whether they are one sample that was given no batch axis.

    Raises InvalidInputError.
    """
    specs = {spec.name: spec for spec in described.inputs}
    needed = [spec for spec in described.inputs if not spec.optional]
    if isinstance(inputs, Mapping):
        given = dict(inputs)
    elif len(needed) == 1 or (not needed and len(specs) == 1):
        given = {(needed or described.inputs)[0].name: inputs}
    else:
        raise InvalidInputError(
            f"model {described.name!r} takes {_listed(described)}: give a dict with an array for "
            "each name"
        )
    unknown = [name for name in given if name not in specs]
    missing = [spec.name for spec in needed if spec.name not in given]
    if unknown or missing:
        wrong = [f"no input is called {name!r}" for name in unknown]
        wrong += [f"input {name!r} is missing" for name in missing]
        raise InvalidInputError(
            f"{', '.join(wrong)}; model {described.name!r} takes {_listed(described)}"
        )
    arrays: Ready = []
    singles: dict[str, bool] = {}
    for name, value in given.items():
        spec = specs[name]
        array = _array(value, spec)
        if not spec.optional:
            singles[name] = _is_sample(array.shape, spec, described)
            if singles[name]:
                array = array[np.newaxis]
        _check(array.shape, spec, value, described)
        arrays.append((name, spec.number, array))
    if len(set(singles.values())) > 1:
        one = next(name for name, single in singles.items() if single)
        many = next(name for name, single in singles.items() if not single)
        raise InvalidInputError(
            f"input {one!r} is one sample and input {many!r} a batch; expected the batch axis on "
            "all of them or on none"
        )
    return arrays, any(singles.values())


def unchecked(inputs: Inputs) -> Ready:
    """Of a model that the token may not have described: arrays by name, as they are."""
    arrays: Ready = []
    for name, array in inputs.items() if isinstance(inputs, Mapping) else ():
        if isinstance(array, np.ndarray):
            try:
                arrays.append((name, data_type(array.dtype), array))
            except TensorError as error:
                raise InvalidInputError(f"input {name!r}: {error}") from error
    if not isinstance(inputs, Mapping) or len(arrays) < len(inputs):
        raise InvalidInputError(
            "the server does not describe this model to this client: give a dict of numpy arrays "
            "by input name, each with the right dtype and the batch axis first"
        )
    return arrays


def is_image(value: object, spec: TensorSpec) -> bool:
    return isinstance(value, (bytes, bytearray, Path)) and spec.number != DATA_TYPE_STRING


def _array(value: Any, spec: TensorSpec) -> Array:
    if is_image(value, spec):
        from neurona_client.images import pixels

        return as_array(pixels(value, spec), spec)
    return as_array(value, spec)


def _is_sample(shape: tuple[int, ...], spec: TensorSpec, described: Description) -> bool:
    """Whether an array lacks the batch axis alone. Of a model that is not batched the first
    axis may be anything, such as time, unless it must be 1."""
    if not spec.shape or len(shape) != len(spec.shape) - 1:
        return False
    return described.batched or spec.shape[0] == 1


def _check(shape: tuple[int, ...], spec: TensorSpec, value: object, described: Description) -> None:
    wanted = spec.shape
    if len(shape) == len(wanted) and all(
        size in (-1, got) for size, got in zip(wanted, shape, strict=True)
    ):
        return
    came = list(np.shape(value)) if isinstance(value, np.ndarray) else list(shape)
    text = f"input {spec.name!r} has shape {came}; expected {list(wanted)}"
    if described.batched and len(wanted) > 1:
        text += f", or {list(wanted[1:])} for one sample"
    if -1 in wanted:
        text += " (-1: any size)"
    raise InvalidInputError(text)


def _listed(described: Description) -> str:
    return ", ".join(
        f"{spec.name!r} ({spec.dtype} {list(spec.shape)}{', optional' if spec.optional else ''})"
        for spec in described.inputs
    )
