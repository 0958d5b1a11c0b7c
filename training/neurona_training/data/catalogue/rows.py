"""Data sets of rows: measurements side by side, truth tables."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from neurona_training.data.catalogue.source import Options, Source

if TYPE_CHECKING:
    from neurona_training.data import Dataset


def _table(name: str, _: Options) -> Dataset:
    from neurona_training.data import logic

    return logic.table(name)


def _iris(_: Options) -> Dataset:
    from neurona_training.data import iris

    return iris.species()


def _iris_setosa(_: Options) -> Dataset:
    from neurona_training.data import iris

    return iris.setosa()


def _breast_cancer(_: Options) -> Dataset:
    from neurona_training.data import breast_cancer

    return breast_cancer.tumours()


def _diabetes(_: Options) -> Dataset:
    from neurona_training.data import diabetes

    return diabetes.progression()


SOURCES = (
    *(
        Source(name, f"the truth table of {name.upper()}", partial(_table, name))
        for name in ("not", "and", "or", "nand", "xor", "majority")
    ),
    Source("iris", "150 flowers of three species, four lengths each, bundled", _iris),
    Source("iris-setosa", "the same flowers, setosa against the rest, bundled", _iris_setosa),
    Source("breast-cancer", "569 tumours, malignant or benign, bundled", _breast_cancer),
    Source("diabetes", "442 patients and how their disease went on, bundled", _diabetes),
)
