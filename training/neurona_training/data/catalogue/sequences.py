"""Data sets of sequences: readings over time, characters, frames of sound."""

from __future__ import annotations

from typing import TYPE_CHECKING

from neurona_training.data.catalogue.source import Options, Source

if TYPE_CHECKING:
    from neurona_training.data import Dataset


def _digit_rows(_: Options) -> Dataset:
    from neurona_training.data import digits

    return digits.rows_of_pixels()


def _vowels(options: Options) -> Dataset:
    from neurona_training.data import vowels

    return vowels.recordings(options.data_dir)


def _names(options: Options) -> Dataset:
    from neurona_training.data import names

    return names.by_characters(options.data_dir)


def _spoken_digits(options: Options) -> Dataset:
    from neurona_training.data import spoken_digits

    return spoken_digits.waveforms(options.data_dir)


def _yearly_sunspots(_: Options) -> Dataset:
    from neurona_training.data import sunspots

    return sunspots.yearly()


def _monthly_sunspots(options: Options) -> Dataset:
    from neurona_training.data import sunspots

    return sunspots.monthly(options.data_dir)


def _adding(_: Options) -> Dataset:
    from neurona_training.data import adding

    return adding.generated()


SOURCES = (
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
