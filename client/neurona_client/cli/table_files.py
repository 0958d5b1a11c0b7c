"""Rows of a table, or lines of text, as inputs of a model.

A model's description names the columns of the table that it was trained on: a table whose first
row has these names, in any order and with any others between them, is read by name. Rows without
names are taken in the order of the model's columns. For a model that reads sequences, a table
with names is one sequence: its rows follow each other in time.

It is one file because names, forms of cells and shapes are decided together for each table.
"""

import copy
import csv
import itertools
import math
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from neurona_client.descriptions import ModelDescription, TensorSpec
from neurona_client.errors import InvalidInputError
from neurona_client.files.arrays import channel_numbers
from neurona_client.files.content import FileContentError
from neurona_client.files.dates import (
    ORDERS,
    DateEvidence,
    DateFormat,
    DateOrder,
    date_formats,
    read_times,
)
from neurona_client.files.numbers import (
    NumberEvidence,
    NumberFormat,
    format_of_other_file,
    is_missing,
    is_number,
    number_formats,
)
from neurona_client.files.tables import (
    SEPARATORS,
    Header,
    Record,
    TableText,
    nameless_title,
)
from neurona_client.files.texts import text_lines
from neurona_client.inputs import Inputs

MAX_ROWS_PER_REQUEST = 64

NamedInputs = tuple[list[str], Inputs]
"""Name of each row, FILE:LINE, and the inputs."""

CHARACTER = "character"
"""The unit of an input that takes a text as its characters."""

TARGET = "target"
"""In what a file records about itself: the column that was predicted in training."""

_MAX_LISTED_NAMES = 30
_INTEGER = re.compile(r"[+-]?\d+", re.ASCII)
_BOOLEANS = {"true": True, "false": False}


@dataclass(frozen=True)
class SequenceLengths:
    """An input with the length of each sequence of another input, whose time axis is free."""

    spec: TensorSpec
    time_axis: int


def main_inputs(model: ModelDescription) -> tuple[list[TensorSpec], SequenceLengths | None]:
    """Return the inputs that a file has to give, and the one for the lengths of sequences.

    The lengths are not in a file that has sequences as they are, without padding.
    """
    required = [spec for spec in model.inputs if not spec.optional] or list(model.inputs)
    lengths = [spec for spec in required if _takes_lengths(spec)]
    others = [spec for spec in required if spec not in lengths]
    if len(lengths) == len(others) == 1:
        time_axes = [axis for axis, size in enumerate(others[0].shape) if axis and size < 0]
        if len(time_axes) == 1:
            return others, SequenceLengths(lengths[0], time_axes[0])
    return required, None


def _takes_lengths(spec: TensorSpec) -> bool:
    return "INT" in spec.dtype and len(spec.shape) == 1 and "len" in spec.name.lower()


def read_table_samples(content: bytes, name: str, model: ModelDescription) -> Iterator[NamedInputs]:
    """Read a table as inputs of a model.

    Args:
        content: of the file.
        name: of the file, for the names of the rows.
        model: what the inputs are for.

    Yields:
        The inputs of each request: several rows of the same shape, or one sequence.

    Raises:
        FileContentError: the content is no such table.
        InvalidInputError: the content does not suit the model.
    """
    specs, lengths = main_inputs(model)
    is_plain_text = any(spec.dtype == "STRING" and not spec.columns for spec in specs)
    # Texts of a model that was not trained on a table are as they are: with their spaces, and
    # with all marks but the comma.
    separators = (",",) if is_plain_text and len(specs) == 1 else SEPARATORS
    text = TableText(content, separators, strip=not is_plain_text)
    reader = _SampleReader(name, model, specs, lengths, text.records, text.separator)
    if len(specs) == 1 and not _column_names(specs[0]):
        yield from reader.rows_of_cells()
    else:
        yield from reader.named_columns()


def read_text_samples(content: bytes, name: str, model: ModelDescription) -> Iterator[NamedInputs]:
    """Read each line of a text as one sample, for a model that takes texts or their characters.

    Args, Yields, Raises: as `read_table_samples`.
    """
    specs, lengths = main_inputs(model)
    if len(specs) != 1 or specs[0].dtype != "STRING":
        names = ", ".join(f"{spec.name!r} ({spec.dtype})" for spec in specs)
        raise InvalidInputError(f"file of text for inputs {names} (expected one input of text)")
    lines: list[Record] = [(line, [text]) for line, text in text_lines(content)]
    reader = _SampleReader(name, model, specs, lengths, lambda: iter(lines), "")
    yield from reader.rows_of_cells()


class StepReader:
    """Reads the rows of a table one by one, each as the next steps of one sequence.

    A row before the others may have the names of columns. How numbers and dates are written is
    decided by the rows so far.

    Args:
        name: of the file.
        model: what the steps are for, which takes one input.

    Raises:
        InvalidInputError: the model takes several inputs.
    """

    def __init__(self, name: str, model: ModelDescription) -> None:
        specs, lengths = main_inputs(model)
        if len(specs) != 1:
            raise InvalidInputError(
                f"model takes {len(specs)} inputs: {_listed([spec.name for spec in specs])} "
                "(expected lines of JSON, with an array for each name)"
            )
        self._name = name
        self._model = model
        self._lengths = lengths
        self._spec = specs[0]
        self._rows: _SampleReader | None = None
        self._header: Header | None = None
        self._columns: list[_Column] = []
        self._evidence: list[NumberEvidence | DateEvidence] = []

    def read(self, line: int, text: str) -> Inputs | None:
        """Read a line.

        Returns:
            The steps; None: the line is blank or has the names of columns.

        Raises:
            InvalidInputError: the line does not suit the model.
            FileContentError: the line is no row of a table.
        """
        is_plain_text = self._spec.dtype == "STRING" and not self._spec.columns
        if self._rows is None:
            separators = (",",) if is_plain_text else SEPARATORS
            separator = TableText(text.encode(), separators).separator
        else:
            separator = self._rows.separator
        cells = _divide(line, text, separator, strip=not is_plain_text)
        if not any(cell.strip() for cell in cells):
            return None
        record = (line, cells)
        if self._rows is None:
            rows = _SampleReader(
                self._name,
                *(self._model, [self._spec], self._lengths),
                lambda: iter([record]),
                separator,
            )
            has_names = self._has_names(rows, record)
            self._rows = rows
            if has_names:
                return None
        if self._header is not None:
            cells = self._header.check_width(record)
            cells = [cells[column.position] for column in self._columns]
        if is_plain_text:
            values = _characters(cells, line) if self._spec.unit == CHARACTER else cells
        else:
            values = self._parse(line, cells, self._rows)
        return {self._spec.name: _to_sample(values, self._spec, line)}

    def _has_names(self, rows: "_SampleReader", first: Record) -> bool:
        """Decide whether the first row has names, and what each cell of a step is."""
        spec, cells = self._spec, first[1]
        if _column_names(spec):
            self._header, self._columns = rows._find_columns(first)
            self._evidence = [
                (DateEvidence if column.is_date else NumberEvidence)(f"column {column.title!r}")
                for column in self._columns
            ]
            return self._header is not None
        count = max(1, math.prod(size for size in spec.shape[1:] if size >= 0))
        self._evidence = [NumberEvidence(f"cell {index + 1}") for index in range(count)]
        return spec.dtype != "STRING" and not any(map(is_number, cells))

    def _parse(self, line: int, cells: Sequence[str], rows: "_SampleReader") -> list[Any]:
        count = len(self._evidence)
        evidence = copy.deepcopy(self._evidence)  # that of a row which fails does not count
        for index, cell in enumerate(cells):
            evidence[index % count].add(line, cell)
        numbers = [one for one in evidence if isinstance(one, NumberEvidence)]
        dates = [one for one in evidence if isinstance(one, DateEvidence)]
        number_format = iter(number_formats(numbers, rows._default_format()))
        date_format = iter(date_formats(dates, rows._order()))
        formats = [
            next(number_format) if isinstance(one, NumberEvidence) else next(date_format)
            for one in evidence
        ]
        values = []
        for index, cell in enumerate(cells):
            try:
                values.append(_parse_cell(cell, self._spec, formats[index % count]))
            except FileContentError as error:
                where = evidence[index % count].where
                raise InvalidInputError(f"line {line}, {where}: {error}") from error
        self._evidence = evidence
        return values


def _divide(line: int, text: str, separator: str, *, strip: bool) -> list[str]:
    reader = csv.reader([text], delimiter=separator, skipinitialspace=strip, strict=True)
    try:
        cells = next(reader, [])
    except csv.Error as error:
        raise FileContentError(f"line {line}: invalid quotes: {error}") from error
    return [cell.strip() for cell in cells] if strip else cells


@dataclass(frozen=True)
class _Column:
    """Where an element of an input is in each row, and what it is called."""

    spec: TensorSpec
    title: str
    position: int

    @property
    def is_date(self) -> bool:
        return self.title in self.spec.date_columns


@dataclass(frozen=True)
class _SampleReader:
    """Reads the rows of one file.

    Args:
        name: of the file.
        model: what the inputs are for.
        specs: the inputs that the file gives.
        lengths: the input for their lengths, if there is one.
        records: yields the rows of the file, from its beginning on each call.
        separator: between cells.
    """

    name: str
    model: ModelDescription
    specs: list[TensorSpec]
    lengths: SequenceLengths | None
    records: Callable[[], Iterator[Record]]
    separator: str

    def rows_of_cells(self) -> Iterator[NamedInputs]:
        """Read rows whose cells are the elements of the only input, in their order.

        Where it takes numbers, a first row without any has the names of columns.
        """
        (spec,) = self.specs
        is_text = spec.dtype == "STRING"
        first = next(self.records(), None)
        skipped = int(first is not None and not is_text and not any(map(is_number, first[1])))
        formats = [NumberFormat()]
        if not is_text:
            is_fixed = all(size >= 0 for size in spec.shape[1:])
            count = max(1, math.prod(spec.shape[1:])) if is_fixed else 1
            evidence = [
                NumberEvidence(f"cell {index + 1}" if is_fixed else "row") for index in range(count)
            ]
            for line, cells in self._records_to_error(skipped):
                for index, cell in enumerate(cells):
                    evidence[min(index, count - 1)].add(line, cell)
            formats = number_formats(evidence, self._default_format())

        def parse(record: Record) -> dict[str, Any]:
            line, cells = record
            if is_text:
                values: list[Any] = _characters(cells, line) if spec.unit == CHARACTER else cells
            else:
                values = []
                for index, cell in enumerate(cells):
                    try:
                        values.append(
                            _parse_cell(cell, spec, formats[min(index, len(formats) - 1)])
                        )
                    except FileContentError as error:
                        raise InvalidInputError(f"line {line}: {error}") from error
            return {spec.name: _to_sample(values, spec, line)}

        yield from self._batches(parse, skipped)

    def named_columns(self) -> Iterator[NamedInputs]:
        """Read columns by their names, or without names in the order of the model's columns."""
        first = next(self.records(), None)
        if first is None:
            raise InvalidInputError(f"no rows (expected {_listed(self._titles(self.specs))})")
        header, columns = self._find_columns(first)
        is_sequence = self._is_sequence()
        if header is None and is_sequence:
            yield from self.rows_of_cells()
            return
        skipped = 0 if header is None else 1
        formats = self._formats(columns, header, skipped)
        shape = Header(first[0], first[1], self.separator)  # of each row

        def parse_values(record: Record) -> dict[str, list[Any]]:
            cells = shape.check_width(record)
            values: dict[str, list[Any]] = {}
            for column in columns:
                cell = cells[column.position]
                try:
                    value = _parse_cell(cell, column.spec, formats.get(column.position))
                except FileContentError as error:
                    raise InvalidInputError(
                        f"line {record[0]}, column {column.title!r}: {error}"
                    ) from error
                values.setdefault(column.spec.name, []).append(value)
            return values

        def parse(record: Record) -> dict[str, Any]:
            values = parse_values(record)
            return {
                spec.name: _to_sample(values[spec.name], spec, record[0])
                for spec in self.model.inputs
                if spec.name in values
            }

        if is_sequence:
            yield self._sequence(parse_values)
        else:
            yield from self._batches(parse, skipped)

    def _formats(
        self, columns: list[_Column], header: Header | None, skipped: int
    ) -> dict[int, NumberFormat | DateFormat]:
        """Decide how the numbers and dates of each column, by its position, are written."""
        numeric = [column for column in columns if column.spec.dtype != "STRING"]
        dates = {column.position: column for column in numeric if column.is_date}
        numbers = {column.position: column for column in numeric if not column.is_date}
        number_evidence = {
            position: NumberEvidence(f"column {column.title!r}")
            for position, column in numbers.items()
        }
        date_evidence = {
            position: DateEvidence(f"column {column.title!r}") for position, column in dates.items()
        }
        all_evidence: dict[int, NumberEvidence | DateEvidence] = {
            **number_evidence,
            **date_evidence,
        }
        for line, cells in self._records_to_error(skipped):
            for position, evidence in all_evidence.items():
                if position < len(cells):
                    evidence.add(line, cells[position])
        beside = self._target_evidence(header) if numbers else []
        formats = number_formats([*number_evidence.values(), *beside], self._default_format())
        return {
            **dict(zip(numbers, formats, strict=False)),
            **dict(zip(dates, date_formats(date_evidence.values(), self._order()), strict=True)),
        }

    def _target_evidence(self, header: Header | None) -> list[NumberEvidence]:
        """Return how the targets are written, if the file has them: training lets them count."""
        if header is None:
            return []
        names = [self.model.provenance.get(TARGET, ""), *(one.name for one in self.model.values)]
        target_evidence = []
        for target in dict.fromkeys(names):
            if not target or list(header.names).count(target) != 1:
                continue
            position = header.names.index(target)
            evidence = NumberEvidence(f"column {target!r}")
            numbers = count = 0
            try:
                for line, cells in self._records_to_error(1):
                    cell = cells[position] if position < len(cells) else ""
                    numbers += is_number(cell)
                    count += not is_missing(cell)
                    evidence.add(line, cell)
            except FileContentError:  # no matter for the inputs
                continue
            target_evidence += [evidence] if 2 * numbers > count else []
        return target_evidence

    def _sequence(self, parse_values: Callable[[Record], dict[str, list[Any]]]) -> NamedInputs:
        """Read the last rows as one sequence, as many as the model was trained on."""
        (spec,) = self.specs
        titles, *records = self.records()
        if not records:
            raise InvalidInputError("no rows (expected the steps of a sequence below the names)")
        records = self._in_order_of_time(titles, records)
        used = records[-spec.window :] if spec.window else records
        steps = np.asarray([parse_values(record)[spec.name] for record in used])
        return [f"{self.name}:{used[-1][0]}"], self._inputs({spec.name: steps[np.newaxis]})

    def _in_order_of_time(self, titles: Record, records: list[Record]) -> list[Record]:
        """Sort rows as those were that the model was trained on, if the file has their times."""
        (spec,) = self.specs
        names = [name or nameless_title(position) for position, name in enumerate(titles[1], 1)]
        if not spec.time_column or names.count(spec.time_column) != 1:
            return records
        header = Header(titles[0], titles[1], self.separator)
        position = names.index(spec.time_column)
        cells = [(record[0], header.check_width(record)[position]) for record in records]
        try:
            times = read_times(cells, f"column {spec.time_column!r}", self._order())
        except FileContentError as error:
            raise InvalidInputError(str(error)) from error
        order = sorted(range(len(records)), key=times.__getitem__)
        for earlier, later in itertools.pairwise(order):
            if times[earlier] == times[later]:
                raise InvalidInputError(
                    f"line {cells[later][0]}, column {spec.time_column!r}: {cells[later][1]!r} is "
                    f"the time of line {cells[earlier][0]}, too (expected each time once)"
                )
        return [records[index] for index in order]

    def _order(self) -> DateOrder | None:
        """Return the order of day and month in the file that the model was trained on."""
        trained_order = next((spec.date_order for spec in self.specs if spec.date_order), "")
        return next((order for order in ORDERS if order == trained_order), None)

    def _is_sequence(self) -> bool:
        return len(self.specs) == 1 and _is_sequence(self.specs[0])

    def _titles(self, specs: Sequence[TensorSpec]) -> list[str]:
        return [title for spec in specs for title in _column_names(spec) or _repeated_name(spec)]

    def _find_columns(self, first: Record) -> tuple[Header | None, list[_Column]]:
        """Decide whether the first row has names, and where the model's columns are.

        Raises:
            InvalidInputError: names that are not the model's.
        """
        line, cells = first
        expected = self._titles(self.specs)
        titles = [
            title.strip() or _expected_nameless_title(position, expected)
            for position, title in enumerate(cells, 1)
        ]
        existing = set(titles)
        missing = [title for title in dict.fromkeys(expected) if title not in existing]
        # Channels without names have the numbers 1, 2, 3, ..., which may be values too. The
        # columns of a table may have such names, but all tables that are trained on have names.
        are_counted = self._is_sequence() and expected == list(channel_numbers(len(expected)))
        if not missing and not (are_counted and all(map(is_number, titles))):
            optional = [spec for spec in self.model.inputs if spec.optional]
            specs = [*self.specs, *(one for one in optional if one.name in titles)]
            return Header(line, titles, self.separator), list(_match_columns(titles, specs, line))
        has_text = any(spec.dtype == "STRING" for spec in self.specs)
        if has_text or len(self.specs) != 1 or not any(map(is_number, cells)):
            raise InvalidInputError(
                f"columns do not match: first line has {_listed(titles)} (expected "
                f"{_listed(expected)}{_missing_names(missing, expected)})"
            )
        (spec,) = self.specs
        if not _is_sequence(spec) and len(cells) != len(expected):
            raise InvalidInputError(
                f"line {line}: {len(cells)} cells (expected {len(expected)}: {_listed(expected)})"
            )
        return None, [_Column(spec, title, index) for index, title in enumerate(expected)]

    def _default_format(self) -> NumberFormat:
        """Return how 1,234 and 1.234 are read if no cell of the file says it."""
        mark = next((spec.decimal_mark for spec in self.specs if spec.decimal_mark), "")
        return format_of_other_file(mark, self.separator)

    def _records_to_error(self, skipped: int) -> Iterator[Record]:
        """Yield the rows up to one that is invalid, which is reported when it is predicted."""
        records = self.records()
        try:
            for index, record in enumerate(records):
                if index >= skipped:
                    yield record
        except FileContentError:
            return

    def _batches(
        self, parse: Callable[[Record], dict[str, Any]], skipped: int
    ) -> Iterator[NamedInputs]:
        """Yield rows together that have the same shapes."""
        names: list[str] = []
        rows: list[dict[str, Any]] = []
        max_rows = MAX_ROWS_PER_REQUEST if self.model.batched else 1
        count = 0
        try:
            for index, record in enumerate(self.records()):
                if index < skipped:
                    continue
                count += 1
                row = parse(record)
                if rows and (len(rows) == max_rows or _shapes(row) != _shapes(rows[0])):
                    yield names, self._stack(rows)
                    names, rows = [], []
                names.append(f"{self.name}:{record[0]}")
                rows.append(row)
        except (InvalidInputError, FileContentError):
            if rows:  # the rows before the invalid one are predicted
                yield names, self._stack(rows)
            raise
        if not count:
            raise InvalidInputError("no rows")
        if rows:
            yield names, self._stack(rows)

    def _stack(self, rows: list[dict[str, Any]]) -> Inputs:
        return self._inputs({name: np.stack([row[name] for row in rows]) for name in rows[0]})

    def _inputs(self, arrays: dict[str, Any]) -> Inputs:
        if self.lengths is not None:
            shape = arrays[self.specs[0].name].shape
            steps = np.full(shape[0], shape[self.lengths.time_axis])
            return {**arrays, self.lengths.spec.name: steps}
        return arrays


def _column_names(spec: TensorSpec) -> tuple[str, ...]:
    """Return the names of an input's columns, if there is one for each element of a row."""
    if not spec.columns:
        return ()
    count = spec.shape[-1] if len(spec.shape) > 1 else 1
    return spec.columns if count in (-1, len(spec.columns)) else ()


def _repeated_name(spec: TensorSpec) -> list[str]:
    """Return the input's own name, once for each element of a row."""
    return [spec.name] * math.prod(max(size, 1) for size in spec.shape[1:])


def _is_sequence(spec: TensorSpec) -> bool:
    """Whether an input takes steps in time, each with all columns."""
    return len(spec.shape) == 3 and bool(_column_names(spec)) and spec.axes[1:2] == ("time",)


def _match_columns(
    titles: Sequence[str], specs: Sequence[TensorSpec], line: int
) -> Iterator[_Column]:
    positions_by_title: dict[str, list[int]] = {}
    for position, title in enumerate(titles):
        positions_by_title.setdefault(title, []).append(position)
    for spec in specs:
        names = _column_names(spec)
        for title in names or [spec.name]:
            positions = positions_by_title.get(title, [])
            expected = 1 if names else len(_repeated_name(spec))
            if len(positions) != expected:
                raise InvalidInputError(
                    f"line {line}: {len(positions)} columns {title!r} (expected {expected})"
                )
            for position in positions:
                yield _Column(spec, title, position)


def _listed(names: Sequence[str]) -> str:
    shown = ", ".join(names[:_MAX_LISTED_NAMES]) or "nothing"
    hidden = len(names) - _MAX_LISTED_NAMES
    return f"{shown} and {hidden} more" if hidden > 0 else shown


def _missing_names(missing: Sequence[str], expected: Sequence[str]) -> str:
    return f"; missing: {_listed(missing)}" if len(missing) < len(set(expected)) else ""


def _expected_nameless_title(position: int, expected: Sequence[str]) -> str:
    """Return the name in training of a column without one, if the model has it; else none."""
    title = nameless_title(position)
    return title if title in expected else ""


def _shapes(row: dict[str, Any]) -> list[tuple[int, ...]]:
    return [array.shape for array in row.values()]


def _characters(cells: Sequence[str], line: int) -> list[str]:
    """Return the characters of a text, which may be divided into cells already."""
    if len(cells) == 1:
        return list(" ".join(cells[0].split()))
    if any(len(cell) > 1 for cell in cells):
        raise InvalidInputError(
            f"line {line}: {len(cells)} cells (expected one text, or one character in each)"
        )
    return list(cells)


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


def _missing_value(cell: str, spec: TensorSpec) -> str | float:
    """Return what stands for a missing cell, if the model fills it in.

    Raises:
        FileContentError: the model does not.
    """
    if not spec.allow_nan:
        raise FileContentError(
            f"missing value ({cell!r}), which the model does not fill (expected a value, or a "
            "model that was trained with missing values)"
        )
    return "" if spec.dtype == "STRING" else math.nan


def _parse_cell(cell: str, spec: TensorSpec, cell_format: NumberFormat | DateFormat | None) -> Any:
    """Return the value of a cell.

    Raises:
        FileContentError: it is missing, or not of the input's dtype.
    """
    if spec.columns and is_missing(cell):
        return _missing_value(cell, spec)
    if spec.dtype == "STRING":
        return cell
    text = cell.strip()
    if spec.dtype == "BOOL" and text.lower() in _BOOLEANS:
        return _BOOLEANS[text.lower()]
    if "INT" in spec.dtype and _INTEGER.fullmatch(text):
        try:
            return int(text)  # exactly, also above 2**53
        except ValueError:  # Python does not read thousands of digits
            raise FileContentError(f"{len(text)} digits are too many for {spec.dtype}") from None
    if text.lower().lstrip("+-") == "nan" and not spec.columns:
        return math.nan  # what a model does with it is its own matter
    number = (cell_format or NumberFormat()).parse(cell)
    if spec.columns and math.isinf(number):
        raise FileContentError(f"{cell!r} is not finite")
    if "INT" in spec.dtype and not number.is_integer():
        raise FileContentError(f"{cell!r} is not an integer")
    return int(number) if "INT" in spec.dtype else number
