"""Networks of neurona_training with random weights, as ONNX files.

It is separate from models.py because it imports torch, which takes seconds.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
import torch
from models import LENET5, LSTM, LSTM100, RESNET18, RESNET50
from numpy.typing import NDArray
from seeded_weights import make_rows
from torch import nn

from neurona_training.architectures.convolutional import LeNet5
from neurona_training.architectures.input_layers import Normalise
from neurona_training.architectures.recurrent import LastState
from neurona_training.architectures.resnet import ResNet
from neurona_training.data import Dataset, Input, Split
from neurona_training.export.metadata import model_metadata
from neurona_training.export.onnx_export import export_trained_network, serialise
from neurona_training.export.quantization import make_variant, run_model
from neurona_training.learning.evaluation import measure_predictions

_AXES = {
    LENET5: ("batch", "height", "width"),
    LSTM: ("batch", "time", "feature"),
    LSTM100: ("batch", "time", "feature"),
    RESNET50: ("batch", "channel", "height", "width"),
}


def build_network(name: str) -> tuple[nn.Module, tuple[int, ...], int]:
    """Returns a network with random weights, the shape of a row of its input, and its classes."""
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
        case "lstm32" | "lstm512":
            row, classes = LSTM, 10
            network = LastState(unit, "lstm", features=16, hidden=int(name[4:]), outputs=classes)
        case "lstm256":
            row, classes = LSTM100, 10
            network = LastState(unit, "lstm", features=LSTM100[1], hidden=256, outputs=classes)
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
    raise_variances(network)
    return network.eval(), row, classes


def export_network(name: str, variant: str = "") -> bytes:
    """Returns the ONNX file of a network, as `neurona-train` would write it.

    Args:
        name: Of the network, see `build_network`.
        variant: "float16", "int8", or "" for float32.
    """
    network, row, classes = build_network(name)
    data = _data(row, classes)
    spread_outputs(network, data.test.arrays)
    description = model_metadata(data, f"{name} with random weights", {}, {"seed": 0})
    content = export_trained_network(network, data, description)
    if not variant:
        return content
    description.figures.update(measure_predictions(run_model(content, data), data))
    measured = serialise(onnx.load_from_string(content), description)
    return make_variant(variant, measured, data)[0]


def raise_variances(network: nn.Module) -> None:
    """Keeps outputs finite: residual branches would add up without the statistics of training."""
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_var.fill_(4.0)


def _data(row: tuple[int, ...], classes: int) -> Dataset:
    split = Split(make_rows(row, 32), np.arange(32, dtype=np.int64) % classes)
    return Dataset(
        name="noise",
        source="random numbers",
        train=split,
        validation=split,
        test=split,
        input=Input("x", _AXES[row], "numbers near 0", ""),
        labels=tuple(f"class{index:04}" for index in range(classes)),
    )


def spread_outputs(network: nn.Module, arrays: Sequence[NDArray[Any]]) -> None:
    """Scales the last linear layer so that its outputs for these rows differ, by about 1.

    Those of random weights are nearly the same for every row: an answer of another row would not
    be noticed.
    """
    captured: list[tuple[nn.Linear, torch.Tensor]] = []
    handles = [
        module.register_forward_hook(
            lambda module, _inputs, output: captured.append((module, output))
        )
        for module in network.modules()
        if isinstance(module, nn.Linear)
    ]
    with torch.inference_mode():
        network(*(torch.from_numpy(array[:32]) for array in arrays))
    for handle in handles:
        handle.remove()
    if not captured:
        return
    last, outputs = captured[-1]
    outputs = outputs.reshape(-1, outputs.shape[-1])
    scale = 1 / max(float(outputs.std(dim=0).mean()), 1e-6)
    with torch.no_grad():
        last.weight.mul_(scale)
        if last.bias is not None:
            last.bias.sub_(outputs.mean(dim=0)).mul_(scale)
