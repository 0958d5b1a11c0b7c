"""Options of network and learner: they reach the training, the provenance and a --config file."""

import os

import onnx
import pytest

from neurona_protos import metadata
from neurona_training.cli.arguments import parse
from neurona_training.cli.comparison import parse_compare
from neurona_training.cli.main import main


def _error_line(capsys, *arguments):
    with pytest.raises(SystemExit) as stop:
        parse(arguments)
    assert stop.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    return line


def _train(out, *arguments):
    assert main([*arguments, "--no-report", "--name", "m", "--out", str(out)]) == 0
    model = onnx.load(out / "m" / "1" / "model.onnx")
    properties = {item.key: item.value for item in model.metadata_props}
    return model, metadata.from_json(properties[metadata.KEY]).provenance


def test_options_stand_in_the_provenance_and_in_the_network(tmp_path, monkeypatch):
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "86400")
    model, provenance = _train(
        tmp_path,
        *("mlp", "--data", "iris", "--epochs", "2", "--units", "7,5", "--activation", "relu"),
        *("--optimiser", "sgd", "--momentum", "0", "--schedule", "constant", "--dropout", "0.1"),
        *("--label-smoothing", "0.05", "--class-weights", "balanced", "--initialisation", "he"),
        *("--weight-decay", "0.01", "--patience", "9", "--weight-average", "0.5"),
    )
    expected = {
        "units": "7,5",
        "layers": "2",
        "activation": "relu",
        "dropout": "0.1",
        "optimiser": "sgd",
        "momentum": "0.0",
        "schedule": "constant",
        "patience": "9",
        "label_smoothing": "0.05",
        "class_weights": "balanced",
        "initialisation": "he",
        "weight_decay": "0.01",
        "weight_average": "0.5",
        "date": "1970-01-02T00:00:00Z",
    }
    assert {key: provenance[key] for key in expected} == expected
    sizes = {tuple(one.dims) for one in model.graph.initializer}
    assert {(7, 4), (5, 7), (3, 5)} <= sizes
    assert "Relu" in {node.op_type for node in model.graph.node}


def test_the_recipe_s_own_choice_stands_in_the_provenance_too(tmp_path):
    _, provenance = _train(tmp_path, "feedforward", "--data", "digits", "--epochs", "1")
    assert provenance["units"] == "512,512,256,128"
    assert provenance["initialisation"] == "inputs"
    assert provenance["pixels"] == "1.0"


@pytest.mark.long
@pytest.mark.slow
def test_the_digest_follows_the_rows_and_not_the_file(tmp_path, monkeypatch):
    monkeypatch.delenv("SOURCE_DATE_EPOCH", raising=False)
    lines = [f"{number / 10},{'yes' if number % 3 else 'no'}" for number in range(60)]
    digests, dates = [], []
    for name, rows in (("a", lines), ("b", lines), ("c", ["9.5,no", *lines[1:]])):
        path = tmp_path / f"{name}.csv"
        path.write_text("\n".join(["x,answer", *rows]) + "\n")
        os.utime(path, (1e9, 1e9))
        _, provenance = _train(
            tmp_path / name, "mlp", "--data", str(path), "--target", "answer", "--epochs", "1"
        )
        digests.append(provenance["data_sha256"])
        dates.append(provenance["date"])
        assert provenance["split_seed"].isdecimal()
    assert digests[0] == digests[1] != digests[2]
    assert set(dates) == {"2001-09-09T01:46:40Z"}


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["lenet5", "--units", "8"], "recipe 'lenet5' has no option --units"),
        (["perceptron", "--dropout", "0.5"], "has no option --dropout (expected --epochs"),
        (["mlp", "--units", "8,0"], "--units: '0' is not an integer from 1"),
        (["mlp", "--dropout", "1"], "--dropout: '1' is not a number from 0 to below 1"),
        (["mlp", "--weight-decay", "nan"], "--weight-decay: 'nan' is not a number from 0"),
        (["lenet5", "--no-augmentation", "--shift", "1"], "--no-augmentation excludes"),
    ],
)
def test_what_a_recipe_does_not_have_is_refused_by_name(capsys, arguments, expected):
    assert expected in _error_line(capsys, *arguments)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["feedforward", "--data", "iris", "--rotate", "5"], "has rows (--rotate is for images)"),
        (["rnn", "--label-smoothing", "0.1"], "(--label-smoothing is for classification)"),
        (["mlp", "--data", "iris", "--units", "8,8", "--layers", "3"], "2 numbers of units for 3"),
    ],
)
def test_what_the_data_do_not_have_is_refused_by_name(capsys, tmp_path, arguments, expected):
    assert main([*arguments, "--out", str(tmp_path)]) == 1
    assert expected in capsys.readouterr().err


def test_a_file_of_options_is_the_command_line_and_the_latter_wins(tmp_path):
    path = tmp_path / "own.toml"
    path.write_text(
        'recipe = "mlp"\ndata = "x.csv"\nignore = ["id", "-1"]\nno-report = true\n'
        "[network]\nunits = [16, 8]\ndropout = 0.2\n[learning]\nlearning-rate = 1e-2\nepochs = 7\n"
    )
    by_file = parse(["--config", str(path), "--epochs", "9"])
    by_hand = parse(
        [
            "mlp",
            "--data",
            "x.csv",
            "--ignore",
            "id",
            "--ignore=-1",
            "--no-report",
            "--units",
            "16,8",
            "--dropout",
            "0.2",
            "--learning-rate",
            "1e-2",
            "--epochs",
            "9",
        ]
    )
    assert by_file == by_hand
    assert by_file.changes["units"] == (16, 8)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["feedforward"], ["feedforward", "--target", "price", "--variant", "int8"]),
        (["--epochs", "7", "feedforward"], ["feedforward", "--target=price", "--variant=int8"]),
        (["--target", "a", "--target", "b"], ["mlp", "--target=a", "--target=b", "--variant=int8"]),
        (["--variant", "float16"], ["mlp", "--target", "price", "--variant", "float16"]),
    ],
)
@pytest.mark.parametrize("flag", ["--config", "--conf"])
def test_the_command_line_replaces_what_a_file_says_and_does_not_add_to_it(
    tmp_path, flag, arguments, expected
):
    path = tmp_path / "own.toml"
    path.write_text(
        'recipe = "mlp"\ndata = "x.csv"\ntarget = "price"\nvariant = ["int8"]\nepochs = 7\n'
    )
    by_hand = parse([*expected, "--data", "x.csv", "--epochs", "7"])
    assert parse([*arguments, flag, str(path)]) == by_hand


def test_recipes_and_metric_of_compare_may_stand_in_a_file(tmp_path):
    path = tmp_path / "own.toml"
    path.write_text('recipes = ["mlp", "feedforward"]\ndata = "iris"\nmetric = "nll"\nfolds = 3\n')
    by_hand = parse_compare(["mlp", "feedforward", "--data=iris", "--metric=auc", "--folds=3"])
    assert parse_compare(["--metric", "auc", "--config", str(path)]) == by_hand
    other = parse_compare(["--metric", "auc", "mlp", "--config", str(path)])
    assert other.models == by_hand.models[:1]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("epoch = 3", "unknown option 'epoch' (did you mean 'epochs'?)"),
        ("epochs = 0", "--epochs: '0' is not an integer from 1"),
        ("epochs = true", "option 'epochs' is True (expected text or a number)"),
        ("no-report = 1", "option 'no-report' is 1 (expected true or false)"),
        ("epochs = ", "not a TOML file"),
        (None, "No such file"),
    ],
)
def test_a_wrong_file_of_options_is_one_line(capsys, tmp_path, text, expected):
    path = tmp_path / "own.toml"
    if text is not None:
        path.write_text(text)
    assert expected in _error_line(capsys, "mlp", "--config", str(path))
