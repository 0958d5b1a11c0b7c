"""The subcommand `neurona-train compare`: several recipes on the same data, the best one exported.

    neurona-train compare mlp feedforward --data houses.csv --target price --seeds 3 --folds 5

Every recipe is trained with each seed on each fold, scikit-learn's baselines are fitted on the
same folds, and all are ranked by their validation rows. The best recipe is then trained on the
data set's own training rows and becomes OUT/NAME/1/model.onnx; only then the test rows are used.
A baseline that is better than every recipe is written beside it, as OUT/NAME-BASELINE.
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import TYPE_CHECKING

from neurona_training.cli import pipeline
from neurona_training.cli.arguments import (
    CommandParser,
    add_training_options,
    make_arguments,
    one_of,
    with_configuration,
)
from neurona_training.cli.pipeline import Arguments
from neurona_training.cli.tuning import check_one_process, report_folder, tune_settings
from neurona_training.errors import OptionError
from neurona_training.export.files import check_writable, write_file
from neurona_training.recipes import RECIPES

if TYPE_CHECKING:
    from neurona_training.data import Dataset
    from neurona_training.selection.comparison import Candidate

COMPARE = "compare"
_METRICS = ("accuracy", "balanced_accuracy", "auc", "nll", "rmse")
_EXAMPLES = """\
examples:
  neurona-train compare mlp feedforward --data patients.csv --target outcome --folds 5
  neurona-train compare rnn gru lstm --data vowels --seeds 5 --metric nll
  neurona-train compare mlp feedforward --data houses.csv --target price --tune 20

Nothing is chosen by the test rows: they measure the best recipe once, at the end. A baseline that
is better than every recipe is written too, as OUT/NAME-BASELINE/1/model.onnx.
"""


@dataclass(frozen=True)
class CompareRecipes:
    """The parsed subcommand.

    Args:
        models: the arguments of each recipe, all with the same data and name.
        metric: by which candidates are ranked; None takes the task's first.
        baselines: whether scikit-learn's baselines are candidates too.
    """

    models: tuple[Arguments, ...]
    metric: str | None
    baselines: bool


def parse_compare(argv: Sequence[str]) -> CompareRecipes:
    """Parses what follows `compare`.

    Exits with status 2 and one line on stderr if it is wrong.
    """
    parser = make_compare_parser()
    options = parser.parse_args(with_configuration(parser, argv))
    models = [
        make_arguments(parser, options, RECIPES[name], options.data)
        for name in dict.fromkeys(options.recipes)
    ]
    if options.name is None:
        user_data = models[0].user_data
        name = f"best-{user_data.name if user_data else options.data}"
        models = [dataclasses.replace(model, name=name) for model in models]
    return CompareRecipes(tuple(models), options.metric, not options.no_baselines)


def make_compare_parser() -> CommandParser:
    """The parser of the subcommand."""
    parser = CommandParser(
        prog=f"neurona-train {COMPARE}",
        usage=f"neurona-train {COMPARE} RECIPE... --data NAME|PATH [OPTION...]",
        description="Trains several recipes on the same data, ranks them by their validation\n"
        "rows, and writes the best to OUT/NAME/1/model.onnx, with the comparison in\n"
        "OUT/NAME/report/comparison.html.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "recipes",
        nargs="+",
        metavar="RECIPE",
        type=one_of(RECIPES, "recipe"),
        help="what to compare; all take the options below",
    )
    parser.add_argument(
        "--metric",
        choices=_METRICS,
        help="of the validation rows, by which they are ranked (default: accuracy, or rmse)",
    )
    parser.add_argument(
        "--no-baselines", action="store_true", help="leave scikit-learn's estimators out"
    )
    add_training_options(parser)
    for action in parser._actions:
        if action.dest == "data":
            action.required = True
    return parser


def run_compare(command: CompareRecipes) -> list[str]:
    """Compares the recipes on validation rows, and trains and exports the best.

    Returns:
        Lines for the person who started the run.

    Raises:
        TrainingError: data, training, export or output failed.
        OSError: a file cannot be read.
    """
    from neurona_training.selection.comparison import Plan, compare
    from neurona_training.selection.page import comparison_page, comparison_table
    from neurona_training.selection.records import RecordFile

    check_one_process(COMPARE)
    first = command.models[0]
    path = pipeline.model_path(first)
    check_writable(path)
    data = _load_for_all(command)
    pipeline.check_baseline(first, data)  # before hours of training
    models = [_tuned(model, data) for model in command.models]
    folder = report_folder(first)
    comparison = compare(
        [_candidate(model, data) for model in models],
        data,
        Plan(tuple(range(first.seed, first.seed + first.seeds)), first.folds, command.metric),
        RecordFile(folder / "comparison.json", keep=first.resume),
        checkpoints=folder.parent,
        with_baselines=command.baselines,
        report=_print_now,
    )
    for line in [*_columns(comparison_table(comparison)), comparison.verdict()]:
        _print_now(line)
    best = comparison.best_network
    (winner,) = [model for model in models if model.recipe == best.name]
    recipes = ", ".join(model.recipe for model in models)
    origin = {"comparison": f"the best of {recipes} on validation rows"}
    winner = dataclasses.replace(winner, origin={**winner.origin, **origin})
    note = (
        f"Then {winner.recipe} was trained with seed {winner.seed}; the test rows were used only "
        "now, once"
    )
    top = comparison.standings[0]
    if not top.is_network:
        note = f"{top.title} is better than every network on the validation rows. {note}"
        if _can_write_baseline(top.name, winner, data):
            winner = dataclasses.replace(winner, baseline=top.name)
    page = folder / "comparison.html"
    write_file(comparison_page(comparison, []).encode(), page)
    checkpoint = pipeline.checkpoint_path(path)
    lines = pipeline.run(RECIPES[winner.recipe], winner, path, checkpoint)
    write_file(comparison_page(comparison, [f"{note}: {lines[0]}."]).encode(), page)
    return [f"{note}:", *lines, f"{page}: the comparison with a chart"]


def _can_write_baseline(name: str, winner: Arguments, data: Dataset) -> bool:
    """Whether the best candidate, a baseline, becomes a model too.

    Not if the user asked for another one, or if it suits the smaller folds only.
    """
    from neurona_training.baselines.estimators import baseline_names

    if winner.baseline or find_spec("skl2onnx") is None:
        return False
    return name in baseline_names(data)


def _load_for_all(command: CompareRecipes) -> Dataset:
    """Loads the data once, and checks that all recipes take them and the metric suits them."""
    from neurona_training.selection.comparison import metrics_for

    first = command.models[0]
    data = pipeline.load_data(RECIPES[first.recipe], first).training_view
    for model in command.models:
        RECIPES[model.recipe].check(data)
    if command.metric is not None and command.metric not in metrics_for(data):
        raise OptionError(
            f"--metric {command.metric} for a {data.task} (expected "
            f"{' or '.join(metrics_for(data))})"
        )
    return data


def _candidate(model: Arguments, data: Dataset) -> Candidate:
    from neurona_training.selection.comparison import Candidate

    recipe = RECIPES[model.recipe]
    return Candidate(recipe, pipeline.choose_settings(recipe, model, data), model.initial_weights)


def _tuned(model: Arguments, data: Dataset) -> Arguments:
    if not model.trials:
        return model
    model, lines = tune_settings(RECIPES[model.recipe], model, data)
    for line in lines:
        _print_now(line)
    return model


def _print_now(line: str) -> None:
    """Prints a line of progress, which a reader wants before the end."""
    print(line, flush=True)


def _columns(table: Sequence[Sequence[str]]) -> list[str]:
    """Lines of a table, each column as wide as its widest cell."""
    widths = [max(len(line[column]) for line in table) for column in range(len(table[0]))]
    return [
        "  ".join(f"{cell:<{width}}" for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in table
    ]
