"""A user's sequences of different lengths, in one .npz file of numpy's.

    numpy.savez("gestures.npz", inputs=…, lengths=…, targets=…, channels=…)

inputs    numbers: (rows, time, channels), padded at the end; or all steps of all sequences one
          after the other, (steps, channels)
lengths   whole numbers (rows,): how many steps each sequence has
targets   (rows,) texts or up to ten different whole numbers for classes; other numbers, (rows,)
          or (rows, values), for values
channels  optional, (channels,): what each one is called
"""

from __future__ import annotations

import zipfile
from typing import Any

import numpy as np
from numpy.typing import NDArray

from neurona_training.data import Dataset, Input, Split, Value
from neurona_training.data.splits import Target, classes, divided, found_task
from neurona_training.data.user.load import Own
from neurona_training.errors import DataError

_NEEDED = ("inputs", "lengths", "targets")


def sequences(own: Own) -> Dataset:
    """Sequences padded with zeros, (rows, time, channels). Raises DataError with the key."""
    arrays = _read(own)
    lengths = _lengths(own, arrays)
    inputs = _padded(own, arrays["inputs"], lengths)
    target = _target(own, arrays["targets"], len(lengths))
    train, validation, test = (
        Split(inputs[rows], target.targets[rows], lengths[rows])
        for rows in divided(target, f"{own.path}, targets")
    )
    named = arrays.get("channels", np.arange(1, inputs.shape[2] + 1))
    if named.shape != (inputs.shape[2],):
        raise DataError(f"{own.path}, channels: {named.size} names for {inputs.shape[2]} channels")
    baselines = {}
    if not target.labels:
        baselines["mean"] = np.broadcast_to(train.targets.mean(axis=0), test.targets.shape).astype(
            np.float32
        )
    return Dataset(
        name=own.name,
        source=f"{own.path.name}, {len(lengths):,} sequences of {lengths.min()} to "
        f"{lengths.max()} steps",
        train=train,
        validation=validation,
        test=test,
        input=Input(
            name="sequence",
            axes=("batch", "time", "channel"),
            description=f"channels of each step: {', '.join(str(name) for name in named)}",
            unit="as in the file",
            columns=tuple(str(name) for name in named),
        ),
        labels=target.labels,
        values=target.values,
        baselines=baselines,
    )


def _read(own: Own) -> dict[str, NDArray[Any]]:
    if not zipfile.is_zipfile(own.path):
        raise DataError(f"{own.path} is no .npz file, as numpy.savez writes it")
    try:
        with np.load(own.path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
    except (OSError, ValueError, zipfile.BadZipFile) as error:
        reason = " ".join(str(error).split())
        raise DataError(f"{own.path} cannot be read as .npz: {reason}") from error
    for name in _NEEDED:
        if name not in arrays:
            raise DataError(
                f"{own.path}: no array {name!r}; it has {', '.join(arrays) or 'none'}, and needs "
                f"{', '.join(_NEEDED)}"
            )
    return arrays


def _lengths(own: Own, arrays: dict[str, NDArray[Any]]) -> NDArray[np.int32]:
    lengths = arrays["lengths"]
    if lengths.ndim != 1 or not len(lengths) or lengths.dtype.kind not in "iu":
        raise DataError(f"{own.path}, lengths: {_said(lengths)}; must be whole numbers, (rows,)")
    if lengths.min() < 1:
        raise DataError(f"{own.path}, lengths: row {lengths.argmin()} has {lengths.min()} steps")
    return lengths.astype(np.int32)


def _padded(own: Own, inputs: NDArray[Any], lengths: NDArray[np.int32]) -> NDArray[np.float32]:
    if inputs.ndim not in (2, 3) or inputs.dtype.kind not in "fiub":
        raise DataError(
            f"{own.path}, inputs: {_said(inputs)}; must be numbers, (rows, time, channels) or "
            "(steps, channels)"
        )
    longest = int(lengths.max())
    own_steps = np.arange(longest) < lengths[:, None]  # the others are padding
    with np.errstate(over="ignore"):  # what is too large becomes infinite, and is told below
        inputs = inputs.astype(np.float32)
    padded = np.zeros((len(lengths), longest, inputs.shape[-1]), np.float32)
    if inputs.ndim == 2:
        if len(inputs) != lengths.sum():
            raise DataError(
                f"{own.path}: inputs have {len(inputs)} steps; the lengths add up to "
                f"{lengths.sum()}"
            )
        padded[own_steps] = inputs
    else:
        if len(inputs) != len(lengths) or inputs.shape[1] < longest:
            raise DataError(
                f"{own.path}: inputs are {_said(inputs)}; there are {len(lengths)} lengths of up "
                f"to {longest} steps"
            )
        padded[own_steps] = inputs[:, :longest][own_steps]
    bad = np.argwhere(~np.isfinite(padded))
    if len(bad):
        row, step, channel = bad[0]
        raise DataError(
            f"{own.path}, inputs: row {row}, step {step}, channel {channel} is no finite number"
        )
    return padded


def _target(own: Own, targets: NDArray[Any], rows: int) -> Target:
    where = f"{own.path}, targets"
    if targets.ndim not in (1, 2) or len(targets) != rows or targets.dtype.kind not in "fiubU":
        raise DataError(f"{where}: {_said(targets)}; must be numbers or texts for {rows} rows")
    texts = targets.dtype.kind == "U"
    if not texts and not np.isfinite(targets).all():
        row = np.argwhere(~np.isfinite(targets))[0][0]
        raise DataError(f"{where}: row {row} is no finite number")
    task = own.task
    if task is None:
        flat = targets.ndim == 1
        task = found_task(list(targets), numbers=not texts) if flat else "regression"
    if task == "classification":
        if targets.ndim != 1:
            raise DataError(f"{where}: {_said(targets)}; classes must be (rows,)")
        whole = targets.dtype.kind == "f" and (targets == np.round(targets)).all()
        return classes([str(int(one) if whole else one) for one in targets.tolist()], where)
    if texts:
        raise DataError(f"{where}: texts; a regression needs numbers")
    values = targets.reshape(rows, -1).astype(np.float32)
    names = (
        ["value"] if values.shape[1] == 1 else [f"value {i + 1}" for i in range(values.shape[1])]
    )
    return Target(values, values=tuple(Value(name, own.unit) for name in names))


def _said(array: NDArray[Any]) -> str:
    return f"{array.dtype} of shape {list(array.shape)}"
