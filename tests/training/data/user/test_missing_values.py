"""Cells without a value: filled from the training rows, in the network as in the data."""

import numpy as np
import pytest
import torch

from neurona_training.architectures.columns import EncodeColumns
from neurona_training.data.user.categories import encode_text
from neurona_training.data.user.load import load_user_data
from neurona_training.data.user.spec import UserData
from neurona_training.errors import DataError

RANDOM = np.random.default_rng(17)
ROWS = 60
AGES = RANDOM.integers(18, 80, ROWS)
CITIES = np.array(["Bonn", "Essen", "Köln"])[RANDOM.integers(0, 3, ROWS)]
DAYS = np.datetime64("2024-01-01") + RANDOM.integers(0, 900, ROWS)


def write(folder, name="data.csv", *, lacking=(), rows=ROWS, hour=False):
    """A table whose third row in four lacks the columns named."""
    lines = ["age,income,city,day,y"]
    for row in range(rows):
        day = f"{DAYS[row]} 18:00" if hour and row % 2 else str(DAYS[row])
        cells = {
            "age": AGES[row],
            "income": f"{row}.5",
            "city": CITIES[row],
            "day": day,
            "y": 3 * AGES[row] + row % 5 / 10,
        }
        if row % 4 == 2:
            cells |= dict.fromkeys(lacking, ("", "NA", "?")[row % 3])
        lines.append(",".join(map(str, cells.values())))
    path = folder / name
    path.write_text("\n".join(lines) + "\n")
    return path


def test_numbers_become_the_median_and_texts_a_category(tmp_path):
    loaded = load_user_data(UserData(write(tmp_path, lacking=("age", "city")), target="y"))
    caller, training = loaded.caller_view, loaded.training_view
    assert caller.input.allow_nan
    assert caller.extra_inputs[0].categories == ("", "Bonn", "Essen", "Köln")
    columns = list(training.input.columns)
    assert columns[:3] == ["age", "income", "day"]
    names = ("city is missing", "city is Bonn", "city is Essen", "city is Köln")
    assert columns[-5:] == ["age is missing", *names]
    for part, encoded in ((caller.train, training.train), (caller.test, training.test)):
        lacking = np.isnan(part.inputs[:, 0])
        assert lacking.any()
        np.testing.assert_array_equal(encoded.inputs[:, columns.index("age is missing")], lacking)
        np.testing.assert_array_equal(encoded.inputs[:, columns.index("city is missing")], lacking)
        median = np.nanmedian(caller.train.inputs[:, 0])  # of the training rows alone
        np.testing.assert_array_equal(encoded.inputs[lacking, 0], median)
        np.testing.assert_array_equal(encoded.inputs[~lacking, 0], part.inputs[~lacking, 0])
    assert "missing cells filled: 15 of 'age', 15 of 'city'" in loaded.notes[-1]


@pytest.mark.parametrize("lacking", [(), ("age",), ("city",), ("day",), ("age", "city", "day")])
@pytest.mark.parametrize("missing", [None, "fill"])
def test_the_network_encodes_columns_as_the_data_do(tmp_path, lacking, missing):
    path = write(tmp_path, lacking=lacking, hour=True)
    loaded = load_user_data(UserData(path, target="y", missing=missing))
    encode = EncodeColumns(loaded.encoding)
    for part, encoded in (
        (loaded.caller_view.train, loaded.training_view.train),
        (loaded.caller_view.test, loaded.training_view.test),
    ):
        actual = encode(*map(torch.from_numpy, part.arrays)).numpy()
        np.testing.assert_allclose(actual, encoded.inputs, rtol=0, atol=1e-6)
    assert bool(loaded.encoding.medians) == bool(lacking or missing)


def test_a_missing_text_that_training_rows_do_not_have_is_the_most_frequent(tmp_path):
    loaded = load_user_data(UserData(write(tmp_path), target="y", missing="fill"))
    (described,) = loaded.caller_view.extra_inputs
    assert described.categories[0] == ""
    table = loaded.encoding.tables[0]
    cities, counts = np.unique(loaded.caller_view.train.extra_inputs[0], return_counts=True)
    np.testing.assert_array_equal(table[0], table[cities[counts.argmax()]])
    assert not any("city is missing" in name for name in loaded.training_view.input.columns)


def test_dates_become_season_weekday_and_time(tmp_path):
    path = write(tmp_path, hour=True)
    training = load_user_data(UserData(path, target="y", ignored=("city",))).training_view
    columns = list(training.input.columns)
    assert columns[:4] == ["age", "income", "day", "day, sine of the year"]
    rows = np.concatenate([training.train.inputs, training.validation.inputs, training.test.inputs])
    incomes = rows[:, columns.index("income")]
    rows = rows[np.argsort(incomes)]
    saturdays = (DAYS.astype("datetime64[D]").astype(int) + 3) % 7 == 5
    np.testing.assert_array_equal(rows[:, columns.index("day is a Saturday")], saturdays)
    evening = np.arange(ROWS) % 2 == 1
    np.testing.assert_allclose(
        rows[:, columns.index("day, sine of the day")], np.where(evening, -1, 0), atol=1e-5
    )
    phase = 2 * np.pi * (DAYS.astype(int) + 0.75 * evening) / 365.2425
    np.testing.assert_allclose(
        rows[:, columns.index("day, cosine of the year")], np.cos(phase), atol=2e-4
    )


def test_rows_without_a_target_are_left_out(tmp_path):
    loaded = load_user_data(UserData(write(tmp_path, lacking=("y",)), target="y"))
    data = loaded.caller_view
    assert len(data.train) + len(data.validation) + len(data.test) == ROWS - 15
    assert not data.input.allow_nan
    assert "rows without a target left out: 15 of data.csv" in loaded.notes[-1]


def test_a_column_without_any_value_is_left_out(tmp_path):
    lines = ["a,b,y", *(f"{i}.5,,{i % 2}" for i in range(20))]
    (tmp_path / "data.csv").write_text("\n".join(lines))
    loaded = load_user_data(UserData(tmp_path / "data.csv", target="y"))
    assert loaded.caller_view.input.columns == ("a",)
    assert loaded.notes[-1] == "data.csv: left out: 'b' (no values)"


def test_ambiguous_dates_are_an_error_with_both_readings(tmp_path):
    lines = ["a,day,y", *(f"{i}.5,{i % 12 + 1:02}/05/2024,{i % 2}" for i in range(20))]
    path = tmp_path / "data.csv"
    path.write_text("\n".join(lines))
    with pytest.raises(DataError) as caught:
        load_user_data(UserData(path, target="y"))
    assert str(caught.value) == (
        f"{path} line 2, column 'day': '01/05/2024' may be 1 May 2024 or 5 January 2024, and no "
        "other cell says which (expected 2024-05-01 or 2024-01-05); --date-order says it"
    )
    data = load_user_data(UserData(path, target="y", date_order="month-day-year")).caller_view
    assert data.input.date_order == "month-day-year"
    assert data.input.date_columns == ("day",)


@pytest.mark.parametrize("mark", ["\\N", ".", "-nan", "#DIV/0!", "#VALUE!", "NULL", "<NA>", "NaT"])
def test_what_programs_write_for_a_missing_value(tmp_path, mark):
    lines = ["a,c,y", *(f"{mark if i == 4 else i * 1.5},{'st'[i % 2]},{i}.5" for i in range(20))]
    lines += [f"3.5,{mark},2.5"]
    (tmp_path / "data.csv").write_text("\n".join(lines))
    loaded = load_user_data(UserData(tmp_path / "data.csv", target="y"))
    assert loaded.notes[-1] == "data.csv: missing cells filled: 1 of 'a', 1 of 'c'"


def test_a_class_that_may_be_a_missing_value_is_noted(tmp_path):
    kinds = ("None", "apnea", "insomnia", "")
    lines = ["a,y", *(f"{i}.5,{kinds[i % 4]}" for i in range(40))]
    (tmp_path / "data.csv").write_text("\n".join(lines))
    loaded = load_user_data(UserData(tmp_path / "data.csv", target="y"))
    assert loaded.training_view.labels == ("apnea", "insomnia")
    assert "rows without a target left out: 20 of data.csv (cells 'None')" in loaded.notes[-1]


@pytest.mark.parametrize("ignored", [("age", "income"), ("age", "income", "city")])
def test_the_only_column_of_numbers_may_be_the_time(tmp_path, ignored):
    path = write(tmp_path, lacking=("city",))
    loaded = load_user_data(UserData(path, target="y", time="day", ignored=ignored))
    assert loaded.encoding.passed_on == ()
    actual = EncodeColumns(loaded.encoding)(*map(torch.from_numpy, loaded.caller_view.test.arrays))
    np.testing.assert_allclose(actual.numpy(), loaded.training_view.test.inputs, rtol=0, atol=1e-6)


def test_categories_do_not_depend_on_the_order_of_the_rows():
    texts = ["b", "a", "c", "b", "a", "c"]
    first, second = (encode_text("x", some, fills=True) for some in (texts, texts[::-1]))
    np.testing.assert_array_equal(first.table, second.table)
