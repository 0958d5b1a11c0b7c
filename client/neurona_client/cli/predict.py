"""neurona predict: what a model says of files."""

import argparse
import json
import sys
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

from neurona_client.cli import arguments
from neurona_client.cli.arguments import FAILED
from neurona_client.cli.terminal import plain, progress, table
from neurona_client.errors import InvalidInputError, NeuronaError

if TYPE_CHECKING:
    from neurona_client.cli.sample_files import Sample
    from neurona_client.client import Client
    from neurona_client.results import Prediction

NAME = "predict"
SUMMARY = "ask a model about pictures, sound, arrays or rows of a CSV file"
DESCRIPTION = """\
Asks MODEL about each FILE: PNG, JPEG, WAV, NPY (a sample or a batch), NPZ (inputs by name), CSV
(a row is a sample); a folder means all of these inside it, - is CSV from the standard input.
A file that fails is reported, the others go on, and the exit status is 1."""
EXAMPLES = """\
examples:
  neurona predict lenet5 seven.png --top 3
  neurona predict lenet5 scans/ --json > answers.jsonl
  printf '5,11,16,23\\n' | neurona predict rnn -
  neurona predict lstm batch.npy --version 2
"""

AT_ONCE = 32
"""Calls under way; they share a stream."""

Row = dict[str, Any]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="MODEL")
    parser.add_argument("files", nargs="+", metavar="FILE", help="or a folder, or -")
    parser.add_argument("--top", type=_count, default=1, metavar="K", help="the K best classes")
    arguments.add_which(parser)
    parser.add_argument("--json", action="store_true", help="a line of JSON for each row")
    arguments.add_request_arguments(parser)


def run(options: argparse.Namespace) -> int:
    from neurona_client.cli.sample_files import files

    named = files(options.files)
    rows: list[Row] = []
    failed = 0
    seen: set[str] = set()
    with arguments.client(options) as client, progress("predict", len(named)) as bar:
        for name, answered in _answers(client, named, options):
            seen.add(name)
            bar.show(len(seen), plain(name))
            failed += isinstance(answered, Exception)
            found = _failed(name, answered) if isinstance(answered, Exception) else answered
            if not options.json:
                rows += found
                continue
            bar.clear()
            for row in found:
                print(json.dumps(row, ensure_ascii=False), flush=True)
    if not options.json:
        _print(rows)
    return FAILED if failed else 0


def _answers(
    client: "Client", named: list[str], options: argparse.Namespace
) -> Iterator[tuple[str, list[Row] | Exception]]:
    """In the order of the files; a few are under way."""
    from neurona_client.cli.sample_files import samples

    described = client.describe(options.model, version=options.version, label=options.label)
    under: deque[tuple[str, Sample | None, Future[Prediction] | Exception]] = deque()

    def ask(sample: "Sample") -> "Prediction":
        return client.predict(
            options.model,
            sample.inputs,
            version=options.version,
            label=options.label,
            top_k=options.top,
        )

    def first() -> tuple[str, list[Row] | Exception]:
        name, sample, future = under.popleft()
        if sample is None or isinstance(future, Exception):
            return name, future if isinstance(future, Exception) else []
        try:
            return name, _rows(name, sample, future.result())
        except (NeuronaError, OSError) as error:
            return name, error

    with ThreadPoolExecutor(AT_ONCE) as threads:
        try:
            for name in named:
                try:
                    for sample in samples(name, described):
                        under.append((name, sample, threads.submit(ask, sample)))
                        while len(under) > AT_ONCE:
                            yield first()
                except (InvalidInputError, OSError) as error:
                    under.append((name, None, error))
            while under:
                yield first()
        finally:
            threads.shutdown(wait=False, cancel_futures=True)


def _rows(name: str, sample: "Sample", answer: "Prediction") -> list[Row]:
    message = answer.message
    said = {"model": answer.model, "version": answer.version}
    count = max(1, len(answer))
    names = sample.names if len(sample.names) == count else [name] * count
    rows = []
    for place in range(count):
        row: Row = {"file": names[place], **said}
        if count > 1 and len(sample.names) != count:
            row["row"] = place
        if message.HasField("classification"):
            row["classes"] = [
                {"label": one.label, "probability": round(one.probability, 7), "index": one.index}
                for one in answer[place].top
            ]
        elif message.HasField("regression"):
            described = message.regression.values
            values = zip(answer[place].values, described, strict=True)
            row["values"] = [{"name": o.name, "value": v, "unit": o.unit} for v, o in values]
        else:
            only = answer[place] if len(answer) == count else answer
            row["outputs"] = {key: _listed(array) for key, array in only.outputs.items()}
        rows.append(row)
    return rows


def _listed(array: Any) -> Any:
    return json.loads(
        json.dumps(array.tolist(), default=lambda one: one.decode("utf-8", "replace"))
    )


def _failed(name: str, error: Exception) -> list[Row]:
    return [{"file": name, "error": _reason(error)}]


def _reason(error: Exception) -> str:
    if isinstance(error, OSError) and not isinstance(error, NeuronaError):
        return error.strerror or str(error)
    return str(error)


def _print(rows: list[Row]) -> None:
    answered = [row for row in rows if "error" not in row]
    lines = [(_called(row), *_cells(row)) for row in answered]
    if lines:
        header = ("FILE", *_header(answered[0]))
        for line in table(header, lines, right=(2,) if "outputs" not in answered[0] else ()):
            print(line)
    for row in rows:
        if "error" in row:
            print(f"neurona: {plain(row['file'])}: {plain(row['error'])}", file=sys.stderr)


def _called(row: Row) -> str:
    return f"{row['file']}[{row['row']}]" if "row" in row else str(row["file"])


def _header(row: Row) -> tuple[str, ...]:
    if "classes" in row:
        more = len(row["classes"]) > 1
        return ("LABEL", "PROBABILITY", *(["THEN"] if more else []))
    return ("NAME", "VALUE", "UNIT") if "values" in row else ("OUTPUTS",)


def _cells(row: Row) -> tuple[str, ...]:
    if "classes" in row:
        best, *others = row["classes"]
        then = ", ".join(f"{one['label']} {one['probability']:.3f}" for one in others)
        return (best["label"], f"{best['probability']:.3f}", *([then] if others else []))
    if "values" in row:
        values = row["values"]
        names = ", ".join(one["name"] for one in values)
        units = ", ".join(dict.fromkeys(one["unit"] for one in values))
        return (names, ", ".join(f"{one['value']:.6g}" for one in values), units)
    text = json.dumps(row["outputs"], ensure_ascii=False)
    return (text if len(text) <= 200 else text[:199] + "…",)


def _count(text: str) -> int:
    if not text.isascii() or not text.isdecimal() or not 1 <= int(text) < 2**31:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 1 up")
    return int(text)
