"""Fully connected networks by backpropagation."""

import numpy as np
import pytest
import torch

from neurona_training.architectures.network_options import NetworkOptions
from neurona_training.export.metadata import model_metadata
from neurona_training.export.onnx_export import export_trained_network
from neurona_training.learning.evaluation import evaluate
from neurona_training.learning.run import Run
from neurona_training.recipes import RECIPES


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.long
@pytest.mark.slow
def test_a_deep_network_reads_digits_and_is_exported(ask):
    recipe = RECIPES["feedforward"]
    data = recipe.load("digits")
    settings = recipe.settings(data, "digits").with_changes({"epochs": 10})
    result = recipe.fit(data, settings, Run("feedforward", 0))
    accuracy = evaluate(result.network, data)["test_accuracy"]
    assert accuracy > 0.9
    model = export_trained_network(result.network, data, model_metadata(data, "", {}, {}))
    classes = ask(model, data.test.inputs).argmax(axis=1)
    assert np.mean(classes == data.test.targets) == accuracy


def test_layers_have_the_given_sizes_and_dropout_is_for_training_alone():
    recipe = RECIPES["feedforward"]
    data = recipe.load("digits")
    network = recipe.network(data, NetworkOptions())
    sizes = [m.weight.shape for m in network.modules() if isinstance(m, torch.nn.Linear)]
    assert sizes == [(512, 64), (512, 512), (256, 512), (128, 256), (10, 128)]
    images = torch.from_numpy(data.test.inputs[:2])
    assert not torch.equal(network.train()(images), network(images))
    assert torch.equal(network.eval()(images), network(images))


@pytest.mark.parametrize("name", ["mlp", "feedforward"])
def test_a_regression_predicts_in_the_unit_of_its_targets(name):
    recipe = RECIPES[name]
    data = recipe.load("diabetes")
    network = recipe.network(data, NetworkOptions()).eval()
    with torch.no_grad():
        network.output.weight.zero_()
        network.output.bias.zero_()
        predicted = network(torch.from_numpy(data.test.inputs[:3]))
    assert predicted.shape == (3, 1)
    assert predicted[:, 0].tolist() == pytest.approx([data.train.targets.mean()] * 3)
