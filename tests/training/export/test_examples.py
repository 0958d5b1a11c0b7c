"""What a model file says for those who try it: an example of each input, and how to read images."""

import json

import numpy as np
import pytest

from neurona_protos.prediction_pb2 import (
    IMAGE_INVERSION_BRIGHT_BORDER,
    IMAGE_LAYOUT_CHW,
    IMAGE_LAYOUT_HW,
)
from neurona_training.data import Dataset, Input, Split
from neurona_training.data.catalogue import load
from neurona_training.data.transforms import resize_images
from neurona_training.data.user.load import load_user_data
from neurona_training.data.user.spec import UserData
from neurona_training.export.examples import MAX_EXAMPLE_CHARACTERS
from neurona_training.export.metadata import model_metadata


def described_inputs(data):
    return {one.name: one for one in model_metadata(data, "", {}, {}).inputs}


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    path = tmp_path_factory.mktemp("table") / "table.csv"
    rows = [
        f"{'' if row % 5 == 1 else 20 + row % 3},{('Bonn', 'Essen', 'Bonn')[row % 3]},{row / 2}"
        for row in range(60)
    ]
    path.write_text("age,city,y\n" + "\n".join(rows))
    return load_user_data(UserData(path, target="y")).caller_view


def test_the_example_of_a_table_is_a_typical_row(table):
    inputs = described_inputs(table)
    assert json.loads(inputs["features"].example) == [21]
    assert json.loads(inputs["city"].example) == "Bonn"


def test_the_example_of_a_series_is_a_window_of_it():
    data = load("sunspots")
    series = described_inputs(data)["series"]
    sample = np.array(json.loads(series.example), np.float32)
    np.testing.assert_allclose(sample, data.test.inputs[0], rtol=1e-5)


def test_the_example_of_a_padded_sequence_has_its_own_steps():
    inputs = np.arange(12, dtype=np.float32).reshape(2, 3, 2)
    split = Split(inputs, np.zeros(2, np.int64), np.array([2, 3], np.int32))
    sequence = Input("sequence", ("batch", "time", "channel"), "steps", "m")
    described = described_inputs(Dataset("d", "s", split, split, split, sequence, ("a",)))
    assert described["sequence"].example == "[[0,1],[2,3]]"
    assert described["sequence_lens"].example == "2"


def test_a_long_example_is_left_out():
    inputs = np.full((1, MAX_EXAMPLE_CHARACTERS, 1), 1.5, np.float32)
    split = Split(inputs, np.zeros(1, np.int64))
    sound = Input("sound", ("batch", "time", "channel"), "a sound", "amplitude -1..1")
    assert not described_inputs(Dataset("d", "s", split, split, split, sound, ("a",)))[
        "sound"
    ].example


def test_images_are_described_and_have_no_example():
    image = described_inputs(load("digits"))["image"]
    assert not image.example
    assert image.image.layout == IMAGE_LAYOUT_HW
    assert (image.image.width, image.image.height, image.image.white) == (8, 8, 16)
    assert image.image.inversion == IMAGE_INVERSION_BRIGHT_BORDER
    larger = described_inputs(resize_images(load("digits"), 32))["image"].image
    assert (larger.width, larger.stored_width, larger.stored_height) == (32, 8, 8)


def test_images_of_three_channels_are_described_in_any_range_that_the_unit_names():
    split = Split(np.zeros((1, 3, 4, 6), np.float32), np.zeros(1, np.int64))
    axes = ("batch", "channel", "height", "width")

    def described(unit):
        image = Input("image", axes, "colours", unit)
        return described_inputs(Dataset("d", "s", split, split, split, image, ("a",)))["image"]

    assert described("level -1..1").image.layout == IMAGE_LAYOUT_CHW
    assert (described("level -1..1").image.black, described("level -1..1").image.white) == (-1, 1)
    assert (described("level 0..1").image.width, described("level 0..1").image.height) == (6, 4)
    assert not described("as in the file").HasField("image")
