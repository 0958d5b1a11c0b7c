"""Files as the inputs of a model: pictures, arrays, sound. Rows of text are `rows`' work."""

import csv
import math
import re
import sys
import wave
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

import numpy as np

from neurona_client.cli.arguments import CommandError
from neurona_client.errors import InvalidInputError
from neurona_protos.tensors import NUMPY_DTYPES

if TYPE_CHECKING:
    from neurona_client.descriptions import Description, TensorSpec
    from neurona_client.inputs import Inputs

TOGETHER = 64
"""Rows of a call at the most."""

Cells = tuple[int, list[str]]
"""The line, and what stands in it."""
Named = tuple[list[str], "Inputs"]


def read_rows(name: str, described: "Description") -> Iterator[Named]:
    """What the rows are called (FILE:LINE), and their inputs.

    A model with one input takes the cells in their order; a first line without numbers is
    passed over, where numbers are wanted. Of several inputs the first line has the names.
    Raises InvalidInputError with the line, OSError.
    """
    needed = [one for one in described.inputs if not one.optional]
    with _opened(name) as file:
        lines = csv.reader(file)
        try:
            cells = ((lines.line_num, row) for row in lines if any(cell.strip() for cell in row))
            if len(needed) == 1:
                yield from _single(name, cells, needed[0], described)
            else:
                yield from _several(name, cells, needed)
        except UnicodeDecodeError as error:
            raise InvalidInputError("it is no text in UTF-8") from error
        except csv.Error as error:
            raise InvalidInputError(f"line {lines.line_num}: {error}") from error


def _opened(name: str) -> AbstractContextManager[TextIO]:
    if name == "-":
        return nullcontext(sys.stdin)
    return Path(name).open(encoding="utf-8-sig", newline="")


def _single(
    name: str, rows: Iterable[Cells], spec: "TensorSpec", described: "Description"
) -> Iterator[Named]:
    names: list[str] = []
    arrays: list[np.ndarray[Any, Any]] = []
    most = TOGETHER if described.batched else 1
    for number, (line, row) in enumerate(rows):
        if number == 0 and spec.dtype != "STRING" and _is_header(row):
            continue
        try:
            array = _sample([_cell(cell, spec, line) for cell in row], spec, line)
        except InvalidInputError:
            if arrays:  # what stands above is answered
                yield names, np.stack(arrays)
            raise
        if arrays and (len(arrays) == most or array.shape != arrays[0].shape):
            yield names, np.stack(arrays)
            names, arrays = [], []
        names.append(f"{name}:{line}")
        arrays.append(array)
    if arrays:
        yield names, np.stack(arrays)


def _several(name: str, rows: Iterable[Cells], specs: "list[TensorSpec]") -> Iterator[Named]:
    lines = iter(rows)
    _, header = next(lines, (0, []))
    wanted = [spec.name for spec in specs]
    titles = [title.strip() for title in header]
    if sorted(titles) != sorted(wanted):
        raise InvalidInputError(
            f"its first line has {', '.join(titles) or 'nothing'}; expected the inputs' names: "
            f"{', '.join(wanted)}"
        )
    places = {title: place for place, title in enumerate(titles)}
    for line, row in lines:
        if len(row) != len(titles):
            raise InvalidInputError(f"line {line} has {len(row)} cells; expected {len(titles)}")
        inputs = {
            spec.name: _sample([_cell(row[places[spec.name]], spec, line)], spec, line)[np.newaxis]
            for spec in specs
        }
        yield [f"{name}:{line}"], inputs


def _sample(values: list[Any], spec: "TensorSpec", line: int) -> np.ndarray[Any, Any]:
    """In the shape that the model takes after its first axis."""
    shape = list(spec.shape[1:])
    if shape.count(-1) > 1:
        raise InvalidInputError(
            f"input {spec.name!r} has shape {list(spec.shape)}, which a row of cells does not "
            "tell: give an NPY file"
        )
    known = math.prod(size for size in shape if size >= 0)
    if -1 in shape and known and len(values) % known == 0:
        shape[shape.index(-1)] = len(values) // known
    elif len(values) != known or -1 in shape:
        expected = f"a multiple of {known}" if -1 in shape else str(known)
        raise InvalidInputError(f"line {line} has {len(values)} cells; expected {expected}")
    return np.asarray(values, dtype=object if spec.dtype == "STRING" else None).reshape(shape)


def _cell(text: str, spec: "TensorSpec", line: int) -> Any:
    if spec.dtype == "STRING":
        return text
    try:
        return int(text) if "INT" in spec.dtype else float(text)
    except ValueError:
        wanted = "a whole number" if "INT" in spec.dtype else "a number"
        raise InvalidInputError(f"line {line} has {text!r}; expected {wanted}") from None


def _is_header(row: list[str]) -> bool:
    """No cell is a number."""
    for cell in row:
        try:
            float(cell)
        except ValueError:
            continue
        return False
    return True


if TYPE_CHECKING:
    from neurona_client.descriptions import Description, TensorSpec
    from neurona_client.inputs import Inputs

VARIANTS = 16
"""Different requests, which take turns."""

_VALUE_RANGE = re.compile(r"(-?\d+(?:\.\d+)?)\s*\.\.\s*(-?\d+(?:\.\d+)?)")


def invented(described: "Description", rows: int, steps: int) -> "list[Inputs]":
    """rows: along the batch axis.  steps: along any other axis that is free. The same numbers
    at each call. Numbers are in the range that the input's unit names, else from 0 to 1;
    whole ones without a range are 0, which every table has."""
    random = np.random.default_rng(0)
    needed = [one for one in described.inputs if not one.optional]
    return [
        {one.name: _tensor(one, _shape(one, rows, steps), random) for one in needed}
        for _ in range(VARIANTS)
    ]


def _shape(spec: "TensorSpec", rows: int, steps: int) -> tuple[int, ...]:
    free = [rows if place == 0 else steps for place in range(len(spec.shape))]
    return tuple(own if size < 0 else size for own, size in zip(free, spec.shape, strict=True))


def _tensor(spec: "TensorSpec", shape: tuple[int, ...], random: np.random.Generator) -> Any:
    if spec.dtype == "STRING":
        return np.full(shape, "a", dtype=object)
    if spec.dtype == "BOOL":
        return random.random(shape) < 0.5
    found = _VALUE_RANGE.search(spec.unit)
    whole = "INT" in spec.dtype
    low, high = (float(found[1]), float(found[2])) if found else (0.0, 0.0 if whole else 1.0)
    values = random.uniform(low, high, shape)
    if spec.dtype == "BFLOAT16":
        return values.astype(np.float32)
    return (np.rint(values) if whole else values).astype(NUMPY_DTYPES[spec.number])


if TYPE_CHECKING:
    from neurona_client.descriptions import Description, TensorSpec
    from neurona_client.inputs import Inputs

PICTURES = (".png", ".jpg", ".jpeg")
SUFFIXES = (*PICTURES, ".csv", ".npy", ".npz", ".wav")
STANDARD_INPUT = "-"

_RATE = re.compile(r"([\d,]+) samples a second")
_UNIT_RANGE = re.compile(r"-?1(?:\.0)?\s*\.\.\s*1(?:\.0)?")


@dataclass(frozen=True)
class Sample:
    """What is sent in one call. names: what its rows are called; one name is the whole's."""

    names: Sequence[str]
    inputs: "Inputs"


def files(named: Sequence[str]) -> list[str]:
    """What is in folders that are named, in order. Raises CommandError for an empty one."""
    found: list[str] = []
    for name in named:
        path = Path(name)
        if name == STANDARD_INPUT or not path.is_dir():
            found.append(name)
            continue
        inside = sorted(one for one in path.rglob("*") if one.suffix.lower() in SUFFIXES)
        if not inside:
            raise CommandError(f"{name} has no file that ends in {', '.join(SUFFIXES)}")
        found += map(str, inside)
    return found


def samples(name: str, described: "Description") -> Iterator[Sample]:
    """Raises InvalidInputError for what a model cannot take, OSError for what cannot be read."""
    path = Path(name)
    suffix = path.suffix.lower()
    if name == STANDARD_INPUT or suffix == ".csv":
        for names, inputs in read_rows(name, described):
            yield Sample(names, inputs)
        return
    path.stat()  # what is not there is said so, and not in the words of whoever reads it
    if suffix in PICTURES:
        yield Sample([name], path)
    elif suffix in (".npy", ".npz"):
        yield Sample([name], _arrays(path))
    elif suffix == ".wav":
        yield Sample([name], _sound(path, only(described)))
    else:
        raise InvalidInputError(f"expected a name that ends in {', '.join(SUFFIXES)}")


def only(described: "Description") -> "TensorSpec":
    needed = [one for one in described.inputs if not one.optional]
    if len(needed) != 1:
        names = ", ".join(one.name for one in needed)
        raise InvalidInputError(f"the model takes {len(needed)} inputs ({names}): give an NPZ file")
    return needed[0]


def _arrays(path: Path) -> "Inputs":
    try:
        read = np.load(path, allow_pickle=False)
        if isinstance(read, np.ndarray):
            return read
        with read:
            return {name: read[name] for name in read.files}
    except (ValueError, EOFError) as error:  # objects, which could run code; or no such file
        raise InvalidInputError(f"it cannot be read as numpy's arrays: {error}") from error


def _sound(path: Path, spec: "TensorSpec") -> "Inputs":
    """One channel from -1 to 1, at the rate that the model's description names."""
    try:
        with wave.open(str(path)) as file:
            channels, size, rate = file.getnchannels(), file.getsampwidth(), file.getframerate()
            content = file.readframes(file.getnframes())
    except (EOFError, wave.Error) as error:
        raise InvalidInputError(f"it is no WAV file: {error}") from error
    if len(spec.shape) != 2 or not _UNIT_RANGE.search(spec.unit):
        raise InvalidInputError(
            f"input {spec.name!r} has shape {list(spec.shape)} and unit {spec.unit!r}, which is "
            "not plain sound from -1 to 1"
        )
    said = _RATE.search(spec.description)
    wanted = int(said[1].replace(",", "")) if said else rate
    if (channels, size, rate) != (1, 2, wanted):
        raise InvalidInputError(
            f"it has {channels} channels of {8 * size} bits at {rate} Hz; expected one of 16 bits "
            f"at {wanted} Hz"
        )
    return np.frombuffer(content, "<i2").astype(np.float32) / np.float32(32768)
