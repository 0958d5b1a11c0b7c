"""Rows of results, as `neurona predict` prints them: a table, or JSON."""

import json
import re
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from neurona_client.cli.arguments import CommandError
from neurona_client.cli.json_output import to_json
from neurona_client.cli.terminal import printable, table, truncate
from neurona_client.errors import NeuronaError

if TYPE_CHECKING:
    from neurona_client.results import Prediction

MAX_TEXT_WIDTH = 200
"""Of the outputs in the table; --json prints all."""

MAX_REASON_LENGTH = 1000
"""Of the reason why a file failed, which may quote the file."""

_VALUES = re.compile(
    r"[\[(\s]*[-+]?\d*\.?\d+(e[-+]?\d+)?[\])\s]*(,[-+\d\s.,;e\[\]()]*)?", re.IGNORECASE
)
"""What is no name of a file, but numbers that were meant to be predicted for."""

Row = dict[str, Any]
"""One row of the results, as --json prints it."""


def result_rows(names: Sequence[str], name: str, result: "Prediction") -> list[Row]:
    """Return the rows of a result; `names` are theirs, if there are as many, else `name`."""
    message = result.message
    count = max(1, len(result))
    has_row_names = len(names) == count
    names = names if has_row_names else [name] * count
    rows = []
    for index in range(count):
        row: Row = {"file": names[index], "model": result.model, "version": result.version}
        if count > 1 and not has_row_names:
            row["row"] = index
        if message.HasField("classification"):
            row["classes"] = [
                {"label": one.label, "probability": round(one.probability, 7), "index": one.index}
                for one in result[index].top
            ]
        elif message.HasField("regression"):
            row["values"] = [
                {"name": spec.name, "value": value, "unit": spec.unit}
                for value, spec in zip(result[index].values, message.regression.values, strict=True)
            ]
        else:
            item = result[index] if len(result) == count else result
            row["outputs"] = {name: _to_json(array) for name, array in item.outputs.items()}
        rows.append(row)
    return rows


def _to_json(array: Any) -> Any:
    """Return nested lists, with bytes as text, those that are not UTF-8 as backslash escapes."""
    values = array.tolist() if hasattr(array, "tolist") else array  # text of one row has none
    text = json.dumps(values, default=lambda one: one.decode("utf-8", "backslashreplace"))
    return json.loads(text)


def error_rows(name: str, error: Exception) -> list[Row]:
    """Return the row of a file, or line, that failed."""
    reason = str(error)
    if isinstance(error, NeuronaError | CommandError):
        pass
    elif isinstance(error, OSError):
        reason = error.strerror or reason
        if isinstance(error, FileNotFoundError) and _VALUES.fullmatch(name):
            reason += " (expected a file, or - and the values as CSV on standard input)"
    else:  # a bug
        reason = f"internal error: {type(error).__name__}: {error}"
    return [{"file": name, "error": truncate(reason, MAX_REASON_LENGTH)}]


def print_rows(rows: list[Row]) -> None:
    """Print a table of the rows, and on standard error those that failed."""
    results = [row for row in rows if "error" not in row]
    lines = [(row_name(row), *row_cells(row)) for row in results]
    if lines:
        header = ("FILE", *row_header(results[0]))
        right_aligned = (2,) if "outputs" not in results[0] else ()
        for line in table(header, lines, right_aligned=right_aligned):
            print(line)
    for row in rows:
        if "error" in row:
            print_error(row)


def print_error(row: Row) -> None:
    """Print why a file or line failed on standard error."""
    print(f"neurona: {printable(row['file'])}: {printable(row['error'])}", file=sys.stderr)


def row_name(row: Row) -> str:
    """Return what a table calls a row."""
    return f"{row['file']}[{row['row']}]" if "row" in row else str(row["file"])


def row_header(row: Row) -> tuple[str, ...]:
    """Return the titles of the columns of `row_cells`."""
    if "classes" in row:
        has_others = len(row["classes"]) > 1
        return ("LABEL", "PROBABILITY", *(["NEXT"] if has_others else []))
    return ("NAME", "VALUE", "UNIT") if "values" in row else ("OUTPUTS",)


def row_cells(row: Row) -> tuple[str, ...]:
    """Return what a table shows of a row beside its name."""
    if "classes" in row:
        if not row["classes"]:
            return ("", "")
        best, *others = row["classes"]
        next_classes = ", ".join(f"{one['label']} {one['probability']:.3f}" for one in others)
        return (best["label"], f"{best['probability']:.3f}", *([next_classes] if others else []))
    if "values" in row:
        values = row["values"]
        names = ", ".join(one["name"] for one in values)
        units = ", ".join(dict.fromkeys(one["unit"] for one in values))
        return (names, ", ".join(f"{one['value']:.6g}" for one in values), units)
    text = to_json(row["outputs"])
    return (truncate(text, MAX_TEXT_WIDTH),)
