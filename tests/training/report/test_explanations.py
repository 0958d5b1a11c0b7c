"""The sections that explain a network say what is true of it."""

import dataclasses

import numpy as np
import pytest
import torch
from sklearn.metrics import precision_recall_curve, roc_auc_score
from statsmodels.stats.proportion import proportion_confint
from torch import nn

from neurona_training.architectures.neocognitron import SCells
from neurona_training.architectures.network_options import NetworkOptions
from neurona_training.learning.run import FitResult
from neurona_training.recipes import RECIPES
from neurona_training.report import glossary
from neurona_training.report.charts import training_section
from neurona_training.report.decision_border import decision_border_section
from neurona_training.report.drawing import spread_rows
from neurona_training.report.feature_maps import field_box, map_stages, receptive_field
from neurona_training.report.gates import gate_activity, gates_section
from neurona_training.report.grad_cam import evidence, grad_cam_section
from neurona_training.report.importance import importance_section, permutation_importance
from neurona_training.report.input_numbers import input_numbers_section
from neurona_training.report.model_card import model_card_section, rmse_interval, wilson_interval
from neurona_training.report.network_layers import Layer
from neurona_training.report.predictions import predicted_against_true
from neurona_training.report.preferred_stimuli import (
    make_stimuli,
    plane_responses,
    preferred_stimuli_section,
)
from neurona_training.report.thresholds import (
    positive_class,
    threshold_curve,
    thresholds_section,
)
from neurona_training.report.weights import starting_values, weights_section


@pytest.fixture(scope="module")
def xor(finished_run):
    return finished_run("mlp", "xor", None)


@pytest.fixture(scope="module")
def lenet(finished_run):
    return finished_run("lenet5", "digits", 3)


@pytest.fixture(scope="module")
def tumours(finished_run):
    return finished_run("mlp", "breast-cancer", 10)


@pytest.mark.parametrize(("layer_class", "count"), [(nn.LSTM, 6), (nn.GRU, 4), (nn.RNN, 1)])
def test_gates_lead_to_the_state_of_the_layer(layer_class, count):
    torch.manual_seed(1)
    layer = layer_class(3, 5, batch_first=True)
    network = nn.Sequential(nn.Identity(), layer)
    steps = torch.randn(1, 7, 3)
    activity = gate_activity(network, layer, (steps.numpy(),))
    assert len(activity) == count
    with torch.inference_mode():
        states = layer(steps)[0][0]
    np.testing.assert_allclose(activity["state"], states.numpy(), atol=1e-6)
    for name, values in activity.items():
        if name.endswith("gate"):
            assert values.min() >= 0
            assert values.max() <= 1
    if layer_class is nn.LSTM:
        assert list(activity)[:2] == ["input gate", "forget gate"]


def test_gates_are_named_on_the_page(finished_run):
    section = gates_section(finished_run("gru", "digit-rows", 1))
    assert section.title == "The gates over time"
    assert len(section.pictures) == 1
    assert gates_section(finished_run("rnn", "sunspots", 1)).title == "The state over time"


def test_receptive_fields_grow_as_those_of_lenet(lenet):
    stages = map_stages(lenet.layers)
    assert [layer.name for layer in stages] == ["c1", "s2", "c3", "s4"]
    areas = [np.prod(field_box(receptive_field(lenet, layer))[2:]) for layer in stages]
    assert areas == sorted(areas)
    assert areas[0] <= 16
    assert areas[-1] > areas[0]


def test_a_receptive_field_is_exact(lenet):
    """Two unpadded 3 x 3 convolutions see 5 x 5 pixels."""

    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = nn.Conv2d(1, 4, 3), nn.Conv2d(4, 2, 3)

        def forward(self, images):
            return self.second(self.first(images.unsqueeze(1))).flatten(1)

    network = Two()
    layer = Layer("second", "", (2, 8, 8), 0, network.second)
    inputs = np.random.default_rng(0).random((20, 12, 12)).astype(np.float32)
    test = dataclasses.replace(lenet.data.test, inputs=inputs, targets=np.zeros(20, np.int64))
    results = dataclasses.replace(
        lenet, network=network, data=dataclasses.replace(lenet.data, test=test)
    )
    top, left, height, width = field_box(receptive_field(results, layer))
    assert (height, width) == (5, 5)
    assert (top, left) == (4, 4)  # around the number in the middle, (4, 4)


def test_evidence_is_where_the_network_reads(lenet):
    """A network that reads one corner alone has its heat there."""

    class Corner(nn.Module):
        def __init__(self):
            super().__init__()
            self.maps = nn.Conv2d(1, 2, 3, padding=1)

        def forward(self, images):
            return torch.relu(self.maps(images.unsqueeze(1)))[:, :, :3, :3].sum(dim=(2, 3))

    torch.manual_seed(0)
    network = Corner()
    with torch.no_grad():
        network.maps.weight.copy_(network.maps.weight.abs())
    results = dataclasses.replace(
        lenet, network=network, data=dataclasses.replace(lenet.data, labels=("a", "b"))
    )
    layer = Layer("maps", "", (2, 8, 8), 0, network.maps)
    heats = [evidence(results, layer, row, label) for row in range(5) for label in (0, 1)]
    heat = np.sum(heats, axis=0)
    assert heat[:4, :4].sum() > 0
    assert heat[4:, 4:].sum() == pytest.approx(0, abs=1e-5 * float(heat.sum()))


def test_right_and_wrong_pictures_are_shown(lenet):
    section = grad_cam_section(lenet)
    assert len(section.pictures) == 2
    assert "at the bottom for the true one" in section.caption


def test_curves_are_those_of_scikit_learn():
    random = np.random.default_rng(0)
    positive = random.random(300) < 0.3
    probabilities = np.round(np.clip(0.3 * positive + random.random(300), 0, 1), 2)  # with ties
    curve = threshold_curve(probabilities, positive)
    assert curve.area == pytest.approx(roc_auc_score(positive, probabilities))
    precision, recall, thresholds = precision_recall_curve(positive, probabilities)
    np.testing.assert_allclose(curve.thresholds[::-1], thresholds)
    np.testing.assert_allclose(curve.recall[::-1], recall[:-1])
    np.testing.assert_allclose(curve.precision[::-1], precision[:-1])
    index = curve.at(0.5)
    assert curve.recall[index] == pytest.approx((probabilities[positive] >= 0.5).mean())


def test_the_class_to_be_found_is_the_one_that_must_not_be_missed(tumours):
    assert positive_class(("malignant", "benign")) == 0
    assert positive_class(("healthy", "pneumonia")) == 1
    assert positive_class(("no", "yes")) == 1
    section = thresholds_section(tumours)
    assert "'malignant'" in section.caption
    head, *lines = section.table
    assert lines[0][0] == "the larger probability"
    found = tumours.predictions[:, 0] >= 0.5
    malignant = tumours.data.test.targets == 0
    assert lines[0][head.index("sensitivity (recall)")] == f"{found[malignant].mean():.1%}"
    assert lines[0][head.index("specificity")] == f"{1 - found[~malignant].mean():.1%}"


def test_many_classes_have_curves_and_few_rows_none(lenet, xor, finished_run):
    assert "each class against the rest" in thresholds_section(lenet).caption
    assert thresholds_section(xor) is None  # four rows
    assert thresholds_section(finished_run("adaline", "diabetes", 1)) is None
    assert thresholds_section(finished_run("perceptron", "iris-setosa", None)) is None  # 0 or 1


def test_two_inputs_have_a_decision_border(xor, tumours):
    section = decision_border_section(xor)
    assert section.title == "The decision border"
    assert "two can" in section.caption
    assert decision_border_section(tumours) is None  # 30 inputs


def test_the_column_that_decides_matters_most(tumours):
    random = np.random.default_rng(0)
    data = tumours.data

    def change(split):
        inputs = random.normal(size=(len(split), 30)).astype(np.float32)
        return dataclasses.replace(split, inputs=inputs, targets=(inputs[:, 3] > 0).astype(int))

    class Third(nn.Module):
        def forward(self, rows):
            return torch.stack([-rows[:, 3], rows[:, 3]], dim=1)

    changed = dataclasses.replace(data, validation=change(data.validation))
    results = dataclasses.replace(tumours, data=changed, network=Third())
    first, *others = permutation_importance(results)
    assert first.column == data.input.columns[3]
    assert first.mean > 0.3
    assert all(one.mean == 0 for one in others)
    assert importance_section(tumours).pictures


def test_a_cell_that_learned_a_vertical_bar_prefers_it():
    cells = SCells(1, 2, 5, 4.0)
    bar, flat = torch.zeros(1, 5, 5), torch.zeros(1, 5, 5)
    bar[:, :, 2] = 1
    flat[:, 2, :] = 1
    for plane, patch in enumerate((bar, flat)):
        cells.reinforce(plane, patch, 100.0)
    stimuli = make_stimuli()
    responses = plane_responses(cells, stimuli)
    best = [stimuli[int(one.argmax())] for one in responses]
    assert best[0].name.startswith("bar")
    assert best[0].degrees % 180 == pytest.approx(90, abs=12)
    assert best[1].name.startswith("bar")
    assert min(best[1].degrees % 180, 180 - best[1].degrees % 180) <= 12


def test_only_the_neocognitron_has_preferred_stimuli(lenet):
    assert preferred_stimuli_section(lenet) is None


def test_weights_before_training_are_those_of_the_seed(xor):
    recipe = RECIPES["mlp"]
    torch.manual_seed(0)
    fresh = recipe.network(xor.data, recipe.settings(xor.data, "xor").network)
    name = "hidden.0.weight"
    np.testing.assert_array_equal(
        starting_values(xor, name), fresh.get_parameter(name).detach().numpy()
    )
    np.testing.assert_array_equal(
        starting_values(xor, f"network.{name}"), starting_values(xor, name)
    )
    assert starting_values(xor, "nothing") is None
    assert not np.array_equal(
        starting_values(xor, name), xor.network.get_parameter(name).detach().numpy()
    )
    assert "before and after training" in weights_section(xor).caption
    unknown = FitResult(xor.network, best_epoch=1, validation_loss=0.0)
    results = dataclasses.replace(xor, fit_result=unknown)
    assert "before" not in weights_section(results).caption


def test_training_is_measured_beside_validation(lenet, finished_run):
    for epoch in lenet.fit_result.history:
        assert 0 < epoch.training_metric <= 1
    trained = finished_run("mlp", "iris", None).fit_result.history[-1]
    assert trained.training_metric > 0.9
    adaline = finished_run("adaline", "diabetes", 1).fit_result.history[-1]
    assert adaline.training_metric > 10  # an RMSE, in the unit of the targets


def test_a_picture_is_a_matrix_of_numbers(lenet, tumours):
    assert "8 x 8 numbers" in input_numbers_section(lenet).caption
    assert len(input_numbers_section(lenet).pictures) == 1
    table = input_numbers_section(tumours).table
    assert table[0] == ["column", "value", "as the network sees it"]
    assert table[1][0] == "mean radius"


def test_the_model_card_gives_interval_and_limits(tumours):
    low, high = wilson_interval(110 / 114, 114)
    expected = proportion_confint(110, 114, method="wilson")
    assert (low, high) == pytest.approx(expected, abs=1e-4)
    card = dict(model_card_section(tumours).table)
    assert "95 % interval" in card["How good is it?"]
    assert "mean radius 6.981 to 28.11" in card["What does it know?"]
    assert "no other class" in card["What is it not for?"]


def test_a_word_is_explained_to_its_first_section_alone():
    first_use = glossary.FirstUse()
    assert [word for word, _ in first_use.explain(["loss", "epoch", "loss"])] == ["loss", "epoch"]
    assert first_use.explain(["epoch"]) == []
    with pytest.raises(KeyError):
        first_use.explain(["flux capacitor"])


def _with_hyperparameters(run, **changes):
    return dataclasses.replace(
        run, hyperparameters=dataclasses.replace(run.hyperparameters, **changes)
    )


def test_a_page_says_which_epoch_the_weights_are_of(lenet):
    assert "which did best" in training_section(lenet).caption
    losses = [epoch.validation_loss for epoch in lenet.fit_result.history]
    history = tuple(
        dataclasses.replace(epoch, validation_loss=loss)
        for epoch, loss in zip(lenet.fit_result.history, sorted(losses), strict=True)
    )
    fit_result = dataclasses.replace(lenet.fit_result, history=history, best_epoch=len(history))
    last = _with_hyperparameters(
        dataclasses.replace(lenet, fit_result=fit_result), keep_epoch="last"
    )
    caption = training_section(last).caption
    assert f"weights of the last epoch, {len(history)}" in caption
    assert "epoch 1 did best" in caption
    assert "to choose the epoch," in str(model_card_section(lenet))
    assert "to see how it goes," in str(model_card_section(last))


def test_each_value_of_a_table_has_its_own_charts(finished_run):
    run = finished_run("mlp", "diabetes", 1)
    values = run.data.values * 2
    parts = {
        name: dataclasses.replace(split, targets=np.repeat(split.targets, 2, axis=1) * [1, 1000])
        for name in ("train", "validation", "test")
        for split in (getattr(run.data, name),)
    }
    data = dataclasses.replace(run.data, values=values, **parts)
    network = nn.Sequential(run.network, nn.Linear(1, 2))
    figure = predicted_against_true(dataclasses.replace(run, data=data, network=network))
    limits = [axes.get_xlim()[1] for axes in figure.axes[::2]]
    assert len(limits) == 2
    assert limits[1] > 100 * limits[0]


def test_rows_of_all_classes_are_drawn_of_a_file_in_the_order_of_its_classes():
    assert spread_rows(3, 5).tolist() == [0, 1, 2]
    chosen = spread_rows(4000, 800)
    assert len(set(chosen)) == 800
    classes = np.repeat(np.arange(4), 1000)[chosen]
    assert np.bincount(classes).tolist() == [200, 200, 200, 200]


def test_columns_of_a_wide_table_are_shuffled_less_often(tumours):
    """So that a report takes no longer than the training."""
    wide = np.tile(tumours.data.validation.inputs, (1, 20))
    data = dataclasses.replace(
        tumours.data, validation=dataclasses.replace(tumours.data.validation, inputs=wide)
    )

    class First(nn.Module):
        calls = 0

        def forward(self, x):
            First.calls += 1
            return tumours.network(x[:, :30])

    run = dataclasses.replace(tumours, data=data, network=First())
    assert "400 of 600 columns" in importance_section(run).caption
    assert First.calls <= 3 * 400 + 1


def test_a_row_of_a_large_table_is_shown_as_it_is_scaled(tumours):
    """Its network reads pieces of the columns too, which a caller does not send."""
    options = NetworkOptions(columns="pieces")
    network = RECIPES["mlp"].network(tumours.data, options).eval()
    run = dataclasses.replace(tumours, network=network)
    table = input_numbers_section(run).table
    assert table[0][2] == "as the network sees it"
    assert all(cell for _, _, cell in table[1:])


def test_a_forecast_without_a_helpful_network_is_not_called_set_by_hand(finished_run):
    trained = finished_run("rnn", "sunspots", 3)
    linear = dataclasses.replace(trained.fit_result, best_epoch=0)
    results = dataclasses.replace(trained, fit_result=linear)
    card = " ".join(cell for line in model_card_section(results).table for cell in line)
    assert "by hand" not in card
    assert "It is a linear function of the window" in card
    assert "linear part of the forecast, which alone is left" in training_section(results).caption
    by_hand = dataclasses.replace(linear, history=())
    results = dataclasses.replace(trained, fit_result=by_hand)
    assert "set by hand" in str(model_card_section(results).table)


def test_the_interval_of_an_error_that_lasts_is_wider():
    """Ten times the same errors say no more than once."""
    errors = np.random.default_rng(0).normal(size=(60, 1))
    lasting = np.repeat(errors, 10, axis=0)
    low, high = rmse_interval(errors)
    assert np.diff(rmse_interval(lasting)) < 0.5 * (high - low)
    assert np.diff(rmse_interval(lasting, 10)) == pytest.approx(high - low, rel=0.3)
