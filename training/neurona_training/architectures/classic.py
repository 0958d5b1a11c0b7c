"""Networks from before backpropagation: a few units, without a gradient.

W. McCulloch and W. Pitts, A Logical Calculus of the Ideas Immanent in Nervous Activity,
Bulletin of Mathematical Biophysics 5 (1943); F. Rosenblatt, The Perceptron, Psychological
Review 65 (1958); B. Widrow and M. Hoff, Adaptive Switching Circuits, IRE WESCON (1960).
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from neurona_training.architectures.input_layers import Features

_CERTAIN_LOGIT = 20.0  # difference of two logits whose softmax is exactly 1 in float32


class Threshold(nn.Module):
    """Units that output 1 when the weighted sum of their inputs reaches a threshold, else 0.

    (rows, inputs) -> (rows, units), without a gradient.
    """

    def __init__(self, inputs: int, units: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(units, inputs), requires_grad=False)
        self.threshold = nn.Parameter(torch.zeros(units), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        """Returns 1 for each unit that fires, else 0."""
        return (x @ self.weight.T >= self.threshold).to(x.dtype)


class Logic(nn.Module):
    """McCulloch and Pitts's neurons, in layers; inputs are 1 for true and 0 for false.

    (rows, inputs) -> logits (rows, 2), false and true, whose softmax is 0 or 1. Inhibition is
    a negative weight here; the paper's inhibitory synapse prevents firing altogether.

    Args:
        layers: of each neuron its weights, one for each input, and its threshold; the last
            layer has one neuron.
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
        """Returns the logits of false and true."""
        return _to_logits(self.layers(x))


class Perceptron(nn.Module):
    """One threshold unit: rows of a data set -> logits (rows, 2), whose softmax is 0 or 1."""

    def __init__(self, features: Features) -> None:
        super().__init__()
        self.features = features
        self.unit = Threshold(features.width, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Returns the logits of both classes."""
        return _to_logits(self.unit(self.features(x)))


class Adaline(nn.Module):
    """Adaptive linear neurons: rows of a data set -> (rows, values) in the targets' unit."""

    def __init__(self, features: Features, values: int, denormalise: nn.Module) -> None:
        super().__init__()
        self.features = features
        self.weight = nn.Parameter(torch.zeros(values, features.width), requires_grad=False)
        self.bias = nn.Parameter(torch.zeros(values), requires_grad=False)
        self.denormalise = denormalise

    def forward(self, x: Tensor) -> Tensor:
        """Returns the values."""
        output = nn.functional.linear(self.features(x), self.weight, self.bias)
        values: Tensor = self.denormalise(output)
        return values


def _to_logits(output: Tensor) -> Tensor:
    """A unit's output, (rows, 1) of 0 and 1, as the logits of false and true."""
    return torch.cat([1 - output, output], dim=1) * _CERTAIN_LOGIT
