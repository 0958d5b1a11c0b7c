"""Arrays of numpy, as NPY and NPZ files store them, and sequences of different lengths."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from neurona_client.files.content import FileContentError, begins_with

SUFFIXES = (".npy", ".npz")
"""Of files of arrays, in lower case."""

INPUTS, TARGETS, LENGTHS, CHANNELS = "inputs", "targets", "lengths", "channels"
"""Names of the arrays in a file of rows and what is known of them; the last two are optional."""

IMAGES = "images"
"""Another name of inputs, which says what they are."""

_NAMES = {
    INPUTS: (INPUTS, "x", "data", "features", "sequences", IMAGES),
    TARGETS: (TARGETS, "y", "target", "labels", "label"),
    LENGTHS: (LENGTHS, "length", "sequence_lens", "sequence_lengths"),
    CHANNELS: (CHANNELS, "channel_names", "feature_names", "columns"),
}
_PARTS = {
    "train": ("train", "training"),
    "validation": ("val", "valid", "validation", "dev"),
    "test": ("test", "testing"),
}
_ROLES = {name: role for role, names in _NAMES.items() for name in names}
_PART_NAMES = {name: part for part, names in _PARTS.items() for name in names}

PICKLE_REASON = "a pickle, which could run code"
"""Why such a file is not read, for a message."""

_PICKLE = re.compile(
    rb"\x80[\x02-\x05]|\([dl]p\d|[}\]]q\0|c(?:numpy|copy_reg|builtins|__builtin__)"
)
"""What a pickle begins with: protocol 2 and later, 0, 1, or an object of these modules."""


def is_pickle(path: Path) -> bool:
    """Whether a file begins as a pickle does, which is never read: it could run code."""
    return begins_with(path, _PICKLE)


def read_arrays(path: Path) -> NDArray[Any] | dict[str, NDArray[Any]]:
    """Read one array (NPY), or arrays by name (NPZ), whichever the file has.

    Raises:
        FileContentError: another format, a damaged file, or objects, which could run code.
        OSError: the file cannot be opened.
    """
    with path.open("rb") as file:
        start = file.read(12)
        file.seek(0)
        if not start:
            raise FileContentError("file is empty (expected arrays of numpy)")
        if not start.startswith((b"\x93NUMPY", b"PK\x03\x04", b"PK\x05\x06")):
            kind = PICKLE_REASON if _PICKLE.match(start) else "no array"
            raise FileContentError(
                f"content is {kind} (expected numbers or text as numpy.save or numpy.savez "
                "writes them)"
            )
        name = ""
        try:
            content = np.load(file, allow_pickle=False)
            if isinstance(content, np.ndarray):
                return content
            arrays = {}
            with content:
                for name in content.files:
                    arrays[name] = content[name]
        except Exception as error:  # numpy and zipfile raise anything when a file is damaged
            raise FileContentError(_describe_failure(name, error)) from error
    for name, array in arrays.items():
        if not isinstance(array, np.ndarray):  # any other entry of a zip file: its bytes
            raise FileContentError(f"entry {name!r} is no array (expected an NPZ file)")
    return arrays


def _describe_failure(name: str, error: Exception) -> str:
    where = f"array {name!r}" if name else "array"
    reason = " ".join(str(error).split()) or type(error).__name__
    if "allow_pickle" in reason:
        return (
            f"{where} has Python objects, which could run code (expected a dtype of numbers or "
            "text: array.astype(float), array.astype(str))"
        )
    return f"{where} cannot be read: {reason}"


def find_parts(arrays: Mapping[str, NDArray[Any]]) -> dict[str, dict[str, NDArray[Any]]]:
    """Find rows and what is known of them by the names that libraries give to such arrays.

    Names are case-insensitive: X and y, x_train and y_train, train_images and train_labels, or
    those of this module. Other arrays are left out.

    Returns:
        By part, "train", "validation" and "test" or "" for all rows, the arrays by INPUTS, TARGETS,
        LENGTHS and CHANNELS.

    Raises:
        FileContentError: two arrays have the same meaning.
    """
    parts: dict[str, dict[str, NDArray[Any]]] = {}
    names: dict[tuple[str, str], str] = {}
    for name, array in arrays.items():
        part, role = _meaning(name)
        if not role:
            continue
        if (part, role) in names:
            raise FileContentError(
                f"arrays {names[part, role]!r} and {name!r} mean the same (expected one of them)"
            )
        names[part, role] = name
        parts.setdefault(part, {})[role] = array
    return parts


def has_images(arrays: Mapping[str, NDArray[Any]]) -> bool:
    """Whether the inputs of a file are images: by their name, their axes, or 8-bit levels."""
    if any(IMAGES in name.lower().split("_") for name in arrays):
        return True
    inputs = [one[INPUTS] for one in find_parts(arrays).values() if INPUTS in one]
    has_lengths = any(LENGTHS in one for one in find_parts(arrays).values())
    return not has_lengths and any(
        array.ndim == 4 or (array.ndim == 3 and array.dtype == np.uint8) for array in inputs
    )


def channels_first(images: NDArray[Any]) -> NDArray[Any]:
    """Return images of shape (rows, height, width, channels) as (rows, channels, height, width).

    One channel is left out: (rows, height, width). Others are returned as they are.
    """
    if images.ndim == 4 and images.shape[1] not in (1, 3) and images.shape[3] in (1, 3):
        images = np.moveaxis(images, 3, 1)
    return images[:, 0] if images.ndim == 4 and images.shape[1] == 1 else images


def _meaning(name: str) -> tuple[str, str]:
    """Return part and role that the name of an array says, "" if it says none."""
    lower = name.lower()
    if lower in _ROLES:
        return "", _ROLES[lower]
    first, _, rest = lower.partition("_")
    if first in _PART_NAMES and rest in _ROLES:
        return _PART_NAMES[first], _ROLES[rest]
    rest, _, last = lower.rpartition("_")
    if last in _PART_NAMES and rest in _ROLES:
        return _PART_NAMES[last], _ROLES[rest]
    return "", ""


def read_sequences(
    arrays: Mapping[str, NDArray[Any]],
) -> tuple[NDArray[np.float32], NDArray[np.int32]]:
    """Take sequences of different lengths from the arrays of a file.

    Args:
        arrays: `inputs`, numbers of shape (rows, time, channels) padded at the end, or all steps
            of all sequences one after the other, (steps, channels); and `lengths`, integers of
            shape (rows,), the steps of each sequence. Without lengths, steps at the end that are
            NaN in all channels are padding.

    Returns:
        The sequences, (rows, time, channels), padded with zeros to the longest; and the lengths.

    Raises:
        FileContentError: with the array that is wrong.
    """
    if INPUTS not in arrays:
        raise FileContentError(
            f"no array {INPUTS!r}; available: {', '.join(arrays) or 'none'} (expected {INPUTS} or "
            "x, and lengths)"
        )
    inputs = arrays[INPUTS]
    lengths = arrays[LENGTHS] if LENGTHS in arrays else _steps_before_padding(inputs)
    if lengths.ndim != 1 or not len(lengths) or lengths.dtype.kind not in "iu":
        raise FileContentError(f"lengths: {describe(lengths)} (expected integers of shape (rows,))")
    if lengths.min() < 1:
        raise FileContentError(
            f"lengths: row {lengths.argmin()} has {lengths.min()} steps (expected at least 1)"
        )
    if inputs.ndim not in (2, 3) or inputs.dtype.kind not in "fiub":
        raise FileContentError(
            f"inputs: {describe(inputs)} (expected numbers of shape (rows, time, channels) or "
            "(steps, channels))"
        )
    longest = int(lengths.max())
    if inputs.ndim == 2:
        total = sum(lengths.tolist())  # which no dtype limits
        if len(inputs) != total:
            raise FileContentError(
                f"inputs: {len(inputs)} steps (expected {total}, the sum of the lengths)"
            )
    elif len(inputs) != len(lengths) or inputs.shape[1] < longest:
        raise FileContentError(
            f"inputs: {describe(inputs)} for {len(lengths)} lengths of up to {longest} steps"
        )
    is_step = np.arange(longest) < lengths[:, None]  # the others are padding
    with np.errstate(over="ignore"):  # what is too large becomes infinite, reported below
        inputs = inputs.astype(np.float32)
    padded = np.zeros((len(lengths), longest, inputs.shape[-1]), np.float32)
    padded[is_step] = inputs if inputs.ndim == 2 else inputs[:, :longest][is_step]
    not_finite = np.argwhere(~np.isfinite(padded))
    if len(not_finite):
        row, step, channel = not_finite[0]
        raise FileContentError(f"inputs: row {row}, step {step}, channel {channel} is not finite")
    return padded, lengths.astype(np.int32)


def _steps_before_padding(inputs: NDArray[Any]) -> NDArray[np.int64]:
    """Return the steps of each row of (rows, time, channels) without those of NaN at its end."""
    if inputs.ndim != 3 or inputs.dtype.kind not in "fiub":
        raise FileContentError(
            f"inputs: {describe(inputs)} (expected numbers of shape (rows, time, channels), or "
            "lengths)"
        )
    steps = np.full(len(inputs), inputs.shape[1], np.int64)
    if inputs.dtype.kind == "f":
        is_step = ~np.isnan(inputs).all(axis=2)
        steps -= np.argmax(is_step[:, ::-1], axis=1)
    return steps


def channel_numbers(count: int) -> tuple[str, ...]:
    """Return the names of channels that have none in their file."""
    return tuple(str(number) for number in range(1, count + 1))


def describe(array: NDArray[Any]) -> str:
    """Return dtype and shape for a message."""
    return f"{array.dtype} of shape {list(array.shape)}"
