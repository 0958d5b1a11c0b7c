"""Images as inputs: decoded, fitted and scaled to the model's levels."""

import io
import sys
import threading
import warnings

import numpy as np
import pytest

from neurona_client import InvalidInputError, TensorSpec
from neurona_client.images import image_to_array
from neurona_client.inputs import is_image
from neurona_protos.prediction_pb2 import DATA_TYPE_FLOAT, DATA_TYPE_STRING, DATA_TYPE_UINT8

Image = pytest.importorskip("PIL.Image", reason="needs Pillow")


def spec(*shape, unit="level 0..255", description="", dtype="FLOAT", number=DATA_TYPE_FLOAT):
    return TensorSpec("image", dtype, (-1, *shape), (), False, unit, description, number)


def png(array, kind="PNG", **options):
    file = io.BytesIO()
    Image.fromarray(np.asarray(array, np.uint8)).save(file, kind, **options)
    return file.getvalue()


GREY = np.arange(64, dtype=np.uint8).reshape(8, 8) * 3
COLOUR = np.stack([GREY, GREY // 2, 255 - GREY], axis=2)


def test_an_image_of_the_models_size_keeps_its_levels(tmp_path):
    assert np.array_equal(image_to_array(png(GREY), spec(8, 8)), GREY)
    assert np.array_equal(image_to_array(png(GREY), spec(1, 8, 8))[0], GREY)
    assert np.array_equal(image_to_array(png(COLOUR), spec(3, 8, 8)), COLOUR.transpose(2, 0, 1))
    assert np.array_equal(image_to_array(png(COLOUR), spec(8, 8, 3)), COLOUR)
    file = tmp_path / "a.png"
    file.write_bytes(png(GREY))
    assert np.array_equal(image_to_array(file, spec(8, 8)), GREY)


def test_levels_are_scaled_to_the_unit_of_the_input():
    scaled = image_to_array(png(GREY), spec(8, 8, unit="grey level 0..16"))
    assert np.allclose(scaled, GREY * (16 / 255))
    assert np.allclose(image_to_array(png(GREY), spec(8, 8, unit="-1..1")), GREY * (2 / 255) - 1)


def test_ink_has_the_high_levels_on_bright_and_dark_paper():
    paper = spec(8, 8, unit="grey level 0..16", description="0 is paper, 16 is ink")
    drawing = np.full((8, 8), 255, np.uint8)
    drawing[2:6, 3:5] = 0
    dark_on_bright = image_to_array(png(drawing), paper)
    assert np.array_equal(dark_on_bright, image_to_array(png(255 - drawing), paper))
    assert dark_on_bright[0, 0] == 0
    assert dark_on_bright[3, 3] == 16


def test_a_larger_image_is_cropped_to_its_centre_and_scaled():
    wide = np.zeros((16, 32), np.uint8)
    wide[:, 8:24] = np.kron(GREY, np.ones((2, 2), np.uint8))
    assert np.array_equal(image_to_array(png(wide), spec(8, 8)), GREY)
    assert image_to_array(png(wide), spec(-1, -1)).shape == (16, 32)


def test_grey_and_colour_images_are_converted():
    assert np.array_equal(image_to_array(png(GREY), spec(3, 8, 8)), np.stack([GREY] * 3))
    assert image_to_array(png(COLOUR), spec(8, 8)).shape == (8, 8)


def test_transparent_pixels_become_white():
    clear = np.zeros((8, 8, 4), np.uint8)
    assert np.all(image_to_array(png(clear), spec(8, 8)) == 255)


def test_jpeg_and_16_bit_png_are_read():
    flat = np.full((8, 8), 128, np.uint8)
    assert np.allclose(image_to_array(png(flat, "JPEG", quality=95), spec(8, 8)), 128, atol=2)
    file = io.BytesIO()
    Image.fromarray(np.full((8, 8), 65535, np.uint16)).save(file, "PNG")
    assert np.all(image_to_array(file.getvalue(), spec(8, 8)) == 255)


def test_levels_of_integer_inputs_are_rounded():
    eight = spec(8, 8, unit="", dtype="UINT8", number=DATA_TYPE_UINT8)
    assert np.array_equal(image_to_array(png(GREY), eight), GREY)


@pytest.mark.parametrize(
    ("source", "input_spec", "message"),
    [
        (b"not an image", spec(8, 8), "unknown image format"),
        (
            b"%!PS-Adobe-3.0 EPSF-3.0\n",
            spec(8, 8),
            "unknown image format",
        ),  # which Ghostscript would run
        (png(GREY)[:55], spec(8, 8), "unreadable"),
        (png(GREY), spec(8, 8, unit="cm"), "pixel levels of input"),
        (png(GREY), spec(5), "does not take images"),
        (png(GREY), spec(4, 8, 8), "does not take images"),
    ],
    ids=["nothing", "postscript", "half", "unit", "rank", "channels"],
)
def test_the_error_says_why_an_image_cannot_be_used(source, input_spec, message):
    with pytest.raises(InvalidInputError, match=message):
        image_to_array(source, input_spec)


def test_without_pillow_the_error_says_how_to_install_it(monkeypatch):
    image = png(GREY)
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(InvalidInputError, match=r"pip install neurona\[images\]"):
        image_to_array(image, spec(8, 8))


def test_bytes_are_text_for_a_string_input():
    assert is_image(b"a", spec(8, 8))
    assert not is_image(b"a", spec(8, 8, dtype="STRING", number=DATA_TYPE_STRING))


def test_a_huge_image_is_rejected_and_warning_filters_stay_unchanged(monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 40)
    before = list(warnings.filters)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(InvalidInputError, match="8 x 8 pixels"):
            image_to_array(png(GREY), spec(8, 8))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    with pytest.raises(InvalidInputError, match="too large"):
        image_to_array(png(GREY), spec(8, 8))
    monkeypatch.undo()

    def decode():
        for _ in range(200):
            image_to_array(png(GREY), spec(8, 8))

    threads = [threading.Thread(target=decode) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert list(warnings.filters) == before
