"""The training loop: it learns, is reproducible, and keeps its best weights."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from neurona_training.data import Dataset, Input, Split
from neurona_training.errors import FitError
from neurona_training.learning.augmentation import augment_images
from neurona_training.learning.devices import Device, best_device
from neurona_training.learning.evaluation import (
    accuracy,
    evaluate,
    predict,
    rmse,
    rows_at_once,
)
from neurona_training.learning.gradient_descent import fit, loss, rate_factor
from neurona_training.learning.run import AugmentationRange, FitResult, Hyperparameters, Run
from neurona_training.recipes import RECIPES


def _weights(result):
    return torch.cat([parameter.detach().flatten() for parameter in result.network.parameters()])


@pytest.mark.parametrize("name", ["lenet5", "lstm", "rnn"])
def test_the_same_seed_gives_the_same_weights(name):
    recipe = RECIPES[name]
    data, settings = recipe.load(), recipe.tuned_settings.with_changes({"epochs": 2})
    first, again, other = (
        _weights(recipe.fit(data, settings, Run(name, seed))) for seed in (3, 3, 4)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_the_best_weights_on_validation_are_kept():
    recipe = RECIPES["lstm"]
    data = recipe.load()
    # Validation with wrong targets: the more certain the network gets, the larger its loss.
    wrong = Split(data.validation.inputs, (data.validation.targets + 1) % 10)
    data, settings = (
        replace(data, validation=wrong),
        recipe.tuned_settings.with_changes({"epochs": 6}),
    )
    result = recipe.fit(data, settings, Run("lstm", 0))
    assert result.best_epoch < 6
    losses = [epoch.validation_loss for epoch in result.history]
    assert losses.index(min(losses)) + 1 == result.best_epoch
    smoothing = settings.hyperparameters.label_smoothing
    kept_loss = loss(predict(result.network, wrong), torch.from_numpy(wrong.targets), smoothing)
    assert kept_loss.item() == pytest.approx(result.validation_loss, rel=1e-5)


def test_metrics_of_given_predictions():
    logits = np.array([[0.1, 0.9], [0.8, 0.2], [0.3, 0.7], [0.6, 0.4]], np.float32)
    assert accuracy(logits, np.array([1, 0, 0, 0])) == 0.75
    assert rmse(np.array([[1.0], [5.0]], np.float32), np.array([[4.0], [1.0]])) == pytest.approx(
        np.sqrt((9 + 16) / 2)
    )


def test_augmentation_stays_within_its_range():
    image = torch.zeros(1, 8, 8)
    image[0, 4, 4] = 16
    generator = torch.Generator().manual_seed(0)
    torch.testing.assert_close(
        augment_images(image, AugmentationRange(0, 0), generator), image, rtol=0, atol=1e-4
    )

    many = augment_images(
        image.repeat(200, 1, 1), AugmentationRange(pixels=1, degrees=0), generator
    )
    assert (many >= 0).all()
    assert (many <= 16).all()
    rows, columns = many.sum(dim=(0, 2)), many.sum(dim=(0, 1))
    for ink in (rows, columns):  # a pixel either way, as shifts are at most 1
        assert (ink[[0, 1, 2, 6, 7]] == 0).all()
        assert (ink[3:6] > 0).all()


def test_the_learning_rate_rises_and_falls():
    hyperparameters = Hyperparameters(epochs=1, batch_rows=1, learning_rate=1, warm_up=0.2)
    rates = [rate_factor(step, 100, hyperparameters) for step in range(100)]
    assert np.all(np.diff(rates[:20]) > 0)
    assert np.all(np.diff(rates[20:]) < 0)
    assert (0 < rates[0] < 0.06, rates[20], rates[60]) == (True, 1, pytest.approx(0.5))
    assert rates[99] < 1e-3
    constant = replace(hyperparameters, warm_up=0, schedule="constant")
    assert {rate_factor(step, 100, constant) for step in range(100)} == {1}


def test_training_stops_when_patience_is_exhausted():
    recipe = RECIPES["lstm"]
    data = recipe.load()
    wrong = Split(data.validation.inputs, (data.validation.targets + 1) % 10)
    data, settings = (
        replace(data, validation=wrong),
        recipe.tuned_settings.with_changes({"patience": 2}),
    )
    result = recipe.fit(data, settings, Run("lstm", 0))
    assert len(result.history) == result.best_epoch + 2 < settings.hyperparameters.epochs


def test_a_loss_that_is_not_finite_ends_the_training():
    recipe = RECIPES["rnn"]
    settings = recipe.tuned_settings.with_changes(
        {"optimiser": "sgd", "learning_rate": 1e30, "gradient_clip_norm": 1e30, "epochs": 2}
    )
    with pytest.raises(FitError, match=r"validation loss is (nan|inf) after 2 epochs"):
        recipe.fit(recipe.load(), settings, Run("rnn", 0))


@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16])
def test_mixed_precision_learns_in_float32_weights(half):
    """On the CPU, where the code path is the same."""
    recipe = RECIPES["lenet5"]
    data, settings = recipe.load(), recipe.tuned_settings.with_changes({"epochs": 3})
    torch.manual_seed(0)
    result = fit(
        recipe.network(data, settings.network),
        data,
        settings.hyperparameters,
        Run("half", 0),
        Device(torch.device("cpu"), half),
    )
    assert result.history[-1].metric > 0.8
    assert {weight.dtype for weight in result.network.parameters()} == {torch.float32}


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_a_gpu_is_used_and_the_network_returns_to_the_cpu():
    recipe = RECIPES["lenet5"]
    assert best_device().torch_device.type == "cuda"
    assert best_device().half_type is not None
    data, settings = recipe.load(), recipe.tuned_settings.with_changes({"epochs": 5})
    result, again = (recipe.fit(data, settings, Run("gpu", 0)) for _ in range(2))
    assert result.history[-1].metric > 0.9
    assert next(result.network.parameters()).device.type == "cpu"
    assert torch.equal(_weights(result), _weights(again))


def test_sgd_learns_too():
    recipe = RECIPES["mlp"]
    data = recipe.load("iris")
    settings = recipe.settings(data, "iris").with_changes(
        {"optimiser": "sgd", "learning_rate": 5e-2, "epochs": 15}
    )
    result = recipe.fit(data, settings, Run("mlp", 0))
    assert result.validation_loss < 0.5 * result.history[0].validation_loss


def test_a_recipe_can_have_another_learner():
    """Widrow and Hoff's rule, written here, on the windows of the sunspots."""

    class Adaline(torch.nn.Module):
        def __init__(self, window):
            super().__init__()
            self.layer = torch.nn.Linear(window, 1)

        def forward(self, series):
            return self.layer(series[:, :, 0] / 100) * 100

    @torch.no_grad()
    def widrow_hoff(network, data, hyperparameters, run):
        generator = torch.Generator().manual_seed(run.seed)
        inputs = torch.from_numpy(data.train.inputs)[:, :, 0] / 100
        scaled_targets = torch.from_numpy(data.train.targets) / 100
        for _ in range(hyperparameters.epochs):
            for row in torch.randperm(len(inputs), generator=generator):
                error = scaled_targets[row] - network.layer(inputs[row])
                network.layer.weight += hyperparameters.learning_rate * error * inputs[row]
                network.layer.bias += hyperparameters.learning_rate * error
        outputs = predict(network, data.validation)
        validation_loss = loss(outputs, torch.from_numpy(data.validation.targets)).item()
        return FitResult(network.eval(), hyperparameters.epochs, validation_loss)

    recipe = replace(
        RECIPES["rnn"],
        network=lambda data, options: Adaline(data.train.inputs.shape[1]),
        learner=widrow_hoff,
    )
    data, settings = (
        recipe.load(),
        recipe.tuned_settings.with_changes({"epochs": 20, "learning_rate": 1e-2}),
    )
    result, again = (recipe.fit(data, settings, Run("adaline", 1)) for _ in range(2))
    assert torch.equal(_weights(result), _weights(again))
    metrics = evaluate(result.network, data)
    persistence = rmse(data.test.inputs[:, -1], data.test.targets)
    assert metrics["test_rmse"] < 0.8 * persistence


def test_the_last_epoch_is_kept_on_request():
    """Few noisy rows: the validation loss is best long before the end."""
    recipe = RECIPES["feedforward"]
    data = recipe.load("noisy-curve")
    changes = {"epochs": 400, "units": (64, 64), "dropout": 0.0, "weight_decay": 0.0}
    settings = recipe.settings(data, None).with_changes({**changes, "schedule": "constant"})
    best, last = (
        recipe.fit(data, settings.with_changes({"keep_epoch": keep}), Run("curve", 0))
        for keep in ("best", "last")
    )
    assert best.history == last.history
    assert best.best_epoch < last.best_epoch == 400
    assert best.validation_loss < last.validation_loss == last.history[-1].validation_loss


def test_patience_also_ends_a_training_that_keeps_its_last_epoch():
    recipe = RECIPES["feedforward"]
    data = recipe.load("noisy-curve")
    changes = {"epochs": 400, "units": (64, 64), "patience": 20, "keep_epoch": "last"}
    result = recipe.fit(
        data, recipe.settings(data, "noisy-curve").with_changes(changes), Run("curve", 0)
    )
    losses = [epoch.validation_loss for epoch in result.history]
    assert len(losses) == losses.index(min(losses)) + 1 + 20 < 400
    assert result.best_epoch == len(losses)


def test_one_row_that_is_left_over_is_no_batch_of_its_own():
    """Batch normalisation over maps of one pixel has no variance of one row."""
    generator = np.random.default_rng(0)
    parts = [
        Split(generator.normal(size=(rows, 8, 8)).astype(np.float32), np.arange(rows) % 2)
        for rows in (33, 8, 8)
    ]
    described = Input("image", ("batch", "height", "width"), "noise", "grey level")
    data = Dataset("noise", "numpy", *parts, input=described, labels=("a", "b"))
    recipe = RECIPES["resnet18"]
    settings = recipe.settings(data, None).with_changes({"epochs": 1, "batch_rows": 32})
    assert np.isfinite(recipe.fit(data, settings, Run("noise", 0)).history[0].loss)
    with pytest.raises(FitError, match="batch is of one row"):
        recipe.fit(data, settings.with_changes({"batch_rows": 1}), Run("noise", 0))


def test_large_images_are_predicted_a_few_at_a_time():
    """256 photographs of 224 pixels would take gigabytes in the first layers of VGG16."""
    rows = [
        rows_at_once(np.zeros((1, *shape))) for shape in ((28, 28), (3, 224, 224), (9000, 9000))
    ]
    assert rows == [256, 83, 1]
    seen = []

    class Counted(torch.nn.Module):
        def forward(self, x):
            seen.append(len(x))
            return x.mean(dim=(1, 2, 3))[:, None]

    images = np.zeros((100, 3, 224, 224), np.float32)
    assert predict(Counted(), Split(images, np.zeros((100, 1), np.float32))).shape == (100, 1)
    assert seen == [83, 17]
