"""Files as inputs of a model: tables, texts, images, arrays, sound; and synthetic inputs."""

import contextlib
import os
import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from neurona_client.cli.table_files import (
    MAX_ROWS_PER_REQUEST,
    SequenceLengths,
    main_inputs,
    read_table_samples,
    read_text_samples,
)
from neurona_client.descriptions import ModelDescription, TensorSpec
from neurona_client.errors import InvalidInputError
from neurona_client.files import arrays as array_files
from neurona_client.files import audio, images, tables
from neurona_client.files.content import FileContentError
from neurona_client.images import scale_as_trained
from neurona_client.inputs import Inputs
from neurona_protos.tensors import NUMPY_DTYPES

SUFFIXES = (*tables.SUFFIXES, *array_files.SUFFIXES, *audio.SUFFIXES, *images.SUFFIXES)
TEXT_SUFFIX = ".txt"  # of files that are named, not of those in folders: they may be notes
STANDARD_INPUT = "-"

_MAX_SEQUENCE_BYTES = 4 << 20
"""Of the sequences in one request, unless one alone has more."""

SYNTHETIC_REQUESTS = 16
"""How many different synthetic requests there are; they take turns."""

_UNIT_RANGE = re.compile(r"(-?\d+(?:\.\d+)?)\s*\.\.\s*(-?\d+(?:\.\d+)?)")
_SOUND_RANGE = re.compile(r"-?1(?:\.0)?\s*\.\.\s*1(?:\.0)?")
_SAMPLE_RATE = re.compile(
    r"\b(\d[\d,]*(?:\.\d+)?)\s*(kHz|Hz|samples (?:a|per) second|samples/s)", re.IGNORECASE
)
"""In the description of an input that takes sound, such as "8,000 samples a second" or "16 kHz"."""


@dataclass(frozen=True)
class Sample:
    """The inputs of one request; names: of its rows, or one name for all of them."""

    names: Sequence[str]
    inputs: Inputs


def list_files(names: Sequence[str]) -> list[str]:
    """Replace folders by the files in them, sorted, without hidden ones.

    A folder without such files stays: `read_samples` says what is missing.
    """
    files: list[str] = []
    for name in names:
        path = Path(name)
        in_folder: list[Path] = []
        if name != STANDARD_INPUT and os.path.isdir(path):
            with contextlib.suppress(OSError):  # `read_samples` raises it again
                in_folder = sorted(_sample_files(path))
        files += map(str, in_folder) if in_folder else [name]
    return files


def _sample_files(folder: Path) -> Iterator[Path]:
    """Yield files that may be samples, also behind links to folders, as training finds them.

    Hidden ones are left out: systems leave files there that look like pictures.
    """
    for parent, folders, names in os.walk(folder, followlinks=True):
        here = Path(parent)
        between = [one for one in here.parents if one == folder or folder in one.parents]
        if here.resolve() in {one.resolve() for one in between}:  # links in a circle
            folders.clear()
            continue
        folders[:] = [name for name in folders if name[0] != "."]
        for path in (here / name for name in names if name[0] != "."):
            if path.suffix.lower() in SUFFIXES or images.is_image_file(path):
                yield path


def read_samples(name: str, model: ModelDescription) -> Iterator[Sample]:
    """Read a file.

    Args:
        name: of the file; "-": a table from standard input.
        model: what the samples are for.

    Yields:
        The inputs of each request.

    Raises:
        InvalidInputError: the content does not suit the model.
        OSError: the file cannot be read.
    """
    try:
        yield from _read_any(name, model)
    except FileContentError as error:
        raise InvalidInputError(str(error)) from error


def _read_any(name: str, model: ModelDescription) -> Iterator[Sample]:
    path = Path(name)
    suffix = path.suffix.lower()
    if name == STANDARD_INPUT or suffix in tables.SUFFIXES:
        content = sys.stdin.buffer.read() if name == STANDARD_INPUT else path.read_bytes()
        for names, inputs in read_table_samples(content, name, model):
            yield Sample(names, inputs)
        return
    path.stat()  # so that the error of a missing file is the same for all formats
    if path.is_dir():
        os.listdir(path)  # raises if it cannot be read
        raise InvalidInputError(f"no samples in the folder (expected {', '.join(SUFFIXES)})")
    if suffix == TEXT_SUFFIX:
        for names, inputs in read_text_samples(path.read_bytes(), name, model):
            yield Sample(names, inputs)
    elif suffix in array_files.SUFFIXES:
        yield from _read_arrays(path, model)
    elif suffix in audio.SUFFIXES:
        yield Sample([name], _read_sound(path, model))
    elif suffix in images.SUFFIXES or images.is_image_file(path):
        yield Sample([name], path)
    else:
        kind = array_files.PICKLE_REASON if array_files.is_pickle(path) else "unknown file type"
        expected = ", ".join((*SUFFIXES, TEXT_SUFFIX))
        raise InvalidInputError(f"{kind} (expected {expected})")


def _only_input(model: ModelDescription) -> tuple[TensorSpec, SequenceLengths | None]:
    """Return the input that takes an array, and the one for its lengths, if any."""
    specs, lengths = main_inputs(model)
    if len(specs) != 1:
        names = ", ".join(spec.name for spec in specs)
        raise InvalidInputError(
            f"model takes {len(specs)} inputs: {names} (expected an NPZ file with an array for "
            "each name)"
        )
    return specs[0], lengths


def _read_arrays(path: Path, model: ModelDescription) -> Iterator[Sample]:
    """Read an array (NPY), inputs by name, or the sequences of a training file (NPZ)."""
    content = array_files.read_arrays(path)
    if not isinstance(content, dict):
        yield Sample([str(path)], _array_with_lengths(content, *_only_input(model)))
        return
    # First: two inputs of a model may have names that mean the same in a training file.
    is_by_name = content.keys() <= {spec.name for spec in model.inputs}
    parts = {} if is_by_name else array_files.find_parts(content)
    if not any(array_files.INPUTS in arrays for arrays in parts.values()):
        yield Sample([str(path)], content)
        return
    for part, arrays in parts.items():
        if array_files.INPUTS in arrays:
            where = f"{path}:{part}" if part else str(path)
            if array_files.has_images(content):
                levels = array_files.channels_first(arrays[array_files.INPUTS])
                levels = scale_as_trained(levels, _only_input(model)[0])
                yield from _split_rows(where, levels, model)
            else:
                yield from _read_sequences(where, arrays, model)


def _split_rows(
    where: str, rows: np.ndarray[Any, Any], model: ModelDescription
) -> Iterator[Sample]:
    """Yield the rows of an array, some in each request."""
    spec, lengths = _only_input(model)
    step = _rows_per_request(rows, model)
    for start in range(0, len(rows), step):
        some = rows[start : start + step]
        names = [f"{where}[{row}]" for row in range(start, start + len(some))]
        yield Sample(names, _array_with_lengths(some, spec, lengths))


def _read_sequences(
    where: str, arrays: dict[str, np.ndarray[Any, Any]], model: ModelDescription
) -> Iterator[Sample]:
    """Yield the sequences, or rows of a table, of a file that a model may be trained on."""
    spec, spec_of_lengths = _only_input(model)
    if array_files.LENGTHS not in arrays and spec_of_lengths is None:
        rows = _match_channels(arrays[array_files.INPUTS], arrays, spec)
        yield from _split_rows(where, rows, model)
        return
    if spec_of_lengths is None:
        raise InvalidInputError(
            f"file has sequences and their lengths (expected the input {spec.name!r} alone)"
        )
    sequences, lengths = array_files.read_sequences(arrays)
    sequences = _match_channels(sequences, arrays, spec)
    step = _rows_per_request(sequences, model)
    for start in range(0, len(lengths), step):
        some = lengths[start : start + step]
        rows = sequences[start : start + len(some), : some.max()]
        names = [f"{where}[{row}]" for row in range(start, start + len(some))]
        yield Sample(names, {spec.name: rows, spec_of_lengths.spec.name: some})


def _rows_per_request(rows: np.ndarray[Any, Any], model: ModelDescription) -> int:
    affordable = _MAX_SEQUENCE_BYTES * len(rows) // max(1, rows.nbytes)
    return max(1, min(MAX_ROWS_PER_REQUEST, affordable)) if model.batched else 1


def _match_channels(
    rows: np.ndarray[Any, Any], content: dict[str, np.ndarray[Any, Any]], spec: TensorSpec
) -> np.ndarray[Any, Any]:
    """Arrange the last axis as the model takes it, where both sides have names for it."""
    names = tuple(str(name) for name in content.get(array_files.CHANNELS, np.array([])).ravel())
    expected = spec.columns
    nameless = not expected or expected == array_files.channel_numbers(len(expected))
    if not names or nameless or names == expected:
        return rows
    missing = [name for name in expected if name not in names]
    if missing or rows.shape[-1:] != (len(names),):
        raise InvalidInputError(f"channels are {', '.join(names)} (expected {', '.join(expected)})")
    return rows[..., [names.index(name) for name in expected]]


def _array_with_lengths(
    array: np.ndarray[Any, Any], spec: TensorSpec, lengths: SequenceLengths | None
) -> Inputs:
    """Return inputs for one array; the steps of a sequence without padding are its length."""
    if lengths is None:
        return array
    if array.ndim == len(spec.shape):
        steps = np.full(array.shape[0], array.shape[lengths.time_axis])
    elif array.ndim == len(spec.shape) - 1:
        steps = np.array(array.shape[lengths.time_axis - 1])
    else:
        raise InvalidInputError(
            f"array has shape {list(array.shape)} (expected {list(spec.shape)} for input "
            f"{spec.name!r}, or {list(spec.shape[1:])} for one sequence; -1: any size)"
        )
    return {spec.name: array, lengths.spec.name: steps}


def _read_sound(path: Path, model: ModelDescription) -> Inputs:
    """Read sound, from -1 to 1, as one channel at the sample rate that the model takes."""
    spec, lengths = _only_input(model)
    if len(spec.shape) != 2 or not _SOUND_RANGE.search(spec.unit):
        raise InvalidInputError(
            f"input {spec.name!r} does not take sound: shape {list(spec.shape)}, unit "
            f"{spec.unit!r} (expected two axes, and -1..1 in the unit)"
        )
    sound = audio.read_sound(path)
    rate = spec.sample_rate or _described_rate(spec.description)
    samples = sound.mix(rate) if rate else sound.mono()
    return _array_with_lengths(samples, spec, lengths)


def _described_rate(description: str) -> int:
    """Return the samples a second that a description names, 0 if it names none."""
    match = _SAMPLE_RATE.search(description)
    if match is None:
        return 0
    factor = 1000 if match[2].lower() == "khz" else 1
    return round(float(match[1].replace(",", "")) * factor)


def synthetic_inputs(model: ModelDescription, rows: int, steps: int) -> list[Inputs]:
    """Generate inputs of some requests, the same at each call.

    Numbers are in the range that the unit of the input names, else from 0 to 1; integers without a
    range are 0, which is a valid index of every table. Lengths are those of whole sequences.

    Args:
        model: what the inputs are for.
        rows: size of the first axis, where it is free.
        steps: size of each other free axis.
    """
    random = np.random.default_rng(0)
    required = [spec for spec in model.inputs if not spec.optional]
    return [
        {
            spec.name: np.full(_fill_shape(spec, rows, steps), steps, NUMPY_DTYPES[spec.data_type])
            if spec.lengths_of
            else _synthetic_tensor(spec, _fill_shape(spec, rows, steps), random)
            for spec in required
        }
        for _ in range(SYNTHETIC_REQUESTS)
    ]


def _fill_shape(spec: TensorSpec, rows: int, steps: int) -> tuple[int, ...]:
    defaults = [rows if axis == 0 else steps for axis in range(len(spec.shape))]
    return tuple(
        default if size < 0 else size for default, size in zip(defaults, spec.shape, strict=True)
    )


def _synthetic_tensor(spec: TensorSpec, shape: tuple[int, ...], random: np.random.Generator) -> Any:
    if spec.dtype == "STRING":
        return np.full(shape, spec.categories[0] if spec.categories else "a", dtype=object)
    if spec.dtype == "BOOL":
        return random.random(shape) < 0.5
    match = _UNIT_RANGE.search(spec.unit)
    is_integer = "INT" in spec.dtype
    low, high = (float(match[1]), float(match[2])) if match else (0.0, 0.0 if is_integer else 1.0)
    values = random.uniform(low, high, shape)
    if spec.dtype == "BFLOAT16":
        return values.astype(np.float32)
    return (np.rint(values) if is_integer else values).astype(NUMPY_DTYPES[spec.data_type])
