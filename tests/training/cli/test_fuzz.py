"""Fuzzing of neurona-train: arguments and own data of all kinds give a result or an error.

The cases are the same in each run; the slow tests try more of them.
"""

import contextlib
import io
import random
import shutil
import warnings

import numpy as np
import pytest
from PIL import Image
from support.damage import damage

from neurona_training.cli import pipeline
from neurona_training.cli.main import main
from neurona_training.data.user.load import load_user_data
from neurona_training.data.user.spec import UserData
from neurona_training.errors import TrainingError

COUNTS = [pytest.param(300, 1), pytest.param(1_500, 2, marks=pytest.mark.slow)]

TEXTS = [
    *("", "0", "-1", "2", "nan", "inf", "1e400", "1e-400", "9" * 30, "9" * 5000, "½", "0x10"),
    *("\udcff", "ü", "a\nb", "\x1b[31m", "--", "-", " ", "=", ",", "%s", "{}", "../x"),
    *("/", ".", "/dev/null", "/nonexistent/x", "a" * 5000, "a" * 5000 + ".csv", "t.csv", "loop"),
    *("lenet5", "mlp", "iris", "mnist", "float16", "classification"),
]
FLAGS = [
    *("--data", "--data-dir", "--image-size", "--out", "--name", "--seed", "--variant", "--epochs"),
    *("--batch-rows", "--learning-rate", "--target", "--task", "--ignore", "--series", "--window"),
    *("--horizon", "--unit", "--table", "--resume", "--no-report", "--list", "--all"),
]
WITHOUT_VALUE = ("--resume", "--no-report", "--list", "--all")


@pytest.mark.parametrize(("count", "seed"), COUNTS)
def test_arguments_start_a_training_or_fail_with_a_line(tmp_path, monkeypatch, count, seed):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(pipeline, "run", lambda *_: [])  # what follows, the other test tries
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "t.csv").write_text("a,b\n1,2\n")
    rng = random.Random(seed)  # noqa: S311
    statuses = set()
    for _ in range(count):
        arguments = [rng.choice(["lenet5", "mlp", rng.choice(TEXTS)])]
        for _ in range(rng.randrange(4)):
            flag, value = rng.choice(FLAGS), rng.choice(TEXTS)
            with_value = [f"{flag}={value}"] if rng.random() < 0.5 else [flag, value]
            arguments += [flag] if flag in WITHOUT_VALUE else with_value
        errors = io.StringIO()
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(errors):
            try:
                status = main(arguments)
            except SystemExit as stop:
                status = stop.code
        assert "internal error" not in errors.getvalue(), (arguments, errors.getvalue())
        assert len(errors.getvalue().splitlines()) <= 1 or "--all" in arguments, arguments
        statuses.add(status)
    assert statuses == {0, 1, 2}


def valid_files():
    """Return the content of own data by name; a picture is one of a folder."""
    rng = np.random.default_rng(0)
    rows = "".join(f"{n},{n / 2},{'ab'[n % 2]},{'yes' if n % 3 else 'no'}\n" for n in range(60))
    files = {
        "table.csv": f"\ufeffage,income,city,bought\n{rows}".encode(),
        "table.tsv": f"age\tincome\tcity\tbought\n{rows}".replace(",", "\t").encode(),
        "latin.csv": f"age;income;größe;bought\n{rows}".replace(",", ";").encode("latin-1"),
        "wide.csv": f"age,income,city,bought\n{rows}".encode("utf-16"),
    }
    stream = io.BytesIO()
    targets = rng.integers(0, 2, 40)
    lengths = rng.integers(1, 5, 40)
    np.savez(stream, inputs=rng.random((40, 5, 2)), lengths=lengths, targets=targets)
    files["sequences.npz"] = stream.getvalue()
    for name in ("png", "jpeg", "tiff"):
        stream = io.BytesIO()
        Image.fromarray(rng.integers(0, 255, (9, 8, 3), np.uint8)).save(stream, name)
        files[f"picture.{name}"] = stream.getvalue()
    return files


@pytest.mark.parametrize(("count", "seed"), COUNTS)
def test_own_data_are_loaded_or_rejected_with_a_line(tmp_path, count, seed):
    rng = random.Random(seed)  # noqa: S311
    files = valid_files()
    loaded = 0
    for _ in range(count):
        name = rng.choice(list(files))
        content = files[name] if rng.random() < 0.2 else damage(rng, files[name])
        folder = tmp_path / "data"
        folder.mkdir()
        path = folder / name
        if name.startswith("picture"):
            path = folder
            for number, label in enumerate("ab" * 5):
                (folder / label).mkdir(exist_ok=True)
                picture = folder / label / f"{number}.{name.partition('.')[2]}"
                picture.write_bytes(files[name] if number else content)
        else:
            path.write_bytes(content)
        column = rng.choice(["age", "income", "city", "bought", "absent"])
        if rng.random() < 0.6:
            user_data = UserData(path, target=column, ignored=rng.choice([(), ("city",)]))
        else:
            user_data = UserData(path, series=column, window=rng.choice([1, 12, 100]))
        try:
            with warnings.catch_warnings():  # as Pillow's of damaged pictures
                warnings.simplefilter("ignore")
                load_user_data(user_data)
            loaded += 1
        except (TrainingError, OSError) as error:
            reason = str(error)
            assert reason, user_data
        shutil.rmtree(folder)
    assert loaded > count / 20
