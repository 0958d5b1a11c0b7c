"""What is known of how a recurrent model reads sequences.

The graph of a recurrent model is rewritten so that it takes the length of each row and, where its
state can be opened, the state before a row's first step, and returns the state after its last one.
A session that runs such a graph takes and returns what the caller of the file sees; LENGTHS and
STATE may be added to the inputs of a run. The file is alone since all rooms that deal with
sequences need it without what makes it.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

LENGTHS = "neurona.lengths"
"""Name of an input of a run: the steps of each row, int32 (rows,), 1 or more.

Without it all rows have all steps. A row of 0 steps has no answer, and its next state is zeros."""

STATE = "neurona.state"
"""Name of an input of a run: the state before the first step of each row, float32 (rows, size).

Without it the state is zeros, as in the file. A run with it returns, as one more output, the last,
the state after the last step of each row."""


@dataclass(frozen=True)
class SequenceForm:
    """How a model reads sequences.

    Attributes:
        time_axes: The axis along which steps follow each other, by input, from 1: axis 0 has the
            rows.
        output_time_axes: The same by index of output, of those that have an answer for each step.
        lengths_input: The input of the file in which callers send the lengths of their rows; "" if
            it has none.
        ragged_reason: Why requests of different lengths cannot share a run; "" if they can.
        state_size: Numbers of the state of a row, float32; 0 if it has none that could be opened.
        stateless_reason: Why the state cannot be opened; "" if it can.
    """

    time_axes: Mapping[str, int]
    output_time_axes: Mapping[int, int] = field(default_factory=dict)
    lengths_input: str = ""
    ragged_reason: str = ""
    state_size: int = 0
    stateless_reason: str = ""

    @property
    def is_ragged(self) -> bool:
        """Whether requests of different lengths can share a run."""
        return not self.ragged_reason

    @property
    def has_state(self) -> bool:
        """Whether a sequence can be run in pieces."""
        return self.state_size > 0
