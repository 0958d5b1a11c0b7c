"""Files as inputs of a model: CSV rows, images, arrays, sound; and synthetic inputs."""

import csv
import math
import re
import sys
import wave
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

import numpy as np

from neurona_client.cli.arguments import CommandError
from neurona_client.descriptions import ModelDescription, TensorSpec
from neurona_client.errors import InvalidInputError
from neurona_client.inputs import Inputs
from neurona_protos.tensors import NUMPY_DTYPES

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg")
SUFFIXES = (*IMAGE_SUFFIXES, ".csv", ".npy", ".npz", ".wav")
STANDARD_INPUT = "-"

MAX_ROWS_PER_REQUEST = 64

SYNTHETIC_REQUESTS = 16
"""How many different synthetic requests there are; they take turns."""

_UNIT_RANGE = re.compile(r"(-?\d+(?:\.\d+)?)\s*\.\.\s*(-?\d+(?:\.\d+)?)")
_SOUND_RANGE = re.compile(r"-?1(?:\.0)?\s*\.\.\s*1(?:\.0)?")
_SAMPLE_RATE = re.compile(r"([\d,]+) samples a second")

CsvRow = tuple[int, list[str]]
"""Number of the line, and its cells."""

NamedInputs = tuple[list[str], Inputs]
"""Name of each row, FILE:LINE, and the inputs."""


@dataclass(frozen=True)
class Sample:
    """The inputs of one request; names: of its rows, or one name for all of them."""

    names: Sequence[str]
    inputs: Inputs


def list_files(names: Sequence[str]) -> list[str]:
    """Replace folders by the files in them, sorted.

    Raises:
        CommandError: a folder has no such files.
    """
    files: list[str] = []
    for name in names:
        path = Path(name)
        if name == STANDARD_INPUT or not path.is_dir():
            files.append(name)
            continue
        in_folder = sorted(one for one in path.rglob("*") if one.suffix.lower() in SUFFIXES)
        if not in_folder:
            raise CommandError(f"no files in {name} (expected {', '.join(SUFFIXES)})")
        files += map(str, in_folder)
    return files


def read_samples(name: str, model: ModelDescription) -> Iterator[Sample]:
    """Read a file.

    Args:
        name: of the file; "-": CSV from standard input.
        model: what the samples are for.

    Yields:
        The inputs of each request.

    Raises:
        InvalidInputError: the content does not suit the model.
        OSError: the file cannot be read.
    """
    path = Path(name)
    suffix = path.suffix.lower()
    if name == STANDARD_INPUT or suffix == ".csv":
        for names, inputs in _read_csv(name, model):
            yield Sample(names, inputs)
        return
    path.stat()  # so that the error of a missing file is the same for all formats
    if suffix in IMAGE_SUFFIXES:
        yield Sample([name], path)
    elif suffix in (".npy", ".npz"):
        yield Sample([name], _read_arrays(path))
    elif suffix == ".wav":
        yield Sample([name], _read_sound(path, _only_input(model)))
    else:
        raise InvalidInputError(f"unknown file type (expected {', '.join(SUFFIXES)})")


def _only_input(model: ModelDescription) -> TensorSpec:
    required = [spec for spec in model.inputs if not spec.optional]
    if len(required) != 1:
        names = ", ".join(spec.name for spec in required)
        raise InvalidInputError(f"model takes {len(required)} inputs: {names} (expected NPZ)")
    return required[0]


def _read_arrays(path: Path) -> Inputs:
    """Read an array (NPY), or inputs by name (NPZ)."""
    try:
        content = np.load(path, allow_pickle=False)
        if isinstance(content, np.ndarray):
            return content
        with content:
            return {name: content[name] for name in content.files}
    except (ValueError, EOFError) as error:  # objects, which could run code; or another format
        raise InvalidInputError(f"not a file of numpy arrays: {error}") from error


def _read_sound(path: Path, spec: TensorSpec) -> Inputs:
    """Read one channel, from -1 to 1, at the sample rate in the description of the input."""
    try:
        with wave.open(str(path)) as file:
            channels, width, rate = file.getnchannels(), file.getsampwidth(), file.getframerate()
            frames = file.readframes(file.getnframes())
    except (EOFError, wave.Error) as error:
        raise InvalidInputError(f"not a WAV file: {error}") from error
    if len(spec.shape) != 2 or not _SOUND_RANGE.search(spec.unit):
        raise InvalidInputError(
            f"input {spec.name!r} does not take sound: shape {list(spec.shape)}, unit "
            f"{spec.unit!r} (expected two axes, and -1..1 in the unit)"
        )
    match = _SAMPLE_RATE.search(spec.description)
    expected_rate = int(match[1].replace(",", "")) if match else rate
    if (channels, width, rate) != (1, 2, expected_rate):
        raise InvalidInputError(
            f"sound has {channels} channels of {8 * width} bits at {rate} Hz (expected 1 of 16 "
            f"bits at {expected_rate} Hz)"
        )
    return np.frombuffer(frames, "<i2").astype(np.float32) / np.float32(32768)


def _read_csv(name: str, model: ModelDescription) -> Iterator[NamedInputs]:
    """Read rows of a CSV file, several of the same shape at a time.

    A model with one input takes all cells of a row in their order; where it takes numbers, a first
    line without any is a header. For several inputs, the first line has their names.
    """
    required = [spec for spec in model.inputs if not spec.optional]
    with _open_text(name) as file:
        reader = csv.reader(file)
        try:
            rows = ((reader.line_num, row) for row in reader if any(cell.strip() for cell in row))
            if len(required) == 1:
                yield from _rows_of_one_input(name, rows, required[0], model)
            else:
                yield from _rows_of_several_inputs(name, rows, required)
        except UnicodeDecodeError as error:
            raise InvalidInputError("not UTF-8 text") from error
        except csv.Error as error:
            raise InvalidInputError(f"line {reader.line_num}: {error}") from error


def _open_text(name: str) -> AbstractContextManager[TextIO]:
    if name == STANDARD_INPUT:
        return nullcontext(sys.stdin)
    return Path(name).open(encoding="utf-8-sig", newline="")


def _rows_of_one_input(
    name: str, rows: Iterable[CsvRow], spec: TensorSpec, model: ModelDescription
) -> Iterator[NamedInputs]:
    names: list[str] = []
    arrays: list[np.ndarray[Any, Any]] = []
    max_rows = MAX_ROWS_PER_REQUEST if model.batched else 1
    for row_number, (line, row) in enumerate(rows):
        if row_number == 0 and spec.dtype != "STRING" and _is_header(row):
            continue
        try:
            array = _to_sample([_parse_cell(cell, spec, line) for cell in row], spec, line)
        except InvalidInputError:
            if arrays:  # the rows before the invalid one are predicted
                yield names, np.stack(arrays)
            raise
        if arrays and (len(arrays) == max_rows or array.shape != arrays[0].shape):
            yield names, np.stack(arrays)
            names, arrays = [], []
        names.append(f"{name}:{line}")
        arrays.append(array)
    if arrays:
        yield names, np.stack(arrays)


def _rows_of_several_inputs(
    name: str, rows: Iterable[CsvRow], specs: list[TensorSpec]
) -> Iterator[NamedInputs]:
    lines = iter(rows)
    _, header = next(lines, (0, []))
    input_names = [spec.name for spec in specs]
    titles = [title.strip() for title in header]
    if sorted(titles) != sorted(input_names):
        raise InvalidInputError(
            f"first line has {', '.join(titles) or 'nothing'} (expected the names of the inputs: "
            f"{', '.join(input_names)})"
        )
    columns = {title: column for column, title in enumerate(titles)}
    for line, row in lines:
        if len(row) != len(titles):
            raise InvalidInputError(f"line {line} has {len(row)} cells (expected {len(titles)})")
        inputs: Inputs = {
            spec.name: _to_sample([_parse_cell(row[columns[spec.name]], spec, line)], spec, line)[
                np.newaxis
            ]
            for spec in specs
        }
        yield [f"{name}:{line}"], inputs


def _to_sample(values: list[Any], spec: TensorSpec, line: int) -> np.ndarray[Any, Any]:
    """Arrange values in the shape that the model takes after its first axis."""
    shape = list(spec.shape[1:])
    if shape.count(-1) > 1:
        raise InvalidInputError(
            f"input {spec.name!r} has shape {list(spec.shape)}, which a row of cells does not "
            "determine (expected an NPY file)"
        )
    fixed_size = math.prod(size for size in shape if size >= 0)
    if -1 in shape and fixed_size and len(values) % fixed_size == 0:
        shape[shape.index(-1)] = len(values) // fixed_size
    elif len(values) != fixed_size or -1 in shape:
        expected = f"a multiple of {fixed_size}" if -1 in shape else str(fixed_size)
        raise InvalidInputError(f"line {line} has {len(values)} cells (expected {expected})")
    return np.asarray(values, dtype=object if spec.dtype == "STRING" else None).reshape(shape)


def _parse_cell(text: str, spec: TensorSpec, line: int) -> Any:
    if spec.dtype == "STRING":
        return text
    try:
        return int(text) if "INT" in spec.dtype else float(text)
    except ValueError:
        expected = "an integer" if "INT" in spec.dtype else "a number"
        raise InvalidInputError(f"line {line} has {text!r} (expected {expected})") from None


def _is_header(row: list[str]) -> bool:
    """Whether no cell is a number."""
    for cell in row:
        try:
            float(cell)
        except ValueError:
            continue
        return False
    return True


def synthetic_inputs(model: ModelDescription, rows: int, steps: int) -> list[Inputs]:
    """Generate inputs of some requests, the same at each call.

    Numbers are in the range that the unit of the input names, else from 0 to 1; integers without a
    range are 0, which is a valid index of every table.

    Args:
        model: what the inputs are for.
        rows: size of the first axis, where it is free.
        steps: size of each other free axis.
    """
    random = np.random.default_rng(0)
    required = [spec for spec in model.inputs if not spec.optional]
    return [
        {
            spec.name: _synthetic_tensor(spec, _fill_shape(spec, rows, steps), random)
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
        return np.full(shape, "a", dtype=object)
    if spec.dtype == "BOOL":
        return random.random(shape) < 0.5
    match = _UNIT_RANGE.search(spec.unit)
    is_integer = "INT" in spec.dtype
    low, high = (float(match[1]), float(match[2])) if match else (0.0, 0.0 if is_integer else 1.0)
    values = random.uniform(low, high, shape)
    if spec.dtype == "BFLOAT16":
        return values.astype(np.float32)
    return (np.rint(values) if is_integer else values).astype(NUMPY_DTYPES[spec.data_type])
