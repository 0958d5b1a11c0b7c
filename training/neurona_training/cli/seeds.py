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
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from neurona_training.cli import pipeline
from neurona_training.cli.pipeline import Arguments
from neurona_training.cli.tuning import check_one_process, report_folder
from neurona_training.errors import OutputError
from neurona_training.recipes import RECIPES

if TYPE_CHECKING:
    from neurona_protos.prediction_pb2 import ModelMetadata

_FILE = "seeds.json"
# Entries of the provenance that all seeds of a training share.
_SHARED_ENTRIES = (
    *("recipe", "data_set", "data", "target", "options", "data_sha256", "split_seed"),
    *("train_rows", "validation_rows", "test_rows"),
    *("epochs", "batch_rows", "learning_rate", "parameters"),
)


@dataclass(frozen=True)
class SeedFigures:
    """What a training from one seed reached.

    Args:
        seed: of weights and order.
        figures: as the model's file has them.
        seconds: of the training; None of the model itself, whose file does not have it.
    """

    seed: int
    figures: Mapping[str, float]
    seconds: float | None = None


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
    from neurona_training.selection.records import RecordFile

    check_one_process("--seeds")
    path = pipeline.model_path(arguments)
    described = read_metadata(path)
    if described is None or "seed" not in described.provenance:
        raise OutputError(f"{path}: not trained by neurona-train (expected another --name)")
    training = describe_training(described.provenance)
    records = RecordFile(report_folder(arguments) / _FILE)
    recipe, loaded = RECIPES[arguments.recipe], None
    for seed in range(arguments.seed, arguments.seed + arguments.seeds):
        if str(seed) == described.provenance["seed"]:
            continue
        checkpoint = path.parents[1] / f"checkpoint-seed-{seed}.pt"
        if records.find(str(seed), training) is None:
            started = time.monotonic()
            loaded = loaded or pipeline.load_data(recipe, arguments)
            trained = pipeline.train(
                recipe, dataclasses.replace(arguments, seed=seed), loaded, checkpoint
            )
            if trained is None:
                return
            if describe_training(trained.metadata.provenance) != training:
                raise OutputError(
                    f"{path} is of another training: {training} (expected "
                    f"{describe_training(trained.metadata.provenance)}; remove the file to train "
                    "it anew)"
                )
            figures = {
                name: value
                for name, value in trained.metadata.figures.items()
                if math.isfinite(value)
            }
            seconds = round(time.monotonic() - started, 1)
            records.add(str(seed), training, {"figures": figures, "seconds": seconds})
            yield f"{arguments.name}, seed {seed}: ... {seconds:.0f} s"
        checkpoint.unlink(missing_ok=True)


def figures_by_seed(path: Path, described: ModelMetadata) -> list[SeedFigures]:
    """Returns the figures of a model and of its other seeds.

    Args:
        path: of model.onnx.
        described: its metadata.
    """
    from neurona_training.selection.records import read_records

    own = int(described.provenance["seed"])
    training = describe_training(described.provenance)
    others = read_records(path.parents[1] / "report" / _FILE)
    return [
        SeedFigures(own, described.figures),
        *(
            SeedFigures(int(seed), record["figures"], record["seconds"])
            for seed, record in others.items()
            if record["fingerprint"] == training and int(seed) != own
        ),
    ]


def describe_training(provenance: Mapping[str, str]) -> str:
    """Describes what all seeds of a training share, by entries of its provenance."""
    return ", ".join(f"{key} {provenance[key]}" for key in _SHARED_ENTRIES if key in provenance)


def read_metadata(path: Path) -> ModelMetadata | None:
    """Reads what a model's file says about itself; None if neurona-train did not write it.

    Raises:
        OutputError: the file cannot be read.
    """
    import onnx

    from neurona_protos import metadata

    try:
        entries = onnx.load(path, load_external_data=False).metadata_props
        text = {entry.key: entry.value for entry in entries}.get(metadata.KEY)
        return None if text is None else metadata.from_json(text)
    except Exception as error:  # protobuf's, onnx's and ours have no common class
        raise OutputError(f"cannot read {path}: {' '.join(str(error).split())}") from error
