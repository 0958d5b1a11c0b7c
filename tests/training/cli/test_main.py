"""The command neurona-train: its files, and one line with a non-zero status for an error."""

import subprocess
import sys
from dataclasses import replace

import numpy as np
import onnx
import pytest

from neurona_training.cli import pipeline
from neurona_training.cli.main import main
from neurona_training.data.catalogue import SOURCES
from neurona_training.errors import ExportError, FitError
from neurona_training.recipes import RECIPES


def _error_line(capsys, *arguments):
    """Runs the command, which must fail; returns the one line on stderr."""
    try:
        status = main(arguments)
    except SystemExit as stop:
        status = stop.code
    assert status not in (0, None)
    printed = capsys.readouterr()
    assert printed.out == ""
    (line,) = printed.err.splitlines()
    return line


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["lenet6"], f"unknown recipe 'lenet6' (available: {', '.join(RECIPES)})"),
        ([], "RECIPE"),
        (["rnn", "--epochs", "0"], "--epochs: '0' is not an integer from 1"),
        (["rnn", "--epochs", "many"], "--epochs: 'many' is not an integer from 1"),
        (["rnn", "--seed", "-1"], "--seed"),
        (["rnn", "--seed", str(2**63)], "--seed"),
        (["rnn", "--lr", "1"], "--lr"),
        (["rnn", "--data", "moons"], f"unknown data set 'moons' (available: {', '.join(SOURCES)})"),
        (["rnn", "--name", "../up"], "--name: '../up' is not a model name"),
        (["lenet5", "--image-size", "0"], "--image-size"),
    ],
)
def test_a_wrong_command_line_is_one_line(capsys, arguments, expected):
    line = _error_line(capsys, *arguments)
    assert line.startswith("neurona-train: error: ")
    assert expected in line


@pytest.mark.long
@pytest.mark.slow
@pytest.mark.parametrize("recipe", ["feedforward", "lstm"])
def test_data_that_are_no_pictures_are_not_shifted(recipe, tmp_path, monkeypatch):
    """The default data of these recipes are pictures, whose augmentation is no use elsewhere."""
    used = []
    monkeypatch.setattr(
        "neurona_training.learning.gradient_descent.augment_images",
        lambda inputs, *_: used.append(inputs) or inputs,
    )
    labels = ["a", "b"] * 10
    (tmp_path / "rows.csv").write_text(
        "x,z,y\n" + "".join(f"{number},{number % 7},{y}\n" for number, y in enumerate(labels))
    )
    steps = np.arange(120.0).reshape(20, 3, 2)
    np.savez(tmp_path / "steps.npz", inputs=steps, lengths=np.full(20, 3), targets=labels)
    rows = ["--data", str(tmp_path / "rows.csv"), "--target", "y"]
    data = rows if recipe == "feedforward" else ["--data", str(tmp_path / "steps.npz")]
    assert main([recipe, *data, "--out", str(tmp_path), "--epochs", "1", "--no-report"]) == 0
    assert not used


def test_an_unwritable_folder_is_an_error_before_training(tmp_path, capsys):
    (tmp_path / "file").write_text("no folder")
    for out in (tmp_path / "file", tmp_path / "file" / "below"):
        line = _error_line(capsys, "rnn", "--out", str(out))
        assert f"cannot write {out}/rnn/1/model.onnx: Not a directory" in line
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_unreadable_data_is_one_line(tmp_path, capsys, monkeypatch):
    def missing():
        raise FileNotFoundError(2, "No such file\nor directory", "digits.csv.gz")

    monkeypatch.setattr("neurona_training.data.sources.sunspots.yearly_sunspots", missing)
    line = _error_line(capsys, "rnn", "--out", str(tmp_path))
    assert "cannot read data set 'sunspots'" in line
    assert "digits.csv.gz" in line


def test_data_of_the_wrong_kind_is_one_line(tmp_path, capsys):
    line = _error_line(capsys, "lenet5", "--data", "sunspots", "--out", str(tmp_path))
    assert "data set 'sunspots' has sequences (recipe 'lenet5' expects images)" in line
    assert list(tmp_path.iterdir()) == []


def test_a_missing_data_file_is_named(tmp_path, capsys, monkeypatch):
    monkeypatch.delenv("NEURONA_DATA", raising=False)
    where = ["--data", "mnist", "--data-dir", str(tmp_path / "none"), "--out", str(tmp_path)]
    line = _error_line(capsys, "lenet5", *where)
    assert f"mnist/train-images-idx3-ubyte.gz is missing in {tmp_path / 'none'}" in line
    assert "https://" in line
    assert "written" not in line


def test_another_system_error_names_its_path(tmp_path, capsys, monkeypatch):
    def fail(*_):
        raise PermissionError(13, "Permission denied", "/dev/somewhere")

    monkeypatch.setattr(pipeline, "run", fail)
    line = _error_line(capsys, "rnn", "--out", str(tmp_path))
    assert line == "neurona-train: error: /dev/somewhere: Permission denied"


@pytest.mark.long
@pytest.mark.slow
def test_a_data_set_or_name_gives_the_model_its_name(tmp_path, capsys):
    for arguments, name in (
        (["lstm", "--data", "sunspots"], "lstm-sunspots"),
        (["rnn", "--name", "wolf"], "wolf"),
    ):
        assert main([*arguments, "--epochs", "1", "--no-report", "--out", str(tmp_path)]) == 0
        assert (tmp_path / name / "1" / "model.onnx").is_file()
        assert capsys.readouterr().out.startswith(f"{name}: test RMSE ")


@pytest.mark.long
@pytest.mark.slow
def test_images_are_resized_to_the_given_size(tmp_path):
    assert (
        main(
            ["lenet5", "--epochs", "1", "--image-size", "12", "--no-report", "--out", str(tmp_path)]
        )
        == 0
    )
    (model_input,) = onnx.load(tmp_path / "lenet5" / "1" / "model.onnx").graph.input
    assert [size.dim_value for size in model_input.type.tensor_type.shape.dim[1:]] == [12, 12]


def test_a_failed_verification_writes_nothing(tmp_path, capsys, monkeypatch):
    def fail(*_):
        raise ExportError("output 'value' for input 'series' of shape [1, 1, 1] differs")

    monkeypatch.setattr("neurona_training.export.onnx_export.verify_parity", fail)
    assert main(["rnn", "--epochs", "1", "--no-report", "--out", str(tmp_path)]) == 1
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.splitlines()[-1] == (
        "neurona-train: error: output 'value' for input 'series' of shape [1, 1, 1] differs"
    )
    assert not list(tmp_path.rglob("*.onnx*"))


def test_ctrl_c_ends_without_a_traceback(tmp_path, capsys, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(pipeline, "run", interrupt)
    assert main(["rnn", "--out", str(tmp_path)]) == 130
    assert "interrupted; --resume continues" in capsys.readouterr().err


def test_a_run_prints_its_metrics_and_the_path_of_the_file(tmp_path, capsys):
    assert main(["rnn", "--epochs", "2", "--seed", "5", "--no-report", "--out", str(tmp_path)]) == 0
    path = tmp_path / "rnn" / "1" / "model.onnx"
    printed = capsys.readouterr()
    for metric in ("test RMSE", "mean RMSE", "persistence RMSE"):
        assert metric in printed.out
    assert str(path) in printed.out
    assert "epoch 2/2, loss " in printed.err  # the progress bar
    assert "validation RMSE" in printed.err
    assert printed.err.count("\r") <= 3  # no terminal: no line for each step
    assert not (path.parents[1] / "checkpoint.pt").exists()
    first = path.read_bytes()

    assert main(["rnn", "--epochs", "2", "--seed", "5", "--no-report", "--out", str(tmp_path)]) == 0
    assert path.read_bytes() == first


def test_listing_imports_nothing_heavy():
    code = (
        "import sys; from neurona_training.cli.main import main; status = main(['--list']);"
        "heavy = {'torch', 'numpy', 'pooch', 'sklearn', 'onnx', 'statsmodels'} & set(sys.modules);"
        "sys.exit(str(heavy) if heavy else status)"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (ran.returncode, ran.stderr) == (0, "")
    recipes, sources = (part.splitlines() for part in ran.stdout.split("\n\n"))
    assert [line.split()[0] for line in recipes if line[0] != " "] == ["RECIPE", *RECIPES]
    assert [line.split()[0] for line in sources] == ["DATA", *SOURCES]
    for line, recipe in zip(recipes[2::2], RECIPES.values(), strict=True):
        assert line.strip() == ", ".join(recipe.tuned)
    assert max(len(line) for line in (*recipes, *sources)) <= 100


@pytest.mark.long
@pytest.mark.slow
def test_the_exporter_is_quiet(tmp_path):
    """Runs in a process of its own, where no warning has been suppressed before."""
    code = "import sys; from neurona_training.cli.main import main; sys.exit(main())"
    arguments = ["rnn", "--epochs", "1", "--no-report", "--out", str(tmp_path)]
    ran = subprocess.run(
        [sys.executable, "-W", "always", "-c", code, *arguments],
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0
    (progress,) = ran.stderr.strip().splitlines()[-1:]
    assert progress.split("\r")[-1].startswith("rnn: 100%")
    assert "arning" not in ran.stderr
    assert "Skipping" not in ran.stderr


@pytest.mark.long
@pytest.mark.slow
def test_all_skips_existing_models_and_continues_after_a_failure(tmp_path, capsys, monkeypatch):
    def fail(*_):
        raise FitError("the loss is no number")

    logic, rnn = RECIPES["mcculloch-pitts"], RECIPES["rnn"]
    some = {
        "broken": replace(rnn, name="broken", learner=fail),
        "mcculloch-pitts": replace(
            logic,
            tuned={name: logic.tuned[name] for name in ("and", "not")},
        ),
    }
    some["broken"] = replace(some["broken"], tuned={"sunspots": rnn.tuned["sunspots"]})
    monkeypatch.setattr("neurona_training.cli.arguments.RECIPES", some)
    monkeypatch.setattr("neurona_training.cli.main.RECIPES", some)
    arguments = ["--all", "--no-report", "--out", str(tmp_path)]
    assert main(arguments) == 1
    printed = capsys.readouterr()
    assert "3/3 mcculloch-pitts-not: mcculloch-pitts on not" in printed.out
    errors = [line for line in printed.err.splitlines() if "error" in line]
    assert errors == [
        "neurona-train: error: the loss is no number",
        "neurona-train: error: not trained: broken",
    ]
    models = [
        tmp_path / name / "1" / "model.onnx" for name in ("mcculloch-pitts", "mcculloch-pitts-not")
    ]
    before = [path.stat().st_mtime_ns for path in models]
    assert main(arguments) == 1
    assert capsys.readouterr().out.count("exists, skipped") == 2
    assert [path.stat().st_mtime_ns for path in models] == before
    assert "on its own data sets, without" in _error_line(capsys, "--all", "--data", "and")
