"""The command line of `neurona-train`."""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from neurona_training.data.catalogue import SOURCES, Options
from neurona_training.data.user import load
from neurona_training.data.user.load import Own
from neurona_training.recipes import RECIPES, Recipe


def data(text: str) -> str:
    return text if load.is_own(text) and text not in SOURCES else one_of(SOURCES, "data set")(text)


def positive(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = 0.0
    if not 0 < number < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number above 0")
    return number


def one_of(table: Mapping[str, object], called: str) -> Callable[[str], str]:
    def parse(text: str) -> str:
        if text not in table:
            raise argparse.ArgumentTypeError(f"no {called} {text!r}; there are {', '.join(table)}")
        return text

    return parse


def model_name(text: str) -> str:
    # What the server takes for a name in its repository.
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}", text):
        raise argparse.ArgumentTypeError(f"{text!r} is not letters, digits, '.', '_' and '-'")
    return text


def at_least(smallest: int) -> Callable[[str], int]:
    def parse(text: str) -> int:
        # 2**63: the seeds that torch takes end there
        if not text.isdecimal() or not smallest <= int(text) < 2**63:
            raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from {smallest}")
        return int(text)

    return parse


VARIANTS = ("float16", "int8")
_LONGEST_NAME = 128

_EXAMPLES = """\
examples:
  neurona-train --list
  neurona-train lenet5                                      its default data set
  neurona-train lenet5 --data mnist --data-dir ~/data       another one, files already there
  neurona-train lenet5 --data flowers/ --image-size 32      own images, a folder for each class
  neurona-train mlp --data patients.csv --target outcome --ignore id
  neurona-train lstm --data prices.csv --series close --window 30 --horizon 5 --unit EUR
  neurona-train gru --data gestures.npz                     arrays inputs, lengths, targets
  neurona-train lenet5 --variant float16 --variant int8     smaller files beside the model
  neurona-train --all --out models                          everything that --list names: hours
  neurona-train --table models                              what all models there reached

own files: comma, semicolon or tab between columns, whose names are in the first line; columns
of texts are categories. 65 % of the rows are trained on, 15 % choose the best epoch, 20 % test.
"""


@dataclass(frozen=True)
class Arguments:
    """data: a name of the catalogue, unless `own` is given.
    epochs, batch_rows, learning_rate: None takes the recipe's.
    """

    recipe: str
    data: str
    own: Own | None
    options: Options
    out: Path
    name: str
    epochs: int | None
    batch_rows: int | None
    learning_rate: float | None
    seed: int
    resume: bool
    variants: tuple[str, ...]
    report: bool


@dataclass(frozen=True)
class Every:
    """--all: each recipe on each data set that it names."""

    models: tuple[Arguments, ...]


@dataclass(frozen=True)
class Table:
    """--table: of the models in this repository."""

    models: Path


def parse(argv: Sequence[str] | None = None) -> Arguments | Every | Table | None:
    """What was asked for; None for --list. Exits with status 2 and one line when it is wrong."""
    parser = _parser()
    said = parser.parse_args(argv)
    if said.list:
        return None
    if said.table:
        return Table(said.table)
    if said.all:
        return Every(tuple(_every(parser, said)))
    return _arguments(parser, said, RECIPES[said.recipe], said.data)


def _every(parser: argparse.ArgumentParser, said: argparse.Namespace) -> Iterator[Arguments]:
    if said.data is not None or said.name is not None:
        parser.error("--all takes every recipe's own data and names")
    for recipe in RECIPES.values():
        for data in recipe.trainings:
            yield _arguments(parser, said, recipe, data)


def _arguments(
    parser: argparse.ArgumentParser, said: argparse.Namespace, recipe: Recipe, data: str | None
) -> Arguments:
    data = data or recipe.data
    brought = _own(parser, said) if data not in SOURCES else None
    if brought is None:
        for flag in ("target", "task", "ignore", "series", "window", "horizon", "unit"):
            if getattr(said, flag) is not None:
                parser.error(f"--{flag} is for own data, --data PATH; {data!r} needs none")
    # Not the same name for all data: they take other inputs, and one would replace the other.
    called = brought.name if brought else data
    name = recipe.name if not brought and data == recipe.data else f"{recipe.name}-{called}"
    return Arguments(
        recipe=recipe.name,
        data=data,
        own=brought,
        options=Options(said.data_dir, said.image_size),
        out=said.out,
        name=said.name or name[:_LONGEST_NAME],
        epochs=said.epochs,
        batch_rows=said.batch_rows,
        learning_rate=said.learning_rate,
        seed=said.seed,
        resume=said.resume,
        variants=tuple(dict.fromkeys(said.variant)),
        report=not said.no_report,
    )


def _own(parser: argparse.ArgumentParser, said: argparse.Namespace) -> Own:
    if said.target is not None and said.series is not None:
        parser.error("--target and --series: one of them")
    if said.series is None and (said.window is not None or said.horizon is not None):
        parser.error("--window and --horizon are for --series COLUMN")
    return Own(
        path=Path(said.data),
        target=said.target,
        task=said.task,
        ignored=tuple(said.ignore or ()),
        series=said.series,
        window=said.window or Own.window,
        horizon=said.horizon or Own.horizon,
        unit=said.unit or "",
        image_size=said.image_size,
    )


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """One line, without the usage that argparse puts before it."""
        self.exit(2, f"{self.prog}: error: {message}\n")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="neurona-train",
        description="Trains a network on real data and writes it as OUT/NAME/1/model.onnx, with a\n"
        "page about it, OUT/NAME/report/report.html.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument(
        "recipe",
        nargs="?",
        metavar="RECIPE",
        type=one_of(RECIPES, "recipe"),
        help="what to train",
    )
    what.add_argument("--list", action="store_true", help="print recipes and data sets, and exit")
    what.add_argument(
        "--all",
        action="store_true",
        help="train each recipe on each data set that --list gives it, but for models that are "
        "there already, and go on after one that fails",
    )
    what.add_argument(
        "--table",
        type=Path,
        metavar="MODELS",
        help="print what the models in this folder reached, as a Markdown table, and exit",
    )
    add(
        "--data",
        type=data,
        metavar="NAME|PATH",
        help="a data set's name (default: the recipe's first, see --list), or own data: a folder "
        "of images, a .csv or an .npz",
    )
    add(
        "--data-dir",
        type=Path,
        metavar="DIR",
        help="where published files are already (default: $NEURONA_DATA; without either they "
        "are downloaded into a cache)",
    )
    add("--image-size", type=at_least(1), metavar="PIXELS", help="resize images to this size")
    add("--out", type=Path, default=Path("models"), help="model repository (default: models)")
    add(
        "--name",
        type=model_name,
        help="of the model (default: the recipe's; RECIPE-DATA unless the data are its default)",
    )
    add("--seed", type=at_least(0), default=0, help="for weights and order (default: 0)")
    add(
        "--resume",
        action="store_true",
        help="go on where the same training was interrupted, if it was",
    )
    add(
        "--variant",
        action="append",
        choices=VARIANTS,
        default=[],
        help="also write OUT/NAME-VARIANT/1/model.onnx, and measure the accuracy it costs",
    )
    add("--no-report", action="store_true", help="no page about the model")
    _add_training(parser.add_argument_group("instead of the recipe's").add_argument)
    _add_own(parser.add_argument_group("own data").add_argument)
    return parser


def _add_training(add: Callable[..., object]) -> None:
    add("--epochs", type=at_least(1), help="how often each row is seen, at most")
    add(
        "--batch-rows",
        type=at_least(1),
        metavar="ROWS",
        help="between two steps of the weights",
    )
    add("--learning-rate", type=positive, metavar="RATE", help="the largest one")


def _add_own(add: Callable[..., object]) -> None:
    add("--target", metavar="COLUMN", help="what to predict from the other columns of its row")
    add(
        "--task",
        choices=("classification", "regression"),
        help="default: texts and up to ten different whole numbers are classes",
    )
    add("--ignore", action="append", metavar="COLUMN", help="leave this column out; repeatable")
    add("--series", metavar="COLUMN", help="a column whose rows follow each other in time")
    add("--window", type=at_least(1), metavar="N", help="read N values (default: 12) ...")
    add("--horizon", type=at_least(1), metavar="K", help="... predict the next K (default: 1)")
    add("--unit", help="of the values that are predicted")
