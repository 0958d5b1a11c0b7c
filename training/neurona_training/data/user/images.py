"""A user's images in a folder for each class."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from neurona_client.files.content import FileContentError
from neurona_client.files.images import fit_image, read_image
from neurona_training.data import Dataset, Input, Split
from neurona_training.data.user.class_folders import ClassFolders
from neurona_training.data.user.large_arrays import allocate
from neurona_training.data.user.spec import UserData
from neurona_training.errors import DataError

if TYPE_CHECKING:
    from PIL.Image import Image


def load_images(user_data: UserData, folders: ClassFolders) -> Dataset:
    """Reads all images, 0 to 255: grey as (rows, height, width), others (rows, 3, height, width).

    They are read one by one, as the client reads them (`neurona_client.files.images`), into an
    array that is on disk if it does not fit into memory. With `image_size` the central square of
    each is brought to that size at once.

    Raises:
        DataError: with the file or folder that is wrong.
    """
    target, parts = folders.divide()
    places = folders.places(parts)
    pixels = _try_read(folders, places, user_data.image_size, in_colour=False)
    if pixels is None:  # files of grey levels and, later, one of colours
        pixels = _try_read(folders, places, user_data.image_size, in_colour=True)
    assert pixels is not None  # noqa: S101  for the type checker
    bounds = np.cumsum([len(rows) for rows in parts])[:-1]
    train, validation, test = (
        Split(part, target.targets[rows])
        for part, rows in zip(np.split(pixels, bounds), parts, strict=True)
    )
    height, width = pixels.shape[-2:]
    size, is_rgb = f"{width} x {height}", pixels.ndim == 4
    return Dataset(
        name=user_data.name,
        source=f"{len(folders.files):,} images in the folder {user_data.path.resolve().name}"
        f"{folders.division}",
        train=train,
        validation=validation,
        test=test,
        input=Input(
            name="image",
            axes=("batch", "channel", "height", "width")
            if is_rgb
            else ("batch", "height", "width"),
            description=f"{'red, green and blue' if is_rgb else 'grey levels'} of {size} "
            "pixels: 0 is black, 255 is the brightest; what is transparent is white"
            + (f"; the central square brought to {size}" if user_data.image_size else ""),
            unit="level 0..255",
        ),
        labels=target.labels,
    )


def _try_read(
    folders: ClassFolders, places: NDArray[np.int64], size: int | None, *, in_colour: bool
) -> NDArray[np.float32] | None:
    """Reads each file into its place; None if grey levels are expected and one has colours."""
    pixels: NDArray[np.float32] | None = None
    first_size = (0, 0)
    for path, place in zip(folders.progress(folders.files), places, strict=True):
        image = _open_image(path, size)
        if pixels is None:
            in_colour = in_colour or image.mode == "RGB"
            planes = (3,) if in_colour else ()
            shape = (len(places), *planes, image.height, image.width)
            hint = "--image-size makes images smaller"
            pixels, first_size = allocate(shape, str(folders.folder), hint), image.size
        if image.mode == "RGB" and not in_colour:
            return None
        if image.size != first_size:
            raise DataError(
                f"{path}: {image.width} x {image.height} pixels (expected "
                f"{first_size[0]} x {first_size[1]} as in {folders.files[0].name}); --image-size "
                "resizes all"
            )
        if in_colour:
            pixels[place] = np.asarray(image.convert("RGB")).transpose(2, 0, 1)
        else:
            pixels[place] = np.asarray(image)
    return pixels


def _open_image(path: Path, size: int | None) -> Image:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow warns of peculiar metadata
            image = read_image(path)
    except FileContentError as error:
        raise DataError(f"{path}: {error}") from error
    except OSError as error:
        raise DataError(f"{path}: unreadable: {error.strerror or error}") from error
    return image if size is None else fit_image(image, size, size)
