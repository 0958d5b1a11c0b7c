"""neurona predict: predictions for files."""

import argparse
import warnings
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

from neurona_client.cli.arguments import (
    FAILED,
    WRONG_USAGE,
    CommandError,
    add_request_arguments,
    add_version_arguments,
    make_client,
)
from neurona_client.cli.json_output import print_json
from neurona_client.cli.result_rows import Row, error_rows, print_rows, result_rows
from neurona_client.cli.terminal import printable, progress_bar

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
  tail -f measurements.csv | neurona predict lstm --follow
"""

MAX_CALLS_IN_FLIGHT = 32
"""They share a stream."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the subcommand."""
    parser.add_argument("model", metavar="MODEL")
    files = parser.add_argument(
        "files", nargs="+", metavar="FILE", help="file, folder, or - for CSV"
    )
    parser.add_argument(
        "--follow",
        action=_FollowAction,
        files=files,
        help="of a model with a state: take the steps of one sequence from standard input as they "
        "come, lines of CSV or JSON, and print an answer to each",
    )
    parser.add_argument(
        "--top",
        type=_positive_count,
        default=1,
        metavar="K",
        help="show the K most probable classes (default: 1)",
    )
    parser.add_argument(
        "--encoded",
        action="store_true",
        help="send PNG and JPEG files as they are: the server decodes them",
    )
    add_version_arguments(parser)
    parser.add_argument("--json", action="store_true", help="print a line of JSON for each row")
    add_request_arguments(parser)


class _FollowAction(argparse.Action):
    """Sets the flag, with which no FILE is required."""

    def __init__(self, *, files: argparse.Action, **options: Any) -> None:
        super().__init__(nargs=0, default=False, **options)
        self._files = files

    def __call__(self, _: argparse.ArgumentParser, namespace: argparse.Namespace, *__: Any) -> None:
        self._files.required = False
        setattr(namespace, self.dest, True)


def run(options: argparse.Namespace) -> int:
    """Run the subcommand and return the exit status."""
    if options.follow:
        return _follow(options)
    if not options.files:
        raise CommandError(
            "no files (expected FILE, or - for CSV from standard input)", WRONG_USAGE
        )
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
            new_rows = error_rows(name, outcome) if isinstance(outcome, Exception) else outcome
            if not options.json:
                rows += new_rows
                continue
            bar.clear()
            for row in new_rows:
                print_json(row)
    if not options.json:
        print_rows(rows)
    return FAILED if failures else 0


def _follow(options: argparse.Namespace) -> int:
    if options.files not in (None, ["-"]):
        raise CommandError(
            f"--follow with the file {options.files[0]} (expected standard input alone)",
            WRONG_USAGE,
        )
    from neurona_client.cli.follow import follow

    with make_client(options) as client:
        return follow(client, options)


def _predict_files(
    client: "Client", files: list[str], options: argparse.Namespace
) -> Iterator[tuple[str, list[Row] | Exception]]:
    """Yield the rows or the error of each request, in the order of the files."""
    from pathlib import Path

    from neurona_client.cli.sample_files import read_samples
    from neurona_client.inputs import EncodedImage

    model = client.describe(options.model, version=options.version, label=options.label)
    in_flight: deque[tuple[str, Sample | None, Future[Prediction] | Exception]] = deque()

    def predict(sample: "Sample") -> "Prediction":
        inputs = sample.inputs
        return client.predict(
            options.model,
            EncodedImage(inputs) if options.encoded and isinstance(inputs, Path) else inputs,
            version=options.version,
            label=options.label,
            top_k=options.top,
        )

    def wait_for_oldest() -> tuple[str, list[Row] | Exception]:
        name, sample, future = in_flight.popleft()
        if sample is None or isinstance(future, Exception):
            return name, future if isinstance(future, Exception) else []
        try:
            return name, result_rows(sample.names, name, future.result())
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


def _positive_count(text: str) -> int:
    if not text.isascii() or not text.isdecimal() or not 1 <= int(text) < 2**31:
        raise argparse.ArgumentTypeError(f"invalid count {text!r} (expected an integer from 1)")
    return int(text)
