"""Recurrent networks: what they answer depends on a state that each step of time changes.

The plain recurrent network is J. Elman's (Finding Structure in Time, Cognitive Science 14,
1990); LSTM is S. Hochreiter and J. Schmidhuber's (Long Short-Term Memory, Neural
Computation 9, 1997), with the forget gate of F. Gers and others (2000).
"""

from typing import Literal

from torch import Tensor, nn

from neurona_training.architectures.recurrent_node import RecurrentNode

Cell = Literal["rnn", "lstm", "gru"]


class LastState(nn.Module):
    """Reads a whole sequence, then answers from the state that it ends in.

    (rows, time, features) -> (rows, outputs).
    """

    def __init__(
        self,
        normalise: nn.Module,
        cell: Cell,
        *,
        features: int,
        hidden: int,
        outputs: int,
        denormalise: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.normalise = normalise
        self.recurrent = Recurrent(cell, features, hidden)
        self.output = nn.Linear(hidden, outputs)
        self.denormalise = denormalise or nn.Identity()

    def forward(self, sequence: Tensor) -> Tensor:
        state = self.recurrent(self.normalise(sequence))
        answer: Tensor = self.denormalise(self.output(state))
        return answer


class Recurrent(nn.Module):
    """One recurrent layer: (rows, time, features) -> its last state, (rows, hidden)."""

    def __init__(self, cell: Cell, features: int, hidden: int) -> None:
        super().__init__()
        layers = {"rnn": nn.RNN, "lstm": nn.LSTM, "gru": nn.GRU}
        self.cell = cell
        self.layer: nn.RNNBase = layers[cell](features, hidden, batch_first=True)

    def forward(self, sequence: Tensor) -> Tensor:
        _, last = self.layer(sequence)
        # LSTM's state is a pair, and the first of it is what it shows to the outside.
        state: Tensor = last[0] if self.cell == "lstm" else last
        return state.squeeze(0)

    def for_export(self) -> nn.Module:
        return RecurrentNode(self.layer)
