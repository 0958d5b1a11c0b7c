"""Models whose graph takes and returns the state of a sequence as tensors, beside control inputs.

This is what Triton calls implicit state: `sequence_batching` of its model configuration names the
tensors (https://github.com/triton-inference-server/server, docs/user_guide, implicit state
management). Callers send the other inputs with the id of their sequence; the server keeps the state
from step to step, and says with the control inputs where a sequence starts and ends.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum

import numpy as np

from neurona_protos.prediction_pb2 import DataType
from neurona_protos.tensors import NUMPY_DTYPES, decode
from neurona_server.batching.request import Array, Inputs
from neurona_server.errors import InvalidArgumentError, quoted

SequenceId = int | str
"""The caller's id of a sequence: an unsigned integer of 64 bits, or a string. An integer and a
string are never the same id."""


class ControlKind(Enum):
    """What a control input says about the step of each row."""

    START = "CONTROL_SEQUENCE_START"
    """Whether it is the first one of its sequence."""

    END = "CONTROL_SEQUENCE_END"
    """Whether it is the last one of its sequence."""

    READY = "CONTROL_SEQUENCE_READY"
    """Whether the row has a step. It always has, since rows are not bound to sequences here."""

    CORRID = "CONTROL_SEQUENCE_CORRID"
    """The id of the sequence."""


@dataclass(frozen=True)
class ControlInput:
    """An input that the server fills in: one value for each row.

    Attributes:
        name: The input's name.
        kind: What it says.
        dtype: Its datatype.
        false_true: The values for no and yes; not of ids.
    """

    name: str
    kind: ControlKind
    dtype: DataType
    false_true: tuple[float, float] = (0, 1)


@dataclass(frozen=True)
class StateTensor:
    """An output that becomes an input of the next step.

    Attributes:
        input_name: The input with the state before a step.
        output_name: The output with the state after it.
        dtype: The datatype of both.
        shape: The shape before the first step, without the axis of rows.
        data: The values before the first step of a row, as in tensors of requests; b"" for zeros
            or empty strings.
    """

    input_name: str
    output_name: str
    dtype: DataType
    shape: tuple[int, ...]
    data: bytes = b""

    def initial_value(self, rows: int | None) -> Array:
        """Return the state before the first step, of so many rows; None: there is no such axis."""
        if self.data:
            value = decode(self.input_name, self.dtype, self.shape, self.data)
        elif self.dtype == DataType.DATA_TYPE_STRING:
            value = np.full(self.shape, "", object)
        else:
            value = np.zeros(self.shape, NUMPY_DTYPES[self.dtype])
        if rows is None:
            return value.copy()
        return np.repeat(value[np.newaxis], rows, axis=0)


@dataclass(frozen=True)
class SequenceBatching:
    """The sequences of a model, as its configuration declares them.

    Attributes:
        controls: The inputs that say where a sequence starts and ends.
        states: The tensors of its state.
        idle_seconds: The time after which a sequence without a step ends; None: the server's.
    """

    controls: tuple[ControlInput, ...] = ()
    states: tuple[StateTensor, ...] = ()
    idle_seconds: float | None = None

    @property
    def input_names(self) -> frozenset[str]:
        """The inputs that callers do not send."""
        return frozenset(one.name for one in self.controls) | {
            one.input_name for one in self.states
        }

    @property
    def output_names(self) -> frozenset[str]:
        """The outputs with the state."""
        return frozenset(one.output_name for one in self.states)

    def initial_states(self, rows: int | None) -> tuple[Array, ...]:
        """Return the state before the first step, of so many rows; None: there is no such axis."""
        return tuple(one.initial_value(rows) for one in self.states)

    def next_states(self, outputs: Mapping[str, Array]) -> tuple[Array, ...]:
        """Return the state after a step from its outputs by name.

        They are copies: an output may be a view of that of a whole batch.
        """
        return tuple(np.array(outputs[one.output_name]) for one in self.states)

    def step_inputs(
        self,
        sequence_id: SequenceId,
        states: Sequence[Array],
        rows: int | None,
        *,
        starts: bool,
        ends: bool,
    ) -> Inputs:
        """Return the inputs that a caller does not send, for one step of a sequence.

        Args:
            sequence_id: The id of the sequence.
            states: The state before the step, in the order of `states`.
            rows: Rows of the step; None: the model has no such axis.
            starts: Whether it is the first step.
            ends: Whether it is the last step.

        Raises:
            InvalidArgumentError: A control input cannot hold the id.
        """
        shape = (1,) if rows is None else (rows, 1)
        inputs = {
            tensor.input_name: value for tensor, value in zip(self.states, states, strict=True)
        }
        flags = {ControlKind.START: starts, ControlKind.END: ends, ControlKind.READY: True}
        for control in self.controls:
            value: float | str
            if control.kind is ControlKind.CORRID:
                value = _id_value(sequence_id, control)
            else:
                value = control.false_true[flags[control.kind]]
            inputs[control.name] = np.full(shape, value, NUMPY_DTYPES[control.dtype])
        return inputs


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
