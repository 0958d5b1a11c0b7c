"""Comparing, tuning and repeating by the command: what is written, printed, and done only once."""

import json
import re

import onnx
import pytest

from neurona_protos import metadata
from neurona_training.cli import pipeline
from neurona_training.cli.arguments import parse
from neurona_training.cli.main import main
from neurona_training.recipes import RECIPES

FEW = ["--epochs", "3", "--no-report"]


def described(out, name):
    entries = onnx.load(out / name / "1" / "model.onnx").metadata_props
    return metadata.from_json({one.key: one.value for one in entries}[metadata.KEY])


def fail_line(capsys, *arguments):
    try:
        status = main(arguments)
    except SystemExit as stop:
        status = stop.code
    assert status in (1, 2)
    (line,) = capsys.readouterr().err.splitlines()
    return line


@pytest.fixture(scope="module")
def repeated(tmp_path_factory):
    """A model from three seeds, of which the last was interrupted, then continued."""
    out = tmp_path_factory.mktemp("repeated")
    arguments = ["mlp", "--data", "iris", *FEW, "--out", str(out)]
    assert main([*arguments, "--seeds", "2"]) == 0
    (out / "mlp-iris" / "1" / "model.onnx").chmod(0o444)
    return out, arguments


@pytest.mark.long
@pytest.mark.slow
def test_seeds_keep_the_first_model_and_the_figures_of_the_others(repeated, tmp_path, capsys):
    out, _ = repeated
    alone = ["mlp", "--data", "iris", *FEW, "--seed", "1", "--out", str(tmp_path)]
    assert main(alone) == 0
    records = json.loads((out / "mlp-iris" / "report" / "seeds.json").read_text())["records"]
    assert list(records) == ["1"]
    assert records["1"]["figures"] == dict(described(tmp_path, "mlp-iris").figures)
    assert described(out, "mlp-iris").provenance["seed"] == "0"
    capsys.readouterr()


@pytest.mark.long
@pytest.mark.slow
def test_all_goes_on_after_a_kill_and_the_table_has_mean_and_deviation(
    repeated, capsys, monkeypatch
):
    out, _ = repeated
    some = {"mlp": _only(["xor", "iris"])}
    monkeypatch.setattr("neurona_training.cli.arguments.RECIPES", some)
    before = (out / "mlp-iris" / "1" / "model.onnx").read_bytes()
    trained = []
    fit = pipeline.fit_network
    monkeypatch.setattr(
        pipeline,
        "fit_network",
        lambda recipe, arguments, *others: (
            trained.append(arguments.seed) or fit(recipe, arguments, *others)
        ),
    )
    command = ["--all", *FEW, "--out", str(out), "--resume"]
    assert main([*command, "--seeds", "3"]) == 0
    assert trained == [0, 1, 2, 2]  # those of xor, then the one of iris that was missing
    assert (out / "mlp-iris" / "1" / "model.onnx").read_bytes() == before
    last = capsys.readouterr().out.splitlines()[-1]
    assert re.search(r"mlp-iris: accuracy \d\d\.\d\d ± \d+\.\d\d %.* over 3 seeds; ", last)
    assert main([*command, "--seeds", "3"]) == 0
    assert len(trained) == 4

    capsys.readouterr()
    assert main(["--table", str(out)]) == 0
    row = capsys.readouterr().out.splitlines()[-1].split(" | ")
    assert row[0].endswith("mlp-iris")
    assert re.match(r"accuracy \d\d\.\d\d ± \d+\.\d\d %", row[3])
    assert row[4] == "3"
    assert row[5].endswith(" %")


@pytest.mark.long
@pytest.mark.slow
def test_figures_of_other_settings_do_not_count(repeated, tmp_path, capsys):
    out, _ = repeated
    report = tmp_path / "mlp-iris" / "report"
    report.mkdir(parents=True)
    figures = (out / "mlp-iris" / "report" / "seeds.json").read_text()
    (report / "seeds.json").write_text(figures)
    other = ["mlp", "--data", "iris", "--epochs", "2", "--no-report", "--out", str(tmp_path)]
    assert main(other) == 0
    capsys.readouterr()
    assert main(["--table", str(tmp_path)]) == 0
    row = capsys.readouterr().out.splitlines()[-1].split(" | ")
    assert "±" not in row[3]
    assert row[4] == "1"


def _only(data_sets):
    from dataclasses import replace

    mlp = RECIPES["mlp"]
    return replace(mlp, tuned={name: mlp.tuned[name] for name in data_sets})


@pytest.mark.long
@pytest.mark.slow
def test_a_model_without_its_report_is_not_complete(tmp_path, monkeypatch, capsys):
    """As after a kill between the model and the report."""
    monkeypatch.setattr("neurona_training.cli.arguments.RECIPES", {"mlp": _only(["xor"])})
    command = ["--all", "--epochs", "1", "--out", str(tmp_path)]
    assert main(command) == 0
    page = tmp_path / "mlp" / "report" / "report.html"
    page.unlink()
    assert main(command) == 0
    assert page.exists()
    capsys.readouterr()
    assert main(command) == 0
    assert "exists, skipped" in capsys.readouterr().out


def test_a_model_with_a_checkpoint_is_not_complete(tmp_path, monkeypatch, capsys):
    """As after a kill between model.onnx and the files that follow it."""
    monkeypatch.setattr("neurona_training.cli.arguments.RECIPES", {"mlp": _only(["xor"])})
    command = ["--all", "--epochs", "1", "--no-report", "--out", str(tmp_path), "--resume"]
    with monkeypatch.context() as patch:
        patch.setattr(pipeline, "write_weights", _kill)
        assert main(command) == 130
    model, weights = tmp_path / "mlp" / "1" / "model.onnx", tmp_path / "mlp" / "report"
    assert model.exists()
    assert not weights.exists()
    assert main(command) == 0
    assert [one.suffix for one in weights.iterdir()]
    capsys.readouterr()
    assert main(command) == 0
    assert "exists, skipped" in capsys.readouterr().out


def _kill(*_):
    raise KeyboardInterrupt


@pytest.mark.long
@pytest.mark.slow
def test_seeds_of_other_settings_are_refused_before_they_are_trained(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("neurona_training.cli.arguments.RECIPES", {"mlp": _only(["xor"])})
    command = ["--all", "--no-report", "--out", str(tmp_path)]
    assert main([*command, "--epochs", "1"]) == 0
    monkeypatch.setattr(pipeline, "fit_network", _kill)
    capsys.readouterr()
    assert main([*command, "--epochs", "2", "--seeds", "2"]) == 1
    error = capsys.readouterr().err
    assert "model.onnx is of another training: recipe mlp" in error
    assert re.search(r"epochs 1, .*\(expected .*epochs 2, ", error)


def test_short_trainings_come_first_and_long_ones_have_three_seeds(monkeypatch):
    from dataclasses import replace

    recipes = {
        "lenet5": replace(RECIPES["lenet5"], minutes={"mnist": 30, "digits": 2}),
        "mlp": RECIPES["mlp"],
    }
    monkeypatch.setattr("neurona_training.cli.arguments.RECIPES", recipes)
    models = parse(["--all", "--seeds", "5"]).models
    assert [model.data for model in models][-2:] == ["digits", "mnist"]
    assert [model.seeds for model in models] == [5] * (len(models) - 1) + [3]


def test_an_option_of_all_holds_for_the_recipes_that_have_it():
    by_recipe = {model.recipe: model.changes for model in parse(["--all", "--units", "7"]).models}
    assert by_recipe["mlp"] == {"units": (7,)}
    assert by_recipe["mcculloch-pitts"] == {}
    by_recipe = {model.recipe: model.changes for model in parse(["--all", "--no-augm"]).models}
    assert by_recipe["lenet5"] == {"augmentation": None}
    assert by_recipe["mcculloch-pitts"] == {}


def test_tune_trains_the_model_with_the_best_settings(tmp_path, capsys):
    command = ["mlp", "--data", "iris", *FEW, "--out", str(tmp_path), "--tune", "3"]
    assert main([*command, "--units", "9"]) == 0
    printed = capsys.readouterr().out
    (values,) = re.findall(r"best of 3 trials on validation: \d, loss \S+ (.+)", printed)
    assert "units" not in values
    provenance = described(tmp_path, "mlp-iris").provenance
    assert provenance["tuning"].startswith("best of 3 trials on validation rows")
    rate = re.search(r"learning rate ([\d.e-]+)", values).group(1)
    assert float(provenance["learning_rate"]) == pytest.approx(float(rate), rel=1e-3)
    report = tmp_path / "mlp-iris" / "report"
    assert {path.name for path in report.iterdir()} >= {"tuning-mlp.db", "tuning-mlp.html"}


@pytest.fixture(scope="module")
def compared(tmp_path_factory):
    out = tmp_path_factory.mktemp("compared")
    arguments = ["mlp", "feedforward", "--data", "iris", *FEW, "--seeds", "2", "--out", str(out)]
    return out, arguments


@pytest.mark.long
@pytest.mark.slow
def test_compare_exports_the_best_and_measures_the_test_once(compared, capsys, monkeypatch):
    out, arguments = compared
    measured = []
    measure = pipeline.measure
    monkeypatch.setattr(
        pipeline, "measure", lambda *given: measured.append(given[0].name) or measure(*given)
    )
    assert main(["compare", *arguments]) == 0
    printed = capsys.readouterr().out
    best = described(out, "best-iris").provenance
    assert measured == [best["recipe"]]
    assert best["comparison"] == "the best of mlp, feedforward on validation rows"
    assert re.search(r"(?m)^best on validation: ", printed)
    assert "the test rows were used only now, once" in printed
    for name in ("mlp", "feedforward"):
        assert re.search(rf"(?m)^\d +{name} +[\d.]+ ± [\d.]+ % ", printed)
    report = out / "best-iris" / "report"
    assert {path.name for path in report.iterdir()} >= {"comparison.html", "comparison.json"}
    page = (report / "comparison.html").read_text()
    assert "Best on validation: " in page
    assert "data:image/png" in page
    before = (report / "comparison.json").read_bytes()
    assert main(["compare", *arguments, "--resume"]) == 0
    assert (report / "comparison.json").read_bytes() == before


def test_a_baseline_that_suits_the_folds_alone_is_not_written(monkeypatch):
    """As support vectors, which are fitted up to some number of rows."""
    from neurona_training.baselines import estimators
    from neurona_training.cli.comparison import _can_write_baseline, parse_compare

    data = RECIPES["feedforward"].load("digits")
    (model,) = parse_compare(["feedforward", "--data", "digits"]).models
    assert _can_write_baseline("support_vectors", model, data)
    monkeypatch.setattr(estimators, "_MAX_SUPPORT_ROWS", len(data.train) - 1)
    assert not _can_write_baseline("support_vectors", model, data)
    chosen = ["feedforward", "--data", "digits", "--export-baseline", "linear"]
    assert not _can_write_baseline("nearest_neighbours", parse_compare(chosen).models[0], data)


@pytest.mark.parametrize(
    "arguments", [["compare", "mlp"], ["mlp", "--tune", "2"]], ids=["compare", "tune"]
)
def test_a_baseline_that_there_is_not_is_said_before_hours_of_training(
    tmp_path, monkeypatch, capsys, arguments
):
    monkeypatch.setattr(type(RECIPES["mlp"]), "fit", _kill)
    options = ["--data", "iris", "--out", str(tmp_path), "--export-baseline", "persistence"]
    assert "has no baseline 'persistence'" in fail_line(capsys, *arguments, *options)


@pytest.mark.long
@pytest.mark.slow
def test_the_file_of_a_baseline_says_of_which_data_it_is(tmp_path, capsys):
    table = tmp_path / "table.csv"
    rows = (f"{row % 7},{row % 5},{'ab'[row % 7 % 2]}" for row in range(70))
    table.write_text("\n".join(["x,y,class", *rows]))
    command = ["mlp", "--data", str(table), "--target", "class", *FEW, "--out", str(tmp_path)]
    assert main([*command, "--export-baseline", "linear"]) == 0
    network = described(tmp_path, "mlp-table").provenance
    baseline = described(tmp_path, "mlp-table-linear").provenance
    for key in ("data_sha256", "split_seed", "date", "reading"):
        assert baseline[key] == network[key]
    capsys.readouterr()


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["compare", "mlp"], "the following arguments are required: --data"),
        (["compare", "--data", "iris"], "the following arguments are required: RECIPE"),
        (["compare", "mlp7", "--data", "iris"], "unknown recipe 'mlp7'"),
        (["compare", "mlp", "--data", "iris", "--metric", "rmse"], "--metric rmse for a class"),
        (["compare", "mlp", "rnn", "--data", "iris"], "recipe 'rnn' expects sequences"),
        (["compare", "mlp", "--data", "iris", "--folds", "1"], "'1' is not an integer from 2"),
        (["mlp", "--folds", "3"], "--folds is for --tune N, or for neurona-train compare"),
        (["--all", "--tune", "3"], "without --tune"),
        (["mcculloch-pitts", "--tune", "3"], "recipe 'mcculloch-pitts' has nothing to tune"),
    ],
)
def test_a_wrong_command_line_is_one_line(capsys, tmp_path, monkeypatch, arguments, expected):
    monkeypatch.chdir(tmp_path)
    assert expected in fail_line(capsys, *arguments)


def test_several_processes_are_refused(capsys, tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    where = ["--data", "iris", "--out", str(tmp_path)]
    for command in (
        ["compare", "mlp", *where],
        ["mlp", "--seeds", "2", *where],
        ["mlp", "--tune", "2", *where],
    ):
        assert "2 processes of torchrun (expected one process)" in fail_line(capsys, *command)
