"""The subcommand `neurona-train compare`: several recipes on the same data, the best one exported.

    neurona-train compare mlp feedforward --data houses.csv --target price --seeds 3 --folds 5

Every recipe, and scikit-learn's baselines, are trained with each seed on each fold and ranked by
their validation rows. The best one becomes OUT/NAME/1/model.onnx, trained on the data set's own
training rows; only then the test rows are used, for it alone.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from neurona_training.cli import pipeline
from neurona_training.cli.arguments import (
    CommandParser,
    add_augmentation,
    add_hyperparameters,
    add_network,
    add_run,
    add_user_data,
    make_arguments,
    one_of,
    positive_integer,
)
from neurona_training.cli.pipeline import Arguments
from neurona_training.errors import OptionError
from neurona_training.export.files import check_writable, write_file
from neurona_training.recipes import RECIPES

if TYPE_CHECKING:
    from neurona_training.data import Dataset
    from neurona_training.selection.comparison import Candidate, Comparison, Plan

COMMAND = "compare"
_METRICS = ("accuracy", "balanced_accuracy", "auc", "nll", "rmse")


@dataclass(frozen=True)
class CompareRecipes:
    """The parsed subcommand.

    Args:
        models: the arguments of each recipe, all with the same data, name and folder.
        seeds: number of seeds, from that of the arguments on.
        folds: of the cross-validation; None takes the data's own validation rows.
        metric: by which candidates are ranked; None takes the task's first.
        trials: of a tuning of each recipe before the comparison; 0 tunes none.
        baselines: whether scikit-learn's baselines are candidates too.
    """

    models: tuple[Arguments, ...]
    seeds: int
    folds: int | None
    metric: str | None
    trials: int
    baselines: bool


def parse_compare(argv: Sequence[str]) -> CompareRecipes:
    """Parses what follows `compare`.

    Exits with status 2 and one line on stderr if it is wrong.
    """
    parser = _make_parser()
    options = parser.parse_args(argv)
    if options.folds is not None and options.folds < 2:
        parser.error(f"--folds {options.folds} (expected at least 2)")
    models = tuple(
        make_arguments(parser, options, RECIPES[name], options.data)
        for name in dict.fromkeys(options.recipes)
    )
    if options.name is None:
        data_name = models[0].user_data.name if models[0].user_data else models[0].data
        models = tuple(
            dataclasses.replace(model, name=f"best-{data_name}") for model in models
        )
    return CompareRecipes(
        models=models,
        seeds=options.seeds,
        folds=options.folds,
        metric=options.metric,
        trials=options.tune or 0,
        baselines=not options.no_baselines,
    )


def run_compare(command: CompareRecipes) -> list[str]:
    """Compares the recipes on validation rows, and trains and exports the best.

    Returns:
        Lines for the person who started the run.

    Raises:
        TrainingError: data, training, export or output failed.
        OSError: a file cannot be read.
    """
    from neurona_training.learning.progress_bar import log_line
    from neurona_training.selection.comparison import Candidate, Plan, compare
    from neurona_training.selection.records import RecordFile

    check_one_process(COMMAND)
    first = command.models[0]
    check_writable(pipeline.model_path(first))
    loaded, models, lines = _prepare_models(command)
    data, folder = loaded.training_view, report_folder(first)
    comparison = compare(
        [
            Candidate(RECIPES[model.recipe], pipeline.choose_settings(RECIPES[model.recipe], model, data))
            for model in models
        ],
        data,
        Plan(tuple(range(first.seed, first.seed + command.seeds)), command.folds, command.metric),
        RecordFile(folder / "comparison.json", keep=first.resume),
        checkpoints=folder,
        report=log_line,
    )
    (winner,) = [model for model in models if model.recipe == comparison.standings[0].name]
    lines += _table_lines(comparison)
    origin = f"best of {', '.join(one.name for one in comparison.standings)} on validation rows"
    winner = dataclasses.replace(winner, origin={**winner.origin, "comparison": origin})
    trained = train_one(winner)
    note = (
        f"Then {winner.recipe} was trained with seed {winner.seed}, and the test rows were used "
        "for it alone, once"
    )
    lines += [f"{note}:", *trained]
    page = folder / "comparison.html"
    write_file(comparison_page(comparison, [f"{note}.", *trained[:1]]).encode(), page)
    return [*lines, f"{page}: the comparison with a chart"]
