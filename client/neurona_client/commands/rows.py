"""CSV as inputs: a row is a sample. Rows of one length travel together."""

import csv
import math
import sys
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

import numpy as np

from neurona_client.errors import InvalidInputError

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
