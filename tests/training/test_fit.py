"""The loop: it learns, it can be repeated, and it keeps its best weights."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from neurona_training.augment import moved
from neurona_training.data import Split
from neurona_training.evaluate import accuracy, answers, rmse
from neurona_training.fit import fit, loss
from neurona_training.recipes import RECIPES, Moves


def _weights(fitted):
    return torch.cat([parameter.detach().flatten() for parameter in fitted.network.parameters()])


@pytest.mark.parametrize("name", list(RECIPES))
def test_the_same_seed_gives_the_same_weights(name):
    recipe = RECIPES[name]
    data, training = recipe.load(), replace(recipe.training, epochs=2)
    first, again, other = (_weights(fit(recipe, data, training, seed)) for seed in (3, 3, 4))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_the_weights_that_did_best_on_validation_stay():
    recipe = RECIPES["lstm"]
    data = recipe.load()
    # Validation with wrong targets: the more sure the network gets, the worse it does there.
    wrong = Split(data.validation.inputs, (data.validation.targets + 1) % 10)
    data, training = replace(data, validation=wrong), replace(recipe.training, epochs=6)
    fitted = fit(recipe, data, training, seed=0)
    assert fitted.best_epoch < 6
    kept = loss(answers(fitted.network, wrong), torch.from_numpy(wrong.targets))
    assert kept.item() == pytest.approx(fitted.validation_loss, rel=1e-5)


def test_figures_on_known_answers():
    logits = np.array([[0.1, 0.9], [0.8, 0.2], [0.3, 0.7], [0.6, 0.4]], np.float32)
    assert accuracy(logits, np.array([1, 0, 0, 0])) == 0.75
    assert rmse(np.array([[1.0], [5.0]], np.float32), np.array([[4.0], [1.0]])) == pytest.approx(
        np.sqrt((9 + 16) / 2)
    )


def test_moves_stay_within_their_bounds():
    image = torch.zeros(1, 8, 8)
    image[0, 4, 4] = 16
    generator = torch.Generator().manual_seed(0)
    torch.testing.assert_close(moved(image, Moves(0, 0), generator), image, rtol=0, atol=1e-4)

    many = moved(image.repeat(200, 1, 1), Moves(pixels=1, degrees=0), generator)
    assert (many >= 0).all()
    assert (many <= 16).all()
    rows, columns = many.sum(dim=(0, 2)), many.sum(dim=(0, 1))
    for ink in (rows, columns):  # a pixel either way, as shifts are at most 1
        assert (ink[[0, 1, 2, 6, 7]] == 0).all()
        assert (ink[3:6] > 0).all()
