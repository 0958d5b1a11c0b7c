"""Fully connected networks that learn by backpropagation.

D. Rumelhart, G. Hinton and R. Williams, Learning Representations by Back-propagating Errors,
Nature 323 (1986).
"""

from collections.abc import Sequence

from torch import Tensor, nn

from neurona_training.architectures.input_layers import Features


class FullyConnected(nn.Module):
    """The rows or images of a data set -> logits or values, (rows, outputs).

    hidden: the units of each hidden layer.
    bend: what makes a layer more than a matrix: tanh as in 1986, or ReLU, whose gradient
        does not fade on its way through many layers.
    dropout: the part of each hidden layer that is silent at each training step (N. Srivastava
        and others, JMLR 15, 2014).
    denormalise: from the network's own units to the user's, for a regression.
    """

    def __init__(
        self,
        features: Features,
        hidden: Sequence[int],
        outputs: int,
        *,
        bend: type[nn.Module] = nn.Tanh,
        dropout: float = 0.0,
        denormalise: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.features = features
        self.hidden = nn.Sequential()
        width = features.width
        for units in hidden:
            self.hidden.extend([nn.Linear(width, units), bend()])
            if dropout:
                self.hidden.append(nn.Dropout(dropout))
            width = units
        self.output = nn.Linear(width, outputs)
        self.denormalise = denormalise or nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        answer: Tensor = self.denormalise(self.output(self.hidden(self.features(x))))
        return answer
