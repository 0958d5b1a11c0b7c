"""neurona predict --follow: one sequence from standard input, an answer to each line as it comes.

A line that cannot be read or is refused is reported, and the sequence goes on without it. Other
failures end the command: the answers after a gap would be wrong.
"""

import argparse
import json
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING

from neurona_client.cli.arguments import FAILED, CommandError
from neurona_client.cli.json_output import print_json
from neurona_client.cli.result_rows import (
    Row,
    error_rows,
    print_error,
    result_rows,
    row_cells,
    row_header,
    row_name,
)
from neurona_client.cli.table_files import StepReader
from neurona_client.cli.terminal import COLUMN_GAP, printable
from neurona_client.descriptions import ModelDescription
from neurona_client.errors import InvalidInputError
from neurona_client.files.content import FileContentError
from neurona_client.files.texts import decode_text
from neurona_client.inputs import Inputs

if TYPE_CHECKING:
    from neurona_client.client import Client

STANDARD_INPUT = "-"


def follow(client: "Client", options: argparse.Namespace) -> int:
    """Print an answer to each line of standard input, and return the exit status.

    Args:
        client: of the server.
        options: of `neurona predict`.

    Raises:
        CommandError: the model has no state.
        NeuronaError: another failure than that of a line.
    """
    which = {"version": options.version, "label": options.label}
    model = client.describe(options.model, **which)
    serving = model.message.sequences
    if not serving.state_bytes:
        reason = serving.stateless_reason or "it has no recurrent layers"
        raise CommandError(f"model {model.name!r} has no sessions: {reason}")
    reader = LineReader(model)
    output = RowPrinter(is_json=options.json)
    failures = 0
    with client.session(options.model, **which, top_k=options.top) as session:
        for line, content in standard_input_lines():
            name = f"{STANDARD_INPUT}:{line}"
            try:
                steps = reader.read(line, content)
                if steps is None:
                    continue
                session.send(steps)
                rows = result_rows([name], name, session.receive())
            except (InvalidInputError, FileContentError) as error:
                failures += 1
                rows = error_rows(name, InvalidInputError(str(error)))
            for row in rows:
                output.print(row)
    return FAILED if failures else 0


def standard_input_lines() -> Iterator[tuple[int, bytes]]:
    """Yield each line as soon as it is there, with its number from 1."""
    line = 0
    while content := sys.stdin.buffer.readline():
        line += 1
        yield line, content


class LineReader:
    """Reads lines as steps: rows of a table, or JSON where they begin with a bracket.

    In JSON, an array has a step or several, and an object has inputs by name, or the columns of a
    step by theirs.
    """

    def __init__(self, model: ModelDescription) -> None:
        """Read lines for a model."""
        self._model = model
        self._table: StepReader | None = None

    def read(self, line: int, content: bytes) -> Inputs | None:
        """Read a line.

        Returns:
            The steps; None: the line has none.

        Raises:
            InvalidInputError: the line does not suit the model.
            FileContentError: the line cannot be read.
        """
        text = decode_text(content).rstrip("\r\n")
        if text.lstrip()[:1] in ("[", "{"):
            return self._read_json(line, text)
        if self._table is None:
            self._table = StepReader(STANDARD_INPUT, self._model)
        return self._table.read(line, text)

    def _read_json(self, line: int, text: str) -> Inputs:
        try:
            value: Inputs = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise InvalidInputError(f"line {line} is not JSON: {error}") from error
        if not isinstance(value, dict) or {spec.name for spec in self._model.inputs} & value.keys():
            return value
        for spec in self._model.inputs:
            if spec.columns and value.keys() >= set(spec.columns):
                return {spec.name: [value[column] for column in spec.columns]}
        return value  # the client says which inputs there are


class RowPrinter:
    """Prints rows one by one: as JSON, or as a table whose columns become wider where they must."""

    def __init__(self, *, is_json: bool) -> None:
        """Print no row yet."""
        self._is_json = is_json
        self._widths: list[int] = []

    def print(self, row: Row) -> None:
        """Print a row at once; of a table, one that failed on standard error."""
        if self._is_json:
            print_json(row)
        elif "error" in row:
            print_error(row)
        else:
            if not self._widths:
                self._print_line(("FILE", *row_header(row)))
            self._print_line((row_name(row), *row_cells(row)))

    def _print_line(self, cells: tuple[str, ...]) -> None:
        texts = [printable(cell) for cell in cells]
        widths = [*self._widths, *[0] * (len(texts) - len(self._widths))]
        self._widths = [max(len(text), width) for text, width in zip(texts, widths, strict=False)]
        padded = [text.ljust(width) for text, width in zip(texts, self._widths, strict=True)]
        print(COLUMN_GAP.join(padded).rstrip(), flush=True)
