"""Recipes of deep convolutional networks, as published for photographs of 1,000 classes.

The references are in the modules of architectures/.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from neurona_training.learning.run import AugmentationRange, Hyperparameters
from neurona_training.recipes.recipe import Recipe
from neurona_training.recipes.settings import Settings

if TYPE_CHECKING:
    from torch import nn

    from neurona_training.architectures.network_options import NetworkOptions
    from neurona_training.data import Dataset


def _resnet(
    blocks: tuple[int, ...], bottleneck: bool, data: Dataset, _options: NetworkOptions
) -> nn.Module:
    from neurona_training.architectures.input_layers import Normalise
    from neurona_training.architectures.resnet import ResNet

    inputs = data.train.inputs
    return ResNet(
        Normalise.to_unit_variance(inputs),
        size=inputs.shape[-2:],
        classes=len(data.labels),
        blocks=blocks,
        bottleneck=bottleneck,
    )


def _vgg16(data: Dataset, options: NetworkOptions) -> nn.Module:
    from neurona_training.architectures.input_layers import Normalise
    from neurona_training.architectures.vgg import VGG16

    inputs = data.train.inputs
    normalise = Normalise.to_unit_variance(inputs)
    network = VGG16(normalise, size=inputs.shape[-2:], classes=len(data.labels))
    return _with_dropout(network, options)


def _inception_v3(data: Dataset, options: NetworkOptions) -> nn.Module:
    from neurona_training.architectures.inception import InceptionV3
    from neurona_training.architectures.input_layers import Normalise

    inputs = data.train.inputs
    normalise = Normalise.to_unit_variance(inputs)
    network = InceptionV3(
        normalise, size=inputs.shape[-2:], classes=len(data.labels), auxiliary=True
    )
    return _with_dropout(network, options)


def _xception(data: Dataset, _options: NetworkOptions) -> nn.Module:
    from neurona_training.architectures.input_layers import Normalise
    from neurona_training.architectures.xception import Xception

    inputs = data.train.inputs
    normalise = Normalise.to_unit_variance(inputs)
    return Xception(normalise, size=inputs.shape[-2:], classes=len(data.labels))


def _with_dropout(network: nn.Module, options: NetworkOptions) -> nn.Module:
    """Sets the fraction of all dropout layers, if one is given."""
    from torch import nn

    if options.dropout is not None:
        for module in network.modules():
            if isinstance(module, nn.Dropout):
                module.p = options.dropout
    return network


# For bundled small digits: enough to see that a network learns. Photographs need a GPU.
_DIGITS = Hyperparameters(
    epochs=5, batch_rows=32, learning_rate=1e-3, warm_up=0.1, weight_decay=0.05
)

RECIPES = (
    Recipe(
        name="vgg16",
        description="VGG16, 16 layers of one form (2014)",
        network=_vgg16,
        takes=("images",),
        tasks=("classification",),
        # A smaller rate: there is no normalisation between its layers.
        first_weights="he",
        network_options=("dropout", "initialisation"),
        tuned={"digits": Settings(replace(_DIGITS, learning_rate=1e-4))},
        minutes={"digits": 1},
    ),
    Recipe(
        name="inception-v3",
        description="Inception v3, several ways side by side (2015)",
        network=_inception_v3,
        takes=("images",),
        tasks=("classification",),
        first_weights="he",
        network_options=("dropout", "initialisation"),
        tuned={"digits": Settings(_DIGITS)},
        minutes={"digits": 1.5},
    ),
    Recipe(
        name="resnet18",
        description="ResNet-18, a residual network of 18 layers (2015)",
        network=partial(_resnet, (2, 2, 2, 2), False),
        takes=("images",),
        tasks=("classification",),
        first_weights="he",
        network_options=("initialisation",),
        tuned={
            "digits": Settings(_DIGITS),
            "pneumonia": Settings(
                Hyperparameters(
                    epochs=10,
                    batch_rows=64,
                    learning_rate=1e-3,
                    warm_up=0.15,
                    weight_decay=0.05,
                    label_smoothing=0.1,
                    augmentation=AugmentationRange(pixels=2.0, degrees=10),
                )
            ),
        },
        minutes={"pneumonia": 2},
    ),
    Recipe(
        name="resnet50",
        description="ResNet-50, a residual network of 50 layers (2015)",
        network=partial(_resnet, (3, 4, 6, 3), True),
        takes=("images",),
        tasks=("classification",),
        first_weights="he",
        network_options=("initialisation",),
        tuned={"digits": Settings(_DIGITS)},
    ),
    Recipe(
        name="xception",
        description="Xception, depthwise separable convolutions (2016)",
        network=_xception,
        takes=("images",),
        tasks=("classification",),
        first_weights="he",
        network_options=("initialisation",),
        tuned={"digits": Settings(_DIGITS)},
        minutes={"digits": 1},
    ),
)
