"""Data sets of images."""

from __future__ import annotations

from typing import TYPE_CHECKING

from neurona_training.data.catalogue.source import Options, Source

if TYPE_CHECKING:
    from neurona_training.data import Dataset


def _digits(_: Options) -> Dataset:
    from neurona_training.data import digits

    return digits.images()


def _mnist(options: Options) -> Dataset:
    from neurona_training.data import mnist

    return mnist.images(options.data_dir)


def _pneumonia(options: Options) -> Dataset:
    from neurona_training.data import pneumonia

    return pneumonia.xrays(options.data_dir)


SOURCES = (
    Source("digits", "1,797 handwritten digits of 8 x 8 pixels, bundled", _digits),
    Source("pneumonia", "5,856 X-rays of chests of 28 x 28 pixels, 4 MB", _pneumonia),
    Source("mnist", "70,000 handwritten digits of 28 x 28 pixels, 12 MB", _mnist),
)
