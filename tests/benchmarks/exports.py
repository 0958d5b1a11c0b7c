"""Networks of neurona_training with random weights, as ONNX files.

It is separate from models.py because it imports torch, which takes seconds.
"""

import numpy as np
import torch
from models import LENET5, LSTM, RESNET18, RESNET50
from torch import nn

from neurona_training.architectures.convolutional import LeNet5
from neurona_training.architectures.input_layers import Normalise
from neurona_training.architectures.recurrent import LastState
from neurona_training.architectures.resnet import ResNet
from neurona_training.data import Dataset, Input, Split
from neurona_training.export.metadata import model_metadata
from neurona_training.export.onnx_export import export

_AXES = {
    LENET5: ("batch", "height", "width"),
    LSTM: ("batch", "time", "feature"),
    RESNET50: ("batch", "channel", "height", "width"),
}


def export_network(name: str) -> bytes:
    """Returns the ONNX file of a network, as `neurona-train` would write it."""
    torch.manual_seed(0)
    unit = Normalise(0.0, 1.0)
    network: nn.Module
    match name:
        case "lenet5":
            row, classes = LENET5, 10
            network = LeNet5(unit, size=(28, 28), classes=classes)
        case "lstm":
            row, classes = LSTM, 10
            network = LastState(unit, "lstm", features=16, hidden=128, outputs=classes)
        case "resnet18":
            row, classes = RESNET18, 10
            network = ResNet(
                unit, size=(28, 28), classes=classes, blocks=(2, 2, 2, 2), bottleneck=False
            )
        case "resnet50":
            row, classes = RESNET50, 1000
            network = ResNet(
                unit, size=(224, 224), classes=classes, blocks=(3, 4, 6, 3), bottleneck=True
            )
        case _:
            raise ValueError(f"unknown network {name!r}")
    _raise_variances(network)
    data = _data(row, classes)
    description = model_metadata(data, f"{name} with random weights", {}, {"seed": 0})
    return export(network, data, description)


def _raise_variances(network: nn.Module) -> None:
    """Keeps outputs finite: residual branches would add up without the statistics of training."""
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_var.fill_(4.0)


def _data(row: tuple[int, ...], classes: int) -> Dataset:
    generator = np.random.default_rng(0)
    values = generator.normal(0, 1, (32, *row)).astype(np.float32)
    split = Split(values, np.arange(32, dtype=np.int64) % classes)
    return Dataset(
        name="noise",
        source="normally distributed numbers",
        train=split,
        validation=split,
        test=split,
        input=Input("x", _AXES[row], "numbers near 0", ""),
        labels=tuple(f"class{index:04}" for index in range(classes)),
    )
