"""What a model's configuration declares of its sequences: control inputs, and tensors of its state.

This is `sequence_batching` of Triton's model configuration, with its implicit state
(https://github.com/triton-inference-server/server, docs/user_guide/implicit_state_management.md).
Callers send the other inputs with the id of their sequence; the server keeps the state from step to
step, and says with the control inputs where a sequence starts and ends.
"""

from dataclasses import dataclass
from enum import Enum

from neurona_protos.prediction_pb2 import DataType


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


@dataclass(frozen=True)
class SequenceBatching:
    """The sequences of a model, as its configuration declares them.

    Attributes:
        controls: The inputs that say where a sequence starts and ends.
        states: The tensors of its state.
        idle_seconds: The time after which a sequence without a step ends; None: the server's.
        hidden_outputs: The outputs with the state that callers do not get.
    """

    controls: tuple[ControlInput, ...] = ()
    states: tuple[StateTensor, ...] = ()
    idle_seconds: float | None = None
    hidden_outputs: frozenset[str] = frozenset()

    @property
    def hidden_inputs(self) -> frozenset[str]:
        """The inputs that callers do not send."""
        return frozenset(one.name for one in self.controls) | {
            one.input_name for one in self.states
        }
