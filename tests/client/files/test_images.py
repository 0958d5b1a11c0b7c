"""Pictures of all kinds: the levels that a viewer shows on white paper, or a clear error."""

import os

import numpy as np
import pytest

pytest.importorskip("PIL", reason="needs Pillow")

from PIL import Image
from support.pictures import COLOUR, GREY, encode, pictures, rejected_pictures

from neurona_client.files.content import FileContentError
from neurona_client.files.images import fit_image, is_image_file, read_image

PICTURES = {name: one for name, one in pictures().items() if one[1] is not None}


@pytest.mark.parametrize("name", PICTURES)
def test_a_picture_has_the_levels_that_a_viewer_shows(name, tmp_path):
    content, levels = PICTURES[name]
    image = read_image(content)
    assert np.array_equal(np.asarray(image), levels)
    assert image.mode == ("L" if levels.ndim == 2 else "RGB")
    (tmp_path / name).write_bytes(content)
    assert np.array_equal(np.asarray(read_image(tmp_path / name)), levels)


@pytest.mark.parametrize("name", rejected_pictures())
def test_a_picture_without_a_meaning_is_rejected(name):
    content, message = rejected_pictures()[name]
    with pytest.raises(FileContentError) as caught:
        read_image(content)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_picture_is_recognised_by_its_content(tmp_path):
    for name, (content, _) in pictures().items():
        (tmp_path / name).write_bytes(content)
        assert is_image_file(tmp_path / name) or name.endswith(".tga")  # which has no signature
    colour = Image.fromarray(COLOUR)
    for kind in ("AVIF", "PCX", "SGI", "ICO", "ICNS", "DDS", "QOI", "DIB"):
        Image.init()
        if kind in Image.SAVE:
            (tmp_path / kind).write_bytes(encode(colour, kind))
            assert is_image_file(tmp_path / kind) or kind == "DIB"  # the same holds for it
            assert read_image(tmp_path / kind).mode == "RGB"
    (tmp_path / "levels").write_bytes(b"Pf\n2 1\n-1.0\n" + np.float32([0.2, 1]).tobytes())
    assert is_image_file(tmp_path / "levels")
    assert np.asarray(read_image(tmp_path / "levels")).tolist() == [[51, 255]]
    (tmp_path / "rows").write_text("1,2,3")
    assert not is_image_file(tmp_path / "rows")
    assert not is_image_file(tmp_path)
    os.mkfifo(tmp_path / "pipe")
    assert not is_image_file(tmp_path / "pipe")


def test_the_central_part_is_scaled():
    wide = np.zeros((16, 32), np.uint8)
    wide[:, 8:24] = np.kron(GREY, np.ones((2, 2), np.uint8))
    assert np.array_equal(np.asarray(fit_image(Image.fromarray(wide), 8, 8)), GREY)
