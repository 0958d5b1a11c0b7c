"""The neocognitron: it learns without a gradient, and tolerates a shift."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from neurona_training.architectures.neocognitron import CCells, Neocognitron, SCells
from neurona_training.data import Split
from neurona_training.errors import FitError
from neurona_training.export.metadata import model_metadata
from neurona_training.export.onnx_export import export_trained_network
from neurona_training.learning.competitive import learn_competitively
from neurona_training.learning.evaluation import evaluate, predict
from neurona_training.learning.run import Run
from neurona_training.recipes import RECIPES


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """Sets one thread as `neurona-train` does: single images are too small for more."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def digits():
    return RECIPES["neocognitron"].load()


@pytest.fixture(scope="module")
def fit_result(digits):
    recipe = RECIPES["neocognitron"]
    return recipe.fit(digits, recipe.tuned_settings, Run("neocognitron", 0))


def test_an_s_cell_responds_to_the_pattern_of_its_plane_at_any_contrast():
    cells = SCells(in_maps=2, planes=2, size=3, selectivity=4)
    image = torch.zeros(1, 2, 5, 5)
    image[0, 0, 1:4, 2], image[0, 1, 2, 1:4] = 1, 1
    cells.reinforce(0, image[0, :, 1:4, 1:4], learning_rate=1e4)
    answer = cells(image)[0]
    assert answer[0].argmax() == 2 * 5 + 2  # in the middle, where the pattern is
    assert answer[0, 2, 2].item() == pytest.approx(1, abs=0.01)
    assert cells(image * 0.2)[0, 0, 2, 2].item() == pytest.approx(1, abs=0.05)
    assert cells(image.flip(1))[0, 0, 2, 2] == 0  # another pattern, as strong
    assert (answer[1] == 0).all()  # a plane that has learned nothing


def test_a_c_cell_tolerates_a_shift_of_one():
    cells = CCells(5)
    image = torch.zeros(1, 4, 9, 9)
    image[0, 1, 4, 4] = 1
    here, there = cells(image), cells(image.roll(1, dims=3))
    assert here.shape == (1, 4, 5, 5)
    assert here[0, 1].argmax() == there[0, 1].argmax() == 2 * 5 + 2
    assert there[0, 1].max() > 0.5 * here[0, 1].max()
    assert (here[0, [0, 2, 3]] == 0).all()
    same_everywhere = torch.ones(1, 4, 9, 9)
    assert cells(same_everywhere).abs().max() == 0  # planes that all respond carry no information


def test_digits_are_recognised(fit_result, digits):
    assert evaluate(fit_result.network, digits)["test_accuracy"] >= 0.90


def test_no_weight_has_ever_had_a_gradient(fit_result):
    assert not any(weight.requires_grad for weight in fit_result.network.parameters())
    assert all(weight.grad is None for weight in fit_result.network.parameters())


def test_small_shifts_change_fewer_predictions_than_of_the_mlp(fit_result, digits):
    mlp = RECIPES["mlp"]
    dense = mlp.fit(digits, mlp.tuned["digits"], Run("mlp", 0))
    stability = [
        _stability(network, digits.test) for network in (fit_result.network, dense.network)
    ]
    assert stability[0] > stability[1] + 0.2


def _stability(network, test):
    """Fraction of predictions that a shift by one pixel of eight does not change."""
    before = predict(network, test).argmax(dim=1)
    stayed = []
    for axis, step in ((1, 1), (1, -1), (2, 1), (2, -1)):
        moved = np.roll(test.inputs, step, axis)
        edge = [slice(None)] * 3
        edge[axis] = 0 if step == 1 else -1
        moved[tuple(edge)] = 0  # paper, not the pixels shifted out at the other side
        after = predict(network, Split(moved, test.targets)).argmax(dim=1)
        stayed.append((after == before).float().mean().item())
    return np.mean(stayed)


def test_the_same_seed_learns_the_same(digits):
    few = replace(digits, train=Split(digits.train.inputs[:60], digits.train.targets[:60]))
    recipe = RECIPES["neocognitron"]
    first, again, other = (
        recipe.fit(few, recipe.tuned_settings, Run("few", seed)).network.state_dict()
        for seed in (1, 1, 2)
    )
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert any(not torch.equal(first[name], other[name]) for name in first)


def test_the_trained_network_is_exported(fit_result, digits, ask):
    model = export_trained_network(fit_result.network, digits, model_metadata(digits, "", {}, {}))
    probabilities = ask(model, digits.test.inputs)
    accuracy = np.mean(probabilities.argmax(axis=1) == digits.test.targets)
    assert accuracy == evaluate(fit_result.network, digits)["test_accuracy"]


def test_blank_images_are_rejected(digits):
    blank = replace(digits, train=Split(digits.train.inputs[:5] * 0, digits.train.targets[:5]))
    network = Neocognitron(
        torch.nn.Identity(), size=(8, 8), classes=10, planes=(2, 2), selectivity=(4, 4)
    )
    with pytest.raises(FitError, match="blank training images"):
        learn_competitively(
            network, blank, RECIPES["neocognitron"].tuned_settings.hyperparameters, Run("blank", 0)
        )
