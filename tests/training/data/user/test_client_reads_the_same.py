"""Training and the client make the same numbers of the same file."""

import numpy as np
import pytest
from PIL import Image
from support.pictures import encode, pictures

from neurona_client import ModelDescription, TensorSpec
from neurona_client.cli.sample_files import read_samples
from neurona_client.images import image_to_array
from neurona_protos.prediction_pb2 import DescribeModelResponse
from neurona_training.data import Dataset, Input, Split
from neurona_training.data.transforms import resize_images
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


@pytest.mark.parametrize("size", [6, 20])
@pytest.mark.parametrize("channels", [(), (3,)], ids=["grey", "colour"])
def test_a_picture_is_scaled_as_a_named_data_set_is(size, channels, tmp_path):
    """`--image-size` scales the pixels of MNIST; its digits may come as pictures or arrays."""
    levels = np.random.default_rng(0).integers(0, 256, (12, *channels, 9, 12), np.uint8)
    rows = Split(levels.astype(np.float32), np.arange(12) % 2)
    axes = ("batch", *(["channel"] if channels else []), "height", "width")
    described = Input("image", axes, "a digit, 12 x 9 grey levels", "grey level 0..255")
    data = resize_images(Dataset("digits", "", rows, rows, rows, described, ("a", "b")), size)
    spec = TensorSpec(
        "image",
        "FLOAT",
        (-1, *channels, size, size),
        unit=data.input.unit,
        description=data.input.description,
    )
    for pixels, expected in zip(levels, data.train.inputs, strict=True):
        picture = Image.fromarray(pixels.transpose(1, 2, 0) if channels else pixels)
        assert np.array_equal(image_to_array(encode(picture, "PNG"), spec), expected)
    # The file that training read is predicted as it was read.
    np.savez(tmp_path / "digits.npz", X=levels, y=rows.targets)
    model = ModelDescription(
        "m", 1, "tensors", "", (spec,), (), (), (), True, {}, {}, DescribeModelResponse()
    )
    (sample,) = read_samples(str(tmp_path / "digits.npz"), model)
    assert np.array_equal(sample.inputs, data.train.inputs)


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
