"""Inputs of one call held against what the model takes: by name, with the batch axis."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from neurona_client.arrays import Array, as_array
from neurona_client.descriptions import Description, TensorSpec
from neurona_client.errors import InvalidInputError
from neurona_protos.prediction_pb2 import DATA_TYPE_STRING, DataType
from neurona_protos.tensors import TensorError, data_type

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
