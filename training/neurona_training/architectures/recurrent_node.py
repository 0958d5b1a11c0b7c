"""A recurrent layer as the one ONNX operator that it is.

torch's exporter writes an unrolled loop for nn.RNN, which fixes the length of the sequence,
and some twenty steps of shape arithmetic around nn.LSTM. ONNX Runtime runs RNN, LSTM and
GRU as one operator each, over any length.
"""

import torch
from torch import Tensor, nn

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
