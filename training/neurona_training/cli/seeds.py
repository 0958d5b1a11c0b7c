"""A model trained again from other seeds: how much of its figures is chance.

The model that is served is that of the first seed. Of the others only figures are kept, in
OUT/NAME/report/seeds.json, from which `--table` prints mean and standard deviation. Every seed
has the same rows for training, validation and test.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from neurona_training.cli import pipeline
from neurona_training.cli.pipeline import Arguments
from neurona_training.cli.results import (
    SEEDS_FILE,
    best_baseline,
    describe_training,
    error_unit,
    figures_by_seed,
    format_test_metrics,
    read_metadata,
)
from neurona_training.cli.tuning import check_one_process, report_folder
from neurona_training.errors import OutputError
from neurona_training.recipes import RECIPES
from neurona_training.recipes.recipe import Recipe
from neurona_training.recipes.settings import GRADIENT_FIELDS, NETWORK_FIELDS

if TYPE_CHECKING:
    from neurona_protos.prediction_pb2 import ModelMetadata
    from neurona_training.data.user.spec import LoadedUserData


def train_other_seeds(arguments: Arguments) -> Iterator[str]:
    """Trains an existing model from the seeds that follow its own, and keeps their figures.

    What an earlier, interrupted command has done is not done again.

    Args:
        arguments: of the model's training; `seeds` is how many there are with the model's own.

    Yields:
        A line after each training, and one with mean and standard deviation.

    Raises:
        TrainingError: data or training failed, or the model's file is of another training.
    """
    from neurona_training.baselines.estimators import fit_baselines
    from neurona_training.selection.records import RecordFile

    check_one_process("--seeds")
    path = pipeline.model_path(arguments)
    described = read_metadata(path)
    if described is None or "seed" not in described.provenance:
        raise OutputError(f"{path}: not trained by neurona-train (expected another --name)")
    training = describe_training(described.provenance)
    records = RecordFile(report_folder(arguments) / SEEDS_FILE)
    recipe, loaded, baselines = RECIPES[arguments.recipe], None, None
    for seed in range(arguments.seed, arguments.seed + arguments.seeds):
        if str(seed) == described.provenance["seed"]:
            continue
        checkpoint = path.parents[1] / f"checkpoint-seed-{seed}.pt"
        if records.find(str(seed), training) is None:
            if loaded is None:
                loaded = pipeline.load_data(recipe, arguments)
                expected = _expected_training(recipe, arguments, loaded, described.provenance)
                _check_same(path, expected, training)  # before hours of training
            # Once for all: they have the same rows, and the seed draws hardly anything in them.
            baselines = baselines or fit_baselines(loaded.training_view, arguments.seed)
            started = time.monotonic()
            this_seed = dataclasses.replace(arguments, seed=seed)
            trained = pipeline.train(recipe, this_seed, loaded, checkpoint, baselines)
            if trained is None:
                return
            _check_same(path, describe_training(trained.metadata.provenance), training)
            figures = {
                name: value
                for name, value in trained.metadata.figures.items()
                if math.isfinite(value)
            }
            seconds = round(time.monotonic() - started, 1)
            records.add(str(seed), training, {"figures": figures, "seconds": seconds})
            unit = error_unit(described)
            yield f"{arguments.name}, seed {seed}: {format_test_metrics([figures], unit)}"
        checkpoint.unlink(missing_ok=True)
    yield _summarise(arguments, path, described)


def _expected_training(
    recipe: Recipe, arguments: Arguments, loaded: LoadedUserData, provenance: Mapping[str, str]
) -> str:
    """Describes the training that is asked for, as far as it is known before it has run.

    provenance: of the model, from which the rest is taken.
    """
    from neurona_training.data.digest import data_digest

    settings = pipeline.choose_settings(recipe, arguments, loaded.training_view)
    settled_entries = {
        "recipe": recipe.name,
        **recipe.describe_settings(settings),
        "data_sha256": data_digest(loaded.caller_view),
    }
    rest = {
        key: value
        for key, value in provenance.items()
        if key not in (*GRADIENT_FIELDS, *NETWORK_FIELDS)
    }
    return describe_training({**rest, **settled_entries})


def _check_same(path: Path, expected: str, training: str) -> None:
    """Checks that the model's file is of the training whose seeds are asked for.

    Raises:
        OutputError: it is of another one.
    """
    if expected != training:
        raise OutputError(
            f"{path} is of another training: {training} (expected {expected}; remove the file to "
            "train it anew)"
        )


def _summarise(arguments: Arguments, path: Path, described: ModelMetadata) -> str:
    runs = figures_by_seed(path, described)
    unit = error_unit(described)
    tested = format_test_metrics([run.figures for run in runs], unit)
    line = f"{arguments.name}: {tested} over {len(runs)} seeds"
    best = best_baseline([run.figures for run in runs], unit)
    return f"{line}; {best} on the same rows" if best else line
