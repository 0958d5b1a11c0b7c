"""The command line of `neurona-train`.

It is one file, so that each option stands once, with its kind beside the others.
"""

from __future__ import annotations

import argparse
import copy
import dataclasses
import math
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from neurona_training.architectures.network_options import (
    ACTIVATIONS,
    COLUMN_ENCODINGS,
    FORECASTS,
    INITIALISATIONS,
)
from neurona_training.baselines import TITLES
from neurona_training.cli.pipeline import Arguments
from neurona_training.data.catalogue import SOURCES, DataOptions
from neurona_training.data.user.spec import UserData, is_path
from neurona_training.errors import OptionError
from neurona_training.learning.run import InitialWeights
from neurona_training.recipes import RECIPES
from neurona_training.recipes.recipe import Recipe
from neurona_training.recipes.settings import AUGMENTATION_FIELDS, GRADIENT_FIELDS, NETWORK_FIELDS
from neurona_training.tracking.tracker import BACKENDS

VARIANTS = ("float16", "int8")
LONG_TRAINING, LONG_TRAINING_SEEDS = 10, 3  # minutes, and seeds with which --all trains those
_MAX_NAME_LENGTH = 128
_FIELDS = (*GRADIENT_FIELDS, *NETWORK_FIELDS)
_TABLE_FLAGS = (
    *("ignore", "keep", "missing", "date_order", "validation", "test", "split_column", "group"),
    "time",
)
_USER_DATA_FLAGS = (
    "target",
    "task",
    *_TABLE_FLAGS,
    "series",
    "window",
    "horizon",
    "unit",
    "sample_rate",
)

_EXAMPLES = """\
examples:
  neurona-train --list
  neurona-train lenet5                                      its default data set
  neurona-train lenet5 --data mnist --data-dir ~/data       another one, files already there
  neurona-train lenet5 --data flowers/ --image-size 32      own images, a folder for each class
  neurona-train mlp --data patients.csv --target outcome --ignore id
  neurona-train lstm --data prices.csv --series close --window 30 --horizon 5 --unit EUR
  neurona-train gru --data words/                           own WAV files, a folder for each class
  neurona-train gru --data gestures.npz                     arrays inputs, lengths, targets
  neurona-train lenet5 --variant float16 --variant int8     smaller files beside the model
  neurona-train mlp --data patients.csv --target outcome --tune 30 --seeds 5
  neurona-train compare mlp feedforward --data patients.csv --target outcome --folds 5
  neurona-train verify model.onnx --against module.pt2      a file by any exporter
  neurona-train --all --out models                          all models of --list: hours
  neurona-train --table models                              results of all models there

own files: columns separated by comma, semicolon or tab, with their names in the first line;
columns of text are categories. 65 % of the rows are for training, 15 % choose the best epoch,
20 % are the test; folders train, val and test in a folder of classes keep their files apart.
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
    options = parser.parse_args(with_configuration(parser, argv))
    if options.list:
        return None
    if options.table:
        return PrintTable(options.table)
    if options.all:
        return TrainAll(tuple(_arguments_of_all(parser, options)))
    if options.folds is not None and options.tune is None:
        parser.error("--folds is for --tune N, or for neurona-train compare")
    return make_arguments(parser, options, RECIPES[options.recipe], options.data)


def _arguments_of_all(
    parser: argparse.ArgumentParser, options: argparse.Namespace
) -> Iterator[Arguments]:
    if options.data is not None or options.name is not None:
        parser.error("--all trains each recipe on its own data sets, without --data and --name")
    if options.tune is not None:
        parser.error("--all trains each recipe with its own settings, without --tune")
    pairs = [(recipe, data) for recipe in RECIPES.values() for data in recipe.tuned]
    pairs.sort(key=lambda pair: pair[0].minutes.get(pair[1], 0))  # short trainings first
    for recipe, data in pairs:
        available = (*recipe.learner_options, *recipe.network_options)
        others = dict.fromkeys(field for field in _FIELDS if field not in available)
        of_recipe = argparse.Namespace(**{**vars(options), **others})
        of_recipe.no_augmentation &= "augmentation" in available
        arguments = make_arguments(parser, of_recipe, recipe, data)
        minutes = recipe.minutes.get(data, 0)
        most = LONG_TRAINING_SEEDS if minutes > LONG_TRAINING else options.seeds
        yield dataclasses.replace(arguments, seeds=min(options.seeds, most))


def make_arguments(
    parser: argparse.ArgumentParser,
    options: argparse.Namespace,
    recipe: Recipe,
    data: str | None,
) -> Arguments:
    """Returns the arguments of one training; exits if options contradict each other.

    Args:
        parser: with the options of `add_training_options`.
        options: as it parsed them.
        recipe: what is trained.
        data: name or path; None takes the recipe's first data set.
    """
    data = data or recipe.default_data
    user_data = _make_user_data(parser, options) if data not in SOURCES else None
    if user_data is None:
        for flag in _USER_DATA_FLAGS:
            if getattr(options, flag) is not None:
                parser.error(
                    f"--{flag.replace('_', '-')} is for own data (--data PATH), not for {data!r}"
                )
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
    if options.no_augmentation:
        if any(field in changes for field in AUGMENTATION_FIELDS):
            parser.error("--no-augmentation excludes the options of augmentation")
        changes["augmentation"] = None
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
        baseline=options.export_baseline or "",
        report=not options.no_report,
        interval=options.interval,
        log=tuple(dict.fromkeys(options.log)),
        initial_weights=_initial_weights(parser, options),
        seeds=options.seeds,
        trials=options.tune or 0,
        folds=options.folds,
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
    if options.start is not None and path.is_file():
        parser.error(f"--from: {path} is a file (expected OUT/NAME/1 of a trained model)")
    return InitialWeights(path, freeze=options.freeze)


def _make_user_data(parser: argparse.ArgumentParser, options: argparse.Namespace) -> UserData:
    if options.target is not None and options.series is not None:
        parser.error("--target and --series exclude each other")
    if options.series is None and (options.window is not None or options.horizon is not None):
        parser.error("--window and --horizon need --series COLUMN")
    return UserData(
        path=Path(options.data),
        target=_one_or_several(options.target),
        task=options.task,
        ignored=tuple(options.ignore or ()),
        kept=tuple(options.keep or ()),
        missing=options.missing,
        date_order=options.date_order,
        validation=options.validation,
        test=options.test,
        split_column=options.split_column,
        group=options.group,
        time=options.time,
        series=options.series,
        window=options.window or UserData.window,
        horizon=options.horizon or UserData.horizon,
        unit=options.unit or "",
        image_size=options.image_size,
        sample_rate=options.sample_rate,
    )


def _one_or_several(names: list[str] | None) -> str | tuple[str, ...] | None:
    return names[0] if names and len(names) == 1 else tuple(names) if names else None


class CommandParser(argparse.ArgumentParser):
    """Reports a wrong command line in one line."""

    def error(self, message: str) -> NoReturn:
        """Exits with one line, without the usage that argparse prints before it."""
        self.exit(2, f"{self.prog}: error: {message}\n")


def _make_parser() -> argparse.ArgumentParser:
    parser = CommandParser(
        prog="neurona-train",
        description="Trains a network on real data and writes it to OUT/NAME/1/model.onnx, with a\n"
        "report, OUT/NAME/report/report.html.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    _add_command(parser.add_mutually_exclusive_group(required=True))
    add_training_options(parser)
    return parser


def add_training_options(parser: argparse.ArgumentParser) -> None:
    """Adds what `make_arguments` reads: data, output, and how a network is trained."""
    _add_run(parser)
    _add_selection(parser.add_argument_group("choosing on validation rows, and repeating"))
    _add_hyperparameters(parser.add_argument_group("learning (default: the recipe's choice)"))
    _add_augmentation(
        parser.add_argument_group("augmentation of training images (default: the recipe's choice)")
    )
    _add_network(parser.add_argument_group("network (default: the recipe's choice)"))
    _add_initial_weights(parser.add_argument_group("initial weights (default: random)"))
    _add_user_data(parser.add_argument_group("own data"))
    _add_table(parser.add_argument_group("own tables"))


def with_configuration(parser: argparse.ArgumentParser, argv: Sequence[str]) -> list[str]:
    """Returns the arguments with the options of a --config file before them.

    Args:
        parser: with the options of `add_training_options`.
        argv: of the command line, whose options replace those of the file.
    """
    finder = CommandParser(prog=parser.prog, add_help=False)
    finder.add_argument("recipes", nargs="*")
    for action in parser._actions:
        if action.option_strings and not isinstance(action, argparse._HelpAction):
            optional = copy.copy(action)
            optional.required = False  # the file may have it
            finder._add_action(optional)
    namespace, others = finder.parse_known_args(argv)
    if namespace.config is None:
        return list(argv)
    # An option of several values adds to those before it, and so does a recipe.
    replaced_options = {
        action.dest
        for action in finder._actions
        if isinstance(action, argparse._AppendAction) and getattr(namespace, action.dest)
    }
    if namespace.recipes or any(not other.startswith("-") for other in others):
        replaced_options.add("recipes")
    from neurona_training.cli.configuration import read_configuration

    try:
        return [*read_configuration(namespace.config, parser, replaced_options), *argv]
    except OptionError as error:
        parser.error(str(error))


def _add_command(command: argparse._MutuallyExclusiveGroup) -> None:
    command.add_argument(
        "recipe",
        nargs="?",
        metavar="RECIPE",
        type=one_of(RECIPES, "recipe"),
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
    add("--image-size", type=at_least(1), metavar="PIXELS", help="resize images to this size")
    add("--sample-rate", type=at_least(1), metavar="HZ", help="resample own sound to this rate")
    add("--out", type=Path, default=Path("models"), help="model repository (default: models)")
    add(
        "--name",
        type=_model_name,
        help="name of the model (default: the recipe's; RECIPE-DATA unless the data set is the "
        "default)",
    )
    add("--seed", type=at_least(0), default=0, help="of weights and order (default: 0)")
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
    add(
        "--export-baseline",
        type=one_of({**dict.fromkeys(TITLES), "best": None}, "baseline"),
        metavar="NAME|best",
        help="also write OUT/NAME-BASELINE/1/model.onnx, a baseline that is asked as the network "
        f"is; best: by the validation rows (names: {', '.join(TITLES)}, as far as they suit the "
        "data)",
    )
    add("--no-report", action="store_true", help="write no report")
    add(
        "--log",
        action="append",
        choices=tuple(BACKENDS),
        default=[],
        help="log epochs and results there too: to OUT/NAME/tensorboard, or to "
        "$MLFLOW_TRACKING_URI; repeatable",
    )
    add(
        "--config",
        type=Path,
        metavar="FILE.toml",
        help="options by their names without dashes before them, as epochs = 20; those of the "
        "command line go before them",
    )


def _add_selection(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    add(
        "--seeds",
        type=at_least(1),
        default=1,
        metavar="N",
        help="train from N seeds, --seed the first, and print mean and standard deviation of the "
        "test metrics; the model is that of the first (default: 1)",
    )
    add(
        "--tune",
        type=at_least(1),
        metavar="N",
        help="first search settings in N trainings; those that the command line names are kept",
    )
    add(
        "--folds",
        type=at_least(2),
        metavar="K",
        help="judge each candidate of --tune or compare by K-fold cross-validation (default: by "
        "the validation rows)",
    )


def _add_hyperparameters(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    add("--epochs", type=at_least(1), help="passes over the training rows, at most")
    add(
        "--batch-rows",
        type=at_least(1),
        metavar="ROWS",
        help="rows between two steps of the optimiser",
    )
    add("--learning-rate", type=_positive, metavar="RATE", help="the largest of the schedule")
    add("--optimiser", choices=("adamw", "sgd"), help="sgd with --momentum 0 is plain descent")
    add("--momentum", type=_fraction, metavar="FRACTION", help="of sgd")
    add("--weight-decay", type=_not_negative, metavar="RATE", help="as the optimiser defines it")
    add("--schedule", choices=("cosine", "linear", "constant"), help="of the learning rate")
    add(
        "--warm-up",
        type=_fraction,
        metavar="FRACTION",
        help="of all steps, in which the learning rate rises from 0",
    )
    add(
        "--patience",
        type=at_least(1),
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
    add(
        "--keep-epoch",
        choices=("best", "last"),
        help="weights of the epoch with the best validation loss (default), or of the last one",
    )
    add(
        "--weight-average",
        type=_fraction,
        metavar="FRACTION",
        help="of the average of the weights, that a step keeps; 0 for none",
    )
    add(
        "--gradient-clip-norm",
        type=_positive,
        metavar="NORM",
        help="a larger gradient is scaled down to this norm",
    )
    add("--threads", type=at_least(1), metavar="N", help="of the CPU; each number its own weights")


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
    add("--scale", type=_fraction, metavar="FRACTION", help="the largest change of size")
    add(
        "--colour",
        type=_fraction,
        metavar="FRACTION",
        help="the largest change of brightness and contrast",
    )
    for axis, sides in (("horizontal", "left and right"), ("vertical", "top and bottom")):
        add(
            f"--{axis}-flip",
            action="store_const",
            const=True,
            help=f"exchange {sides} of half of the images",
        )
    add("--no-augmentation", action="store_true", help="show training images unchanged")


def _add_network(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    add(
        "--units",
        type=_unit_counts,
        metavar="N[,N...]",
        help="units of each hidden layer; numbers of the state of a recurrent network",
    )
    add("--layers", type=at_least(1), metavar="N", help="hidden or recurrent layers")
    add(
        "--dropout",
        type=_fraction,
        metavar="FRACTION",
        help="of a hidden layer, dropped at each step of training",
    )
    add("--activation", choices=ACTIVATIONS, help="of the hidden layers")
    add(
        "--columns",
        choices=COLUMN_ENCODINGS,
        help="of a table: scaled, or with pieces between their quantiles too",
    )
    add(
        "--initialisation",
        choices=INITIALISATIONS,
        help="of the weights: uniform by number of inputs, He's or Xavier Glorot's",
    )
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
    add(
        "--target",
        action="append",
        metavar="COLUMN",
        help="column to predict from the others of its row; repeatable for a regression",
    )
    add(
        "--task",
        choices=("classification", "regression"),
        help="default: text and up to ten different integers are classes",
    )
    add("--series", metavar="COLUMN", help="column to forecast, whose rows follow in time")
    add("--window", type=at_least(1), metavar="N", help="read N values (default: 12) ...")
    add("--horizon", type=at_least(1), metavar="K", help="... predict the next K (default: 1)")
    add("--unit", help="unit of the predicted values")
    add(
        "--interval",
        type=_percentage,
        metavar="PERCENT",
        help="probability of the prediction interval of each value of a regression; 0 for none "
        "(default: 90 for a series, else none)",
    )


def _add_table(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    add("--ignore", action="append", metavar="COLUMN", help="leave this column out; repeatable")
    add(
        "--keep",
        action="append",
        metavar="COLUMN",
        help="take this column although it only counts the rows; repeatable",
    )
    add(
        "--missing",
        choices=("fill", "error"),
        help="cells without a value: filled in the network, by the median or as a category of "
        "their own, or an error (default: fill if there are some; with fill the model takes them "
        "even if there are none)",
    )
    add(
        "--date-order",
        choices=("day-month-year", "month-day-year"),
        help="of dates such as 03/04/2024 where the file does not say it",
    )
    add("--validation", type=Path, metavar="FILE", help="a table with the validation rows")
    add("--test", type=Path, metavar="FILE", help="a table with the test rows")
    add(
        "--split-column",
        metavar="COLUMN",
        help="which says train, validation or test in each row",
    )
    add("--group", metavar="COLUMN", help="rows with the same value here stay in one part")
    add(
        "--time",
        metavar="COLUMN",
        help="dates or numbers: later rows are the test; of a series: the order of its rows "
        "(default: that of its only column of dates)",
    )


def _data(text: str) -> str:
    is_user_data = is_path(text) and text not in SOURCES
    return text if is_user_data else one_of(SOURCES, "data set")(text)


def one_of(table: Mapping[str, object], kind: str) -> Callable[[str], str]:
    """Returns the parser of a name of the table; `kind` says in errors what the names are of."""

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


def at_least(smallest: int) -> Callable[[str], int]:
    """Returns the parser of an integer."""

    def parse_integer(text: str) -> int:
        # torch's seeds end at 2**63
        if not text.isdecimal() or not smallest <= int(text) < 2**63:
            raise argparse.ArgumentTypeError(f"{text!r} is not an integer from {smallest}")
        return int(text)

    return parse_integer


def _unit_counts(text: str) -> tuple[int, ...]:
    return tuple(at_least(1)(part) for part in text.split(","))


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
