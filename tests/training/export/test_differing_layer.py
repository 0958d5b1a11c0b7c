"""A wrong export names the layer that differs."""

import re

import pytest
import torch
from torch import nn

from neurona_training.architectures.convolutional import LeNet5, Subsampling
from neurona_training.architectures.input_layers import Normalise
from neurona_training.architectures.network_options import NetworkOptions
from neurona_training.architectures.recurrent import Recurrent
from neurona_training.data.sources import digits
from neurona_training.errors import ExportError
from neurona_training.export.metadata import model_metadata
from neurona_training.export.onnx_export import export_trained_network
from neurona_training.recipes import RECIPES


def _failure(network, data):
    with pytest.raises(ExportError) as caught:
        export_trained_network(network, data, model_metadata(data, "a test", {}, {}))
    return str(caught.value)


@pytest.mark.parametrize(
    "layer", ["s2", pytest.param("s4", marks=[pytest.mark.slow, pytest.mark.long])]
)
def test_a_wrong_layer_is_named(monkeypatch, layer):
    torch.manual_seed(0)
    data = digits.digit_images()
    network = LeNet5(Normalise.to_unit_variance(data.train.inputs), size=(8, 8), classes=10).eval()
    original, wrong_layer = Subsampling.for_export, getattr(network, layer)

    def wrong_export(self):
        convolution = original(self)
        if len(self.weight) == len(wrong_layer.weight):
            convolution.bias.data[0] += 0.5
        return convolution

    monkeypatch.setattr(Subsampling, "for_export", wrong_export)
    message = _failure(network, data)
    assert f"the first layer that differs is '{layer}' (Subsampling; ONNX node " in message
    assert re.search(r", Conv\), by up to 0\.5", message)
    assert (
        "output 'probabilities' for input 'image' of shape [1, 8, 8] differs from torch" in message
    )


@pytest.mark.long
@pytest.mark.slow
def test_a_recurrent_layer_is_named(monkeypatch):
    torch.manual_seed(0)
    recipe = RECIPES["rnn"]
    data = recipe.load("digit-rows")
    original = Recurrent.for_export

    def wrong_export(self):
        layers = original(self)
        layers.nodes[0].w *= 1.5
        return layers

    monkeypatch.setattr(Recurrent, "for_export", wrong_export)
    message = _failure(recipe.network(data, NetworkOptions()), data)
    assert "the first layer that differs is 'recurrent' (Recurrent; " in message


@pytest.mark.long
@pytest.mark.slow
def test_a_difference_between_layers_names_the_network():
    class Scaled(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = nn.Linear(8, 10)

        def forward(self, image):
            answer = self.inner(image[:, 0])
            return answer * 0.5 if torch.compiler.is_exporting() else answer

    torch.manual_seed(0)
    message = _failure(Scaled(), digits.digit_images())
    assert "the first layer that differs is 'network' (Scaled; " in message
