"""What trained models reached, read from their files and from the figures of their other seeds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from neurona_training.baselines import TITLES
from neurona_training.errors import OutputError
from neurona_training.recipes.settings import GRADIENT_FIELDS, NETWORK_FIELDS

if TYPE_CHECKING:
    from neurona_protos.prediction_pb2 import ModelMetadata

SEEDS_FILE = "seeds.json"
# Entries of the provenance that all seeds of a training share.
_SHARED_ENTRIES = (
    "recipe",
    "data_sha256",
    *GRADIENT_FIELDS,
    *NETWORK_FIELDS,
    "initial_weights",
    "parameters",
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


def figures_by_seed(path: Path, described: ModelMetadata) -> list[SeedFigures]:
    """Returns the figures of a model and of its other seeds.

    Args:
        path: of model.onnx.
        described: its metadata.
    """
    from neurona_training.selection.records import read_records

    own = int(described.provenance.get("seed", "0"))
    training = describe_training(described.provenance)
    others = read_records(path.parents[1] / "report" / SEEDS_FILE)
    return [
        SeedFigures(own, described.figures),
        *(
            SeedFigures(int(seed), record["figures"], record["seconds"])
            for seed, record in others.items()
            if record["fingerprint"] == training and int(seed) != own
        ),
    ]


def format_test_metrics(figures: Sequence[Mapping[str, float]], unit: str) -> str:
    """Formats the metrics of the test rows, each with its mean and deviation over the seeds."""
    from neurona_training.learning.evaluation import TEST_METRICS
    from neurona_training.selection.summary import format_summary, summarise

    return ", ".join(
        format_summary(name, summarise(one[name] for one in figures), unit)
        for name in TEST_METRICS
        if all(name in one for one in figures)
    )


def best_baseline(figures: Sequence[Mapping[str, float]], unit: str) -> str:
    """Names the baseline that is best on the test rows, with its metric; empty without any.

    The best is the hardest yardstick: nothing is trained by this choice.
    """
    from neurona_training.learning.evaluation import format_metric
    from neurona_training.selection.summary import higher_is_better, summarise

    metric = "accuracy" if "test_accuracy" in figures[0] else "rmse"
    means = {
        name: summarise(one[f"{name}_{metric}"] for one in figures).mean
        for name in TITLES
        if all(f"{name}_{metric}" in one for one in figures)
    }
    if not means:
        return ""
    choose = max if higher_is_better(metric) else min
    best = choose(means, key=lambda name: means[name])
    return f"{TITLES[best]}, {format_metric(metric, means[best], unit)}"


def error_unit(described: ModelMetadata) -> str:
    """The unit of a regression's errors; see `Dataset.error_unit`."""
    from neurona_training.data import STANDARD_DEVIATIONS

    values = [value for value in described.values if not value.quantile]
    if len(values) > 1 and not described.inputs[0].window:
        return STANDARD_DEVIATIONS
    return values[0].unit if values else ""


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
