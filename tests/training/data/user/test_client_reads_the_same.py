"""Training and the client make the same numbers of the same file."""

import numpy as np
import pytest
from support.pictures import pictures

from neurona_client import TensorSpec
from neurona_client.images import image_to_array
from neurona_training.data.user.load import load_user_data
from neurona_training.data.user.spec import UserData

PICTURES = pictures()


@pytest.mark.parametrize("size", [None, 5], ids=["stored", "resized"])
@pytest.mark.parametrize("name", PICTURES)
def test_a_picture_is_predicted_as_it_was_trained_on(name, size, tmp_path):
    """Ten copies in each of two folders: whatever the split, a row is this picture."""
    content, _ = PICTURES[name]
    for label in ("a", "b"):
        (tmp_path / "set" / label).mkdir(parents=True)
        for number in range(10):
            (tmp_path / "set" / label / f"{number}-{name}").write_bytes(content)
    data = load_user_data(UserData(tmp_path / "set", image_size=size)).training_view
    described = data.input
    spec = TensorSpec(
        described.name,
        "FLOAT",
        (-1, *data.train.inputs.shape[1:]),
        unit=described.unit,
        description=described.description,
    )
    for source in (content, tmp_path / "set" / "a" / f"0-{name}"):
        assert np.array_equal(image_to_array(source, spec), data.train.inputs[0])
        assert image_to_array(source, spec).dtype == data.train.inputs.dtype


def test_grey_pictures_among_coloured_ones_are_the_same(tmp_path):
    for label in ("a", "b"):
        (tmp_path / label).mkdir()
        for number, name in enumerate(["colour.png", "alpha-grey.png", "16-bits.png"] * 4):
            (tmp_path / label / f"{number}.png").write_bytes(PICTURES[name][0])
    data = load_user_data(UserData(tmp_path)).training_view
    spec = TensorSpec("image", "FLOAT", (-1, 3, 8, 8), unit=data.input.unit)
    rows = {array.tobytes() for array in data.train.inputs}
    expected = {
        image_to_array(PICTURES[name][0], spec).tobytes()
        for name in ("colour.png", "alpha-grey.png", "16-bits.png")
    }
    assert rows == expected
