"""What can be trained by name: which data, which network, with which hyper-parameters.

    split = RECIPES["lenet5"].load().test
    split.inputs    float32, rows along axis 0, in a caller's units
    split.targets   class indices (rows,), or values (rows, values) in the user's units

Nothing heavy is imported until data are loaded or a network is built, so that the command
can list the recipes at once.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from neurona_training.errors import DataError

if TYPE_CHECKING:
    from torch import nn

    from neurona_training.data import Dataset


@dataclass(frozen=True)
class Moves:
    """How far an image may be moved at random, either way."""

    pixels: float
    degrees: float


@dataclass(frozen=True)
class Training:
    """Hyper-parameters of the loop in fit.py."""

    epochs: int
    batch_rows: int
    learning_rate: float  # at the start; it falls to 0 along half a cosine
    weight_decay: float = 0.0
    label_smoothing: float = 0.0  # the part of a target's certainty spread over all classes
    largest_gradient: float = 5.0  # a longer one, as recurrent networks have, is cut to this
    threads: int = 1  # of torch; small networks lose time to more
    moves: Moves | None = None  # of the training images


@dataclass(frozen=True)
class Recipe:
    name: str
    description: str
    data: Callable[[], Dataset]
    network: Callable[[Dataset], nn.Module]  # with fresh weights, fitting this data
    training: Training

    def load(self) -> Dataset:
        """Its data, the same on each call. Raises DataError when they cannot be read."""
        try:
            return self.data()
        except (ImportError, OSError, ValueError, KeyError) as error:
            reason = " ".join(str(error).split())
            raise DataError(f"the data of {self.name!r} cannot be read: {reason}") from error


def _digit_images() -> Dataset:
    from neurona_training.data import digits

    return digits.images()


def _digit_rows() -> Dataset:
    from neurona_training.data import digits

    return digits.rows_of_pixels()


def _yearly_sunspots() -> Dataset:
    from neurona_training.data import sunspots

    return sunspots.yearly()


def _lenet5(data: Dataset) -> nn.Module:
    from neurona_training.architectures.convolutional import LeNet5
    from neurona_training.architectures.scaling import Normalise

    inputs = data.train.inputs
    normalise = Normalise.to_unit_variance(inputs)
    return LeNet5(normalise, size=inputs.shape[1], classes=len(data.labels))


def _lstm(data: Dataset) -> nn.Module:
    from neurona_training.architectures.recurrent import LastState
    from neurona_training.architectures.scaling import Normalise

    inputs = data.train.inputs
    normalise = Normalise.to_unit_variance(inputs)
    features, classes = inputs.shape[2], len(data.labels)
    return LastState(normalise, "lstm", features=features, hidden=64, outputs=classes)


def _rnn(data: Dataset) -> nn.Module:
    from neurona_training.architectures.recurrent import LastState
    from neurona_training.architectures.scaling import Denormalise, Normalise

    inputs, targets = data.train.inputs, data.train.targets
    return LastState(
        Normalise.to_unit_variance(inputs),
        "rnn",
        features=inputs.shape[2],
        hidden=16,
        outputs=len(data.values),
        denormalise=Denormalise(targets),
    )


_ALL = (
    Recipe(
        name="lenet5",
        description="LeNet-5 (1998) reads a handwritten digit",
        data=_digit_images,
        network=_lenet5,
        training=Training(
            epochs=50,
            batch_rows=32,
            learning_rate=4e-3,
            label_smoothing=0.1,
            moves=Moves(pixels=1.2, degrees=12),
        ),
    ),
    Recipe(
        name="lstm",
        description="an LSTM (1997) reads a handwritten digit row by row",
        data=_digit_rows,
        network=_lstm,
        training=Training(
            epochs=80,
            batch_rows=32,
            learning_rate=5e-3,
            label_smoothing=0.1,
            moves=Moves(pixels=0.7, degrees=12),
        ),
    ),
    Recipe(
        name="rnn",
        description="a recurrent network (1990) foretells next year's sunspots",
        data=_yearly_sunspots,
        network=_rnn,
        training=Training(epochs=200, batch_rows=16, learning_rate=3e-3, weight_decay=1e-2),
    ),
)
RECIPES = {recipe.name: recipe for recipe in _ALL}
