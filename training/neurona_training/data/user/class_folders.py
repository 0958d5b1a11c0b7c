"""A user's folder with a folder of files for each class, named as the class is.

flowers/rose/1.jpg              divided at random, 65 % training, 15 % validation, 20 % test
flowers/train/rose/1.jpg        or as its user has divided it, in train, val and test
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
from tqdm import tqdm

from neurona_training.data.splits import RowIndices, Target, encode_classes, split_rows
from neurona_training.data.user.chosen_parts import describe_division, divide_as_chosen
from neurona_training.errors import DataError

_PARTS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "valid", "validate", "validation", "dev"), "validation"),
    **dict.fromkeys(("test", "testing", "holdout"), "test"),
}
"""Names of folders, in lower case, and the part of the data that each holds."""

_SYSTEM_FILES = ("thumbs.db", "desktop.ini")  # that systems leave in folders
_MIN_FILES_FOR_BAR = 500  # fewer are read at once

T = TypeVar("T")


@dataclass(frozen=True)
class ClassFolders:
    """Files of all classes, and how they are divided.

    Args:
        folder: that has them.
        files: all of them, sorted within a class.
        classes: of each file.
        parts: "train", "validation" or "test" for each file; empty if they are not divided.
    """

    folder: Path
    files: tuple[Path, ...]
    classes: tuple[str, ...]
    parts: tuple[str, ...] = ()

    def divide(self) -> tuple[Target, tuple[RowIndices, RowIndices, RowIndices]]:
        """Returns each file's class, and the files for training, validation and test.

        A part that the folder does not have is taken from the training files of each class.

        Raises:
            DataError: too few files, or a class without training files.
        """
        where = str(self.folder)
        target = encode_classes(self.classes, where)
        if not self.parts:
            return target, split_rows(target, where)
        return target, divide_as_chosen(target, self.parts, where)

    @property
    def division(self) -> str:
        """How they are divided, in words; empty if they are divided at random."""
        if not self.parts:
            return ""
        return f", {describe_division(self.parts)}"

    def places(self, parts: tuple[RowIndices, RowIndices, RowIndices]) -> RowIndices:
        """The place of each file where each part is one piece, one after the other."""
        places = np.empty(len(self.files), np.int64)
        places[np.concatenate(parts)] = np.arange(len(self.files))
        return places

    def progress(self, items: Sequence[T]) -> Iterator[T]:
        """Yields the items with a progress bar, if there are many and someone looks."""
        yield from tqdm(
            items,
            desc=f"reading {self.folder.name}",
            unit="file",
            leave=False,
            disable=len(items) < _MIN_FILES_FOR_BAR or not sys.stderr.isatty(),
        )


def list_class_folders(folder: Path) -> ClassFolders:
    """Lists every file and its class, also in folders inside the folder of a class.

    Raises:
        DataError: no folders, or one without files.
    """
    try:
        divided = _part_folders(folder)
        files: list[Path] = []
        classes: list[str] = []
        parts: list[str] = []
        for part, part_folder in divided or [("", folder)]:
            class_folders = _folders(part_folder)
            if not class_folders:
                raise DataError(
                    f"{part_folder}: no folders (expected one with files for each class, or train, "
                    "val and test with such folders)"
                )
            for class_folder in class_folders:
                some = sorted(_files(class_folder))
                if not some and not part:
                    raise DataError(f"{class_folder}: no file for class {class_folder.name!r}")
                files += some
                classes += [class_folder.name] * len(some)
                parts += [part] * len(some)
    except OSError as error:
        raise DataError(f"{error.filename}: {error.strerror}") from error
    if not files:
        raise DataError(f"{folder}: no files in its folders (expected some for each class)")
    return ClassFolders(folder, tuple(files), tuple(classes), tuple(parts) if divided else ())


def _part_folders(folder: Path) -> list[tuple[str, Path]]:
    """The folders train, val and test, if those are there and the one for training holds folders.

    Raises:
        DataError: others beside them, two for one part, or one without folders of classes: taken
            for classes, a network would learn to tell training from test.
    """
    folders = _folders(folder)
    parts = [_PARTS.get(one.name.lower(), "") for one in folders]
    named = {part for part in parts if part}
    if not any(part == "train" and _folders(one) for part, one in zip(parts, folders, strict=True)):
        return []
    if "" in parts and len(named) == 1:  # classes, of which one has such a name
        return []
    names = ", ".join(one.name for one in folders)
    if "" in parts or len(named) < len(parts):
        raise DataError(f"{folder}: folders {names} (expected train, val and test alone)")
    for part_folder in folders:
        if not _folders(part_folder):
            raise DataError(
                f"{part_folder}: no folders (expected one with files for each class, as the folder "
                "for training has; without it, files for training are taken instead)"
            )
    return list(zip(parts, folders, strict=True))


def _folders(folder: Path) -> list[Path]:
    return sorted(one for one in folder.iterdir() if one.is_dir() and one.name[0] != ".")


def _files(folder: Path) -> Iterator[Path]:
    for path in folder.iterdir():
        if path.name[0] == ".":
            continue
        if path.is_dir():
            yield from _files(path)
        elif path.name.lower() not in _SYSTEM_FILES:
            yield path
