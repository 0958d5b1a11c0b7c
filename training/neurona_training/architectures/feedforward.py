"""Fully connected networks that learn by backpropagation.

D. Rumelhart, G. Hinton and R. Williams, Learning Representations by Back-propagating Errors,
Nature 323 (1986). Each family of networks has its module alone, also a short one.
"""

from collections.abc import Sequence

from torch import Tensor, nn

from neurona_training.architectures.input_layers import Features
from neurona_training.architectures.network_options import ACTIVATIONS


class FullyConnected(nn.Module):
    """A fully connected network: rows or images of a data set -> (rows, outputs).

    Args:
        features: scales the inputs.
        hidden: the units of each hidden layer.
        outputs: number of logits or values.
        activation: "tanh" as in 1986, or one of the other `activation_layers`; the gradient of
            "relu" does not vanish in deep networks.
        dropout: fraction of each hidden layer that is dropped at each training step
            (N. Srivastava and others, JMLR 15, 2014).
        denormalise: from the network's own units to the targets', for a regression.
    """

    def __init__(
        self,
        features: Features,
        hidden: Sequence[int],
        outputs: int,
        *,
        activation: str = "tanh",
        dropout: float = 0.0,
        denormalise: nn.Module | None = None,
    ) -> None:
        super().__init__()
        make_activation = activation_layers()[activation]
        self.features = features
        self.hidden = nn.Sequential()
        width = features.width
        for units in hidden:
            self.hidden.extend([nn.Linear(width, units), make_activation()])
            if dropout:
                self.hidden.append(nn.Dropout(dropout))
            width = units
        self.output = nn.Linear(width, outputs)
        self.denormalise = denormalise or nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """Returns logits or values."""
        output: Tensor = self.denormalise(self.output(self.hidden(self.features(x))))
        return output


def activation_layers() -> dict[str, type[nn.Module]]:
    """Returns the layer of each of `network_options.ACTIVATIONS`, by its name."""
    layers = (nn.Tanh, nn.ReLU, nn.GELU, nn.SiLU, nn.Sigmoid)
    return dict(zip(ACTIVATIONS, layers, strict=True))
