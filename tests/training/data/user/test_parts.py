"""Training, validation and test rows as the user wants them: by file, column, group or time."""

import time

import numpy as np
import pytest

from neurona_training.data.splits import Target, divide_rows
from neurona_training.data.user.load import load_user_data
from neurona_training.data.user.spec import UserData
from neurona_training.errors import DataError

ROWS = 120


def write(folder, name="data.csv", rows=range(ROWS), **columns):
    """A table whose column x identifies each row."""
    made = {
        "x": lambda row: f"{row}.5",
        "patient": lambda row: f"p{row % 24}",
        "day": lambda row: np.datetime64("2024-01-01") + row * 37 % 120,
        "part": lambda row: ("train", "Train", "val", "test")[row % 4],
        "kind": lambda row: "often" if row % 24 % 6 else "rare",
        **columns,
    }
    lines = [",".join(made), *(",".join(str(cell(row)) for cell in made.values()) for row in rows)]
    path = folder / name
    path.write_text("\n".join(lines) + "\n")
    return path


def rows_of(data):
    column = data.input.columns.index("x")
    return [
        {int(x) for x in part.inputs[:, column]}
        for part in (data.train, data.validation, data.test)
    ]


def load(path, **options):
    defaults = {"target": "kind", "ignored": ("part",)}
    return load_user_data(UserData(path, **defaults | options))


def error(path, **options):
    with pytest.raises(DataError) as caught:
        load(path, **options)
    return str(caught.value)


def test_no_group_is_in_two_parts(tmp_path):
    path = write(tmp_path)
    loaded = load(path, group="patient")
    parts = rows_of(loaded.caller_view)
    groups = [{row % 24 for row in part} for part in parts]
    assert sum(map(len, groups)) == len(set().union(*groups)) == 24
    assert [round(len(part) / ROWS, 1) for part in parts] == [0.7, 0.1, 0.2]
    for part in (loaded.caller_view.train, loaded.caller_view.test):
        assert 0.1 < np.mean(part.targets) < 0.35  # the share of "rare" is 1/6 of the patients
    assert "patient" not in [one for i in loaded.caller_view.inputs for one in i.columns]
    assert "no 'patient' in two parts" in loaded.notes[-1]
    assert rows_of(load(path, group="patient").caller_view) == parts  # the same on each call
    one = write(tmp_path, "one.csv", patient=lambda row: f"p{row % 2}")
    assert "2 different groups (expected at least 3)" in error(one, group="patient")


def test_later_rows_are_the_test(tmp_path):
    path = write(tmp_path)
    loaded = load(path, time="day")
    days = [{row * 37 % 120 for row in part} for part in rows_of(loaded.caller_view)]
    assert max(days[0]) < min(days[1]) <= max(days[1]) < min(days[2])
    assert list(map(len, days)) == [78, 18, 24]
    # Later days are beyond all that was learned: only their season and weekday are used.
    columns = loaded.training_view.input.columns
    assert "day, sine of the year" in columns
    assert "day" not in columns
    weeks = write(tmp_path, "weeks.csv", day=lambda row: row // 25)
    data = load(weeks, time="day").caller_view
    weeks_of_parts = [{row // 25 for row in part} for part in rows_of(data)]
    assert weeks_of_parts == [{0, 1, 2}, {3}, {4}]  # rows of the same time stay together
    assert "day" not in data.input.columns
    assert "column 'patient': 'p0' is not a date" in error(path, time="patient")
    assert "exclude each other" in error(path, time="day", group="patient")


def test_a_column_says_the_part_of_each_row(tmp_path):
    path = write(tmp_path)
    parts = rows_of(load(path, split_column="part", ignored=()).caller_view)
    assert [{row % 4 for row in part} for part in parts] == [{0, 1}, {2}, {3}]
    two = write(tmp_path, "two.csv", part=lambda row: "test" if row < 30 else "train")
    train, validation, test = rows_of(load(two, split_column="part", ignored=()).caller_view)
    assert test == set(range(30))
    assert 10 < len(validation) < 25
    assert train | validation == set(range(30, ROWS))
    wrong = write(tmp_path, "wrong.csv", part=lambda row: "x" if row == 7 else "test")
    message = "line 9, column 'part': 'x' is no part (expected train, validation or test)"
    assert message in error(wrong, split_column="part", ignored=())


def test_a_group_in_two_chosen_parts_is_an_error(tmp_path):
    path = write(tmp_path, patient=lambda row: f"p{row // 3}")
    message = error(path, split_column="part", ignored=(), group="patient")
    assert (
        "group 'p0' has rows in the training rows and the validation rows (expected in one"
        in message
    )


def test_files_of_their_own(tmp_path):
    path = write(tmp_path, rows=range(80))
    later = write(tmp_path, "later.csv", rows=range(80, 100), patient=lambda row: f"q{row}")
    last = write(tmp_path, "last.csv", rows=range(100, 120))
    parts = rows_of(load(path, validation=later, test=last).caller_view)
    assert parts == [set(range(80)), set(range(80, 100)), set(range(100, 120))]
    train, validation, test = rows_of(load(path, test=last).caller_view)
    assert test == set(range(100, 120))
    assert len(validation) == 15  # of 80: as many for each training row as without a file
    assert train | validation == set(range(80))
    message = error(path, test=last, group="patient")
    assert "has rows in the rows for training and the test rows" in message
    same = error(path, test=tmp_path / ".." / tmp_path.name / path.name)
    assert same.endswith("data.csv: --test is another part, too (expected other rows)")
    (tmp_path / "short.csv").write_text("x,kind\n1,rare\n")
    assert "no column 'day' (an input in data.csv)" in error(path, test=tmp_path / "short.csv")
    other = write(tmp_path, "other.csv", rows=range(100, 120), kind=lambda _: "new")
    message = error(path, test=other)
    assert "class 'new' has no row for training" in message


def test_each_file_is_read_as_it_is_written(tmp_path):
    """A test file from a spreadsheet with decimal commas has the same numbers."""
    path = write(tmp_path, rows=range(100))
    content = path.read_text().splitlines()
    last = tmp_path / "last.csv"
    lines = [";".join(line.split(",")).replace(".5", ",5") for line in content]
    last.write_bytes("\n".join(lines).encode("utf-16"))
    data = load(path, test=last).caller_view
    np.testing.assert_array_equal(np.sort(data.test.inputs[:, 0]), np.arange(100) + 0.5)


def test_what_has_no_columns_has_no_groups(tmp_path):
    (tmp_path / "pictures").mkdir()
    message = error(tmp_path / "pictures", target=None, ignored=(), group="patient")
    assert message == f"{tmp_path / 'pictures'}: no table, so --group does not apply"


def test_an_integer_names_the_same_group_in_each_file(tmp_path):
    """Integers beside a missing value are written as 3.0 by pandas."""
    path = write(tmp_path, patient=lambda row: row % 24)
    last = write(tmp_path, "last.csv", range(100, 120), patient=lambda row: f"{row % 24}.0")
    message = error(path, test=last, group="patient")
    assert "group '4' has rows in the rows for training and the test rows" in message
    kinds = write(tmp_path, "kinds.csv", kind=lambda row: f"{row % 2}.0", rows=range(100))
    last = write(tmp_path, "last.csv", range(100, 120), kind=lambda row: row % 2)
    assert load(kinds, test=last).caller_view.labels == ("0", "1")


def test_many_groups_and_classes_are_divided_at_once():
    rows, classes = 50_000, 1000
    target = Target(np.arange(rows) % classes, labels=tuple(map(str, range(classes))))
    started = time.process_time()
    parts = divide_rows(target, "x", groups=[f"g{row // 5}" for row in range(rows)])
    assert time.process_time() - started < 4
    assert [round(len(part) / rows, 2) for part in parts] == [0.65, 0.15, 0.2]


def test_a_file_of_a_program_beside_one_of_a_spreadsheet(tmp_path):
    """In a file with commas between cells 1.234 is no thousand, whatever the training file has."""
    path = write(tmp_path, rows=range(100))
    german = [";".join(line.split(",")).replace(".5", ",5") for line in path.read_text().split()]
    path.write_text("\n".join(german))
    last = write(tmp_path, "last.csv", range(20), x=lambda row: f"{row + 1}.234")
    message = error(path, test=last)
    assert "last.csv line 2, column 'x': '1.234' may be 1234 or 1.234" in message


def test_other_dates_say_the_order_of_day_and_month(tmp_path):
    day = {"day": lambda row: f"0{row // 30 + 1}/0{row % 9 + 1}/2024"}
    path = write(tmp_path, sold=lambda row: f"{row % 28 + 1}/05/2024", **day)
    last = write(tmp_path, "last.csv", range(100, 120), sold=lambda _: "01/02/2024", **day)
    data = load(path, test=last, time="day").caller_view
    expected = [f"2024-0{row % 9 + 1}-0{row // 30 + 1}" for row in range(100, 120)]
    column = data.input.columns.index("day")
    days = np.sort(data.test.inputs[:, column])
    np.testing.assert_array_equal(days, np.sort(np.array(expected, "M8[D]").astype(int)))
    assert "may be" in error(path, time="day", ignored=("part", "sold"))


def test_a_target_that_is_constant_in_training_is_an_error(tmp_path):
    path = write(tmp_path, kind=lambda row: "7.5" if row % 4 < 2 else f"{row}.5")
    message = error(path, split_column="part", ignored=())
    assert "the same value in all rows for training, nothing to learn" in message
