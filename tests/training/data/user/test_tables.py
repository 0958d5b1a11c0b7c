"""A user's own tables: what they become, and one line that says where an error is."""

import time

import numpy as np
import pytest

from neurona_training.cli.arguments import parse
from neurona_training.cli.main import main
from neurona_training.data.user.load import load_user_data
from neurona_training.data.user.spec import UserData
from neurona_training.errors import DataError

GOOD = [
    "size,colour,kind",
    *(f"{2 * i},{'red' if i % 3 else 'blue'},{'ab'[i % 2]}" for i in range(20)),
]
NOT_FILLED = {"target": "kind", "missing": "error"}


def _csv(folder, lines, name="data.csv"):
    path = folder / name
    path.write_text("\n".join(lines) + "\n")
    return path


def _error_line(user_data):
    with pytest.raises(DataError) as caught:
        load_user_data(user_data)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def _parts(data):
    return [len(part) for part in (data.train, data.validation, data.test)]


def test_numbers_are_one_input_and_each_text_column_is_another(tmp_path):
    loaded = load_user_data(UserData(_csv(tmp_path, GOOD), target="kind"))
    caller_view, training_view = loaded.caller_view, loaded.training_view
    assert [(one_input.name, one_input.categories) for one_input in caller_view.inputs] == [
        ("features", ()),
        ("colour", ("blue", "red")),
    ]
    assert caller_view.labels == ("a", "b")
    assert training_view.input.columns == ("size", "colour is blue", "colour is red")
    assert _parts(caller_view) == _parts(training_view) == [12, 4, 4]
    sizes = np.concatenate([part.inputs[:, 0] for part in (caller_view.train, caller_view.test)])
    np.testing.assert_array_equal(training_view.test.inputs[:, 0], caller_view.test.inputs[:, 0])
    np.testing.assert_array_equal(training_view.test.inputs[:, 2], caller_view.test.extra_inputs[0])
    assert len(set(sizes)) == len(sizes)  # no row in two parts


def test_the_parts_are_stratified_and_reproducible(tmp_path):
    lines = ["x,y", *(f"{i},{'rare' if i % 10 == 0 else 'often'}" for i in range(100))]
    first, second = (
        load_user_data(UserData(_csv(tmp_path, lines), target="y")).training_view for _ in range(2)
    )
    for part, again in ((first.train, second.train), (first.test, second.test)):
        np.testing.assert_array_equal(part.inputs, again.inputs)
    counts = [np.bincount(p.targets).tolist() for p in (first.train, first.validation, first.test)]
    assert counts == [[58, 6], [14, 2], [18, 2]]
    assert 0.6 <= len(first.train) / 100 <= 0.7


def test_the_task_is_inferred_or_given(tmp_path):
    lines = ["x,whole,value", *(f"{i},{i % 3},{i * 0.7}" for i in range(30))]
    path = _csv(tmp_path, lines)
    integers = load_user_data(UserData(path, target="whole")).training_view
    assert integers.labels == ("0", "1", "2")
    value = load_user_data(UserData(path, target="value", unit="kg")).training_view
    assert [(one.name, one.unit) for one in value.values] == [("value", "kg")]
    assert (
        load_user_data(UserData(path, target="whole", task="regression"))
        .training_view.values[0]
        .name
        == "whole"
    )


def test_integer_classes_are_sorted_by_value(tmp_path):
    lines = ["x,y", *(f"{i},{(2, 10, 1)[i % 3]}" for i in range(30))]
    data = load_user_data(UserData(_csv(tmp_path, lines), target="y")).training_view
    assert data.labels == ("1", "2", "10")
    expected = np.array([1, 2, 0])[data.test.inputs[:, 0].astype(int) % 3]
    np.testing.assert_array_equal(data.test.targets, expected)


def test_classes_of_integers_are_the_same_however_they_are_written(tmp_path):
    """A program that read missing values writes 1 as 1.0; a bar code has more than 64 bits."""
    texts = ("1.0", "1", "01", "0.0", "-0", "0")
    lines = ["x,y", *(f"{i},{texts[i % 6]}" for i in range(30))]
    data = load_user_data(UserData(_csv(tmp_path, lines), target="y")).training_view
    assert data.labels == ("0", "1")
    expected = (data.test.inputs[:, 0] % 6 < 3).astype(int)
    np.testing.assert_array_equal(data.test.targets, expected)
    codes = ("9", "12345678901234567890123", "x" * 3)
    lines = ["x,y", *(f"{i},{codes[i % 2]}" for i in range(30))]
    path = _csv(tmp_path, lines)
    data = load_user_data(UserData(path, target="y", task="classification")).training_view
    assert data.labels == codes[:2]


def test_semicolons_quotes_and_a_byte_order_mark(tmp_path):
    path = tmp_path / "data.csv"
    lines = ['"a;b";y', *(f'"{i}";{"no" if i % 2 else "yes"}' for i in range(20))]
    path.write_bytes(b"\xef\xbb\xbf" + "\r\n".join(lines).encode())
    assert load_user_data(UserData(path, target="y")).training_view.input.columns == ("a;b",)


def test_numbers_are_read_as_spreadsheets_write_them(tmp_path):
    lines = ["größe;preis;anteil", *(f"{i}.{i:03},5;{i},25;{i} %" for i in range(1, 21))]
    path = tmp_path / "data.csv"
    path.write_bytes("\r\n".join(lines).encode("utf-8-sig"))
    data = load_user_data(UserData(path, target="anteil", task="regression")).training_view
    assert (data.input.columns, data.input.decimal_mark) == (("größe", "preis"), ",")
    assert [value.unit for value in data.values] == ["%"]
    rows = np.concatenate([part.inputs for part in (data.train, data.validation, data.test)])
    targets = np.concatenate([part.targets for part in (data.train, data.validation, data.test)])
    numbers = np.arange(1, 21)
    rows, targets = rows[np.argsort(rows[:, 0])], np.sort(targets[:, 0])
    np.testing.assert_allclose(rows[:, 0], numbers * 1001 + 0.5)
    np.testing.assert_allclose(rows[:, 1], numbers + 0.25)
    np.testing.assert_allclose(targets, numbers)


def test_the_target_says_what_a_comma_in_the_inputs_is(tmp_path):
    lines = ["x;y", *(f"1,{100 + i};{i},5" for i in range(20))]
    data = load_user_data(UserData(_csv(tmp_path, lines), target="y")).training_view
    assert data.input.decimal_mark == ","
    assert data.train.inputs.max() < 2


def test_what_only_counts_or_names_the_rows_is_left_out_and_noted(tmp_path):
    lines = [
        f"{'id' if i == 0 else i},{'name' if i == 0 else f'n{i}'},{line}"
        for i, line in enumerate(GOOD)
    ]
    path = _csv(tmp_path, lines)
    loaded = load_user_data(UserData(path, target="kind"))
    assert loaded.training_view.input.columns == ("size", "colour is blue", "colour is red")
    assert loaded.notes == (
        "data.csv: 20 rows; commas between cells, UTF-8; columns: 1 of numbers, 1 of text",
        "data.csv: left out: 'id' (counts the rows; --keep 'id' keeps it), 'name' (20 different "
        "texts in 20 rows)",
    )
    kept = load_user_data(UserData(path, target="kind", kept=("id",))).caller_view
    assert kept.input.columns == ("id", "size")


def test_an_id_that_differs_in_each_row_is_left_out(tmp_path):
    random = np.random.default_rng(1)
    ids = random.permutation(90) + 9007199254740993
    lines = ["user_id,PassengerId,shop_id,paid,y"]
    lines += [f"{ids[i]},{1000 + i},{i % 7},{7 * i},{i}.5" for i in range(90)]
    path = _csv(tmp_path, lines)
    loaded = load_user_data(UserData(path, target="y"))
    assert loaded.training_view.input.columns == ("shop_id", "paid")
    assert "'user_id' (another number in each row; --keep 'user_id' keeps it)" in loaded.notes[1]
    kept = load_user_data(UserData(path, target="y", kept=("PassengerId",))).training_view
    assert kept.input.columns == ("PassengerId", "shop_id", "paid")


def test_a_file_of_r_or_of_a_spreadsheet_of_western_europe(tmp_path):
    path = tmp_path / "data.csv"
    lines = ['"";"größe";"art"', *(f'"Zeile {i}";{i},5;"{"äß"[i % 2]}"' for i in range(20))]
    path.write_bytes("\r\n".join(lines).encode("cp1252"))
    loaded = load_user_data(UserData(path, target="art"))
    assert (loaded.training_view.labels, loaded.training_view.input.columns) == (
        ("ß", "ä"),
        ("größe",),
    )
    assert loaded.notes == (
        "data.csv: 20 rows; semicolons between cells, decimal comma, Windows-1252; columns: 1 of "
        "numbers",
        "data.csv: left out: the nameless column 1",
    )


def test_several_targets_are_one_regression(tmp_path):
    lines = ["x;a;b", *(f"{i}.5;{2 * i};{1000 - 3 * i} %" for i in range(20))]
    path = _csv(tmp_path, lines)
    data = load_user_data(UserData(path, target=("a", "b"))).training_view
    assert [(one.name, one.unit) for one in data.values] == [("a", ""), ("b", "%")]
    assert data.input.columns == ("x",)
    np.testing.assert_allclose(data.test.targets[:, 0], 2 * data.test.inputs[:, 0] - 1)
    np.testing.assert_allclose(data.test.targets[:, 1], 1001.5 - 3 * data.test.inputs[:, 0])
    lines = ["x,a,b", *(f"{i}.5,{i % 2},{'xy'[i % 2]}" for i in range(20))]
    line = _error_line(UserData(_csv(tmp_path, lines), target=("a", "b")))
    assert "'b' has text (expected numbers: several targets are a regression)" in line


def test_the_most_frequent_of_many_texts_are_categories(tmp_path):
    texts = [f"t{i % 150}" for i in range(600)]
    texts[:100] = ["often"] * 100
    path = _csv(tmp_path, ["x,y", *(f"{text},{i % 7}.5" for i, text in enumerate(texts))])
    loaded = load_user_data(UserData(path, target="y"))
    described = loaded.caller_view.input
    assert len(described.categories) == 100
    assert "often" in described.categories
    assert described.open_categories
    assert described.description.endswith("any other counts as none of them")
    assert "'x': the 100 most frequent of 151 texts, the others count as none of" in loaded.notes[1]


def test_row_numbers_without_a_name_are_left_out(tmp_path):
    lines = [f"{'' if i == 0 else i - 1},{line}" for i, line in enumerate(GOOD)]
    loaded = load_user_data(UserData(_csv(tmp_path, lines), target="kind"))
    assert loaded.training_view.input.columns == ("size", "colour is blue", "colour is red")
    assert [one.columns for one in loaded.caller_view.inputs] == [("size",), ("colour",)]


def test_numbers_that_float32_does_not_tell_apart_are_noted(tmp_path):
    lines = [
        "day,ms,share,y",
        *(f"{20240101 + i},{1700000000000 + i},0.{i},{i}.5" for i in range(30)),
    ]
    path = _csv(tmp_path, lines)
    loaded = load_user_data(UserData(path, target="y"))
    assert "'day': 30 different numbers are 16 in float32" in loaded.notes[1]
    assert "'ms': 30 different numbers are 1 in float32" in loaded.notes[1]
    assert "share" not in loaded.notes[1]
    loaded = load_user_data(UserData(path, target="day", ignored=("ms",)))
    assert "'day': 30 different numbers" in loaded.notes[1]
    line = _error_line(UserData(path, target="ms", task="regression"))
    assert "column 'ms': 30 different numbers are 1 in float32" in line
    notes = load_user_data(UserData(path, series="day", window=2)).notes
    assert "'day': 30 different numbers are 16 in float32" in notes[-1]


def test_a_target_that_is_named_twice_is_one(tmp_path):
    lines = ["x,y", *(f"{i}.5,{i}.1" for i in range(30))]
    data = load_user_data(UserData(_csv(tmp_path, lines), target=("y", "y"))).training_view
    assert data.train.targets.shape[1] == len(data.values) == 1


def test_a_table_of_thousands_of_columns_is_read_at_once(tmp_path):
    names = [f"x{column}" for column in range(9000)]
    rows = [
        ",".join([*(f"{row}.{column}" for column in range(9000)), str(row % 2)])
        for row in range(12)
    ]
    path = _csv(tmp_path, [",".join([*names, "y"]), *rows])
    started = time.process_time()
    data = load_user_data(UserData(path, target="y")).training_view
    assert data.train.inputs.shape[1] == 9000
    assert time.process_time() - started < 3


@pytest.mark.parametrize(
    ("lines", "options", "expected"),
    [
        (GOOD, {}, "--target or --series must name a column (available: size, colour, kind)"),
        (GOOD, {"target": "sort"}, "no column 'sort' (--target); available: size, colour, kind"),
        (GOOD, {"target": "kind", "ignored": ("x",)}, "no column 'x' (--ignore)"),
        (GOOD, {"series": "x"}, "no column 'x' (--series)"),
        (GOOD, {"series": "size", "window": 15}, "20 values are too few for a window of 15"),
        (GOOD, {"target": "kind", "task": "regression"}, "column 'kind': text (expected numbers"),
        ([*GOOD, "1,red"], {"target": "kind"}, "line 22: 2 cells (expected 3)"),
        ([*GOOD, ",red,a"], NOT_FILLED, "line 22, column 'size': missing value"),
        ([*GOOD, "NaN,red,a"], NOT_FILLED, "line 22, column 'size': missing value"),
        ([*GOOD, "1,,a"], NOT_FILLED, "line 22, column 'colour': missing value"),
        ([*GOOD, "1,red,"], NOT_FILLED, "line 22, column 'kind': missing value"),
        ([*GOOD, "1o,red,a"], {"target": "kind"}, "line 22, column 'size': '1o' is not a number"),
        ([*GOOD, "inf,red,a"], {"target": "kind"}, "line 22, column 'size': 'inf' is not finite"),
        (
            [*GOOD, "1,red,c"],
            {"target": "kind"},
            "class 'c' has 1 of the 21 rows (expected at least 5)",
        ),
        (GOOD[:1], {"target": "kind"}, "expected a line of column names and rows"),
        (
            ["a,b", *(f'"1,{100 + i}",{"xy"[i % 2]}' for i in range(20))],
            {"target": "b"},
            "line 2, column 'a': '1,100' may be 1100 or 1.100, and no other cell says which",
        ),
        (
            ["a;b", *(f"{i},5;{'xy'[i % 2]}" for i in range(20)), "3.5;x"],
            {"target": "b"},
            "line 22, column 'a': decimal points and decimal commas: '3.5' in line 22 and '0,5'",
        ),
        (
            ["a,b", *(f"{i} %,{'xy'[i % 2]}" for i in range(20)), "0.5,x"],
            {"target": "b"},
            "line 22, column 'a': numbers with and without a sign of per cent: '0 %' in line 2",
        ),
        (
            ["a,b", *(f"{i} kg,{'xy'[i % 2]}" for i in range(20))],
            {"target": "b"},
            "numbers with the unit 'kg' are text, without it numbers; --ignore 'a' leaves it out",
        ),
        (
            ["a,y", *(f"{i},${i}500" for i in range(20))],
            {"target": "y"},
            "expected at least 5); numbers with the unit '$' are text, without it numbers",
        ),
        (
            ["a,y", *(f"{i},{i % 9}" for i in range(20))],
            {"target": "y"},
            "expected at least 5); --task regression predicts the number",
        ),
        (
            ["a,y", *(f"{i},{('None', 'apnea')[i % 2]}" for i in range(20))],
            {"target": "y"},
            "one class only, 'apnea' (expected at least 2); cells 'None' are missing values",
        ),
        (["x,x", "1,2"], {"target": "x"}, "line 1: duplicate column 'x'"),
        (["x,", "1,2", "2,7"], {"target": "x"}, "line 1: column 2 has no name"),
        (["1,2", "3,4"], {"target": "1"}, "line 1: numbers only (expected the names"),
        (["x,y", *["1,a"] * 20], {"target": "y"}, "column 'y': one class only, 'a'"),
        (
            ["x,y", *(f"{i}.5,{i}.1" for i in range(5))],
            {"target": "y"},
            "5 rows (expected at least 10)",
        ),
        ([*GOOD, "1e39,red,a"], {"target": "kind"}, "line 22, column 'size': '1e39' is not finite"),
        (
            ["x,y", *(f"{i},1.5" for i in range(20))],
            {"target": "y"},
            "column 'y': the same value in all",
        ),
        (["x", *["1.5"] * 40], {"series": "x"}, "column 'x': the same value in all rows"),
        (["y", *(f"{i}.5" for i in range(20))], {"target": "y"}, "no column is left"),
        (
            ["name,y", *(f"n{i},{i}.5" for i in range(20))],
            {"target": "y"},
            "no column is left to predict 'y' from; left out: 'name' (20 different texts in 20",
        ),
    ],
)
def test_an_error_in_a_table_says_where(tmp_path, lines, options, expected):
    path = _csv(tmp_path, lines)
    line = _error_line(UserData(path, **options))
    assert line.startswith(str(path))
    assert expected in line


def test_a_file_that_is_not_text_is_rejected(tmp_path):
    path = tmp_path / "data.csv"
    path.write_bytes(b"x,y\n1,a\n2,M\x81ller\n")
    line = _error_line(UserData(path, target="y"))
    assert line.startswith(f"{path} line 3: byte 0x81 is not UTF-8 (expected UTF-8")
    path.write_bytes(b"PK\x03\x04")
    assert "a ZIP archive, such as an Excel workbook" in _error_line(UserData(path, target="y"))


def test_a_series_is_split_in_time_and_shares_no_target(tmp_path):
    path = _csv(tmp_path, ["t,level", *(f"{i},{i * 2}" for i in range(60))])
    data = load_user_data(
        UserData(path, series="level", window=4, horizon=3, unit="m")
    ).training_view
    assert data.kind == "sequences"
    assert [value.unit for value in data.values] == ["m"] * 3
    np.testing.assert_array_equal(data.train.inputs[0, :, 0], [0, 2, 4, 6])
    np.testing.assert_array_equal(data.train.targets[0], [8, 10, 12])
    assert data.train.targets.max() < data.validation.targets.min()
    assert data.validation.targets.max() < data.test.targets.min()
    assert data.test.targets.max() == 118


def test_an_error_of_the_command_is_one_line(tmp_path, capsys):
    path = _csv(tmp_path, GOOD)
    for arguments, status, expected in (
        (["mlp", "--data", str(tmp_path / "none.csv")], 1, "none.csv: no such file or folder"),
        (["mlp", "--data", str(path), "--target", "sort"], 1, "no column 'sort'"),
        (
            ["lenet5", "--data", str(path), "--target", "kind"],
            1,
            "(recipe 'lenet5' expects images)",
        ),
        (["mlp", "--target", "kind"], 2, "--target is for own data"),
        (["mlp", "--data", str(path), "--target", "a", "--series", "b"], 2, "exclude each other"),
        (["mlp", "--data", str(path), "--target", "a", "--window", "3"], 2, "need --series"),
        (["mlp", "--learning-rate", "0"], 2, "--learning-rate: '0' is not a number above 0"),
    ):
        try:
            exit_status = main([*arguments, "--out", str(tmp_path / "out")])
        except SystemExit as stop:
            exit_status = stop.code
        (line,) = capsys.readouterr().err.splitlines()
        assert exit_status == status
        assert expected in line
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("file", "name"),
    [
        ("patients.csv", "mlp-patients"),
        ("My data (1).csv", "mlp-My-data-1"),
        ("été.csv", "mlp-t"),
        ("...csv", "mlp-data"),
        (f"{'x' * 200}.csv", f"mlp-{'x' * 64}"),
    ],
)
def test_the_model_is_named_after_the_file(file, name):
    assert parse(["mlp", "--data", f"somewhere/{file}", "--target", "y"]).name == name
