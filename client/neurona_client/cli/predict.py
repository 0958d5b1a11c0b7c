"""neurona predict: predictions for files."""

import argparse
import json
import sys
import warnings
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

from neurona_client.cli.arguments import (
    FAILED,
    CommandError,
    add_request_arguments,
    add_version_arguments,
    make_client,
)
from neurona_client.cli.json_output import print_json, to_json
from neurona_client.cli.terminal import printable, progress_bar, table, truncate
from neurona_client.errors import NeuronaError

if TYPE_CHECKING:
    from neurona_client.cli.sample_files import Sample
    from neurona_client.client import Client
    from neurona_client.results import Prediction

NAME = "predict"
SUMMARY = "predict for images, sound, arrays, texts or the rows of a table"
DESCRIPTION = """\
Sends each FILE to MODEL: pictures (PNG, JPEG, GIF, TIFF, WebP and others), WAV, NPY (a sample or a
batch), NPZ (inputs by name, or sequences as neurona-train takes them), CSV and TSV (a row is a
sample; columns by name, or for a forecast the series so far), TXT (a line is a text); a folder
means all of these but TXT inside it, - means CSV or TSV from standard input.
A file that fails is reported, the others are predicted, and the exit status is 1."""
EXAMPLES = """\
examples:
  neurona predict lenet5 seven.png --top 3
  neurona predict lenet5 scans/ --json > predictions.jsonl
  neurona predict mlp-houses houses.csv
  printf '5,11,16,23\\n' | neurona predict rnn -
  neurona predict lstm batch.npy --version 2
"""

MAX_CALLS_IN_FLIGHT = 32
"""They share a stream."""

MAX_TEXT_WIDTH = 200
"""Of the outputs in the table; --json prints all."""

MAX_REASON_LENGTH = 1000
"""Of the reason why a file failed, which may quote the file."""

Row = dict[str, Any]
"""One row of the results, as --json prints it."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the subcommand."""
    parser.add_argument("model", metavar="MODEL")
    parser.add_argument("files", nargs="+", metavar="FILE", help="file, folder, or - for CSV")
    parser.add_argument(
        "--top",
        type=_positive_count,
        default=1,
        metavar="K",
        help="show the K most probable classes (default: 1)",
    )
    add_version_arguments(parser)
    parser.add_argument("--json", action="store_true", help="print a line of JSON for each row")
    add_request_arguments(parser)


def run(options: argparse.Namespace) -> int:
    """Run the subcommand and return the exit status."""
    from neurona_client.cli.sample_files import list_files

    # Pillow warns of peculiar metadata; what makes a picture unreadable is an error.
    warnings.filterwarnings("ignore", module=r"PIL\b")
    files = list_files(options.files)
    rows: list[Row] = []
    failures = 0
    done: set[str] = set()
    with make_client(options) as client, progress_bar("predict", len(files)) as bar:
        for name, outcome in _predict_files(client, files, options):
            done.add(name)
            bar.show(len(done), printable(name))
            failures += isinstance(outcome, Exception)
            new_rows = _error_rows(name, outcome) if isinstance(outcome, Exception) else outcome
            if not options.json:
                rows += new_rows
                continue
            bar.clear()
            for row in new_rows:
                print_json(row)
    if not options.json:
        _print_table(rows)
    return FAILED if failures else 0


def _predict_files(
    client: "Client", files: list[str], options: argparse.Namespace
) -> Iterator[tuple[str, list[Row] | Exception]]:
    """Yield the rows or the error of each request, in the order of the files."""
    from neurona_client.cli.sample_files import read_samples

    model = client.describe(options.model, version=options.version, label=options.label)
    in_flight: deque[tuple[str, Sample | None, Future[Prediction] | Exception]] = deque()

    def predict(sample: "Sample") -> "Prediction":
        return client.predict(
            options.model,
            sample.inputs,
            version=options.version,
            label=options.label,
            top_k=options.top,
        )

    def wait_for_oldest() -> tuple[str, list[Row] | Exception]:
        name, sample, future = in_flight.popleft()
        if sample is None or isinstance(future, Exception):
            return name, future if isinstance(future, Exception) else []
        try:
            return name, _result_rows(name, sample, future.result())
        except Exception as error:  # of any library: the other files are predicted
            return name, error

    with ThreadPoolExecutor(MAX_CALLS_IN_FLIGHT) as threads:
        try:
            for name in files:
                try:
                    for sample in read_samples(name, model):
                        in_flight.append((name, sample, threads.submit(predict, sample)))
                        while len(in_flight) > MAX_CALLS_IN_FLIGHT:
                            yield wait_for_oldest()
                except Exception as error:  # of any library: the other files are predicted
                    in_flight.append((name, None, error))
            while in_flight:
                yield wait_for_oldest()
        finally:
            threads.shutdown(wait=False, cancel_futures=True)


def _result_rows(name: str, sample: "Sample", result: "Prediction") -> list[Row]:
    message = result.message
    count = max(1, len(result))
    has_row_names = len(sample.names) == count
    names = sample.names if has_row_names else [name] * count
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


def _error_rows(name: str, error: Exception) -> list[Row]:
    reason = str(error)
    if isinstance(error, NeuronaError | CommandError):
        pass
    elif isinstance(error, OSError):
        reason = error.strerror or reason
    else:  # a bug
        reason = f"internal error: {type(error).__name__}: {error}"
    return [{"file": name, "error": truncate(reason, MAX_REASON_LENGTH)}]


def _print_table(rows: list[Row]) -> None:
    results = [row for row in rows if "error" not in row]
    lines = [(_row_name(row), *_cells(row)) for row in results]
    if lines:
        header = ("FILE", *_header(results[0]))
        right_aligned = (2,) if "outputs" not in results[0] else ()
        for line in table(header, lines, right_aligned=right_aligned):
            print(line)
    for row in rows:
        if "error" in row:
            print(f"neurona: {printable(row['file'])}: {printable(row['error'])}", file=sys.stderr)


def _row_name(row: Row) -> str:
    return f"{row['file']}[{row['row']}]" if "row" in row else str(row["file"])


def _header(row: Row) -> tuple[str, ...]:
    if "classes" in row:
        has_others = len(row["classes"]) > 1
        return ("LABEL", "PROBABILITY", *(["NEXT"] if has_others else []))
    return ("NAME", "VALUE", "UNIT") if "values" in row else ("OUTPUTS",)


def _cells(row: Row) -> tuple[str, ...]:
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


def _positive_count(text: str) -> int:
    if not text.isascii() or not text.isdecimal() or not 1 <= int(text) < 2**31:
        raise argparse.ArgumentTypeError(f"invalid count {text!r} (expected an integer from 1)")
    return int(text)
