"""A data set by its name.

load("mnist", Options(data_dir=Path("data"))).train.inputs.shape  # (49000, 28, 28)
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from neurona_training.data.catalogue import SOURCES, Options
from neurona_training.errors import DataError

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
    from neurona_training.data.resize import resized

    return resized(data, options.image_size)
