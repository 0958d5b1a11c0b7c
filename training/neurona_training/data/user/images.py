"""A user's folder of images: a folder for each class, called as the class is."""

from __future__ import annotations

import sys
import warnings
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError
from tqdm import tqdm

from neurona_training.data import Dataset, Input, Split
from neurona_training.data.splits import classes, divided
from neurona_training.data.user.load import Own
from neurona_training.errors import DataError

_NO_IMAGES = ("thumbs.db", "desktop.ini")  # what systems leave in folders, beside hidden files
_GREY = ("1", "L", "LA", "I;16", "I", "F")
_FEWEST_FOR_A_BAR = 500  # files; fewer are read at once


def images(own: Own) -> Dataset:
    """Grey images as (rows, height, width), others as (rows, 3, height, width); 0 to 255.

    With `image_size` each one's central square is brought to that size. Raises DataError
    with the file or folder.
    """
    files, names = _files(own.path)
    bar = tqdm(
        files,
        desc=f"reading {own.path.name}",
        unit="image",
        leave=False,
        disable=len(files) < _FEWEST_FOR_A_BAR or not sys.stderr.isatty(),
    )
    opened = [_read(path, own.image_size) for path in bar]
    if any(image.mode == "RGB" for image in opened):
        opened = [image.convert("RGB") for image in opened]
    for path, image in zip(files, opened, strict=True):
        if image.size != opened[0].size:
            raise DataError(
                f"{path}: {image.width} x {image.height} pixels; {files[0].name} has "
                f"{opened[0].width} x {opened[0].height}: --image-size brings all to one size"
            )
    pixels: NDArray[np.float32] = np.stack([np.asarray(image, np.float32) for image in opened])
    if pixels.ndim == 4:
        pixels = np.ascontiguousarray(pixels.transpose(0, 3, 1, 2))
    target = classes(names, str(own.path))
    train, validation, test = (
        Split(pixels[rows], target.targets[rows]) for rows in divided(target, str(own.path))
    )
    size, colours = f"{opened[0].width} x {opened[0].height}", pixels.ndim == 4
    return Dataset(
        name=own.name,
        source=f"{len(files):,} images in the folder {own.path.resolve().name}",
        train=train,
        validation=validation,
        test=test,
        input=Input(
            name="image",
            axes=("batch", "channel", "height", "width")
            if colours
            else ("batch", "height", "width"),
            description=f"{'red, green and blue' if colours else 'grey levels'} of {size} "
            "pixels: 0 is black, 255 is the brightest"
            + (f"; the central square brought to {size}" if own.image_size else ""),
            unit="level 0..255",
        ),
        labels=target.labels,
    )


def _files(folder: Path) -> tuple[list[Path], list[str]]:
    """Every image and its class. Raises DataError for a folder without any."""
    try:
        named = sorted(one for one in folder.iterdir() if one.is_dir() and one.name[0] != ".")
        if not named:
            raise DataError(f"{folder}: no folders in it; each class needs one with its images")
        files, names = [], []
        for one in named:
            found = sorted(path for path in one.iterdir() if _is_meant(path))
            if not found:
                raise DataError(f"{one}: no image for class {one.name!r}")
            files += found
            names += [one.name] * len(found)
    except OSError as error:
        raise DataError(f"{error.filename}: {error.strerror}") from error
    return files, names


def _is_meant(path: Path) -> bool:
    return path.is_file() and path.name[0] != "." and path.name.lower() not in _NO_IMAGES


def _read(path: Path, size: int | None) -> Image.Image:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # Pillow only warns of an image of absurd size
            with Image.open(path) as file:
                grey = file.mode in _GREY
                image = ImageOps.exif_transpose(file)
                if file.mode in ("I;16", "I", "F"):  # more than 255 levels, which L would cut off
                    levels = np.asarray(image, np.float32)
                    most = 65535.0 if file.mode != "F" else max(float(levels.max()), 1.0)
                    image = Image.fromarray((levels * (255 / most)).astype(np.uint8))
                image = image.convert("L" if grey else "RGB")
    except UnidentifiedImageError as error:
        raise DataError(f"{path} is no image that can be read") from error
    except (OSError, ValueError, SyntaxError, Warning, Image.DecompressionBombError) as error:
        raise DataError(f"{path} cannot be read: {' '.join(str(error).split())}") from error
    return image if size is None else ImageOps.fit(image, (size, size), Image.Resampling.BOX)
