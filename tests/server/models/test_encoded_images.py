"""What the metadata and the settings of a model say of images, and the rows that they become."""

import numpy as np
import pytest

pytest.importorskip("PIL", reason="needs Pillow")

import resource
from contextlib import nullcontext

from PIL import Image
from support.pictures import COLOUR, GREY, encode, peculiar_picture, pictures

from neurona_client.files.image_inputs import image_values
from neurona_client.files.images import read_image
from neurona_protos.prediction_pb2 import (
    IMAGE_COLOURS_BGR,
    IMAGE_COLOURS_RGB,
    IMAGE_FILTER_BILINEAR,
    IMAGE_INVERSION_ALWAYS,
    IMAGE_LAYOUT_CHW,
    IMAGE_LAYOUT_HWC,
    IMAGE_RESIZE_SHORTER_SIDE,
    IMAGE_RESIZE_STRETCH,
    DataType,
    ImageDescription,
    InputDescription,
    ModelMetadata,
)
from neurona_server.errors import InvalidValueError, LoadError
from neurona_server.models.encoded_images import (
    ImageInput,
    ImageLimits,
    describe_image,
    find_image_inputs,
)
from neurona_server.models.repository.settings import ImageSettings
from neurona_server.models.signature import TensorSpec

FLOAT = DataType.DATA_TYPE_FLOAT
LIMITS = ImageLimits(10_000, 1 << 20, lambda _: nullcontext())
READ_BY_THE_SERVER = {
    name: one[0]
    for name, one in pictures().items()
    if one[0].startswith((b"\x89PNG", b"\xff\xd8\xff"))
}


def spec(*shape, dtype=FLOAT):
    return TensorSpec("x", dtype, shape)


def find(described, tensor):
    metadata = ModelMetadata(inputs=[InputDescription(name="x", image=described)])
    return find_image_inputs(metadata, [tensor])


@pytest.mark.parametrize("name", READ_BY_THE_SERVER)
def test_each_kind_of_png_and_jpeg_becomes_what_the_client_makes_of_it(name):
    described = ImageDescription(width=5, height=6, white=1, black=-1)
    row = ImageInput(spec("batch", 6, 5), described).decode(READ_BY_THE_SERVER[name], 0, LIMITS)
    assert np.array_equal(row, image_values(read_image(READ_BY_THE_SERVER[name]), described))


def test_other_formats_are_no_images_here():
    one = ImageInput(spec("batch", 8, 8), ImageDescription(width=8, height=8))
    others = {name: each[0] for name, each in pictures().items() if name not in READ_BY_THE_SERVER}
    assert len(others) > 20
    for content in others.values():
        with pytest.raises(
            InvalidValueError, match=r"x' row 3: unknown image format \(expected PNG"
        ):
            one.decode(content, 3, LIMITS)


@pytest.mark.filterwarnings("ignore")  # as the server ignores those of Pillow
def test_exif_data_that_end_early_say_nothing():
    one = ImageInput(spec("batch", 8, 8), ImageDescription(width=8, height=8))
    assert np.all(np.abs(one.decode(peculiar_picture(), 0, LIMITS) - 51) < 2)


def test_limits_hold_for_the_file_and_for_the_row():
    picture = encode(Image.fromarray(np.zeros((101, 100), np.uint8)), "PNG")
    one = ImageInput(spec("batch", "h", "w"), ImageDescription())
    with pytest.raises(InvalidValueError, match="too large, 100 x 101 pixels"):
        one.decode(picture, 0, LIMITS)
    small = ImageLimits(20_000, 1000, lambda _: nullcontext())
    with pytest.raises(InvalidValueError, match="40400 bytes once decoded"):
        one.decode(picture, 0, small)


def test_what_is_reserved_covers_the_file_and_the_floats_of_the_row():
    reserved = []
    limits = ImageLimits(1 << 20, 1 << 20, lambda nbytes: reserved.append(nbytes) or nullcontext())
    grey, colour = Image.new("L", (300, 200)), Image.new("RGB", (300, 200))
    one = ImageInput(spec("batch", 6, 5), ImageDescription(width=5, height=6))
    for picture, kind in ((grey, "PNG"), (colour, "PNG"), (colour.convert("CMYK"), "JPEG")):
        one.decode(encode(picture, kind), 0, limits)
    assert reserved == [300 * 200 * each + 8 * 30 for each in (5, 8, 12)]


def test_a_high_and_narrow_picture_is_stretched_in_little_memory():
    picture = encode(Image.new("L", (1, 2_000_000), 77), "PNG")
    described = ImageDescription(width=224, height=224, resize=IMAGE_RESIZE_STRETCH)
    limits = ImageLimits(2_000_000, 1 << 20, lambda _: nullcontext())
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    row = ImageInput(spec("batch", 224, 224), described).decode(picture, 0, limits)
    assert np.all(row == 77)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100 << 10


COLOURS = Image.fromarray(COLOUR)


@pytest.mark.parametrize(
    ("described", "expected"),
    [
        (
            ImageDescription(layout=IMAGE_LAYOUT_HWC, colours=IMAGE_COLOURS_BGR),
            COLOUR[:, :, ::-1],
        ),
        (
            ImageDescription(layout=IMAGE_LAYOUT_CHW, inversion=IMAGE_INVERSION_ALWAYS),
            255 - np.asarray(COLOURS.convert("L"))[np.newaxis],
        ),
        (
            ImageDescription(
                layout=IMAGE_LAYOUT_HWC,
                colours=IMAGE_COLOURS_RGB,
                black=-1,
                white=1,
                mean=[0.5, 0, -0.5],
                std=[2],
            ),
            (COLOUR / 127.5 - 1 - [0.5, 0, -0.5]) / 2,
        ),
        (
            ImageDescription(width=4, height=2, resize=IMAGE_RESIZE_STRETCH),
            np.asarray(COLOURS.convert("L").resize((4, 2), Image.Resampling.BOX)),
        ),
        (
            ImageDescription(
                width=3,
                height=2,
                resize=IMAGE_RESIZE_SHORTER_SIDE,
                shorter_side=4,
                filter=IMAGE_FILTER_BILINEAR,
            ),
            np.asarray(
                COLOURS.convert("L").resize((4, 4), Image.Resampling.BILINEAR).crop((0, 1, 3, 3))
            ),
        ),
    ],
    ids=["bgr", "inverted", "normalised", "stretched", "shorter-side"],
)
def test_a_picture_becomes_what_the_description_says(described, expected):
    np.testing.assert_allclose(image_values(COLOURS, described), expected, atol=1e-5)


def test_bfloat16_and_float16_are_rounded_to_the_nearest():
    described = ImageDescription(width=8, height=8, white=1)
    content = encode(Image.fromarray(GREY), "PNG")
    rows = {
        dtype: ImageInput(spec("n", 8, 8, dtype=dtype), described).decode(content, 0, LIMITS)
        for dtype in (FLOAT, DataType.DATA_TYPE_BFLOAT16, DataType.DATA_TYPE_FLOAT16)
    }
    bits = rows[DataType.DATA_TYPE_BFLOAT16]
    assert bits.dtype == np.uint16
    floats = (bits.astype(np.uint32) << 16).view(np.float32)
    np.testing.assert_allclose(floats, rows[FLOAT], rtol=2**-8)
    assert np.array_equal(rows[DataType.DATA_TYPE_FLOAT16], rows[FLOAT].astype(np.float16))


@pytest.mark.parametrize(
    ("settings", "tensor", "expected"),
    [
        (ImageSettings(), spec("n", 8, 6), ImageDescription(height=8, width=6, white=255)),
        (
            ImageSettings(resize="shorter-side", shorter_side=256, range=(0.0, 1.0)),
            spec("n", 3, 224, 224),
            ImageDescription(
                layout=IMAGE_LAYOUT_CHW,
                colours=IMAGE_COLOURS_RGB,
                height=224,
                width=224,
                white=1,
                resize=IMAGE_RESIZE_SHORTER_SIDE,
                filter=IMAGE_FILTER_BILINEAR,
                shorter_side=256,
            ),
        ),
        (
            ImageSettings(width=10, height=20, colours="bgr"),
            spec(None, None, None, 3),
            ImageDescription(
                layout=IMAGE_LAYOUT_HWC, colours=IMAGE_COLOURS_BGR, height=20, width=10, white=255
            ),
        ),
        (
            ImageSettings(layout="hwc"),
            spec(4, 6, 1),
            ImageDescription(layout=IMAGE_LAYOUT_HWC, height=4, width=6, white=255),
        ),
        (
            ImageSettings(),
            spec(3, 4, 6),
            ImageDescription(
                layout=IMAGE_LAYOUT_CHW, colours=IMAGE_COLOURS_RGB, height=4, width=6, white=255
            ),
        ),
    ],
    ids=["grey", "imagenet", "free", "one", "one-chw"],
)
def test_what_settings_leave_out_is_in_the_shape(settings, tensor, expected):
    described = describe_image(settings, tensor)
    assert described == expected
    assert find(described, tensor)["x"].described == expected


@pytest.mark.parametrize(
    ("described", "tensor", "problem"),
    [
        (ImageDescription(layout=7), spec("n", 8, 8), "layout is 7"),
        (
            ImageDescription(colours=IMAGE_COLOURS_RGB, width=8, height=8),
            spec("n", 8, 8),
            "layout hw has no axis for colours",
        ),
        (ImageDescription(width=8, height=8), spec("n"), "expected 2 axes for hw"),
        (ImageDescription(width=8, height=9), spec("n", 8, 8), "expected 9x8 at its end, for hw"),
        (ImageDescription(), spec("n", 8, 8), "expected ?x? at its end"),
        (
            ImageDescription(layout=IMAGE_LAYOUT_CHW, width=8, height=8),
            spec("n", 3, 8, 8),
            "expected 1x8x8 at its end, for chw",
        ),
        (
            ImageDescription(width=8, height=8),
            spec("n", 8, 8, dtype=DataType.DATA_TYPE_STRING),
            "expected numbers",
        ),
        (
            ImageDescription(width=8, height=8, resize=IMAGE_RESIZE_SHORTER_SIDE, shorter_side=7),
            spec("n", 8, 8),
            "shorter_side is 7, the size 8 x 8",
        ),
        (
            ImageDescription(width=8, height=8, shorter_side=7),
            spec("n", 8, 8),
            "shorter_side is 7 (expected none",
        ),
        (
            ImageDescription(width=8, height=8, stored_width=4),
            spec("n", 8, 8),
            "one of stored_width and stored_height",
        ),
        (ImageDescription(width=70_000), spec("n", "h", "w"), "width is 70000 (expected at most"),
        (
            ImageDescription(width=8, height=8, mean=[1, 2]),
            spec("n", 8, 8),
            "mean has 2 numbers (expected 1, or 1",
        ),
        (ImageDescription(width=8, height=8, std=[0]), spec("n", 8, 8), "expected finite"),
        (ImageDescription(width=8, height=8, black=float("nan")), spec("n", 8, 8), "not finite"),
        (
            ImageDescription(width=8, height=8, black=3, white=3),
            spec("n", 8, 8),
            "black and white are both 3",
        ),
        (
            ImageDescription(width=8, height=8, black=-1, white=1),
            spec("n", 8, 8, dtype=DataType.DATA_TYPE_UINT8),
            "values from -1 to 1 (expected 0 to 255",
        ),
        (
            ImageDescription(width=8, height=8, white=1e6),
            spec("n", 8, 8, dtype=DataType.DATA_TYPE_FLOAT16),
            "expected finite",
        ),
    ],
)
def test_a_description_that_contradicts_the_input_is_an_error(described, tensor, problem):
    with pytest.raises(LoadError) as caught:
        find(described, tensor)
    assert str(caught.value).startswith("its metadata say of images for input 'x': ")
    assert problem in str(caught.value)
