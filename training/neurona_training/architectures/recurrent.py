"""Recurrent networks: what they answer depends on a state that each step of time changes.

The plain recurrent network is J. Elman's (Finding Structure in Time, Cognitive Science 14,
1990); LSTM is S. Hochreiter and J. Schmidhuber's (Long Short-Term Memory, Neural
Computation 9, 1997), with the forget gate of F. Gers and others (2000); GRU is K. Cho and
others' (Learning Phrase Representations using RNN Encoder-Decoder, 2014).
"""

from typing import Literal

from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence

from neurona_training.architectures.recurrent_node import RecurrentNode

Cell = Literal["rnn", "lstm", "gru"]


class LastState(nn.Module):
    """Reads a whole sequence, then answers from the state that it ends in.

    (rows, time, features) and, for padded sequences, lengths (rows,) -> (rows, outputs).
    reading: what is done to each step by itself, such as normalising, or a vector for a code.
    """

    def __init__(
        self,
        reading: nn.Module,
        cell: Cell,
        *,
        features: int,
        hidden: int,
        outputs: int,
        denormalise: nn.Module | None = None,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.reading = reading
        self.recurrent = Recurrent(cell, features, hidden)
        self.dropout = nn.Dropout(dropout)
        self.output = nn.Linear(hidden, outputs)
        self.denormalise = denormalise or nn.Identity()

    def forward(self, sequence: Tensor, lengths: Tensor | None = None) -> Tensor:
        state = self.recurrent(self.reading(sequence), lengths)
        answer: Tensor = self.denormalise(self.output(self.dropout(state)))
        return answer


class Recurrent(nn.Module):
    """One recurrent layer: (rows, time, features) -> (rows, hidden), the last state.

    With lengths (rows,), each from 1, it is the state after a row's last own step, and what
    follows is not read.
    """

    def __init__(self, cell: Cell, features: int, hidden: int) -> None:
        super().__init__()
        layers = {"rnn": nn.RNN, "lstm": nn.LSTM, "gru": nn.GRU}
        self.cell = cell
        self.layer: nn.RNNBase = layers[cell](features, hidden, batch_first=True)

    def forward(self, sequence: Tensor, lengths: Tensor | None = None) -> Tensor:
        steps: Tensor | PackedSequence = sequence
        if lengths is not None:
            # Sorts the rows itself, and wants the lengths on the CPU wherever the rows are.
            steps = pack_padded_sequence(
                sequence, lengths.cpu(), batch_first=True, enforce_sorted=False
            )
        _, last = self.layer(steps)
        # LSTM's state is a pair, and the first of it is what it shows to the outside.
        state: Tensor = last[0] if self.cell == "lstm" else last
        return state.squeeze(0)

    def for_export(self) -> nn.Module:
        return RecurrentNode(self.layer)
