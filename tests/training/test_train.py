"""The command: one clear line and a non-zero status for what goes wrong."""

import subprocess
import sys
from dataclasses import replace

import onnx
import pytest

from neurona_training.cli import pipeline
from neurona_training.cli.main import main
from neurona_training.data.catalogue import SOURCES, Source
from neurona_training.errors import ExportError, FitError
from neurona_training.recipes import RECIPES


def _refused(capsys, *arguments):
    """The one line on stderr, for arguments that end with a non-zero status."""
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
    ("arguments", "said"),
    [
        (["lenet6"], f"no recipe 'lenet6'; there are {', '.join(RECIPES)}"),
        ([], "RECIPE"),
        (["rnn", "--epochs", "0"], "--epochs: '0' is not a whole number from 1"),
        (["rnn", "--epochs", "many"], "--epochs: 'many' is not a whole number from 1"),
        (["rnn", "--seed", "-1"], "--seed"),
        (["rnn", "--seed", str(2**63)], "--seed"),
        (["rnn", "--lr", "1"], "--lr"),
        (["rnn", "--data", "moons"], f"no data set 'moons'; there are {', '.join(SOURCES)}"),
        (["rnn", "--name", "../up"], "--name: '../up' is not letters"),
        (["lenet5", "--image-size", "0"], "--image-size"),
    ],
)
def test_a_wrong_command_line_is_one_line(capsys, arguments, said):
    line = _refused(capsys, *arguments)
    assert line.startswith("neurona-train: error: ")
    assert said in line


def test_a_place_that_cannot_be_written_is_told_before_the_training(tmp_path, capsys):
    (tmp_path / "file").write_text("no folder")
    for out in (tmp_path / "file", tmp_path / "file" / "below"):
        assert "cannot be written: Not a directory" in _refused(capsys, "rnn", "--out", str(out))
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_data_that_cannot_be_read_are_one_line(tmp_path, capsys, monkeypatch):
    def missing(_):
        raise FileNotFoundError(2, "No such file\nor directory", "digits.csv.gz")

    monkeypatch.setitem(SOURCES, "sunspots", Source("sunspots", "", missing))
    line = _refused(capsys, "rnn", "--out", str(tmp_path))
    assert "the data set 'sunspots' cannot be read" in line
    assert "digits.csv.gz" in line


def test_data_that_do_not_fit_are_one_line(tmp_path, capsys):
    line = _refused(capsys, "lenet5", "--data", "sunspots", "--out", str(tmp_path))
    assert "recipe 'lenet5' takes images; the data set 'sunspots' has sequences" in line
    assert list(tmp_path.iterdir()) == []


def test_a_missing_file_names_itself_and_not_the_output(tmp_path, capsys, monkeypatch):
    monkeypatch.delenv("NEURONA_DATA", raising=False)
    where = ["--data", "mnist", "--data-dir", str(tmp_path / "none"), "--out", str(tmp_path)]
    line = _refused(capsys, "lenet5", *where)
    assert f"mnist/train-images-idx3-ubyte.gz is not in {tmp_path / 'none'}" in line
    assert "https://" in line
    assert "written" not in line


def test_another_system_error_is_not_called_an_output_problem(tmp_path, capsys, monkeypatch):
    def fail(*_):
        raise PermissionError(13, "Permission denied", "/dev/somewhere")

    monkeypatch.setattr(pipeline, "run", fail)
    line = _refused(capsys, "rnn", "--out", str(tmp_path))
    assert line == "neurona-train: error: /dev/somewhere: Permission denied"


def test_another_data_set_or_a_name_makes_another_model(tmp_path, capsys):
    for arguments, name in (
        (["lstm", "--data", "sunspots"], "lstm-sunspots"),
        (["rnn", "--name", "wolf"], "wolf"),
    ):
        assert main([*arguments, "--epochs", "1", "--no-report", "--out", str(tmp_path)]) == 0
        assert (tmp_path / name / "1" / "model.onnx").is_file()
        assert capsys.readouterr().out.startswith(f"{name}: test RMSE ")


def test_images_are_brought_to_the_size_asked_for(tmp_path):
    assert (
        main(
            ["lenet5", "--epochs", "1", "--image-size", "12", "--no-report", "--out", str(tmp_path)]
        )
        == 0
    )
    (taken,) = onnx.load(tmp_path / "lenet5" / "1" / "model.onnx").graph.input
    assert [size.dim_value for size in taken.type.tensor_type.shape.dim[1:]] == [12, 12]


def test_a_failed_proof_writes_nothing(tmp_path, capsys, monkeypatch):
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


def test_an_interrupted_run_ends_without_a_traceback(tmp_path, capsys, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(pipeline, "run", interrupt)
    assert main(["rnn", "--out", str(tmp_path)]) == 130
    assert "interrupted; --resume goes on" in capsys.readouterr().err


def test_a_run_says_what_it_reached_and_where_the_file_is(tmp_path, capsys):
    assert main(["rnn", "--epochs", "2", "--seed", "5", "--no-report", "--out", str(tmp_path)]) == 0
    path = tmp_path / "rnn" / "1" / "model.onnx"
    printed = capsys.readouterr()
    for figure in ("test RMSE", "mean RMSE", "persistence RMSE"):
        assert figure in printed.out
    assert str(path) in printed.out
    assert "epoch 2/2, loss " in printed.err  # the progress bar
    assert "validation RMSE" in printed.err
    assert printed.err.count("\r") <= 3  # no terminal: no line for each step
    assert not (path.parents[1] / "checkpoint.pt").exists()
    first = path.read_bytes()

    assert main(["rnn", "--epochs", "2", "--seed", "5", "--no-report", "--out", str(tmp_path)]) == 0
    assert path.read_bytes() == first


def test_listing_needs_nothing_heavy():
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
        assert line.strip() == ", ".join(recipe.hyperparameters)
    assert max(len(line) for line in (*recipes, *sources)) <= 100


def test_the_exporter_is_quiet(tmp_path):
    """In a process of its own, where nothing has been silenced before."""
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


def test_all_trains_what_is_not_there_and_goes_on_after_a_failure(tmp_path, capsys, monkeypatch):
    def fail(*_):
        raise FitError("the loss is no number")

    by_hand, rnn = RECIPES["mcculloch-pitts"], RECIPES["rnn"]
    some = {
        "broken": replace(rnn, name="broken", learner=fail),
        "mcculloch-pitts": replace(
            by_hand,
            hyperparameters={name: by_hand.hyperparameters[name] for name in ("and", "not")},
        ),
    }
    some["broken"] = replace(
        some["broken"], hyperparameters={"sunspots": rnn.default_hyperparameters}
    )
    monkeypatch.setattr("neurona_training.cli.arguments.RECIPES", some)
    monkeypatch.setattr("neurona_training.cli.main.RECIPES", some)
    asked = ["--all", "--no-report", "--out", str(tmp_path)]
    assert main(asked) == 1
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
    assert main(asked) == 1
    assert capsys.readouterr().out.count("is there already") == 2
    assert [path.stat().st_mtime_ns for path in models] == before
    assert "own data and names" in _refused(capsys, "--all", "--data", "and")
