"""Any module's nn.RNN, nn.GRU and nn.LSTM as ONNX operators of any length.

torch's exporter writes nn.RNN as one step after the other, so that the graph has the length of
the example, and earlier versions froze the time axis of layers that read both directions. The
layers of a copied module are replaced by the operators that `architectures.recurrent` emits.
It is alone because only modules that are no recipe need it: recipes have `for_export`.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from neurona_training.architectures.recurrent import RecurrentNode
from neurona_training.errors import ExportError

_OPERATORS = {nn.RNN: "RNN", nn.GRU: "GRU", nn.LSTM: "LSTM"}

# A state of nn.RNN and nn.GRU, or the two of nn.LSTM.
_State = Tensor | tuple[Tensor, Tensor]


class _EmitsOperators(nn.RNNBase):
    """The forward of torch's layer, made of ONNX operators."""

    onnx_nodes: nn.ModuleList

    def forward(
        self, steps: Tensor | PackedSequence, hx: _State | None = None
    ) -> tuple[Tensor, Any]:
        """See torch's layer."""
        if isinstance(steps, PackedSequence):
            raise ExportError("packed sequences have no ONNX form (expected padded ones)")
        sequence = steps
        has_batch = sequence.dim() == 3
        states = [] if hx is None else [hx] if isinstance(hx, Tensor) else list(hx)
        if not has_batch:
            sequence = sequence.unsqueeze(0 if self.batch_first else 1)
            states = [state.unsqueeze(1) for state in states]
        if self.batch_first:
            sequence = sequence.transpose(0, 1)  # ONNX has time first
        directions = 2 if self.bidirectional else 1
        lasts = []
        for index, node in enumerate(self.onnx_nodes):
            layer = slice(index * directions, (index + 1) * directions)
            sequence, *last = node(sequence, None, [state[layer] for state in states])
            lasts.append(last)
        if self.batch_first:
            sequence = sequence.transpose(0, 1)
        ends = [torch.cat(layers) for layers in zip(*lasts, strict=True)]
        if not has_batch:
            sequence = sequence.squeeze(0 if self.batch_first else 1)
            ends = [end.squeeze(1) for end in ends]
        return sequence, ends[0] if len(ends) == 1 else tuple(ends)


def emit_recurrent_operators(module: nn.Module) -> dict[str, str]:
    """Has the recurrent layers of a module emit ONNX operators, in place.

    Layers of another class (also of subclasses), of projected states, and not of float32 stay.

    Args:
        module: a copy, for export only.

    Returns:
        Why each layer that stays does so, by its name.
    """
    kept = {}
    for name, layer in list(module.named_modules()):
        operator = _OPERATORS.get(type(layer))
        if operator is None:
            continue
        if layer.proj_size or layer.weight_ih_l0.dtype != torch.float32:
            dtype = str(layer.weight_ih_l0.dtype).removeprefix("torch.")
            kept[name] = "of projected states" if layer.proj_size else f"of {dtype}"
            continue
        layer.onnx_nodes = nn.ModuleList(
            RecurrentNode(layer, operator, index) for index in range(layer.num_layers)
        )
        # The class is exchanged and not the module, whose attributes a forward may read.
        layer.__class__ = type(f"Onnx{operator}", (_EmitsOperators, type(layer)), {})
    return kept
