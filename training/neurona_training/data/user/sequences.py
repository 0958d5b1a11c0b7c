"""A user's sequences of different lengths, in one .npz file of numpy's.

    numpy.savez("gestures.npz", inputs=…, lengths=…, targets=…, channels=…)

inputs    numbers: (rows, time, channels), padded at the end; or all steps of all sequences one
          after the other, (steps, channels)
lengths   integers (rows,): the steps of each sequence
targets   (rows,) text or up to ten different integers for classes; other numbers, (rows,) or
          (rows, values), for values
channels  optional, (channels,): the name of each
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from neurona_client.files.arrays import (
    CHANNELS,
    channel_numbers,
    describe,
    read_arrays,
    read_sequences,
)
from neurona_client.files.content import FileContentError
from neurona_training.data import Dataset, Input, Split, Value
from neurona_training.data.splits import Target, encode_classes, infer_task, split_rows
from neurona_training.data.user.spec import UserData
from neurona_training.errors import DataError

_REQUIRED = ("inputs", "lengths", "targets")


def load_sequences(user_data: UserData) -> Dataset:
    """Reads sequences, padded with zeros, (rows, time, channels).

    Raises:
        DataError: with the key of the array that is wrong.
    """
    arrays = _read_arrays(user_data)
    try:
        inputs, lengths = read_sequences(arrays)
    except FileContentError as error:
        raise DataError(f"{user_data.path}: {error}") from error
    target = _read_target(user_data, arrays["targets"], len(lengths))
    train, validation, test = (
        Split(inputs[rows], target.targets[rows], lengths[rows])
        for rows in split_rows(target, f"{user_data.path}, targets")
    )
    channels = arrays.get(CHANNELS, np.array(channel_numbers(inputs.shape[2])))
    if channels.shape != (inputs.shape[2],):
        raise DataError(
            f"{user_data.path}, channels: {channels.size} names for {inputs.shape[2]} channels"
        )
    channel_names = tuple(str(name) for name in channels)
    return Dataset(
        name=user_data.name,
        source=f"{user_data.path.name}, {len(lengths):,} sequences of {lengths.min()} to "
        f"{lengths.max()} steps",
        train=train,
        validation=validation,
        test=test,
        input=Input(
            name="sequence",
            axes=("batch", "time", "channel"),
            description=f"channels of each step: {', '.join(channel_names)}",
            unit="as in the file",
            columns=channel_names,
        ),
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
    for name in _REQUIRED:
        if name not in arrays:
            raise DataError(
                f"{path}: no array {name!r}; available: {', '.join(arrays) or 'none'} "
                f"(expected {', '.join(_REQUIRED)})"
            )
    return arrays


def _read_target(user_data: UserData, targets: NDArray[Any], rows: int) -> Target:
    where = f"{user_data.path}, targets"
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
