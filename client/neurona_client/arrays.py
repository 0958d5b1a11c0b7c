"""What callers give as an input, brought to the dtype that the model takes, or refused."""

import contextlib
from typing import Any

import numpy as np
from numpy.typing import NDArray

from neurona_client.descriptions import TensorSpec
from neurona_client.errors import InvalidInputError
from neurona_protos.prediction_pb2 import DATA_TYPE_BFLOAT16, DATA_TYPE_FLOAT, DATA_TYPE_STRING
from neurona_protos.tensors import NUMPY_DTYPES

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
