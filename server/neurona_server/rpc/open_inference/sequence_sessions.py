"""The sessions of sequences with an id: of a model with a state, or one that declares its state."""

from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any

from neurona_server.batching.request import Array, Inputs, Outputs
from neurona_server.models.model import Model
from neurona_server.models.signature import TensorType
from neurona_server.rpc.open_inference.sequence_parameters import StepParameters
from neurona_server.rpc.sessions import SequenceSession, SessionStep, SessionStore
from neurona_server.sequences.implicit_state import initial_states, next_states, step_inputs
from neurona_server.sequences.sequence_batching import SequenceBatching


class IdentifiedSession(SequenceSession):
    """A session whose steps are requests with its id."""

    __slots__ = ("aborted_steps", "arrived_steps", "is_ending")

    def __init__(
        self,
        store: SessionStore,
        model: Model,
        key: Hashable | None,
        on_end: Callable[[str], None] | None,
        state: bytes,
        now: float,
    ) -> None:
        super().__init__(store, model, key, on_end, state, now)
        self.arrived_steps = 0
        self.aborted_steps = 0
        """Steps up to this one fail: one before them has failed."""
        self.is_ending = False
        """Whether its last step has arrived."""

    def step_inputs(
        self,
        described: Mapping[str, TensorType],  # noqa: ARG002  those of others need it
        step: StepParameters,  # noqa: ARG002
    ) -> Inputs:
        """Return the inputs of a step that the caller does not send, except STATE.

        Args:
            described: Datatype and shape of those that the caller sends.
            step: The parameters of the step.

        Raises:
            InvalidArgumentError: The step does not fit the sequence.
        """
        return {}


class DeclaredSession(IdentifiedSession):
    """A session of a model whose configuration declares control inputs and tensors of its state."""

    __slots__ = ("states",)

    def __init__(
        self,
        store: SessionStore,
        model: Model,
        key: Hashable | None,
        on_end: Callable[[str], None] | None,
        state: bytes,
        now: float,
    ) -> None:
        super().__init__(store, model, key, on_end, state, now)
        self.states: Sequence[Array] = ()

    @property
    def _batching(self) -> SequenceBatching:
        batching = self.model.settings.sequences
        assert batching is not None  # noqa: S101  for the type checker: `new_session` checks it
        return batching

    @staticmethod
    def _import_state(model: Model, state: bytes) -> None:
        """Do nothing: these states cannot be exported."""

    def step_inputs(self, described: Mapping[str, TensorType], step: StepParameters) -> Inputs:
        rows = None
        if self.model.has_batch_axis:
            shape = next((shape for _, shape in described.values() if shape), (1,))
            rows = shape[0]
            self.check_row_count(rows)
        states = self.states or initial_states(self._batching, rows)
        return step_inputs(
            self._batching, step.sequence_id, states, rows, starts=step.starts, ends=step.ends
        )

    def _count_input_rows(self, inputs: Inputs) -> int:
        return len(next(iter(inputs.values()))) if self.model.has_batch_axis else 1

    def check_rows(self, input_types: Mapping[str, TensorType]) -> None:
        """Do nothing: `step_inputs` has checked them."""

    def new_step(self, *arguments: Any) -> "DeclaredStep":
        return DeclaredStep(self, *arguments)

    def add_state(self, inputs: Inputs) -> Inputs:
        return inputs

    def without_state(self, outputs: Outputs) -> Outputs:
        return outputs

    def commit(self, inputs: Inputs, outputs: Outputs) -> None:  # noqa: ARG002  see its base
        batching = self._batching
        if batching.states:
            names = [spec.name for spec in self.model.signature.outputs]
            self.states = next_states(batching, dict(zip(names, outputs, strict=True)))
            self.rows = len(self.states[0]) if self.model.has_batch_axis else 0
        self.count(1)

    def export_state(self) -> bytes:
        return b""


class DeclaredStep(SessionStep):
    """A step of a DeclaredSession."""

    __slots__ = ()

    @property
    def ranked_classes(self) -> int:
        """0: all values, since an output may be the state."""
        return 0


def new_session(
    store: SessionStore,
    model: Model,
    key: Hashable | None,
    on_end: Callable[[str], None] | None,
    state: bytes,
    now: float,
) -> IdentifiedSession:
    """Make a session of the kind that the model has. Raises StatelessModelError."""
    declared = model.settings.sequences
    kind = IdentifiedSession
    if declared is not None and (declared.hidden_inputs or model.state_codec is None):
        kind = DeclaredSession
    return kind(store, model, key, on_end, state, now)
