"""Cross-validation: every row validates once, classes in proportion, series in time."""

import dataclasses

import numpy as np
import pytest

from neurona_training.data.catalogue import load
from neurona_training.data.user.load import load_user_data
from neurona_training.data.user.spec import UserData
from neurona_training.errors import DataError
from neurona_training.selection.folds import cross_validation, join_splits


def test_each_row_outside_the_test_validates_once_with_its_class_in_proportion():
    data = load("iris")
    rows = np.concatenate([data.train.inputs, data.validation.inputs])
    folds = list(cross_validation(data, 4))
    validated = np.concatenate([fold.validation.inputs for fold in folds])
    assert sorted(map(tuple, validated)) == sorted(map(tuple, rows))
    for fold in folds:
        assert len(fold.train) + len(fold.validation) == len(rows)
        counts = np.bincount(fold.validation.targets)
        assert counts.max() - counts.min() <= 1
        assert fold.test is data.test


def test_folds_of_a_series_validate_on_what_comes_later(tmp_path):
    path = tmp_path / "series.csv"
    path.write_text("value\n" + "\n".join(str(number) for number in range(200)))
    data = load_user_data(UserData(path, series="value", window=5, horizon=3)).caller_view
    for fold in cross_validation(data, 3):
        # The last target of training is before the first one of validation.
        assert fold.train.targets.max() < fold.validation.targets.min()
    assert fold.validation.targets.max() < data.test.targets.min()


@pytest.fixture(scope="module")
def visits(tmp_path_factory):
    """A table of 90 visits of 30 patients, on one day each, with two outcomes."""
    path = tmp_path_factory.mktemp("visits") / "visits.csv"
    rows = (f"{row}.5,p{row * 7 % 30},{row * 37 % 90},{'ab'[row % 3 % 2]}" for row in range(90))
    path.write_text("\n".join(["x,patient,day,outcome", *rows]))
    return path


def test_folds_keep_groups_together(visits):
    data = load_user_data(UserData(visits, target="outcome", group="patient")).caller_view
    for fold in cross_validation(data, 3):
        assert not set(fold.train.groups) & set(fold.validation.groups)
    with pytest.raises(DataError, match="24 groups outside the test .expected at least 25"):
        list(cross_validation(data, 25))


def test_folds_of_rows_that_are_divided_in_time_validate_on_what_comes_later(visits):
    data = load_user_data(UserData(visits, target="outcome", time="day")).caller_view
    for fold in cross_validation(data, 3):
        days = [part.inputs[:, 0].astype(int) * 37 % 90 for part in (fold.train, fold.validation)]
        assert days[0].max() < days[1].min()


def test_ragged_sequences_keep_their_steps():
    rng = np.random.default_rng(0)
    data = load("digit-rows")

    def ragged(split, steps):
        lengths = rng.integers(1, steps + 1, len(split)).astype(np.int32)
        return dataclasses.replace(split, inputs=split.inputs[:, :steps].copy(), lengths=lengths)

    first, second = ragged(data.train, 8), ragged(data.validation, 5)
    joined = join_splits(first, second, filler=7)
    assert joined.inputs.shape[1] == 8
    assert (joined.inputs[: len(first)] == first.inputs).all()
    assert (joined.inputs[len(first) :, :5] == second.inputs).all()
    assert (joined.inputs[len(first) :, 5:] == 7).all()
    assert (joined.lengths == np.concatenate([first.lengths, second.lengths])).all()


def test_more_folds_than_rows_of_a_class_are_an_error():
    with pytest.raises(DataError, match=r"class with 40 rows .*expected at least 41"):
        list(cross_validation(load("iris"), 41))
    with pytest.raises(DataError, match=r"has 353 rows .*expected at least 800 for 400 folds"):
        list(cross_validation(load("diabetes"), 400))


def test_rows_of_the_same_time_stay_together(tmp_path):
    path = tmp_path / "shops.csv"
    rows = (f"{row % 7}.5,{2000 + row * 11 % 31},{row * 3 % 8}.25" for row in range(310))
    path.write_text("\n".join(["x,year,y", *rows]))
    data = load_user_data(UserData(path, target="y", time="year")).caller_view
    for fold in cross_validation(data, 4):
        assert fold.train.groups.max() < fold.validation.groups.min()
    with pytest.raises(
        DataError, match="25 different times outside the test .expected at least 26"
    ):
        list(cross_validation(data, 13))


@pytest.mark.parametrize(("horizon", "folds"), [(1, 40), (9, 12)])
def test_too_few_windows_of_a_series_for_the_folds(tmp_path, horizon, folds):
    path = tmp_path / "series.csv"
    path.write_text("value\n" + "\n".join(str(number) for number in range(100)))
    data = load_user_data(UserData(path, series="value", window=3, horizon=horizon)).caller_view
    with pytest.raises(DataError, match=r"rows outside the test \(expected at least"):
        list(cross_validation(data, folds))


def test_a_fold_whose_training_rows_are_of_one_class_is_an_error(tmp_path):
    path = tmp_path / "failures.csv"
    late = {50: "b", 60: "b", 70: "b", 80: "b", 95: "b", 98: "b"}
    rows = (f"{row % 7}.5,{row},{late.get(row, 'a')}" for row in range(100))
    path.write_text("\n".join(["x,hour,state", *rows]))
    data = load_user_data(UserData(path, target="state", time="hour")).caller_view
    with pytest.raises(DataError, match="one class only in the training rows of fold 1 of 4"):
        list(cross_validation(data, 4))
