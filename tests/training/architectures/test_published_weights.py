"""Published weights under the names of the networks' own, and images of any shape."""

import importlib
from pathlib import Path

import pytest
import torch
from torch import nn

from neurona_training.architectures.convolutional import LeNet5
from neurona_training.architectures.inception import InceptionV3
from neurona_training.architectures.neocognitron import Neocognitron
from neurona_training.architectures.published_weights import (
    PUBLISHED_SCALES,
    PublishedInput,
    rename_published,
)
from neurona_training.architectures.resnet import ResNet
from neurona_training.architectures.vgg import VGG16
from neurona_training.architectures.xception import Xception

# Layers by name as torchvision and timm have them, with what each has: w weight, b bias,
# n the five tensors of a batch normalisation.
NAMES = Path(__file__).with_name("published_names.txt")
_PARTS = {
    "w": ("weight",),
    "wb": ("weight", "bias"),
    "n": ("weight", "bias", "running_mean", "running_var", "num_batches_tracked"),
}
_RECIPES = {"inception_v3": "inception-v3", "legacy_xception": "xception"}


def _published_names():
    names, current = {}, []
    for line in NAMES.read_text().splitlines():
        if line.startswith("# "):
            current = names.setdefault(line[2:], [])
            continue
        for layer in line.split():
            name, _, kind = layer.rpartition(":")
            current += [f"{name}.{part}" for part in _PARTS[kind]]
    return names


def _network(recipe, size, classes=1000):
    same = {"normalise": nn.Identity(), "size": size, "classes": classes}
    return {
        "vgg16": lambda: VGG16(**same),
        "resnet18": lambda: ResNet(blocks=(2, 2, 2, 2), bottleneck=False, **same),
        "resnet50": lambda: ResNet(blocks=(3, 4, 6, 3), bottleneck=True, **same),
        "inception-v3": lambda: InceptionV3(auxiliary=True, **same),
        "xception": lambda: Xception(**same),
    }[recipe]()


@pytest.mark.parametrize("published", _published_names())
@pytest.mark.parametrize("pixels", [32, 299])
def test_each_published_tensor_has_one_place(published, pixels):
    recipe = _RECIPES.get(published.split()[1], published.split()[1])
    with torch.device("meta"):
        network = _network(recipe, (pixels, pixels))
    names = _published_names()[published]
    renamed = rename_published(recipe, {name: torch.empty(0) for name in names}, network)
    assert set(renamed) == set(network.state_dict())
    assert len(renamed) == len(names)


@pytest.mark.parametrize("published", _published_names())
def test_published_weights_give_published_outputs(published):
    """Against the packages themselves, where they are installed."""
    package, model = published.split()
    library = pytest.importorskip("torchvision.models" if package == "torchvision" else "timm")
    recipe = _RECIPES.get(model, model)
    torch.manual_seed(0)
    if package == "torchvision":
        theirs = getattr(library, model)(weights=None)
    else:
        theirs = importlib.import_module("timm").create_model(model)
    theirs.eval()
    pixels = 224 if recipe == "vgg16" else 299
    network = _network(recipe, (pixels, pixels)).eval()
    network.load_state_dict(rename_published(recipe, theirs.state_dict(), network))
    images = torch.randn(1, 3, pixels, pixels)
    with torch.no_grad():
        torch.testing.assert_close(network(images), theirs(images))


@pytest.mark.parametrize("recipe", PUBLISHED_SCALES)
@pytest.mark.parametrize(
    "size",
    [
        (33, 16),
        *[
            pytest.param(size, marks=[pytest.mark.slow, pytest.mark.long])
            for size in ((8, 24), (100, 60), (80, 200), (300, 75))
        ],
    ],
)
def test_images_need_not_be_square(recipe, size):
    with torch.device("meta"):
        network = _network(recipe, size, classes=3).eval()
        assert network(torch.empty(2, *size)).shape == (2, 3)
        assert network(torch.empty(2, 3, *size)).shape == (2, 3)
        logits = network.train()(torch.empty(2, 3, *size))
        logits = logits if isinstance(logits, tuple) else (logits,)
        assert [one.shape for one in logits] == [(2, 3)] * len(logits)


@pytest.mark.parametrize("size", [(1, 1), (8, 24), (33, 16), (49, 49), (100, 60)])
def test_small_networks_take_any_image(size):
    assert LeNet5(nn.Identity(), size, classes=3)(torch.rand(2, *size)).shape == (2, 3)
    network = Neocognitron(nn.Identity(), size=size, classes=3, planes=(4, 8), selectivity=(8, 4))
    assert network(torch.rand(2, *size)).shape == (2, 3)
    assert network.output.in_features <= 8 * 8 * 8  # else its readout would need too much memory


def test_published_scale():
    colours = PublishedInput(255.0, PUBLISHED_SCALES["resnet50"])
    white = colours(torch.full((1, 2, 2), 255.0))
    torch.testing.assert_close(
        white[0, :, 0, 0], torch.tensor([(1 - 0.485) / 0.229, (1 - 0.456) / 0.224, 0.594 / 0.225])
    )
    inception = PublishedInput(255.0, PUBLISHED_SCALES["inception-v3"])
    torch.testing.assert_close(inception(torch.zeros(1, 3, 2, 2)), torch.full((1, 3, 2, 2), -1.0))
