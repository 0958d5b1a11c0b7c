"""Recurrent networks: their output depends on a state that each step of time changes.

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

Cell = Literal["rnn", "lstm", "gru"]

OPERATOR_OPSET = 14  # version of RNN, LSTM and GRU; the next is 22, beyond the exported opset

# The order of the gates in ONNX, as indices into torch's order (LSTM: input, forget, cell,
# output -> input, output, forget, cell; GRU: reset, update, new -> update, reset, new).
_GATES = {"RNN": (0,), "LSTM": (0, 3, 1, 2), "GRU": (1, 0, 2)}
_ATTRIBUTES = {"RNN": {}, "LSTM": {}, "GRU": {"linear_before_reset": 1}}  # as torch's GRU is

_ROOT_OFFSET = 10.0  # counts, added before the root, which would spread counts near 0 too far
_MAX_LOG_FACTOR = 0.5  # the largest logarithm, in absolute value, of a row's random factor


class LastState(nn.Module):
    """Reads a whole sequence and predicts from the last state.

    (rows, time, features) and, for padded sequences, lengths (rows,) -> (rows, outputs).

    Args:
        step_encoder: is applied to each step by itself: a normalisation, or an embedding.
        cell: kind of recurrent layer.
        features: numbers of an encoded step.
        hidden: numbers of the state.
        outputs: number of logits or values.
        denormalise: from the network's own units to the targets', for a regression.
        dropout: fraction of the last state that is dropped in training.
    """

    def __init__(
        self,
        step_encoder: nn.Module,
        cell: Cell,
        *,
        features: int,
        hidden: int,
        outputs: int,
        denormalise: nn.Module | None = None,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.reading = step_encoder
        self.recurrent = Recurrent(cell, features, hidden)
        self.dropout = nn.Dropout(dropout)
        self.output = nn.Linear(hidden, outputs)
        self.denormalise = denormalise or nn.Identity()

    def forward(self, sequence: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Returns logits or values; lengths are those without padding."""
        state = self.recurrent(self.reading(sequence), lengths)
        output: Tensor = self.denormalise(self.output(self.dropout(state)))
        return output


class Recurrent(nn.Module):
    """One recurrent layer: (rows, time, features) -> (rows, hidden), the last state.

    With lengths (rows,), each at least 1, it is the state after a row's last step; padding is
    not read.
    """

    def __init__(self, cell: Cell, features: int, hidden: int) -> None:
        super().__init__()
        layers = {"rnn": nn.RNN, "lstm": nn.LSTM, "gru": nn.GRU}
        self.cell = cell
        self.layer: nn.RNNBase = layers[cell](features, hidden, batch_first=True)

    def forward(self, sequence: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Returns the last state of each row."""
        steps: Tensor | PackedSequence = sequence
        if lengths is not None:
            # Sorts the rows itself, and needs the lengths on the CPU wherever the rows are.
            steps = pack_padded_sequence(
                sequence, lengths.cpu(), batch_first=True, enforce_sorted=False
            )
        _, last = self.layer(steps)
        # The state of an LSTM is a pair; its first part is the layer's output.
        state: Tensor = last[0] if self.cell == "lstm" else last
        return state.squeeze(0)

    def for_export(self) -> nn.Module:
        """Returns an equal module that is exported as one ONNX operator."""
        return RecurrentNode(self.layer)


class NextCount(LastState):
    """Predicts the next count of a series: (rows, time, 1) -> (rows, 1).

    Large counts vary more than small ones; their square roots vary equally (M. Bartlett, The
    Square Root Transformation in Analysis of Variance, 1936). The network reads the roots and
    predicts the difference of the next root from the last.

    In training each row is multiplied by a random factor and its prediction divided by it, so
    that the network also fits series with larger counts than any before, as the latest ones.

    Args:
        cell: kind of recurrent layer.
        train: training rows, for the scales.
        hidden: numbers of the state.
        dropout: fraction of the last state that is dropped in training.
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
        """Returns the next count of each row; random factors are used in training mode."""
        if not self.training:
            return self._predict(sequence, lengths)
        power = torch.rand(sequence.shape[0], 1, device=sequence.device) * 2 - 1
        factor = torch.exp(_MAX_LOG_FACTOR * power)
        return self._predict(sequence * factor[:, None], lengths) / factor

    def _predict(self, sequence: Tensor, lengths: Tensor | None) -> Tensor:
        roots = _root(sequence)
        last = roots[:, -1]
        if lengths is not None:
            last = roots[torch.arange(roots.shape[0], device=roots.device), lengths - 1]
        # No fewer than 0 counts.
        following = nn.functional.relu(last + super().forward(roots, lengths) - _ROOT_OFFSET**0.5)
        counts: Tensor = (following + _ROOT_OFFSET**0.5).square() - _ROOT_OFFSET
        return counts


def _root(counts: Tensor) -> Tensor:
    return torch.sqrt(counts.clamp(min=0) + _ROOT_OFFSET)


class RecurrentNode(nn.Module):
    """For export only: (rows, time, features), lengths -> the last state, (rows, hidden).

    Replaces a layer of one direction, with the layer's weights in ONNX's order:
    w (1, gates * hidden, features), r (1, gates * hidden, hidden), b (1, 2 * gates * hidden).

    Raises:
        ValueError: the layer is not equal to one ONNX operator.
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
        return torch.cat([gates[index] for index in _GATES[self.operator]])

    def forward(self, sequence: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Emits the ONNX operator; only shapes are computed."""
        rows, time = sequence.shape[:2]
        all_states_shape = (time, 1, rows, self.hidden)
        last_state_shape = (1, rows, self.hidden)
        shapes = [all_states_shape, last_state_shape]
        if self.operator == "LSTM":
            shapes.append(last_state_shape)  # of the memory cell
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
