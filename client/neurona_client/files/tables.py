"""Tables as text: CSV and its relatives, with commas, semicolons, tabs or bars between the cells.

    table = read_table(path.read_bytes())
    (ages,) = number_formats([table.number_evidence("age")])
    ages.parse(table.columns["age"][0])

Cells have no white space at their ends, lines are those of the file, and what programs add to a
table is left out: the row numbers that pandas writes without a name, empty columns at the end,
and Excel's line `sep=;`.
"""

from __future__ import annotations

import csv
import io
import re
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import islice

from neurona_client.files.content import FileContentError
from neurona_client.files.dates import is_date
from neurona_client.files.numbers import NumberEvidence, is_number
from neurona_client.files.texts import detect_text

SUFFIXES = (".csv", ".tsv")
"""Of files that are tables, in lower case."""

SEPARATORS = ("\t", ";", "|", ",")
"""Between cells; in the order of preference where a text is equally well divided by several."""

_DIRECTIVE = re.compile(r'"?sep=(.)"?[ \t]*\r?\n', re.IGNORECASE)  # of Excel, in the first line
_SAMPLE_CHARACTERS, _SAMPLE_ROWS = 1 << 16, 50  # from which the separator is inferred
_PANDAS_NAME = re.compile(r"Unnamed: \d+(?:\.\d+)*")  # of a nameless column that it read again

Record = tuple[int, list[str]]
"""The line in which a row begins, and its cells."""


class TableText:
    """The rows of a table, which are taken from its text each time that they are asked for.

    Args:
        content: of the file.
        separators: that may stand between cells.
        strip: whether white space at the ends of cells is dropped, and accents are composed.

    Raises:
        FileContentError: the content is no text.
    """

    def __init__(
        self, content: bytes, separators: Sequence[str] = SEPARATORS, *, strip: bool = True
    ) -> None:
        self._text, self.encoding = detect_text(content)
        if strip:  # "ü" of two code points, as some systems write it, is "ü" of one
            self._text = unicodedata.normalize("NFC", self._text)
        self._strip = strip
        directive = _DIRECTIVE.match(self._text)
        self._start = directive.end() if directive else 0
        self.separator = directive[1] if directive else _find_separator(self._text, separators)

    def records(self) -> Iterator[Record]:
        """Yields each row that is not blank, the names of the columns included.

        Raises:
            FileContentError: with the line of a row whose quotes are wrong.
        """
        lines = io.StringIO(self._text, newline="")
        lines.seek(self._start)
        first = 2 if self._start else 1
        reader = csv.reader(
            lines, delimiter=self.separator, skipinitialspace=self._strip, strict=True
        )
        while True:
            line = first + reader.line_num
            try:
                cells = next(reader, None)
            except csv.Error as error:
                raise FileContentError(f"line {line}: {_describe_csv_error(error)}") from error
            if cells is None:
                return
            stripped = [cell.strip() for cell in cells]
            if any(stripped):
                yield line, stripped if self._strip else cells


def _describe_csv_error(error: csv.Error) -> str:
    reason = str(error)
    if "unexpected end of data" in reason:
        return "a quote that is not closed"
    if "field larger than" in reason:
        return f"a cell of more than {csv.field_size_limit()} characters, or an open quote"
    return f"invalid quotes: {reason}"


def _find_separator(text: str, separators: Sequence[str]) -> str:
    """Infers what stands between cells from the first rows.

    It divides most of them in as many cells as the first; between several that do, cells that are
    numbers decide, then the number of cells.
    """
    sample = text[:_SAMPLE_CHARACTERS]
    scores = []
    for separator in separators:
        rows = _divide_sample(sample, separator)
        if not rows or len(rows[0]) == 1:
            continue
        agreement = sum(len(row) == len(rows[0]) for row in rows) / len(rows)
        cells = [cell for row in rows[1:] or rows for cell in row if cell.strip()]
        numbers = sum(is_number(cell) and not (separator == "," and "," in cell) for cell in cells)
        scores.append((agreement, numbers / max(len(cells), 1), len(rows[0]), separator))
    if scores:
        return max(scores, key=lambda score: score[:3])[3]
    # A single column: a comma would divide numbers with decimal commas.
    return next((one for one in separators if one not in sample), separators[-1])


def _divide_sample(sample: str, separator: str) -> list[list[str]]:
    reader = csv.reader(io.StringIO(sample, newline=""), delimiter=separator, skipinitialspace=True)
    rows: list[list[str]] = []
    with suppress(csv.Error):  # reported with its line when the row is read
        rows.extend(islice((row for row in reader if any(row)), _SAMPLE_ROWS))
    if len(sample) == _SAMPLE_CHARACTERS and 1 < len(rows) < _SAMPLE_ROWS:
        rows.pop()  # may be cut
    return rows


@dataclass(frozen=True)
class Header:
    """The first row of a table: the names of its columns.

    Args:
        line: of the file.
        names: by position; empty for a column without a name, which has no values or only the
            numbers of the rows.
        separator: between cells, for advice.
    """

    line: int
    names: Sequence[str]
    separator: str = ""

    @property
    def columns(self) -> list[str]:
        """The names that are not empty."""
        return [name for name in self.names if name]

    def check_width(self, record: Record) -> list[str]:
        """Returns the cells of a row, as many as there are names.

        Raises:
            FileContentError: it has fewer or more.
        """
        line, cells = record
        count = len(self.names)
        if len(cells) != count:
            if len(cells) < count or any(cell.strip() for cell in cells[count:]):
                has_commas = len(cells) > count and self.separator == ","
                advice = "; numbers with decimal commas need quotes" if has_commas else ""
                raise FileContentError(
                    f"line {line}: {len(cells)} cells (expected {count}{advice})"
                )
            return cells[:count]
        return cells


@dataclass(frozen=True)
class Table:
    """Cells of a table by column.

    Args:
        columns: every cell of each column, by its name.
        lines: the line of each row in the file.
        index_columns: positions, from 1, of nameless columns that were left out because they
            count or name the rows.
        separator: between cells.
        encoding: of the file, such as "UTF-8".
    """

    columns: Mapping[str, list[str]]
    lines: list[int]
    index_columns: list[int] = field(default_factory=list)
    separator: str = ","
    encoding: str = "UTF-8"

    def __len__(self) -> int:
        return len(self.lines)

    def number_evidence(self, name: str) -> NumberEvidence:
        """Returns what the cells of a column say about the way in which its numbers are written.

        Raises:
            FileContentError: with the line of a cell that contradicts another.
        """
        evidence = NumberEvidence(f"column {name!r}")
        for line, cell in zip(self.lines, self.columns[name], strict=True):
            evidence.add(line, cell)
        return evidence


def read_table(content: bytes) -> Table:
    """Reads a table whose first row has the names of the columns.

    Raises:
        FileContentError: it is no such table; with the line that is wrong.
    """
    text = TableText(content)
    records = text.records()
    line, names = next(records, (1, []))
    rows: list[list[str]] = []
    lines: list[int] = []
    header = Header(line, names, text.separator)
    for record in records:
        rows.append(header.check_width(record))
        lines.append(record[0])
    if not rows:
        raise FileContentError("no data (expected a line of column names and rows below it)")
    columns: dict[str, list[str]] = {}
    index_columns = []
    for position, (title, *cells) in enumerate(zip(names, *rows, strict=True), start=1):
        name = title
        if not name or _PANDAS_NAME.fullmatch(name):
            if not any(cells):
                continue
            if is_row_numbers(cells) or _are_row_names(position, cells):
                index_columns.append(position)
                continue
            if not name:
                if not is_date(cells[0]):
                    raise FileContentError(
                        f"line {line}: column {position} has no name (expected one; pandas writes "
                        "its index so, without one: to_csv(index=False))"
                    )
                name = nameless_title(position)
        if name in columns:
            raise FileContentError(f"line {line}: duplicate column {name!r}")
        columns[name] = cells
    if all(is_number(name) for name in columns):
        raise FileContentError(f"line {line}: numbers only (expected the names of the columns)")
    return Table(columns, lines, index_columns, text.separator, text.encoding)


def nameless_title(position: int) -> str:
    """Returns what pandas calls the nameless column at a position, from 1."""
    return f"Unnamed: {position - 1}"


def is_row_numbers(cells: Sequence[str]) -> bool:
    """Whether cells count from 0 or 1."""
    first = 0 if cells[0] == "0" else 1
    return all(cell == str(number) for number, cell in enumerate(cells, start=first))


def _are_row_names(position: int, cells: Sequence[str]) -> bool:
    """Whether a nameless column is the first one and names the rows, as R writes it."""
    return position == 1 and 1 < len(cells) == len(set(cells)) and not is_date(cells[0])
