"""--tune: the settings of a recipe chosen by their validation loss, before the model is trained."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import TYPE_CHECKING

from neurona_training.cli import pipeline
from neurona_training.cli.pipeline import Arguments
from neurona_training.errors import OptionError
from neurona_training.export.files import write_file
from neurona_training.recipes.recipe import Recipe

if TYPE_CHECKING:
    from neurona_training.data import Dataset


def tune_settings(
    recipe: Recipe, arguments: Arguments, data: Dataset
) -> tuple[Arguments, list[str]]:
    """Searches settings, and writes the study and a page about it into the report's folder.

    Args:
        recipe: that is trained.
        arguments: `trials` is the number of trainings; settings that are changed are not tried.
        data: as the network is trained on them.

    Returns:
        The arguments with the best settings, and lines for the person who started the run.

    Raises:
        TrainingError: nothing to tune, no trial succeeded, or a file cannot be written.
    """
    from neurona_training.selection.page import tuning_page
    from neurona_training.selection.tuning import format_values, tune

    check_one_process("--tune")
    folder = report_folder(arguments)
    study = folder / f"tuning-{recipe.name}.db"
    tuning = tune(
        recipe,
        data,
        pipeline.choose_settings(recipe, arguments, data),
        trials=arguments.trials,
        seed=arguments.seed,
        path=study,
        fixed=arguments.changes,
        initial_weights=arguments.initial_weights,
        folds=arguments.folds,
        resume=arguments.resume,
        report=print,
    )
    note = "The model is trained with the best settings; the test rows are used only then, once."
    title = f"Tuning of {recipe.name} on {data.name}"
    page = study.with_suffix(".html")
    write_file(tuning_page(title, tuning, [note]).encode(), page)
    best = tuning.best
    values = format_values(best.values) or "the recipe's own settings"
    lines = [
        f"{recipe.name}: best of {len(tuning.trials)} trials on validation: {best.number}, loss "
        f"{best.loss:.4g}, {values}",
        f"{page}: the trials with charts",
    ]
    origin = f"best of {len(tuning.trials)} trials on validation rows, number {best.number}"
    return (
        dataclasses.replace(
            arguments,
            changes={**arguments.changes, **tuning.changes},
            origin={**arguments.origin, "tuning": origin},
        ),
        lines,
    )


def report_folder(arguments: Arguments) -> Path:
    """Where reports about the model are written."""
    return arguments.out / arguments.name / "report"


def check_one_process(what: str) -> None:
    """Checks that this is not one of torchrun's several processes.

    Raises:
        OptionError: it is.
    """
    if os.environ.get("WORLD_SIZE", "1") != "1":
        raise OptionError(
            f"{what} with {os.environ['WORLD_SIZE']} processes of torchrun (expected one process)"
        )
