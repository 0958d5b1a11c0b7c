"""X-rays from MedMNIST's published file, and from a file that has them in another order."""

import hashlib
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from neurona_training.data.sources import pneumonia
from neurona_training.errors import DataError

SHARED = os.environ.get("NEURONA_SHARED")


@pytest.mark.skipif(SHARED is None, reason="NEURONA_SHARED names no folder with the files")
def test_the_parts_are_the_published_ones():
    data = pneumonia.chest_xrays(Path(SHARED) / "data")
    assert [len(part) for part in (data.train, data.validation, data.test)] == [4708, 524, 624]
    counted = [np.bincount(part.targets).tolist() for part in (data.train, data.test)]
    assert counted == [[1214, 3494], [234, 390]]  # healthy, pneumonia
    assert data.train.inputs.shape[1:] == (28, 28)
    assert data.train.inputs.max() == 255
    assert (data.kind, data.labels) == ("images", ("healthy", "pneumonia"))


@pytest.fixture
def published(tmp_path, monkeypatch):
    """A file made as MedMNIST's are, of three X-rays a part, with its own MD5."""
    path = tmp_path / pneumonia.FILE.path
    path.parent.mkdir()
    arrays = {}
    for part in ("train", "val", "test"):
        arrays[f"{part}_images"] = np.full((3, 28, 28), 7, np.uint8)
        arrays[f"{part}_labels"] = np.array([[0], [1], [1]], np.uint8)
    np.savez(path, **arrays)
    md5 = hashlib.md5(path.read_bytes(), usedforsecurity=False).hexdigest()
    monkeypatch.setattr(pneumonia, "FILE", replace(pneumonia.FILE, md5=md5))
    return path


def test_the_published_file_is_read(published):
    data = pneumonia.chest_xrays(published.parents[1])
    assert data.train.targets.tolist() == [0, 1, 1]
    assert (data.test.inputs == 7).all()


def test_a_changed_file_is_rejected(published):
    published.write_bytes(published.read_bytes() + b"x")
    with pytest.raises(DataError, match=r"its MD5 is .* \(expected .*zenodo"):
        pneumonia.chest_xrays(published.parents[1])


def test_a_file_without_its_parts_is_rejected(tmp_path):
    np.savez(tmp_path / "some.npz", train_images=np.zeros((1, 28, 28), np.uint8))
    with pytest.raises(DataError, match=r"some.npz is not a MedMNIST file: .*val_images"):
        pneumonia.read_part(tmp_path / "some.npz", "val")
    (tmp_path / "some.npz").write_bytes(b"nothing of the kind")
    with pytest.raises(DataError, match=r"some.npz is not a MedMNIST file"):
        pneumonia.read_part(tmp_path / "some.npz", "train")
