"""A series is read in the order of its time column, whatever the order of the file."""

import numpy as np
import pytest

from neurona_training.data.user.load import load_user_data
from neurona_training.data.user.spec import UserData
from neurona_training.errors import DataError

DAYS = np.datetime64("2024-01-01") + np.arange(60)


def write(folder, days, values, name="day"):
    path = folder / "prices.csv"
    lines = [f"{name},close", *(f"{day},{value}" for day, value in zip(days, values, strict=True))]
    path.write_text("\n".join(lines) + "\n")
    return path


def test_the_newest_first_is_turned_around(tmp_path):
    path = write(tmp_path, DAYS[::-1], np.arange(60)[::-1])
    for time in (None, "day"):
        loaded = load_user_data(UserData(path, series="close", window=4, time=time))
        data = loaded.training_view
        np.testing.assert_array_equal(data.train.inputs[0, :, 0], [0, 1, 2, 3])
        assert data.test.targets[-1] == 59
        assert data.input.time_column == "day"
        assert loaded.notes[-1] == (
            "prices.csv: in the order of 'day', 2024-01-01 to 2024-02-29, usual step 1 days; rows "
            "sorted"
        )
    ignored = load_user_data(UserData(path, series="close", window=4, ignored=("day",)))
    assert ignored.training_view.train.inputs[0, 0, 0] == 59
    assert ignored.training_view.input.time_column == ""


def test_an_index_of_pandas_without_a_name_is_a_time(tmp_path):
    path = write(tmp_path, DAYS[::-1], np.arange(60)[::-1], name="")
    data = load_user_data(UserData(path, series="close", window=4)).training_view
    assert data.input.time_column == "Unnamed: 0"
    assert data.train.inputs[0, 0, 0] == 0


def test_numbers_are_times_too_if_they_are_named(tmp_path):
    path = write(tmp_path, range(60, 0, -1), np.arange(60))
    data = load_user_data(UserData(path, series="close", window=4, time="day")).training_view
    assert data.train.inputs[0, 0, 0] == 59
    unsorted = load_user_data(UserData(path, series="close", window=4)).training_view
    assert unsorted.train.inputs[0, 0, 0] == 0


def test_gaps_are_noted_and_duplicates_refused(tmp_path):
    workdays = [day for day in DAYS if np.is_busday(day)]
    path = write(tmp_path, workdays, np.arange(len(workdays)))
    notes = load_user_data(UserData(path, series="close", window=4)).notes
    assert notes[-1].endswith("8 of 43 steps are longer, up to 3 days after 2024-01-05")
    path = write(tmp_path, [*DAYS, DAYS[7]], np.arange(61))
    with pytest.raises(DataError) as caught:
        load_user_data(UserData(path, series="close", window=4))
    assert str(caught.value) == (
        f"{path} line 62, column 'day': '2024-01-08' is the time of line 9, too (expected one "
        "series, each time once; --ignore 'day' takes the order of the file)"
    )


def test_what_is_for_rows_is_refused(tmp_path):
    path = write(tmp_path, DAYS, np.arange(60))
    with pytest.raises(DataError, match="--group is for --target, not for --series"):
        load_user_data(UserData(path, series="close", group="day"))
