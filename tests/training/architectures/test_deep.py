"""Deep convolutional networks: as published, and trained on small images."""

from dataclasses import replace

import numpy as np
import onnxruntime
import pytest
import torch
from torch import nn

from neurona_training.architectures.inception import InceptionV3
from neurona_training.architectures.input_layers import RgbInput
from neurona_training.architectures.network_options import NetworkOptions
from neurona_training.architectures.resnet import ResNet
from neurona_training.architectures.vgg import VGG16
from neurona_training.architectures.xception import Xception
from neurona_training.data import Split
from neurona_training.export.metadata import model_metadata
from neurona_training.export.onnx_export import export_trained_network
from neurona_training.learning.evaluation import evaluate
from neurona_training.learning.gradient_descent import loss
from neurona_training.learning.run import Run
from neurona_training.recipes import RECIPES

NAMES = ("vgg16", "resnet18", "resnet50", "inception-v3", "xception")


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def _published(name, size, classes=1000):
    same = {"normalise": nn.Identity(), "size": (size, size), "classes": classes}
    return {
        "vgg16": lambda: VGG16(**same),
        "resnet18": lambda: ResNet(blocks=(2, 2, 2, 2), bottleneck=False, **same),
        "resnet50": lambda: ResNet(blocks=(3, 4, 6, 3), bottleneck=True, **same),
        "inception-v3": lambda: InceptionV3(**same),
        "inception-v3, auxiliary": lambda: InceptionV3(auxiliary=True, **same),
        "xception": lambda: Xception(**same),
    }[name]()


@pytest.mark.parametrize(
    ("name", "size", "parameters"),
    [
        ("vgg16", 224, 138_357_544),
        ("resnet18", 224, 11_689_512),
        ("resnet50", 224, 25_557_032),
        ("inception-v3", 299, 23_834_568),
        ("inception-v3, auxiliary", 299, 27_161_264),
        ("xception", 299, 22_855_952),
    ],
)
def test_the_number_of_parameters_is_as_published(name, size, parameters):
    with torch.device("meta"):  # shapes alone: neither memory nor time
        network = _published(name, size).eval()
        assert sum(weight.numel() for weight in network.parameters()) == parameters
        assert network(torch.empty(2, 3, size, size)).shape == (2, 1000)


def test_the_grids_are_those_of_the_papers():
    with torch.device("meta"):
        x = torch.empty(1, 3, 299, 299)
        inception = _published("inception-v3", 299).eval()
        grids = [inception.stem(x)]
        for stage in (inception.grid35, inception.grid17, inception.grid8):
            grids.append(stage(grids[-1]))
        assert [tuple(grid.shape[1:]) for grid in grids] == [
            *((192, 35, 35), (288, 35, 35), (768, 17, 17), (2048, 8, 8))
        ]
        xception = _published("xception", 299).eval()
        entry = xception.entry(xception.stem(x))
        assert entry.shape[1:] == (728, 19, 19)
        assert xception.exit(xception.middle(entry)).shape[1:] == (2048, 10, 10)
        y = torch.empty(1, 3, 224, 224)
        assert _published("vgg16", 224).stages(y).shape[1:] == (512, 7, 7)
        resnet = _published("resnet50", 224).eval()
        assert resnet.stages(resnet.stem(y)).shape[1:] == (2048, 7, 7)


@pytest.mark.parametrize("size", [8, 16, 33, 80])
@pytest.mark.parametrize("name", NAMES)
def test_small_images_are_accepted(name, size):
    with torch.device("meta"):
        network = _published(name, size, classes=3).eval()
        assert network(torch.empty(2, size, size)).shape == (2, 3)
        assert network(torch.empty(2, 1, size, size)).shape == (2, 3)


def test_the_auxiliary_classifier_is_trained_with_the_other():
    network = _published("inception-v3, auxiliary", 8, classes=3)
    both = network(torch.rand(2, 8, 8))
    assert [logits.shape for logits in both] == [(2, 3), (2, 3)]
    sum(logits.square().sum() for logits in both).backward()
    assert all(weight.grad is not None for weight in network.parameters())
    assert network.eval()(torch.rand(2, 8, 8)).shape == (2, 3)


def test_the_recipe_trains_the_auxiliary_classifier():
    data = _few_digits("inception-v3", 8)
    recipe = RECIPES["inception-v3"]
    settings = recipe.settings(data, "digits").with_changes({"epochs": 1, "batch_rows": 8})
    torch.manual_seed(0)
    before = recipe.network(data, settings.network)
    after = recipe.fit(data, settings, Run("auxiliary", 0)).network
    for name in ("auxiliary.output.weight", "auxiliary.maps.1.0.weight", "output.weight"):
        assert not torch.equal(before.get_parameter(name), after.get_parameter(name)), name


def test_grey_is_repeated_for_all_colours():
    step = RgbInput(nn.Identity())
    grey, colour = torch.rand(2, 4, 4), torch.rand(2, 3, 4, 4)
    assert torch.equal(step(grey), grey[:, None].expand(-1, 3, -1, -1))
    assert torch.equal(step(grey[:, None]), step(grey))
    assert torch.equal(step(colour), colour)


def _few_digits(name, rows):
    data = RECIPES[name].load("digits")
    return replace(
        data,
        train=Split(data.train.inputs[:rows], data.train.targets[:rows]),
        validation=Split(data.validation.inputs[:100], data.validation.targets[:100]),
        test=Split(data.test.inputs[:100], data.test.targets[:100]),
    )


@pytest.mark.parametrize("name", NAMES)
def test_a_gradient_step_reduces_the_loss(name):
    data = _few_digits(name, 8)
    torch.manual_seed(0)
    network = RECIPES[name].network(data, NetworkOptions()).train()
    for module in network.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0  # its random numbers would hide the effect of a step
    images, targets = torch.from_numpy(data.train.inputs), torch.from_numpy(data.train.targets)
    weights = [w for n, w in network.named_parameters() if not n.startswith("auxiliary.")]

    def loss_now():
        outputs = network(images)
        return loss(outputs[0] if isinstance(outputs, tuple) else outputs, targets)

    before = loss_now()
    slopes = torch.autograd.grad(before, weights)
    assert all(slope.abs().max() > 0 for slope in slopes[::2])
    # A step along the gradient that should reduce the loss by a hundredth.
    length = sum(slope.square().sum() for slope in slopes)
    with torch.no_grad():
        for weight, slope in zip(weights, slopes, strict=True):
            weight.sub_(0.01 * before.detach() / length * slope)
        after = loss_now()
    assert 0.98 < after / before < 0.995


@pytest.mark.long
@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_a_few_hundred_digits_are_learned_and_exported(name):
    recipe = RECIPES[name]
    data = _few_digits(name, 320)
    settings = recipe.settings(data, "digits")
    if name == "resnet18":
        settings = settings.with_changes({"epochs": 3})
    result = recipe.fit(data, settings, Run(name, 0))
    losses = [epoch.loss for epoch in result.history]
    assert losses[-1] < 0.75 * losses[0]
    accuracy = evaluate(result.network, data)["test_accuracy"]
    assert accuracy > 0.4  # chance: a tenth
    model = export_trained_network(result.network, data, model_metadata(data, "", {}, {}))
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    (probabilities,) = session.run(None, {"image": data.test.inputs})
    assert np.mean(probabilities.argmax(axis=1) == data.test.targets) == pytest.approx(accuracy)
