"""Forecasts of series: a linear part as the floor, a network that corrects it, intervals."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from neurona_training.architectures.forecast import Forecast, fit_autoregression
from neurona_training.architectures.input_layers import Normalise, ValueScale
from neurona_training.architectures.network_options import NetworkOptions
from neurona_training.cli.main import main
from neurona_training.data import Dataset, Input, Split, Value
from neurona_training.data.user.load import load_user_data
from neurona_training.data.user.spec import UserData
from neurona_training.errors import OptionError
from neurona_training.export.metadata import model_metadata
from neurona_training.export.onnx_export import export_trained_network
from neurona_training.learning.evaluation import evaluate, predict, rmse
from neurona_training.learning.forecasts import fit_strength
from neurona_training.learning.gradient_descent import loss, target_unit
from neurona_training.learning.intervals import add_intervals, interval_bounds, rows_needed
from neurona_training.learning.run import Hyperparameters, Run
from neurona_training.recipes import RECIPES
from neurona_training.recipes.settings import Settings

QUICK = Hyperparameters(epochs=8, batch_rows=32, learning_rate=1e-2)


def _load(folder, values, name="values.csv", **options):
    path = folder / name
    path.write_text("\n".join(["y", *map(str, values), ""]))
    return load_user_data(UserData(path, series="y", **options)).training_view


@pytest.fixture(scope="module")
def trend(tmp_path_factory):
    """Rises by its own range again after training, with a season and noise."""
    time, random = np.arange(300), np.random.default_rng(0)
    values = 100 + 0.4 * time + 8 * np.sin(time * np.pi / 6) + random.normal(size=300)
    return _load(tmp_path_factory.mktemp("trend"), values.round(3), horizon=2, unit="ppm")


@pytest.fixture(scope="module")
def trained(trend):
    return RECIPES["gru"].fit(trend, Settings(QUICK, NetworkOptions(units=(8,))), Run("trend", 0))


def test_a_series_with_a_trend_is_forecast_beyond_its_range_in_training(trend, trained):
    assert trend.test.targets.min() > trend.train.targets.max()
    test = trend.test
    train, windows = (
        np.c_[part.inputs[:, :, 0].astype(float), np.ones(len(part))]
        for part in (trend.train, test)
    )
    linear = windows @ np.linalg.lstsq(train, trend.train.targets.astype(float), rcond=None)[0]
    error = rmse(predict(trained.network, test).numpy(), test.targets)
    assert error < 1.05 * rmse(linear, test.targets)
    settings = Settings(QUICK, NetworkOptions(units=(8,), forecast="network"))
    alone = RECIPES["gru"].fit(trend, settings, Run("alone", 0)).network
    assert rmse(predict(alone, test).numpy(), test.targets) > 5 * error


@pytest.mark.parametrize("recipe", ["rnn", "gru", "lstm"])
def test_a_forecast_starts_as_the_linear_one(trend, recipe):
    torch.manual_seed(0)
    network = RECIPES[recipe].network(trend, NetworkOptions(units=(8,), layers=2)).eval()
    linear = fit_autoregression(trend.train, trend.validation)
    windows = torch.from_numpy(trend.test.inputs)
    expected = linear.predict(windows[:, :, 0].double()).float()
    torch.testing.assert_close(network(windows), expected, rtol=1e-5, atol=1e-3)


def test_a_correction_that_does_not_help_is_left_out(trend):
    torch.manual_seed(0)
    network = Forecast("gru", trend, hidden=8)
    before = predict(network, trend.test)
    torch.nn.init.normal_(network.correction.output.weight)  # of chance
    torch.nn.init.constant_(network.correction.output.bias, 3)
    fit_strength(network, trend)
    assert network.strength < 0.1
    network.strength.zero_()
    torch.testing.assert_close(predict(network, trend.test), before)
    assert network.describe().endswith("+ 0 * network")


def test_the_linear_part_is_least_squares_where_those_are_exact():
    random = np.random.default_rng(1)
    inputs = random.normal(size=(80, 5, 1)).astype(np.float32)
    targets = inputs[:, :, 0] @ random.normal(size=(5, 3)) + [1, 20, -5]
    split = Split(inputs, targets.astype(np.float32))
    linear = fit_autoregression(split, split)
    assert linear.penalty == 0
    predicted = linear.predict(torch.from_numpy(inputs[:, :, 0]).double()).numpy()
    np.testing.assert_allclose(predicted, targets, atol=1e-4)


@pytest.mark.parametrize(("scale", "power"), [("root", np.square), ("log", np.exp)])
def test_the_scale_is_that_on_which_the_series_is_linear(tmp_path, scale, power):
    random, walk = np.random.default_rng(3), [2.0, 2.3]
    for _ in range(400):  # an oscillation on the scale
        walk.append(4 + 1.6 * (walk[-1] - 4) - 0.9 * (walk[-2] - 4) + random.normal() * 0.2)
    data = _load(tmp_path, power(np.abs(walk)).round(4))
    assert fit_autoregression(data.train, data.validation).scale.scale == scale


def test_a_window_of_any_length_is_read(trained):
    """Earlier values than the window do not matter; missing ones were as the first."""
    values = torch.linspace(200, 230, 20)[None, :, None]
    network = trained.network
    torch.testing.assert_close(network(values), network(values[:, -12:]))
    short = values[:, -4:]
    padded = torch.cat([short[:, :1].expand(-1, 8, -1), short], dim=1)
    torch.testing.assert_close(network(short), network(padded))


def test_neither_the_file_s_name_nor_the_horizon_changes_the_kind_of_network(tmp_path):
    values = np.random.default_rng(0).poisson(50, 150)
    one, other = (
        _load(tmp_path, values, name, horizon=3) for name in ("monthly-sunspots.csv", "other.csv")
    )
    recipe = RECIPES["rnn"]
    settings = [recipe.settings(data, None) for data in (one, other)]
    assert settings[0] == settings[1]
    networks = [recipe.network(data, settings[0].network) for data in (one, other)]
    assert str(networks[0]) == str(networks[1])
    assert networks[0](torch.from_numpy(one.test.inputs)).shape == (len(one.test), 3)


def _two_values(*, sequences):
    random = np.random.default_rng(0)

    def split(rows):
        inputs = random.normal(size=(rows, 4)).astype(np.float32)
        small, large = inputs[:, 0] - inputs[:, 1], 1000 * (inputs[:, 2] + inputs[:, 3])
        shaped = inputs[:, :, None] if sequences else inputs
        return Split(shaped, np.stack([small, large], axis=1))

    axes = ("batch", "time", "channel") if sequences else ("batch", "feature")
    described = Input("features", axes, "", "")
    values = (Value("small", ""), Value("large", ""))
    return Dataset("two", "", split(600), split(100), split(200), described, values=values)


def test_only_a_series_has_a_forecast():
    with pytest.raises(OptionError, match="'two' is no series"):
        RECIPES["gru"].network(_two_values(sequences=True), NetworkOptions(forecast="hybrid"))


@pytest.mark.parametrize("recipe", ["mlp", "gru"])
def test_values_of_sizes_1_and_1000_are_both_learned(recipe):
    data = _two_values(sequences=recipe == "gru")
    settings = Settings(Hyperparameters(epochs=25, batch_rows=32, learning_rate=1e-2))
    network = RECIPES[recipe].fit(data, settings, Run("two", 0)).network
    errors = predict(network, data.test).numpy() - data.test.targets
    determination = 1 - np.square(errors).mean(axis=0) / data.test.targets.var(axis=0)
    assert determination.min() > 0.9


def test_the_loss_of_the_mean_is_1_for_each_value():
    data = _two_values(sequences=False)
    targets = torch.from_numpy(data.train.targets)
    mean = targets.mean(dim=0).expand_as(targets)
    unit = target_unit(data)
    assert loss(mean, targets, unit=unit).item() == pytest.approx(1, rel=1e-5)
    one_wrong = torch.stack([mean[:, 0], targets[:, 1]], dim=1)
    assert loss(one_wrong, targets, unit=unit).item() == pytest.approx(0.5, rel=1e-5)


def test_intervals_hold_as_many_true_values_as_they_say():
    data = _two_values(sequences=False)
    network = torch.nn.Linear(4, 2)
    level = 0.8
    outputs = predict(add_intervals(network, data, level), data.test).numpy()
    values, lower, upper = np.split(outputs, 3, axis=1)
    np.testing.assert_array_equal(values, predict(network, data.test).numpy())
    inside = (lower <= data.test.targets) & (data.test.targets <= upper)
    # 200 rows and 100 that gave the distance: a standard deviation of 0.05
    np.testing.assert_allclose(inside.mean(axis=0), level, atol=0.12)
    measured = evaluate(add_intervals(network, data, level), data)
    assert measured["interval_coverage"] == pytest.approx(inside.mean())
    assert measured["test_rmse"] == pytest.approx(
        rmse(values, data.test.targets, data.error_scales)
    )
    assert [(one.name, one.quantile) for one in interval_bounds(data, level)] == [
        ("small, lower 80 %", pytest.approx(0.1)),
        ("large, lower 80 %", pytest.approx(0.1)),
        ("small, upper 80 %", pytest.approx(0.9)),
        ("large, upper 80 %", pytest.approx(0.9)),
    ]


def test_the_interval_of_a_logarithm_grows_with_the_value(tmp_path):
    random = np.random.default_rng(0)
    data = _load(tmp_path, np.exp(np.cumsum(random.normal(0.01, 0.1, 400))))
    network = Forecast("gru", data, hidden=4)
    network.scale = ValueScale("log", 0.1)
    outputs = predict(add_intervals(network, data, 0.9), data.test).numpy()
    ratio = outputs[:, 2] / outputs[:, 1]
    np.testing.assert_allclose(ratio, ratio[0], rtol=1e-4)


def _linear_error(data):
    linear = fit_autoregression(data.train, data.validation)
    windows = torch.from_numpy(data.test.inputs[:, :, 0]).double()
    return rmse(linear.predict(windows).numpy(), data.test.targets)


def test_a_window_longer_than_there_are_rows_is_not_interpolated(tmp_path):
    """Least squares without an error on the training rows have a large one on others."""
    worse = []
    for seed in (1, 2, 3, 4, 5):
        random, values = np.random.default_rng(seed), [50.0, 50.0]
        for _ in range(118):
            values.append(15 + 1.2 * values[-1] - 0.5 * values[-2] + random.normal())
        data = _load(tmp_path, np.round(values, 3), window=60)
        assert len(data.train) < 60
        linear = fit_autoregression(data.train, data.validation)
        assert linear.penalty > 0
        worse.append(_linear_error(data) / rmse(data.test.inputs[:, -1], data.test.targets))
    assert np.mean(worse) < 1.2  # 1.5 without a penalty


def test_a_decay_is_forecast_far_below_the_training_values(tmp_path):
    time, random = np.arange(600), np.random.default_rng(0)
    logarithms = -0.01 * time + 0.3 * np.sin(time * np.pi / 6) + random.normal(0, 0.03, 600)
    data = _load(tmp_path, 1000 * np.exp(logarithms))
    assert fit_autoregression(data.train, data.validation).scale.scale == "log"
    assert np.median(data.test.targets) < data.train.targets.min() / 2
    assert _linear_error(data) < 0.4 * rmse(data.test.inputs[:, -1], data.test.targets)
    network = add_intervals(Forecast("gru", data, hidden=4), data, 0.9)
    windows = torch.cat([torch.from_numpy(data.test.inputs) / one for one in (1, 1e3, 1e9)])
    value, lower, upper = network(windows).unbind(dim=1)
    assert (lower <= value).all()
    assert (value <= upper).all()


@pytest.mark.parametrize("power", [-80, 80])
def test_the_size_of_the_values_does_not_matter(trend, power):
    """Such as 1e-21, the strain of a gravitational wave, whose square is no float32."""
    factor = np.float32(2.0**power)
    parts = {
        name: Split(part.inputs * factor, part.targets * factor)
        for name, part in (
            ("train", trend.train),
            ("validation", trend.validation),
            ("test", trend.test),
        )
    }
    scaled = replace(trend, **parts)
    outputs = []
    for data in (trend, scaled):
        torch.manual_seed(0)
        network = Forecast("gru", data, hidden=8)
        torch.nn.init.normal_(network.correction.output.weight, std=0.3)
        outputs.append(predict(network, data.test).numpy())
    np.testing.assert_allclose(outputs[1] / factor, outputs[0], rtol=1e-5)
    layer = Normalise.to_unit_variance(scaled.train.inputs)
    assert layer(torch.from_numpy(scaled.train.inputs)).std() == pytest.approx(1, rel=1e-3)


def test_far_larger_values_than_in_training_have_a_finite_forecast(trained):
    windows = torch.linspace(1, 2, 12)[None, :, None] * torch.tensor([1e18, 1e25])[:, None, None]
    assert torch.isfinite(trained.network(windows)).all()


def test_the_distance_is_the_error_of_the_right_rank():
    data = _two_values(sequences=False)
    rows = Split(data.validation.inputs[:99], data.validation.targets[:99])
    network = torch.nn.Linear(4, 2)
    errors = np.abs(predict(network, rows).numpy() - rows.targets)
    interval = add_intervals(network, replace(data, validation=rows), 0.55)
    np.testing.assert_array_equal(interval.distances, np.sort(errors, axis=0)[54])
    assert [rows_needed(level) for level in (0.5, 0.8, 0.9, 0.95, 0.99)] == [1, 4, 9, 19, 99]
    for level, count in ((0.9, 9), (0.99, 99)):
        few = Split(rows.inputs[:count], rows.targets[:count])
        largest = np.abs(predict(network, few).numpy() - few.targets).max(axis=0)
        interval = add_intervals(network, replace(data, validation=few), level)
        np.testing.assert_array_equal(interval.distances, largest)


def test_counts_are_not_below_0(tmp_path):
    data = _load(tmp_path, np.random.default_rng(0).normal(size=100).round(3))
    with pytest.raises(OptionError, match=r"count below 0: -\d"):
        RECIPES["gru"].network(data, NetworkOptions(forecast="count"))


@pytest.mark.parametrize(("rows", "warned"), [(45, True), (150, False)])
def test_too_few_validation_rows_for_the_interval_are_said(tmp_path, capsys, rows, warned):
    values = np.random.default_rng(0).normal(size=rows).round(3)
    (tmp_path / "y.csv").write_text("\n".join(["y", *map(str, values), ""]))
    arguments = ["--data", str(tmp_path / "y.csv"), "--series", "y", "--window", "4"]
    options = ["--epochs", "1", "--units", "2", "--no-report", "--out", str(tmp_path / "models")]
    assert main(["rnn", *arguments, *options]) == 0
    assert ("(expected at least 9 rows)" in capsys.readouterr().out) == warned


def test_a_series_in_tiny_units_is_exported(tmp_path):
    """The exporter takes constants that are so small for 0."""
    random, values = np.random.default_rng(0), [0.0, 0.0]
    for _ in range(298):
        values.append(1.2 * values[-1] - 0.5 * values[-2] + random.normal())
    data = _load(tmp_path, 1e-21 * np.array(values))
    network = add_intervals(Forecast("gru", data, hidden=4).eval(), data, 0.9)
    assert export_trained_network(network, data, model_metadata(data, "a test", {}, {}))
