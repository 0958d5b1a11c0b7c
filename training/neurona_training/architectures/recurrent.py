"""Recurrent networks: what they answer depends on a state that each step of time changes.

The plain recurrent network is J. Elman's (Finding Structure in Time, Cognitive Science 14,
1990); LSTM is S. Hochreiter and J. Schmidhuber's (Long Short-Term Memory, Neural
Computation 9, 1997), with the forget gate of F. Gers and others (2000); GRU is K. Cho and
others' (Learning Phrase Representations using RNN Encoder-Decoder, 2014).
"""

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence

from neurona_training.architectures.input_layers import Normalise
from neurona_training.data import Split

OPERATOR_OPSET = 14  # the version of RNN, LSTM and GRU; the next is 22, beyond our opset

# The order of the gates in ONNX, as places in torch's order (LSTM: input, forget, cell,
# output -> input, output, forget, cell; GRU: reset, update, new -> update, reset, new).
_GATES = {"RNN": (0,), "LSTM": (0, 3, 1, 2), "GRU": (1, 0, 2)}
_ATTRIBUTES = {"RNN": {}, "LSTM": {}, "GRU": {"linear_before_reset": 1}}  # as torch's GRU is


class RecurrentNode(nn.Module):
    """For export only: (rows, time, features), lengths -> the last state, (rows, hidden).

    Takes the place of a layer of one direction, with the layer's weights in ONNX's order:
    w (1, gates * hidden, features), r (1, gates * hidden, hidden), b (1, 2 * gates * hidden).
    """

    w: Tensor
    r: Tensor
    b: Tensor

    def __init__(self, layer: nn.RNNBase) -> None:
        super().__init__()
        self.operator = layer.mode.removesuffix("_TANH")
        if self.operator not in _GATES or layer.num_layers != 1 or layer.bidirectional:
            raise ValueError(f"{layer} is not one layer of one direction with tanh")
        if not layer.bias:
            raise ValueError(f"{layer} has no bias")
        self.hidden = layer.hidden_size
        names = ("weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "bias_hh_l0")
        w, r, b_input, b_state = (self._reorder(layer.get_parameter(name)) for name in names)
        self.register_buffer("w", w[None])
        self.register_buffer("r", r[None])
        self.register_buffer("b", torch.cat([b_input, b_state])[None])

    def _reorder(self, weight: Tensor) -> Tensor:
        gates = weight.detach().chunk(len(_GATES[self.operator]))
        return torch.cat([gates[place] for place in _GATES[self.operator]])

    def forward(self, sequence: Tensor, lengths: Tensor | None = None) -> Tensor:
        rows, time = sequence.shape[:2]
        every_state = (time, 1, rows, self.hidden)
        last_state = (1, rows, self.hidden)
        shapes = [every_state, last_state]
        if self.operator == "LSTM":
            shapes.append(last_state)  # of the cell itself
        inputs = [sequence.transpose(0, 1), self.w, self.r, self.b]  # ONNX has time first
        if lengths is not None:
            inputs.append(lengths)  # which ONNX calls sequence_lens, int32
        outputs = torch.onnx.ops.symbolic_multi_out(
            self.operator,
            inputs,
            {"hidden_size": self.hidden, **_ATTRIBUTES[self.operator]},
            dtypes=[sequence.dtype] * len(shapes),
            shapes=shapes,
            version=OPERATOR_OPSET,
        )
        return outputs[1].squeeze(0)


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


OFFSET = 10.0  # counts, added before the root: near 0 it would spread the smallest ones too far
FACTOR = 0.5  # of a training row's random factor, the largest logarithm, either way


class NextCount(LastState):
    """(rows, time, 1) counts -> (rows, 1), the count that follows the last.

    The larger counts are the more they vary; their square roots vary alike (M. Bartlett, The
    Square Root Transformation in Analysis of Variance, 1936). The network reads the roots, and
    says how far the next one is from the last.

    In training each row is multiplied by a random factor, and its answer divided by it: what
    is learned then holds for series that run higher than any before, as the latest do.
    """

    def __init__(self, cell: Cell, train: Split, *, hidden: int, dropout: float) -> None:
        inputs, targets = torch.from_numpy(train.inputs), torch.from_numpy(train.targets)
        changes = _root(targets) - _root(inputs)[:, -1]
        super().__init__(
            Normalise.to_unit_variance(_root(inputs).numpy()),
            cell,
            features=1,
            hidden=hidden,
            outputs=1,
            denormalise=Normalise(0, float(changes.std())),
            dropout=dropout,
        )

    def forward(self, sequence: Tensor, lengths: Tensor | None = None) -> Tensor:
        if not self.training:
            return self._next(sequence, lengths)
        power = torch.rand(sequence.shape[0], 1, device=sequence.device) * 2 - 1
        factor = torch.exp(FACTOR * power)
        return self._next(sequence * factor[:, None], lengths) / factor

    def _next(self, sequence: Tensor, lengths: Tensor | None) -> Tensor:
        roots = _root(sequence)
        last = roots[:, -1]
        if lengths is not None:
            last = roots[torch.arange(roots.shape[0], device=roots.device), lengths - 1]
        # The answer is no smaller than 0 counts.
        following = nn.functional.relu(last + super().forward(roots, lengths) - OFFSET**0.5)
        counts: Tensor = (following + OFFSET**0.5).square() - OFFSET
        return counts


def _root(counts: Tensor) -> Tensor:
    return torch.sqrt(counts.clamp(min=0) + OFFSET)
