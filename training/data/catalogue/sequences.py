"""Data sets of sequences: readings over time, characters, frames of sound."""

from __future__ import annotations

from typing import TYPE_CHECKING

from neurona_training.data.catalogue.source import Options, Source

if TYPE_CHECKING:
    from neurona_training.data import Dataset


def _digit_rows(_: Options) -> Dataset:
    from neurona_training.data import digits

    return digits.rows_of_pixels()


def _yearly_sunspots(_: Options) -> Dataset:
    from neurona_training.data import sunspots

    return sunspots.yearly()


SOURCES = (
    Source("digit-rows", "1,797 handwritten digits read row by row, bundled", _digit_rows),
    Source("sunspots", "yearly sunspot numbers 1700-2008, bundled", _yearly_sunspots),
)
