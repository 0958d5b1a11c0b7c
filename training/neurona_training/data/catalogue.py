"""Data sets by name.

    load("mnist", DataOptions(data_dir=Path("data"))).train.inputs.shape  # (49000, 28, 28)

The module of a source is imported when its data are loaded, so that listing them is fast.
"""

from __future__ import annotations

import dataclasses
import importlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, cast

from neurona_training.errors import DataError

if TYPE_CHECKING:
    from neurona_training.data import Dataset

_PACKAGE = "neurona_training.data.sources"


@dataclass(frozen=True)
class DataOptions:
    """How a data set is loaded.

    Args:
        data_dir: folder that has the published files; None downloads them once, into a cache.
        image_size: images are resized to this many pixels across and down; None keeps them.
    """

    data_dir: Path | None = None
    image_size: int | None = None


@dataclass(frozen=True)
class Source:
    """A named data set.

    Args:
        name: of the data set.
        description: one line for the list of data sets.
        function: "module:function" below `neurona_training.data.sources`.
        arguments: of the function.
        published: whether the function takes `data_dir`, a folder with published files.
    """

    name: str
    description: str
    function: str
    arguments: tuple[str, ...] = ()
    published: bool = False

    def load(self, options: DataOptions) -> Dataset:
        """Imports the source's module and reads the data."""
        module, _, name = self.function.partition(":")
        function = getattr(importlib.import_module(f"{_PACKAGE}.{module}"), name)
        folder = {"data_dir": options.data_dir} if self.published else {}
        return cast("Dataset", function(*self.arguments, **folder))


_ROWS = (
    *(
        Source(name, f"the truth table of {name.upper()}", "logic:truth_table", (name,))
        for name in ("not", "and", "or", "nand", "xor", "majority")
    ),
    Source("iris", "150 flowers of three species, four lengths each, bundled", "tables:iris"),
    Source(
        "iris-setosa", "the same flowers, setosa against the rest, bundled", "tables:iris_setosa"
    ),
    Source("curve", "sin(x²) for x from 0 to 4, generated", "curve:curve"),
    Source("noisy-curve", "30 rows of sin(2x) with noise, generated", "curve:noisy_curve"),
    Source(
        "digit-features",
        "1,797 handwritten digits by 14 hand-made features, bundled",
        "digits:digit_features",
    ),
    Source("breast-cancer", "569 tumours, malignant or benign, bundled", "tables:breast_cancer"),
    Source("diabetes", "442 patients and how their disease progressed, bundled", "tables:diabetes"),
)
_IMAGES = (
    Source("digits", "1,797 handwritten digits of 8 x 8 pixels, bundled", "digits:digit_images"),
    Source(
        "pneumonia",
        "5,856 X-rays of chests of 28 x 28 pixels, 4 MB",
        "pneumonia:chest_xrays",
        published=True,
    ),
    Source(
        "mnist",
        "70,000 handwritten digits of 28 x 28 pixels, 12 MB",
        "mnist:mnist_images",
        published=True,
    ),
)
_SEQUENCES = (
    Source("digit-rows", "1,797 handwritten digits read row by row, bundled", "digits:digit_rows"),
    Source(
        "vowels",
        "640 recordings of nine men saying /ae/, 1.2 MB",
        "vowels:vowel_recordings",
        published=True,
    ),
    Source(
        "names",
        "18,000 family names of 18 languages, by characters, 0.2 MB",
        "names:names_by_character",
        published=True,
    ),
    Source(
        "spoken-digits",
        "3,000 digits spoken by six people, 3,000 files, 21 MB",
        "spoken_digits:spoken_waveforms",
        published=True,
    ),
    Source("sunspots", "yearly sunspot numbers 1700-2008, bundled", "sunspots:yearly_sunspots"),
    Source(
        "monthly-sunspots",
        "monthly sunspot numbers 1749-1983, 45 kB",
        "sunspots:monthly_sunspots",
        published=True,
    ),
    Source(
        "adding", "the adding problem over 100 steps (1997), generated", "adding:adding_problem"
    ),
)

SOURCES = {source.name: source for source in (*_ROWS, *_IMAGES, *_SEQUENCES)}


def load(name: str, options: DataOptions | None = None) -> Dataset:
    """Loads a data set; each call returns the same rows in the same parts.

    Args:
        name: one of `SOURCES`.
        options: folder of published files, and the size of images.

    Raises:
        DataError: no such data set, files that are missing, cannot be downloaded or differ
            from the published ones, or no images to resize.
    """
    if name not in SOURCES:
        raise DataError(f"unknown data set {name!r} (available: {', '.join(SOURCES)})")
    options = options or DataOptions()
    try:
        data = dataclasses.replace(SOURCES[name].load(options), name=name)
    except (ImportError, OSError, ValueError, KeyError) as error:
        reason = " ".join(str(error).split())
        raise DataError(f"cannot read data set {name!r}: {reason}") from error
    if options.image_size is None:
        return data
    from neurona_training.data.transforms import resize_images

    return resize_images(data, options.image_size)
