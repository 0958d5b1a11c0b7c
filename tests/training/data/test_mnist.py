"""MNIST from its published files."""

import os
from pathlib import Path

import numpy as np
import pytest

from neurona_training.data.sources import mnist

SHARED = os.environ.get("NEURONA_SHARED")


@pytest.mark.skipif(SHARED is None, reason="NEURONA_SHARED names no folder with the files")
def test_mnist_has_the_published_test_rows():
    data = mnist.mnist_images(Path(SHARED) / "data")
    assert [len(part) for part in (data.train, data.validation, data.test)] == [49000, 11000, 10000]
    assert data.train.inputs.shape[1:] == (28, 28)
    assert (data.train.inputs.min(), data.train.inputs.max()) == (0, 255)
    # The first labels and the class counts of the published 10,000.
    assert data.test.targets[:5].tolist() == [7, 2, 1, 0, 4]
    assert np.bincount(data.test.targets)[:3].tolist() == [980, 1135, 1032]
    for part in (data.train, data.validation):  # stratified
        share = np.bincount(part.targets) / len(part)
        assert share[1] == pytest.approx(6742 / 60000, abs=1e-3)
    assert not {row.tobytes() for row in data.validation.inputs} & {
        row.tobytes() for row in data.train.inputs
    }
