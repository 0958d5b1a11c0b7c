"""A user's file or folder as a data set for any recipe of its kind.

    load_user_data(UserData(Path("patients.csv"), target="outcome", ignored=("id",)))
    load_user_data(UserData(Path("prices.csv"), series="close", window=30, horizon=5, unit="EUR"))
    load_user_data(UserData(Path("flowers"), image_size=64))  # flowers/rose/1.jpg, flowers/tulip/…
    load_user_data(UserData(Path("words")))                   # words/yes/1.wav, words/no/…
    load_user_data(UserData(Path("gestures.npz")))            # keys: see arrays.py

The parts are the same on each call: 65 % of the rows for training, 15 % for validation and
20 % for the test, each class divided in these proportions, or, for a series, one part after
the other in time.

It is alone because it joins the readers of all kinds of files, which do not know each other.
"""

from __future__ import annotations

import unicodedata
from dataclasses import replace

from neurona_client.files.arrays import PICKLE_REASON, is_pickle
from neurona_training.data import Dataset
from neurona_training.data.transforms import resize_images
from neurona_training.data.user.arrays import load_arrays
from neurona_training.data.user.class_folders import list_class_folders
from neurona_training.data.user.images import load_images
from neurona_training.data.user.rounding import describe_rounding
from neurona_training.data.user.rows import load_rows
from neurona_training.data.user.series import load_series
from neurona_training.data.user.sounds import has_sounds, load_sounds
from neurona_training.data.user.spec import SUFFIXES, LoadedUserData, UserData
from neurona_training.data.user.table import UserTable, read_user_table
from neurona_training.data.user.times import sort_by_time
from neurona_training.errors import DataError


def load_user_data(user_data: UserData) -> LoadedUserData:
    """Reads a user's data.

    Args:
        user_data: the path, and what is to be learned.

    Returns:
        The rows as they are trained on, and as a caller sends them.

    Raises:
        DataError: one line that says where the data are wrong: the file, and line and column.
    """
    path = user_data.path
    if not path.exists():
        raise DataError(f"{path}: no such file or folder")
    if path.is_dir() or path.suffix.lower() == ".npz":
        _refuse_options_of_tables(user_data)
    if path.is_dir():
        if user_data.task == "regression":
            raise DataError(f"{path}: a folder for each class is for classification")
        folders = list_class_folders(path)
        if has_sounds(folders):
            _refuse(user_data, (user_data.image_size, "--image-size"), kind="images")
            return _single_view(load_sounds(user_data, folders))
        _refuse(user_data, (user_data.sample_rate, "--sample-rate"), kind="sound")
        return _single_view(load_images(user_data, folders))
    _refuse(user_data, (user_data.sample_rate, "--sample-rate"), kind="sound")
    if path.suffix.lower() == ".npz":
        data = load_arrays(user_data)
        if user_data.image_size is not None:
            data = resize_images(data, user_data.image_size)
        return _single_view(data)
    if path.suffix.lower() not in SUFFIXES:
        kind = PICKLE_REASON if is_pickle(path) else "unknown kind of file"
        raise DataError(
            f"{path}: {kind} (expected a folder of images or sound, or a "
            f"{', '.join(SUFFIXES)} file)"
        )
    _refuse(user_data, (user_data.image_size, "--image-size"), kind="images")
    table = read_user_table(path)
    user_data = _normalise_names(user_data)
    if user_data.series is not None:
        return _load_series(user_data, table)
    return load_rows(user_data, table)


def _refuse_options_of_tables(user_data: UserData) -> None:
    """Checks that nothing is asked of columns that the data do not have."""
    _refuse(
        user_data,
        (user_data.target, "--target"),
        (user_data.series, "--series"),
        (user_data.ignored, "--ignore"),
        (user_data.kept, "--keep"),
        (user_data.missing, "--missing"),
        (user_data.date_order, "--date-order"),
        (user_data.validation, "--validation"),
        (user_data.test, "--test"),
        (user_data.split_column, "--split-column"),
        (user_data.group, "--group"),
        (user_data.time, "--time"),
        kind="table",
    )


def _refuse(user_data: UserData, *options: tuple[object, str], kind: str) -> None:
    for value, flag in options:
        if value:
            raise DataError(f"{user_data.path}: no {kind}, so {flag} does not apply")


def _load_series(user_data: UserData, table: UserTable) -> LoadedUserData:
    for value, flag in (
        (user_data.validation, "--validation"),
        (user_data.test, "--test"),
        (user_data.split_column, "--split-column"),
        (user_data.group, "--group"),
        (user_data.missing, "--missing"),
        (user_data.kept, "--keep"),
    ):
        if value:
            raise DataError(f"{table.path}: {flag} is for --target, not for --series")
    ordered = sort_by_time(user_data, table)
    data = load_series(user_data, ordered.table)
    described = replace(data.input, time_column=ordered.column, date_order=ordered.date_order)
    data = replace(data, input=described)
    name = str(user_data.series)
    form = table.describe_form([name], [ordered.column] if ordered.column else [])
    rounding = describe_rounding([name], table.numbers([name]))
    notes = (f"{len(table)} rows; {form}", *ordered.notes, *rounding)
    named = tuple(f"{table.path.name}: {note}" for note in notes)
    return LoadedUserData(training_view=data, caller_view=data, notes=named)


def _normalise_names(user_data: UserData) -> UserData:
    """Composes accents in the names of columns, as `TableText` does."""

    def compose(name: str) -> str:
        return unicodedata.normalize("NFC", name).strip()

    def compose_optional(name: str | None) -> str | None:
        return None if name is None else compose(name)

    return replace(
        user_data,
        target=tuple(map(compose, user_data.targets)),
        ignored=tuple(map(compose, user_data.ignored)),
        kept=tuple(map(compose, user_data.kept)),
        split_column=compose_optional(user_data.split_column),
        group=compose_optional(user_data.group),
        time=compose_optional(user_data.time),
        series=compose_optional(user_data.series),
    )


def _single_view(data: Dataset) -> LoadedUserData:
    return LoadedUserData(training_view=data, caller_view=data)
