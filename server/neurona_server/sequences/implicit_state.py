"""The inputs and outputs of steps of a model that takes its state as tensors beside others.

See `sequence_batching`: what a configuration declares.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from neurona_protos.prediction_pb2 import DataType
from neurona_protos.tensors import NUMPY_DTYPES, decode
from neurona_server.batching.request import Array, Inputs
from neurona_server.errors import InvalidArgumentError, quoted
from neurona_server.sequences.sequence_batching import (
    ControlInput,
    ControlKind,
    SequenceBatching,
    StateTensor,
)

SequenceId = int | str
"""The caller's id of a sequence: an unsigned integer of 64 bits, or a string. An integer and a
string are never the same id."""


def initial_states(batching: SequenceBatching, rows: int | None) -> tuple[Array, ...]:
    """Return the state before the first step, of so many rows; None: there is no such axis."""
    return tuple(_initial_value(one, rows) for one in batching.states)


def next_states(batching: SequenceBatching, outputs: Mapping[str, Array]) -> tuple[Array, ...]:
    """Return the state after a step from its outputs by name.

    They are copies: an output may be a view of that of a whole batch.
    """
    return tuple(np.array(outputs[one.output_name]) for one in batching.states)


def step_inputs(
    batching: SequenceBatching,
    sequence_id: SequenceId,
    states: Sequence[Array],
    rows: int | None,
    *,
    starts: bool,
    ends: bool,
) -> Inputs:
    """Return the inputs that a caller does not send, for one step of a sequence.

    Args:
        batching: What the model's configuration declares.
        sequence_id: The id of the sequence.
        states: The state before the step, in the order of the declared ones.
        rows: Rows of the step; None: the model has no such axis.
        starts: Whether it is the first step.
        ends: Whether it is the last step.

    Raises:
        InvalidArgumentError: A control input cannot hold the id.
    """
    shape = (1,) if rows is None else (rows, 1)
    inputs = {
        tensor.input_name: value for tensor, value in zip(batching.states, states, strict=True)
    }
    flags = {ControlKind.START: starts, ControlKind.END: ends, ControlKind.READY: True}
    for control in batching.controls:
        value: float | str
        if control.kind is ControlKind.CORRID:
            value = _id_value(sequence_id, control)
        else:
            value = control.false_true[flags[control.kind]]
        inputs[control.name] = np.full(shape, value, NUMPY_DTYPES[control.dtype])
    return inputs


def _initial_value(tensor: StateTensor, rows: int | None) -> Array:
    if tensor.data:
        value = decode(tensor.input_name, tensor.dtype, tensor.shape, tensor.data)
    elif tensor.dtype == DataType.DATA_TYPE_STRING:
        value = np.full(tensor.shape, "", object)
    else:
        value = np.zeros(tensor.shape, NUMPY_DTYPES[tensor.dtype])
    if rows is None:
        return value.copy()
    return np.repeat(value[np.newaxis], rows, axis=0)


def _id_value(sequence_id: SequenceId, control: ControlInput) -> int | str:
    """Return the id as a value of the control input's datatype.

    Raises:
        InvalidArgumentError: It does not fit.
    """
    if control.dtype == DataType.DATA_TYPE_STRING:
        return str(sequence_id)
    limits = np.iinfo(NUMPY_DTYPES[control.dtype])
    number = sequence_id
    if isinstance(number, int) and limits.min < 0 and number >= 1 << 63:
        number -= 1 << 64  # callers send signed integers too
    if isinstance(number, str) or not limits.min <= number <= limits.max:
        shown = quoted(number) if isinstance(number, str) else number
        raise InvalidArgumentError(
            f"parameter 'sequence_id' is {shown} (expected an integer from {limits.min} to "
            f"{limits.max}, which the model's input {control.name!r} can hold)"
        )
    return number
