"""The command line of `neurona-train`."""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from neurona_training.data.catalogue import SOURCES, Options
from neurona_training.recipes import RECIPES


@dataclass(frozen=True)
class Arguments:
    """epochs: None takes the recipe's."""

    recipe: str
    data: str
    options: Options
    out: Path
    name: str
    epochs: int | None
    seed: int
    resume: bool


def parse(argv: Sequence[str] | None = None) -> Arguments | None:
    """What was asked for; None for --list. Exits with status 2 and one line when it is wrong."""
    parser = _parser()
    said = parser.parse_args(argv)
    if said.list:
        return None
    recipe = RECIPES[said.recipe]
    data = said.data or recipe.data
    # Not the same name for all data: they take other inputs, and one would replace the other.
    name = said.name or (recipe.name if data == recipe.data else f"{recipe.name}-{data}")
    return Arguments(
        recipe=recipe.name,
        data=data,
        options=Options(said.data_dir, said.image_size),
        out=said.out,
        name=name,
        epochs=said.epochs,
        seed=said.seed,
        resume=said.resume,
    )


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """One line, without the usage that argparse puts before it."""
        self.exit(2, f"{self.prog}: error: {message}\n")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="neurona-train",
        description="Trains a network on real data and writes it as OUT/NAME/1/model.onnx.",
    )
    add = parser.add_argument
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument(
        "recipe", nargs="?", metavar="RECIPE", type=_one_of(RECIPES, "recipe"), help="what to train"
    )
    what.add_argument("--list", action="store_true", help="print recipes and data sets, and exit")
    add(
        "--data",
        type=_one_of(SOURCES, "data set"),
        metavar="NAME",
        help="the data set (default: the recipe's first, see --list)",
    )
    add(
        "--data-dir",
        type=Path,
        metavar="DIR",
        help="where published files are already (default: $NEURONA_DATA; without either they "
        "are downloaded into a cache)",
    )
    add("--image-size", type=_at_least(1), metavar="PIXELS", help="resize images to this size")
    add("--out", type=Path, default=Path("models"), help="model repository (default: models)")
    add(
        "--name",
        type=_model_name,
        help="of the model (default: the recipe's; RECIPE-DATA unless the data are its default)",
    )
    add(
        "--epochs",
        type=_at_least(1),
        help="how often each row is seen, at most (default: the recipe's)",
    )
    add("--seed", type=_at_least(0), default=0, help="for weights and order (default: 0)")
    add(
        "--resume",
        action="store_true",
        help="go on where the same training was interrupted, if it was",
    )
    return parser


def _one_of(table: Mapping[str, object], called: str) -> Callable[[str], str]:
    def parse(text: str) -> str:
        if text not in table:
            raise argparse.ArgumentTypeError(f"no {called} {text!r}; there are {', '.join(table)}")
        return text

    return parse


def _model_name(text: str) -> str:
    # What the server takes for a name in its repository.
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}", text):
        raise argparse.ArgumentTypeError(f"{text!r} is not letters, digits, '.', '_' and '-'")
    return text


def _at_least(smallest: int) -> Callable[[str], int]:
    def parse(text: str) -> int:
        # 2**63: the seeds that torch takes end there
        if not text.isdecimal() or not smallest <= int(text) < 2**63:
            raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from {smallest}")
        return int(text)

    return parse
