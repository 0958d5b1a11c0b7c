"""The first weights of a network, by a rule of the user's choice.

"inputs"    uniform within 1 / sqrt(number of inputs) of 0, weights and biases
            (Y. LeCun and others, Efficient BackProp, 1998, has the same spread up to a factor)
"he"        normal with variance 2 / number of inputs, biases 0
            (K. He and others, Delving Deep into Rectifiers, 2015)
"xavier"    uniform with variance 2 / (number of inputs and outputs), biases 0
            (X. Glorot and Y. Bengio, Understanding the Difficulty of Training Deep Feedforward
            Neural Networks, 2010)

It is alone because it serves every family of networks.
"""

import torch
from torch import Tensor, nn

from neurona_training.architectures.convolutional import PartialConvolution


@torch.no_grad()
def initialise(network: nn.Module, rule: str) -> None:
    """Draws all weights of linear, convolutional and recurrent layers anew, in place.

    Embeddings, normalisations and scales keep theirs. Random numbers are torch's global ones.

    Args:
        network: with fresh weights.
        rule: one of `network_options.INITIALISATIONS`.
    """
    for module in network.modules():
        if isinstance(module, nn.Linear | nn.Conv2d):
            inputs = module.weight[0].numel()
            outputs = module.weight.numel() // module.weight.shape[1]
            _draw(module.weight, inputs, outputs, rule)
            if module.bias is not None:
                _draw_bias(module.bias, inputs, rule)
        elif isinstance(module, PartialConvolution):
            positions = module.weight.shape[1] * module.weight.shape[2]
            inputs = int(module.mask[0].numel()) * positions
            _draw(module.weight, inputs, len(module.bias) * positions, rule)
            _draw_bias(module.bias, inputs, rule)
        elif isinstance(module, nn.RNNBase):
            for name, weight in module.named_parameters():
                inputs = weight.shape[-1] if name.startswith("weight") else module.hidden_size
                if name.startswith("weight"):
                    _draw(weight, inputs, module.hidden_size, rule)  # of one gate
                else:
                    _draw_bias(weight, inputs, rule)


def _draw(weight: Tensor, inputs: int, outputs: int, rule: str) -> None:
    if rule == "he":
        nn.init.normal_(weight, std=(2 / inputs) ** 0.5)
        return
    width = inputs**-0.5 if rule == "inputs" else (6 / (inputs + outputs)) ** 0.5
    nn.init.uniform_(weight, -width, width)


def _draw_bias(bias: Tensor, inputs: int, rule: str) -> None:
    width = inputs**-0.5 if rule == "inputs" else 0.0
    nn.init.uniform_(bias, -width, width)
