"""One line of the catalogue, and what a user can say about how data are loaded."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

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
