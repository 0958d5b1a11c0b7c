"""A user's arrays in one .npz file of numpy's: sequences, images or rows of numbers.

    numpy.savez("gestures.npz", X=…, y=…)                      or inputs, targets
    numpy.savez("digits.npz", x_train=…, y_train=…, x_test=…, y_test=…)

inputs    numbers: sequences (rows, time, channels), all of one length or padded at the end;
          all steps of sequences one after the other, (steps, channels), with lengths; images
          (rows, height, width), of 8-bit levels or called "images", or with colours first or last;
          or rows of a table, (rows, columns)
targets   (rows,) text or up to ten different integers for classes, or (rows, classes) with a 1
          for the class of each row; other numbers, (rows,) or (rows, values), for values
lengths   optional, integers (rows,): the steps of each sequence. Without them, steps at the end
          that are NaN are padding, and sequences without padding have one length
channels  optional, (channels,): the name of each channel or column
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from neurona_client.files.arrays import (
    CHANNELS,
    INPUTS,
    LENGTHS,
    TARGETS,
    channel_numbers,
    channels_first,
    describe,
    find_parts,
    has_images,
    read_arrays,
    read_sequences,
)
from neurona_client.files.content import FileContentError
from neurona_training.data import Dataset, Input, Split, Value
from neurona_training.data.splits import (
    Target,
    encode_classes,
    infer_task,
    split_rows,
)
from neurona_training.data.user.chosen_parts import describe_division, divide_as_chosen
from neurona_training.data.user.spec import UserData
from neurona_training.errors import DataError

_MAX_LEVEL = 255


def load_arrays(user_data: UserData) -> Dataset:
    """Reads sequences, images or rows.

    Raises:
        DataError: with the array that is wrong.
    """
    arrays = _read_arrays(user_data)
    try:
        by_part = find_parts(arrays)
        parts = _row_parts(user_data, arrays, by_part)
        joined = {
            role: _join([by_part[part] for part in dict.fromkeys(parts)], role)
            for role in (INPUTS, TARGETS, LENGTHS)
            if any(role in one for one in by_part.values())
        }
        inputs, lengths, described = _read_inputs(user_data, arrays, by_part, joined)
    except FileContentError as error:
        raise DataError(f"{user_data.path}: {error}") from error
    where = f"{user_data.path}, targets"
    target = _read_target(user_data, joined[TARGETS], len(inputs))
    divided = "" not in parts
    rows_by_part = divide_as_chosen(target, parts, where) if divided else split_rows(target, where)
    train, validation, test = (
        Split(inputs[rows], target.targets[rows], None if lengths is None else lengths[rows])
        for rows in rows_by_part
    )
    source = f"{user_data.path.name}, {len(inputs):,} {_describe_rows(inputs, lengths, described)}"
    return Dataset(
        name=user_data.name,
        source=f"{source}, {describe_division(parts)}" if divided else source,
        train=train,
        validation=validation,
        test=test,
        input=described,
        labels=target.labels,
        values=target.values,
    )


def _read_arrays(user_data: UserData) -> dict[str, NDArray[Any]]:
    path = user_data.path
    try:
        arrays = read_arrays(path)
    except FileContentError as error:
        raise DataError(f"{path}: {error}") from error
    except OSError as error:
        raise DataError(f"{path}: unreadable: {error.strerror or error}") from error
    if not isinstance(arrays, dict):
        raise DataError(f"{path}: one array (expected an .npz file of numpy.savez)")
    return arrays


def _row_parts(
    user_data: UserData,
    arrays: Mapping[str, NDArray[Any]],
    by_part: Mapping[str, Mapping[str, NDArray[Any]]],
) -> Sequence[str]:
    """The part of each row, "" if the file does not divide them."""
    named = [part for part, some in by_part.items() if INPUTS in some or TARGETS in some]
    for role, names in ((INPUTS, "inputs or X"), (TARGETS, "targets or y")):
        missing = [part for part in named or [""] if role not in by_part.get(part, {})]
        if missing:
            raise DataError(
                f"{user_data.path}: no array {role!r}{f' for {missing[0]}' if missing[0] else ''}; "
                f"available: {', '.join(arrays) or 'none'} (expected {names})"
            )
    if ("" in named and len(named) > 1) or ("" not in named and "train" not in named):
        raise DataError(
            f"{user_data.path}: arrays {', '.join(arrays)} (expected one array of inputs, or some "
            "for train, and for val and test)"
        )
    lengths = [LENGTHS in by_part[part] for part in named]
    if any(lengths) and not all(lengths):
        raise DataError(f"{user_data.path}: lengths of some parts (expected them for all)")
    return [part for part in named for _ in range(_count_rows(part, by_part[part]))]


def _count_rows(part: str, arrays: Mapping[str, NDArray[Any]]) -> int:
    """The rows of a part. Joined with another part, one too many would take the other's target."""
    role = LENGTHS if LENGTHS in arrays else INPUTS
    rows, targets = arrays[role], arrays[TARGETS]
    if not rows.ndim or not targets.ndim or len(rows) != len(targets):
        raise FileContentError(
            f"{f'{part} ' if part else ''}targets: {describe(targets)} for {role}: "
            f"{describe(rows)} (expected one for each row)"
        )
    return len(targets)


def _join(parts: Sequence[Mapping[str, NDArray[Any]]], role: str) -> NDArray[Any]:
    some = [part[role] for part in parts]
    if len(some) == 1:
        return some[0]
    is_sequences = all(array.ndim == 3 and array.dtype.kind in "fiub" for array in some)
    if role == INPUTS and is_sequences and some[0].dtype != np.uint8:
        longest = max(array.shape[1] for array in some)  # each part may be padded for itself
        filler = np.nan if LENGTHS not in parts[0] else 0
        some = [
            np.pad(
                array.astype(np.float32),
                ((0, 0), (0, longest - array.shape[1]), (0, 0)),
                constant_values=filler,
            )
            for array in some
        ]
    try:
        return np.concatenate(some)
    except ValueError as error:
        shapes = ", ".join(str(list(array.shape)) for array in some)
        raise FileContentError(
            f"{role}: parts of shapes {shapes} (expected the same but for the rows)"
        ) from error


def _read_inputs(
    user_data: UserData,
    arrays: Mapping[str, NDArray[Any]],
    by_part: Mapping[str, Mapping[str, NDArray[Any]]],
    joined: Mapping[str, NDArray[Any]],
) -> tuple[NDArray[np.float32], NDArray[np.int32] | None, Input]:
    """Returns the rows, the lengths of sequences that differ, and what the rows mean."""
    inputs = joined[INPUTS]
    if has_images(arrays):
        return _read_images(inputs), None, _describe_images(inputs)
    if LENGTHS in joined or inputs.ndim != 2:
        rows, steps = read_sequences(joined)
        names = _channel_names(user_data, by_part, rows.shape[2], "channels")
        lengths = None if (steps == rows.shape[1]).all() and LENGTHS not in joined else steps
        return rows, lengths, _describe_sequences(names)
    rows = _to_floats(inputs)
    names = _channel_names(user_data, by_part, rows.shape[1], "columns")
    return rows, None, _describe_columns(names)


def _read_images(inputs: NDArray[Any]) -> NDArray[np.float32]:
    images = channels_first(inputs)
    if images.ndim not in (3, 4) or (images.ndim == 4 and images.shape[1] != 3):
        raise FileContentError(
            f"inputs: {describe(inputs)} (expected images: (rows, height, width), with 1 or 3 "
            "colours before or after height and width)"
        )
    return _to_floats(images)


def _to_floats(inputs: NDArray[Any]) -> NDArray[np.float32]:
    if inputs.dtype.kind not in "fiub":
        raise FileContentError(f"inputs: {describe(inputs)} (expected numbers)")
    with np.errstate(over="ignore"):  # what is too large becomes infinite, reported below
        floats = np.ascontiguousarray(inputs, np.float32)
    finite = np.isfinite(floats).reshape(len(floats), -1).all(axis=1)
    if not finite.all():
        raise FileContentError(f"inputs: row {int(finite.argmin())} is not finite")
    return floats


def _describe_images(inputs: NDArray[Any]) -> Input:
    images = channels_first(inputs)
    is_rgb = images.ndim == 4
    colours = "red, green and blue" if is_rgb else "grey levels"
    is_8_bit = inputs.dtype == np.uint8 or (inputs.max() > 1 and inputs.max() <= _MAX_LEVEL)
    highest = _MAX_LEVEL if is_8_bit else 1
    in_range = inputs.min() >= 0 and inputs.max() <= highest
    scale = f": 0 is black, {highest} is the brightest" if in_range else ""
    return Input(
        name="image",
        axes=("batch", "channel", "height", "width") if is_rgb else ("batch", "height", "width"),
        description=f"{colours} of {images.shape[-1]} x {images.shape[-2]} pixels{scale}",
        unit=f"level 0..{highest}" if in_range else "as in the file",
    )


def _describe_sequences(channels: tuple[str, ...]) -> Input:
    return Input(
        name="sequence",
        axes=("batch", "time", "channel"),
        description=f"channels of each step: {', '.join(channels)}",
        unit="as in the file",
        columns=channels,
    )


def _describe_columns(columns: tuple[str, ...]) -> Input:
    return Input(
        name="features",
        axes=("batch", "column"),
        description=f"numbers of each row: {', '.join(columns)}",
        unit="as in the file",
        columns=columns,
    )


def _describe_rows(
    inputs: NDArray[np.float32], lengths: NDArray[np.int32] | None, described: Input
) -> str:
    if "time" in described.axes:
        if lengths is None:
            return f"sequences of {inputs.shape[1]} steps"
        return f"sequences of {lengths.min()} to {lengths.max()} steps"
    return "images" if "height" in described.axes else "rows"


def _channel_names(
    user_data: UserData,
    by_part: Mapping[str, Mapping[str, NDArray[Any]]],
    count: int,
    what: str,
) -> tuple[str, ...]:
    given = [part[CHANNELS] for part in by_part.values() if CHANNELS in part]
    names = given[0] if given else np.array(channel_numbers(count))
    if names.shape != (count,):
        raise DataError(f"{user_data.path}, channels: {names.size} names for {count} {what}")
    return tuple(str(name) for name in names)


def _is_one_hot(targets: NDArray[Any]) -> bool:
    """Whether each row is 1 for its class and 0 for the others."""
    if targets.ndim != 2 or targets.dtype.kind not in "fiub":
        return False
    is_one = targets == 1
    return bool((is_one | (targets == 0)).all() and (is_one.sum(axis=1) == 1).all())


def _read_target(user_data: UserData, targets: NDArray[Any], rows: int) -> Target:
    where = f"{user_data.path}, targets"
    if targets.dtype.kind == "S":  # as HDF5 and C keep text
        targets = np.char.decode(targets, "utf-8", "replace")
    if targets.ndim == 2 and targets.shape[1] == 1:
        targets = targets[:, 0]  # as a column
    elif user_data.task != "regression" and _is_one_hot(targets):
        targets = targets.argmax(axis=1)
    if targets.ndim not in (1, 2) or len(targets) != rows or targets.dtype.kind not in "fiubU":
        raise DataError(f"{where}: {describe(targets)} (expected numbers or text for {rows} rows)")
    is_text = targets.dtype.kind == "U"
    if not is_text and not np.isfinite(targets).all():
        row = np.argwhere(~np.isfinite(targets))[0][0]
        raise DataError(f"{where}: row {row} is not finite")
    task = user_data.task
    if task is None:
        one_value = targets.ndim == 1
        task = infer_task(list(targets), numeric=not is_text) if one_value else "regression"
    if task == "classification":
        if targets.ndim != 1:
            raise DataError(f"{where}: {describe(targets)} (expected classes of shape (rows,))")
        integers = targets.dtype.kind == "f" and (targets == np.round(targets)).all()
        names = [str(int(one) if integers else one) for one in targets.tolist()]
        return encode_classes(names, where)
    if is_text:
        raise DataError(f"{where}: text (expected numbers for a regression)")
    values = targets.reshape(rows, -1).astype(np.float32)
    count = values.shape[1]
    names = ["value"] if count == 1 else [f"value {number}" for number in range(1, count + 1)]
    return Target(values, values=tuple(Value(name, user_data.unit) for name in names))
