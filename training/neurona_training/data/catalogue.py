"""A data set by its name.

load("mnist", Options(data_dir=Path("data"))).train.inputs.shape  # (49000, 28, 28)
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from neurona_training.errors import DataError

if TYPE_CHECKING:
    from neurona_training.data import Dataset


@dataclass(frozen=True)
class Options:
    """data_dir: where published files are already; None downloads them once, into a cache.
    image_size: images are brought to so many pixels across and down; None leaves them.
    """

    data_dir: Path | None = None
    image_size: int | None = None


@dataclass(frozen=True)
class Source:
    """A data set by name."""

    name: str
    description: str
    load: Callable[[Options], Dataset]


if TYPE_CHECKING:
    from neurona_training.data import Dataset


def _table(name: str, _: Options) -> Dataset:
    from neurona_training.data.sources import logic

    return logic.table(name)


def _iris(_: Options) -> Dataset:
    from neurona_training.data.sources import tables

    return tables.species()


def _iris_setosa(_: Options) -> Dataset:
    from neurona_training.data.sources import tables

    return tables.setosa()


def _breast_cancer(_: Options) -> Dataset:
    from neurona_training.data.sources import tables

    return tables.tumours()


def _diabetes(_: Options) -> Dataset:
    from neurona_training.data.sources import tables

    return tables.progression()


ROW_SOURCES = (
    *(
        Source(name, f"the truth table of {name.upper()}", partial(_table, name))
        for name in ("not", "and", "or", "nand", "xor", "majority")
    ),
    Source("iris", "150 flowers of three species, four lengths each, bundled", _iris),
    Source("iris-setosa", "the same flowers, setosa against the rest, bundled", _iris_setosa),
    Source("breast-cancer", "569 tumours, malignant or benign, bundled", _breast_cancer),
    Source("diabetes", "442 patients and how their disease went on, bundled", _diabetes),
)

if TYPE_CHECKING:
    from neurona_training.data import Dataset


def _digits(_: Options) -> Dataset:
    from neurona_training.data.sources import digits

    return digits.images()


def _mnist(options: Options) -> Dataset:
    from neurona_training.data.sources import mnist

    return mnist.images(options.data_dir)


def _pneumonia(options: Options) -> Dataset:
    from neurona_training.data.sources import pneumonia

    return pneumonia.xrays(options.data_dir)


IMAGE_SOURCES = (
    Source("digits", "1,797 handwritten digits of 8 x 8 pixels, bundled", _digits),
    Source("pneumonia", "5,856 X-rays of chests of 28 x 28 pixels, 4 MB", _pneumonia),
    Source("mnist", "70,000 handwritten digits of 28 x 28 pixels, 12 MB", _mnist),
)

if TYPE_CHECKING:
    from neurona_training.data import Dataset


def _digit_rows(_: Options) -> Dataset:
    from neurona_training.data.sources import digits

    return digits.rows_of_pixels()


def _vowels(options: Options) -> Dataset:
    from neurona_training.data.sources import vowels

    return vowels.recordings(options.data_dir)


def _names(options: Options) -> Dataset:
    from neurona_training.data.sources import names

    return names.by_characters(options.data_dir)


def _spoken_digits(options: Options) -> Dataset:
    from neurona_training.data.sources import spoken_digits

    return spoken_digits.waveforms(options.data_dir)


def _yearly_sunspots(_: Options) -> Dataset:
    from neurona_training.data.sources import sunspots

    return sunspots.yearly()


def _monthly_sunspots(options: Options) -> Dataset:
    from neurona_training.data.sources import sunspots

    return sunspots.monthly(options.data_dir)


def _adding(_: Options) -> Dataset:
    from neurona_training.data.sources import adding

    return adding.generated()


SEQUENCE_SOURCES = (
    Source("digit-rows", "1,797 handwritten digits read row by row, bundled", _digit_rows),
    Source("vowels", "640 recordings of nine men saying /ae/, 1.2 MB", _vowels),
    Source("names", "18,000 family names of 18 languages, by characters, 0.2 MB", _names),
    Source(
        "spoken-digits", "3,000 digits spoken by six people, 3,000 files, 21 MB", _spoken_digits
    ),
    Source("sunspots", "yearly sunspot numbers 1700-2008, bundled", _yearly_sunspots),
    Source("monthly-sunspots", "monthly sunspot numbers 1749-1983, 45 kB", _monthly_sunspots),
    Source("adding", "the adding problem over 100 steps (1997), generated", _adding),
)

__all__ = ["SOURCES", "Options", "Source"]

SOURCES = {source.name: source for source in (*ROW_SOURCES, *IMAGE_SOURCES, *SEQUENCE_SOURCES)}

if TYPE_CHECKING:
    from neurona_training.data import Dataset


def load(name: str, options: Options | None = None) -> Dataset:
    """The data set of this name, the same on each call. Raises DataError."""
    if name not in SOURCES:
        raise DataError(f"no data set {name!r}; there are {', '.join(SOURCES)}")
    options = options or Options()
    try:
        data = dataclasses.replace(SOURCES[name].load(options), name=name)
    except (ImportError, OSError, ValueError, KeyError) as error:
        reason = " ".join(str(error).split())
        raise DataError(f"the data set {name!r} cannot be read: {reason}") from error
    if options.image_size is None:
        return data
    from neurona_training.data.transforms import resized

    return resized(data, options.image_size)
