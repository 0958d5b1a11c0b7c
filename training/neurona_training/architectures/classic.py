"""The networks from before backpropagation: a unit or two, without a gradient.

W. McCulloch and W. Pitts, A Logical Calculus of the Ideas Immanent in Nervous Activity,
Bulletin of Mathematical Biophysics 5 (1943); F. Rosenblatt, The Perceptron, Psychological
Review 65 (1958); B. Widrow and M. Hoff, Adaptive Switching Circuits, IRE WESCON (1960).
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from neurona_training.architectures.input_layers import Features

_SURE = 20.0  # between two logits: the softmax of 1 that float32 has for it is exactly 1


class Threshold(nn.Module):
    """Units that fire, 1, when the weighted sum of their inputs reaches their threshold; else 0.

    (rows, inputs) -> (rows, units). No gradient goes through it.
    """

    def __init__(self, inputs: int, units: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(units, inputs), requires_grad=False)
        self.threshold = nn.Parameter(torch.zeros(units), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        return (x @ self.weight.T >= self.threshold).to(x.dtype)


class Logic(nn.Module):
    """McCulloch and Pitts's neurons, in layers: what is true comes in as 1 and false as 0.

    (rows, inputs) -> logits (rows, 2), false and true, with no doubt left. Inhibition is a
    negative weight here, where the paper's inhibitory synapse forbids firing altogether.

    layers: of each neuron its weights, one for each input, and its threshold; the last layer
        has one neuron.
    """

    def __init__(self, layers: Sequence[Sequence[tuple[Sequence[float], float]]]) -> None:
        super().__init__()
        self.layers = nn.Sequential()
        for neurons in layers:
            layer = Threshold(len(neurons[0][0]), len(neurons))
            layer.weight.copy_(torch.tensor([weights for weights, _ in neurons]))
            layer.threshold.copy_(torch.tensor([threshold for _, threshold in neurons]))
            self.layers.append(layer)

    def forward(self, x: Tensor) -> Tensor:
        return _certain(self.layers(x))


class Perceptron(nn.Module):
    """One threshold unit: the rows of a data set -> logits (rows, 2), with no doubt left."""

    def __init__(self, features: Features) -> None:
        super().__init__()
        self.features = features
        self.unit = Threshold(features.width, 1)

    def forward(self, x: Tensor) -> Tensor:
        return _certain(self.unit(self.features(x)))


class Adaline(nn.Module):
    """Adaptive linear neurons: the rows of a data set -> (rows, values) in the user's units."""

    def __init__(self, features: Features, values: int, denormalise: nn.Module) -> None:
        super().__init__()
        self.features = features
        self.weight = nn.Parameter(torch.zeros(values, features.width), requires_grad=False)
        self.bias = nn.Parameter(torch.zeros(values), requires_grad=False)
        self.denormalise = denormalise

    def forward(self, x: Tensor) -> Tensor:
        answer = nn.functional.linear(self.features(x), self.weight, self.bias)
        values: Tensor = self.denormalise(answer)
        return values


def _certain(fired: Tensor) -> Tensor:
    """What fired, (rows, 1) of 0 and 1, as the logits of false and true."""
    return torch.cat([1 - fired, fired], dim=1) * _SURE
