"""Class weights, averaged weights and augmentation: what each does to a training."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from neurona_training.data import Dataset, Input, Split
from neurona_training.learning.augmentation import augment_images
from neurona_training.learning.evaluation import predict
from neurona_training.learning.gradient_descent import loss, rate_factor
from neurona_training.learning.run import AugmentationRange, Hyperparameters, Run
from neurona_training.recipes import RECIPES
from neurona_training.recipes.settings import Settings


@pytest.fixture(scope="module")
def rare_class():
    """Two overlapping classes, one with a twentieth of the rows."""
    random = np.random.default_rng(2)

    def split(rows):
        targets = (np.arange(rows) % 20 == 0).astype(np.int64)
        inputs = random.normal(size=(rows, 2)) + targets[:, None]
        return Split(inputs.astype(np.float32), targets)

    described = Input("row", ("batch", "column"), "", "")
    return Dataset("rare", "", split(600), split(200), split(400), described, ("common", "rare"))


def test_balanced_classes_are_found_equally_often(rare_class):
    found = {}
    for weights in (None, "balanced"):
        settings = Settings(
            Hyperparameters(epochs=15, batch_rows=30, learning_rate=1e-2, class_weights=weights)
        )
        network = RECIPES["mlp"].fit(rare_class, settings, Run("rare", 0)).network
        classes = predict(network, rare_class.test).argmax(dim=1).numpy()
        found[weights] = classes[rare_class.test.targets == 1].mean()
    assert found["balanced"] > found[None] + 0.3


def test_a_class_weight_multiplies_its_rows_whatever_else_is_in_the_batch():
    logits, weights = torch.tensor([[1.0, 0.0]] * 4), torch.tensor([0.5, 10.0])
    rare = loss(logits, torch.ones(4, dtype=torch.int64), 0, weights)
    plain = loss(logits, torch.ones(4, dtype=torch.int64))
    assert rare.item() == pytest.approx(10 * plain.item())


def test_the_average_of_the_weights_is_what_is_kept(rare_class):
    """With so slow an average the weights stay near the first step's."""
    hyperparameters = Hyperparameters(epochs=3, batch_rows=30, learning_rate=1e-2)
    recipe, moves = RECIPES["mlp"], {}
    for decay in (0.0, 0.9999):
        settings = Settings(replace(hyperparameters, weight_average=decay))
        torch.manual_seed(0)
        first = recipe.network(rare_class, settings.network).output.weight
        last = recipe.fit(rare_class, settings, Run("average", 0)).network.output.weight
        moves[decay] = (last - first).abs().max().item()
    assert moves[0.9999] < 0.2 * moves[0.0]


def test_an_averaged_training_resumes_to_the_same_weights(rare_class, tmp_path):
    recipe = RECIPES["mlp"]
    learner = Hyperparameters(epochs=4, batch_rows=30, learning_rate=1e-2, weight_average=0.9)
    settings = Settings(learner)

    class StopError(Exception):
        pass

    def stop_after_two(epoch):
        if epoch.number == 3:
            raise StopError

    path = tmp_path / "checkpoint.pt"
    whole = recipe.fit(rare_class, settings, Run("m", 0))
    with pytest.raises(StopError):
        recipe.fit(rare_class, settings, Run("m", 0, path, listeners=(stop_after_two,)))
    resumed = recipe.fit(rare_class, settings, Run("m", 0, path, resume=True))
    for name, tensor in whole.network.state_dict().items():
        assert torch.equal(tensor, resumed.network.state_dict()[name]), name


def test_schedules():
    base = Hyperparameters(epochs=1, batch_rows=1, learning_rate=1)
    linear = replace(base, schedule="linear")
    assert [rate_factor(step, 4, linear) for step in range(4)] == [1, 0.75, 0.5, 0.25]


def _generator():
    return torch.Generator().manual_seed(0)


def test_flips_mirror_about_half_of_the_images():
    images = torch.arange(6.0).reshape(1, 2, 3).repeat(200, 1, 1)
    for limits, axis in (
        (AugmentationRange(horizontal_flip=True), -1),
        (AugmentationRange(vertical_flip=True), -2),
    ):
        changed = augment_images(images, limits, _generator())
        mirrored = [torch.allclose(image, images[0].flip(axis), atol=1e-4) for image in changed]
        kept = [torch.allclose(image, images[0], atol=1e-4) for image in changed]
        assert sum(mirrored) + sum(kept) == 200
        assert 70 < sum(mirrored) < 130


def test_scale_changes_the_size_about_the_middle():
    images = torch.zeros(100, 32, 32)
    images[:, 8:24, 8:24] = 1
    changed = augment_images(images, AugmentationRange(scale=0.25), _generator())
    areas = changed.sum(dim=(1, 2)) / 256
    assert 0.75**2 - 0.05 < areas.min() < 0.7
    assert 1.4 < areas.max() < 1.25**2 + 0.05
    middle = (changed * torch.arange(32)).sum(dim=(1, 2)) / changed.sum(dim=(1, 2))
    assert (middle - 15.5).abs().max() < 0.1


def test_a_rectangle_is_rotated_without_being_sheared():
    images = torch.zeros(50, 12, 48)
    images[:, 6, 20:28] = 1
    changed = augment_images(images, AugmentationRange(degrees=40), _generator())
    y, x = torch.meshgrid(torch.arange(12.0), torch.arange(48.0), indexing="ij")
    for image in changed:
        mass = image.sum()
        centre = torch.stack([(image * x).sum(), (image * y).sum()]) / mass
        spread = (image * ((x - centre[0]) ** 2 + (y - centre[1]) ** 2)).sum() / mass
        assert spread == pytest.approx(5.25, abs=1.0)  # the length of the line stays


def test_colours_stay_within_the_image_s_range():
    images = torch.rand(40, 3, 8, 8) * 200 + 20
    changed = augment_images(images, AugmentationRange(colour=0.3), _generator())
    assert changed.min() >= images.min() - 1e-3
    assert changed.max() <= images.max() + 1e-3
    shift = (changed - images).mean(dim=(2, 3))
    assert shift.abs().max() > 15
    assert not torch.allclose(shift[:, 0], shift[:, 1])  # each channel by itself
