"""Recurrent networks: their output depends on a state that each step of time changes.

The plain recurrent network is J. Elman's (Finding Structure in Time, Cognitive Science 14,
1990); LSTM is S. Hochreiter and J. Schmidhuber's (Long Short-Term Memory, Neural
Computation 9, 1997), with the forget gate of F. Gers and others (2000); GRU is K. Cho and
others' (Learning Phrase Representations using RNN Encoder-Decoder, 2014).
"""

from collections.abc import Sequence
from typing import Any, Literal

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
        dropout: fraction of the last state, and of the states between two layers, that is dropped
            in training.
        layers: recurrent layers; each reads the states of the one before.
        bidirectional: whether each layer reads the sequence from its end too.
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
        layers: int = 1,
        bidirectional: bool = False,
    ) -> None:
        super().__init__()
        self.reading = step_encoder
        self.recurrent = Recurrent(
            cell, features, hidden, layers=layers, bidirectional=bidirectional, dropout=dropout
        )
        self.dropout = nn.Dropout(dropout)
        self.output = nn.Linear(self.recurrent.width, outputs)
        self.denormalise = denormalise or nn.Identity()

    @property
    def is_stepwise(self) -> bool:
        """Whether the state after a piece of a sequence is all that the next piece needs."""
        return not self.recurrent.layer.bidirectional

    def forward(self, sequence: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Returns logits or values; lengths are those without padding."""
        state = self.recurrent(self.reading(sequence), lengths)
        output: Tensor = self.denormalise(self.output(self.dropout(state)))
        return output


class Recurrent(nn.Module):
    """Recurrent layers, one above the other: (rows, time, features) -> the last state.

    With lengths (rows,), each at least 1, it is the state after a row's last step; padding is
    not read. Of two directions (M. Schuster and K. Paliwal, Bidirectional Recurrent Neural
    Networks, IEEE Transactions on Signal Processing 45, 1997) the second one's last state is
    the one after a row's first step.

    Args:
        cell: kind of the layers.
        features: numbers of a step.
        hidden: numbers of the state of each direction.
        layers: each reads the states of the one before, of both directions.
        bidirectional: whether each layer reads from the end too.
        dropout: fraction of the states between two layers that is dropped in training.
    """

    def __init__(
        self,
        cell: Cell,
        features: int,
        hidden: int,
        *,
        layers: int = 1,
        bidirectional: bool = False,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        kinds = {"rnn": nn.RNN, "lstm": nn.LSTM, "gru": nn.GRU}
        self.cell = cell
        self.width = hidden * (1 + bidirectional)  # numbers of the last state
        self.layer: nn.RNNBase = kinds[cell](
            features,
            hidden,
            layers,
            batch_first=True,
            bidirectional=bidirectional,
            # torch warns of a dropout between layers where there is one layer.
            dropout=dropout if layers > 1 else 0.0,
        )

    def forward(self, sequence: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Returns the last layer's last state of each row, (rows, width)."""
        steps: Tensor | PackedSequence = sequence
        if lengths is not None:
            # Sorts the rows itself, and needs the lengths on the CPU wherever the rows are.
            steps = pack_padded_sequence(
                sequence, lengths.cpu(), batch_first=True, enforce_sorted=False
            )
        _, last = self.layer(steps)
        # The state of an LSTM is a pair; its first part is the layer's output.
        states: Tensor = last[0] if self.cell == "lstm" else last
        directions = 1 + self.layer.bidirectional
        # Of all layers and directions, (layers * directions, rows, hidden), the last layer's.
        return torch.cat(states[-directions:].unbind(0), dim=1)

    def for_export(self) -> nn.Module:
        """Returns an equal module that is exported as one ONNX operator for each layer."""
        return RecurrentNodes(self.layer)


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
        dropout: as of `LastState`.
        layers: recurrent layers.
        bidirectional: whether each layer reads from the end too.
    """

    def __init__(
        self,
        cell: Cell,
        train: Split,
        *,
        hidden: int,
        dropout: float,
        layers: int = 1,
        bidirectional: bool = False,
    ) -> None:
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
            layers=layers,
            bidirectional=bidirectional,
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


class RecurrentNodes(nn.Module):
    """For export only: (rows, time, features), lengths -> the last layer's last state.

    Replaces the layers of an `nn.RNNBase` by one ONNX operator each, which for two directions
    reads both.

    Raises:
        ValueError: a layer is not equal to one ONNX operator.
    """

    def __init__(self, layers: nn.RNNBase) -> None:
        super().__init__()
        operator = layers.mode.removesuffix("_TANH")
        if operator not in _GATES:
            raise ValueError(f"{layers} is not recurrent with tanh")
        if not layers.bias:
            raise ValueError(f"{layers} has no bias")
        if layers.proj_size:
            raise ValueError(f"{layers} has projected states")
        self.nodes = nn.ModuleList(
            RecurrentNode(layers, operator, index) for index in range(layers.num_layers)
        )

    def forward(self, sequence: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Emits the ONNX operators; only shapes are computed."""
        states = sequence.transpose(0, 1)  # ONNX has time first
        for node in self.nodes:
            states, last, *_ = node(states, lengths)
        # The directions' states beside each other, as torch has them.
        state: Tensor = last.transpose(0, 1).flatten(1) if len(last) > 1 else last.squeeze(0)
        return state


class RecurrentNode(nn.Module):
    """For export only: one layer as one ONNX operator, with the layer's weights in ONNX's order.

    w (directions, gates * hidden, features), r (directions, gates * hidden, hidden),
    b (directions, 2 * gates * hidden).

    Args:
        layers: all layers.
        operator: of ONNX.
        index: of the layer.
    """

    w: Tensor
    r: Tensor
    b: Tensor

    def __init__(self, layers: nn.RNNBase, operator: str, index: int) -> None:
        super().__init__()
        self.operator = operator
        self.hidden = layers.hidden_size
        self.directions = 2 if layers.bidirectional else 1
        suffixes = [f"_l{index}", f"_l{index}_reverse"][: self.directions]

        def of_directions(name: str) -> Tensor:
            weights = [layers.get_parameter(name + suffix) for suffix in suffixes]
            return torch.stack([self._reorder(weight) for weight in weights])

        self.register_buffer("w", of_directions("weight_ih"))
        self.register_buffer("r", of_directions("weight_hh"))
        if layers.bias:
            biases = [of_directions("bias_ih"), of_directions("bias_hh")]
            self.register_buffer("b", torch.cat(biases, dim=1))
        else:
            self.register_buffer("b", self.w.new_zeros(self.directions, 2 * self.w.shape[1]))
        self.attributes: dict[str, Any] = dict(_ATTRIBUTES[operator])
        if layers.mode == "RNN_RELU":
            self.attributes["activations"] = ["Relu"] * self.directions

    def _reorder(self, weight: Tensor) -> Tensor:
        gates = weight.detach().chunk(len(_GATES[self.operator]))
        return torch.cat([gates[index] for index in _GATES[self.operator]])

    def forward(
        self, sequence: Tensor, lengths: Tensor | None = None, initial: Sequence[Tensor] = ()
    ) -> tuple[Tensor, ...]:
        """Emits the operator: (time, rows, features) -> all states and the last ones.

        Args:
            sequence: (time, rows, features).
            lengths: of each row; None if all have the same.
            initial: the states before the first step, (directions, rows, hidden) each; none are
                zeros.

        Returns:
            (time, rows, directions * hidden), and (directions, rows, hidden) for each state: what
            the network shows, of an LSTM also its memory.
        """
        time, rows = sequence.shape[:2]
        all_states_shape = (time, self.directions, rows, self.hidden)
        last_state_shape = (self.directions, rows, self.hidden)
        shapes = [all_states_shape, last_state_shape]
        if self.operator == "LSTM":
            shapes.append(last_state_shape)  # of the memory cell
        inputs: list[Tensor | None] = [sequence, self.w, self.r, self.b]
        if lengths is not None or initial:
            inputs.append(lengths)  # which ONNX calls sequence_lens, int32
        outputs = torch.onnx.ops.symbolic_multi_out(
            self.operator,
            [*inputs, *initial],
            {
                "hidden_size": self.hidden,
                "direction": "bidirectional" if self.directions > 1 else "forward",
                **self.attributes,
            },
            dtypes=[sequence.dtype] * len(shapes),
            shapes=shapes,
            version=OPERATOR_OPSET,
        )
        every, *last = outputs
        if self.directions == 1:
            return every.squeeze(1), *last
        return every.transpose(1, 2).flatten(2), *last
