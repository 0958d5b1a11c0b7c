"""A user's folder of images: a folder for each class, named as the class is."""

from __future__ import annotations

import sys
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from neurona_client.files.content import FileContentError
from neurona_client.files.images import fit_image, read_image
from neurona_training.data import Dataset, Input, Split
from neurona_training.data.splits import encode_classes, split_rows
from neurona_training.data.user.spec import UserData
from neurona_training.errors import DataError

if TYPE_CHECKING:
    from PIL.Image import Image

_SYSTEM_FILES = ("thumbs.db", "desktop.ini")  # that systems leave in folders
_MIN_FILES_FOR_BAR = 500  # fewer are read at once


def load_images(user_data: UserData) -> Dataset:
    """Reads all images, 0 to 255: grey as (rows, height, width), others (rows, 3, height, width).

    They are read as the client reads them (`neurona_client.files.images`). With `image_size` the
    central square of each is resized to that size.

    Raises:
        DataError: with the file or folder that is wrong.
    """
    files, names = _list_files(user_data.path)
    bar = tqdm(
        files,
        desc=f"reading {user_data.path.name}",
        unit="image",
        leave=False,
        disable=len(files) < _MIN_FILES_FOR_BAR or not sys.stderr.isatty(),
    )
    images = [_open_image(path, user_data.image_size) for path in bar]
    if any(image.mode == "RGB" for image in images):
        images = [image.convert("RGB") for image in images]
    for path, image in zip(files, images, strict=True):
        if image.size != images[0].size:
            raise DataError(
                f"{path}: {image.width} x {image.height} pixels (expected "
                f"{images[0].width} x {images[0].height} as in {files[0].name}); --image-size "
                "resizes all"
            )
    pixels: NDArray[np.float32] = np.stack([np.asarray(image, np.float32) for image in images])
    if pixels.ndim == 4:
        pixels = np.ascontiguousarray(pixels.transpose(0, 3, 1, 2))
    where = str(user_data.path)
    target = encode_classes(names, where)
    train, validation, test = (
        Split(pixels[rows], target.targets[rows]) for rows in split_rows(target, where)
    )
    size, is_rgb = f"{images[0].width} x {images[0].height}", pixels.ndim == 4
    return Dataset(
        name=user_data.name,
        source=f"{len(files):,} images in the folder {user_data.path.resolve().name}",
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


def _list_files(folder: Path) -> tuple[list[Path], list[str]]:
    """Lists every image and its class.

    Raises:
        DataError: no folders, or one without images.
    """
    try:
        class_folders = sorted(
            entry for entry in folder.iterdir() if entry.is_dir() and entry.name[0] != "."
        )
        if not class_folders:
            raise DataError(f"{folder}: no folders (expected one with images for each class)")
        files, names = [], []
        for class_folder in class_folders:
            images = sorted(path for path in class_folder.iterdir() if _is_image_file(path))
            if not images:
                raise DataError(f"{class_folder}: no image for class {class_folder.name!r}")
            files += images
            names += [class_folder.name] * len(images)
    except OSError as error:
        raise DataError(f"{error.filename}: {error.strerror}") from error
    return files, names


def _is_image_file(path: Path) -> bool:
    return path.is_file() and path.name[0] != "." and path.name.lower() not in _SYSTEM_FILES


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
