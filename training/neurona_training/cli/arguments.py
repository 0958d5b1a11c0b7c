"""The command line of `neurona-train`."""

from __future__ import annotations

import argparse
import math
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from neurona_training.architectures.network_options import ACTIVATIONS, FORECASTS
from neurona_training.cli.pipeline import Arguments
from neurona_training.data.catalogue import SOURCES, DataOptions
from neurona_training.data.user.spec import UserData, is_path
from neurona_training.errors import OptionError
from neurona_training.learning.run import InitialWeights
from neurona_training.recipes import RECIPES
from neurona_training.recipes.recipe import Recipe
from neurona_training.recipes.settings import GRADIENT_FIELDS, NETWORK_FIELDS

VARIANTS = ("float16", "int8")
_MAX_NAME_LENGTH = 128
_FIELDS = (*GRADIENT_FIELDS, *NETWORK_FIELDS)
_USER_DATA_FLAGS = ("target", "task", "ignore", "series", "window", "horizon", "unit")

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
  neurona-train --all --out models                          all models of --list: hours
  neurona-train --table models                              results of all models there

own files: columns separated by comma, semicolon or tab, with their names in the first line;
columns of text are categories. 65 % of the rows are for training, 15 % choose the best epoch,
20 % are the test.
"""


@dataclass(frozen=True)
class TrainAll:
    """--all: each recipe on each data set that it names."""

    models: tuple[Arguments, ...]


@dataclass(frozen=True)
class PrintTable:
    """--table: results of the models in this repository."""

    models: Path


def parse(argv: Sequence[str] | None = None) -> Arguments | TrainAll | PrintTable | None:
    """Parses the command line; None for --list.

    Exits with status 2 and one line on stderr if it is wrong.
    """
    parser = _make_parser()
    argv = sys.argv[1:] if argv is None else argv
    for argument in argv:
        if argument.startswith("--") and argument.endswith("=--"):
            parser.error(f"invalid argument {argument} (argparse would take it for no value)")
    options = parser.parse_args(argv)
    if options.list:
        return None
    if options.table:
        return PrintTable(options.table)
    if options.all:
        return TrainAll(tuple(_arguments_of_all(parser, options)))
    return _make_arguments(parser, options, RECIPES[options.recipe], options.data)


def _arguments_of_all(
    parser: argparse.ArgumentParser, options: argparse.Namespace
) -> Iterator[Arguments]:
    if options.data is not None or options.name is not None:
        parser.error("--all trains each recipe on its own data sets, without --data and --name")
    for recipe in RECIPES.values():
        for data in recipe.tuned:
            yield _make_arguments(parser, options, recipe, data)


def _make_arguments(
    parser: argparse.ArgumentParser,
    options: argparse.Namespace,
    recipe: Recipe,
    data: str | None,
) -> Arguments:
    data = data or recipe.default_data
    user_data = _make_user_data(parser, options) if data not in SOURCES else None
    if user_data is None:
        for flag in _USER_DATA_FLAGS:
            if getattr(options, flag) is not None:
                parser.error(f"--{flag} is for own data (--data PATH), not for {data!r}")
    # A name for each data set: models of two data sets take different inputs, and one would
    # replace the other.
    if user_data is None and data == recipe.default_data:
        name = recipe.name
    else:
        name = f"{recipe.name}-{user_data.name if user_data else data}"
    changes = {
        field: getattr(options, field)
        for field in _FIELDS
        if getattr(options, field, None) is not None
    }
    try:
        recipe.check_changes(changes)
    except OptionError as error:
        parser.error(str(error))
    return Arguments(
        recipe=recipe.name,
        data=data,
        user_data=user_data,
        options=DataOptions(options.data_dir, options.image_size),
        out=options.out,
        name=options.name or name[:_MAX_NAME_LENGTH],
        changes=changes,
        seed=options.seed,
        resume=options.resume,
        variants=tuple(dict.fromkeys(options.variant)),
        report=not options.no_report,
        interval=options.interval,
        initial_weights=_initial_weights(parser, options),
    )


def _initial_weights(
    parser: argparse.ArgumentParser, options: argparse.Namespace
) -> InitialWeights | None:
    if options.weights is not None and options.start is not None:
        parser.error("--weights and --from exclude each other")
    path = options.weights or options.start
    if path is None:
        if options.freeze:
            parser.error("--freeze needs --weights FILE or --from MODEL")
        return None
    if options.weights is not None and path.is_dir():
        parser.error(f"--weights: {path} is a folder (expected a file; --from takes a model)")
    if options.start is not None and not path.is_dir():
        parser.error(f"--from: {path} is no folder (expected OUT/NAME/1 of a trained model)")
    return InitialWeights(path, freeze=options.freeze)


def _make_user_data(parser: argparse.ArgumentParser, options: argparse.Namespace) -> UserData:
    if options.target is not None and options.series is not None:
        parser.error("--target and --series exclude each other")
    if options.series is None and (options.window is not None or options.horizon is not None):
        parser.error("--window and --horizon need --series COLUMN")
    return UserData(
        path=Path(options.data),
        target=options.target,
        task=options.task,
        ignored=tuple(options.ignore or ()),
        series=options.series,
        window=options.window or UserData.window,
        horizon=options.horizon or UserData.horizon,
        unit=options.unit or "",
        image_size=options.image_size,
    )


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """Exits with one line, without the usage that argparse prints before it."""
        self.exit(2, f"{self.prog}: error: {message}\n")


def _make_parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="neurona-train",
        description="Trains a network on real data and writes it to OUT/NAME/1/model.onnx, with a\n"
        "report, OUT/NAME/report/report.html.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    _add_command(parser.add_mutually_exclusive_group(required=True))
    _add_run(parser)
    _add_hyperparameters(parser.add_argument_group("learning (default: the recipe's choice)"))
    _add_augmentation(
        parser.add_argument_group("augmentation of training images (default: the recipe's choice)")
    )
    _add_network(parser.add_argument_group("network (default: the recipe's choice)"))
    _add_initial_weights(parser.add_argument_group("initial weights (default: random)"))
    _add_user_data(parser.add_argument_group("own data"))
    return parser


def _add_command(command: argparse._MutuallyExclusiveGroup) -> None:
    command.add_argument(
        "recipe",
        nargs="?",
        metavar="RECIPE",
        type=_one_of(RECIPES, "recipe"),
        help="what to train",
    )
    command.add_argument(
        "--list", action="store_true", help="print recipes and data sets, and exit"
    )
    command.add_argument(
        "--all",
        action="store_true",
        help="train each recipe on each data set that --list shows for it, skip models that "
        "exist, and continue after a failure",
    )
    command.add_argument(
        "--table",
        type=Path,
        metavar="MODELS",
        help="print the results of all models in this folder as a Markdown table, and exit",
    )


def _add_run(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add(
        "--data",
        type=_data,
        metavar="NAME|PATH",
        help="name of a data set (default: the recipe's first, see --list), or own data: a "
        "folder of images, a .csv or an .npz",
    )
    add(
        "--data-dir",
        type=Path,
        metavar="DIR",
        help="folder that has the published files (default: $NEURONA_DATA; without either they "
        "are downloaded into a cache)",
    )
    add("--image-size", type=_at_least(1), metavar="PIXELS", help="resize images to this size")
    add("--out", type=Path, default=Path("models"), help="model repository (default: models)")
    add(
        "--name",
        type=_model_name,
        help="name of the model (default: the recipe's; RECIPE-DATA unless the data set is the "
        "default)",
    )
    add("--seed", type=_at_least(0), default=0, help="of weights and order (default: 0)")
    add(
        "--resume",
        action="store_true",
        help="continue the same training where it was interrupted, if it was",
    )
    add(
        "--variant",
        action="append",
        choices=VARIANTS,
        default=[],
        help="also write OUT/NAME-VARIANT/1/model.onnx, and measure its accuracy; repeatable",
    )
    add("--no-report", action="store_true", help="write no report")


def _add_hyperparameters(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    add("--epochs", type=_at_least(1), help="passes over the training rows, at most")
    add(
        "--batch-rows",
        type=_at_least(1),
        metavar="ROWS",
        help="rows between two steps of the optimiser",
    )
    add("--learning-rate", type=_positive, metavar="RATE", help="the largest of the schedule")
    add("--optimiser", choices=("adamw", "sgd"), help="sgd with --momentum 0 is plain descent")
    add("--momentum", type=_fraction, metavar="FRACTION", help="of sgd")
    add("--weight-decay", type=_not_negative, metavar="RATE", help="as the optimiser defines it")
    add("--schedule", choices=("cosine", "constant"), help="of the learning rate")
    add(
        "--warm-up",
        type=_fraction,
        metavar="FRACTION",
        help="of all steps, in which the learning rate rises from 0",
    )
    add(
        "--patience",
        type=_at_least(1),
        metavar="EPOCHS",
        help="stop after so many epochs without a better validation loss",
    )
    add(
        "--label-smoothing",
        type=_fraction,
        metavar="FRACTION",
        help="of a target's probability, spread over all classes",
    )
    add("--class-weights", choices=("balanced",), help="each class has the same part in the loss")


def _add_augmentation(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    add("--shift", dest="pixels", type=_not_negative, metavar="PIXELS", help="the largest shift")
    add(
        "--rotate",
        dest="degrees",
        type=_not_negative,
        metavar="DEGREES",
        help="the largest rotation",
    )


def _add_network(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    add(
        "--units",
        type=_unit_counts,
        metavar="N[,N...]",
        help="units of each hidden layer; numbers of the state of a recurrent network",
    )
    add("--layers", type=_at_least(1), metavar="N", help="hidden or recurrent layers")
    add(
        "--dropout",
        type=_fraction,
        metavar="FRACTION",
        help="of a hidden layer, dropped at each step of training",
    )
    add("--activation", choices=ACTIVATIONS, help="of the hidden layers")
    add(
        "--bidirectional",
        action="store_const",
        const=True,
        help="a recurrent network reads each sequence from its end too",
    )
    add(
        "--forecast",
        choices=FORECASTS,
        help="of a series: by a linear function that the network corrects, or by the network alone",
    )


def _add_initial_weights(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    add(
        "--weights",
        type=Path,
        metavar="FILE",
        help="of torchvision or timm, for vgg16, resnet18, resnet50, inception-v3 and xception: a "
        "state dictionary (.pth) or .safetensors; the last layer starts anew",
    )
    add(
        "--from",
        dest="start",
        type=Path,
        metavar="MODEL",
        help="folder of a model of the same recipe, OUT/NAME/1; other classes start anew",
    )
    add("--freeze", action="store_true", help="only the last layer learns")


def _add_user_data(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    add("--target", metavar="COLUMN", help="column to predict from the others of its row")
    add(
        "--task",
        choices=("classification", "regression"),
        help="default: text and up to ten different integers are classes",
    )
    add("--ignore", action="append", metavar="COLUMN", help="leave this column out; repeatable")
    add("--series", metavar="COLUMN", help="column to forecast, whose rows follow in time")
    add("--window", type=_at_least(1), metavar="N", help="read N values (default: 12) ...")
    add("--horizon", type=_at_least(1), metavar="K", help="... predict the next K (default: 1)")
    add("--unit", help="unit of the predicted values")
    add(
        "--interval",
        type=_percentage,
        metavar="PERCENT",
        help="probability of the prediction interval of each value of a regression; 0 for none "
        "(default: 90 for a series, else none)",
    )


def _data(text: str) -> str:
    is_user_data = is_path(text) and text not in SOURCES
    return text if is_user_data else _one_of(SOURCES, "data set")(text)


def _one_of(table: Mapping[str, object], kind: str) -> Callable[[str], str]:
    def parse_name(text: str) -> str:
        if text not in table:
            raise argparse.ArgumentTypeError(
                f"unknown {kind} {text!r} (available: {', '.join(table)})"
            )
        return text

    return parse_name


def _percentage(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not 0 <= number < 100:
        raise argparse.ArgumentTypeError(f"{text!r} is no percentage (expected 0 to below 100)")
    return number


def _model_name(text: str) -> str:
    # What the server accepts as a model's name.
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}", text):
        raise argparse.ArgumentTypeError(
            f"{text!r} is not a model name (expected letters, digits, '.', '_' and '-')"
        )
    return text


def _at_least(smallest: int) -> Callable[[str], int]:
    def parse_integer(text: str) -> int:
        # torch's seeds end at 2**63
        if not text.isdecimal() or not smallest <= int(text) < 2**63:
            raise argparse.ArgumentTypeError(f"{text!r} is not an integer from {smallest}")
        return int(text)

    return parse_integer


def _unit_counts(text: str) -> tuple[int, ...]:
    return tuple(_at_least(1)(part) for part in text.split(","))


def _number(is_valid: Callable[[float], bool], expected: str) -> Callable[[str], float]:
    def parse_number(text: str) -> float:
        try:
            number = float(text)
        except ValueError:
            number = math.nan
        if not math.isfinite(number) or not is_valid(number):
            raise argparse.ArgumentTypeError(f"{text!r} is not a number {expected}")
        return number

    return parse_number


_positive = _number(lambda number: number > 0, "above 0")
_not_negative = _number(lambda number: number >= 0, "from 0")
_fraction = _number(lambda number: 0 <= number < 1, "from 0 to below 1")
