"""Recipes compared on the validation rows, each with several seeds or folds.

    plan = Plan(seeds=(0, 1, 2), folds=5)
    comparison = compare(candidates, data, plan, RecordFile(path))
    comparison.standings[0].name        # the best
    comparison.verdict()                # in words

The test rows are not looked at here: who chooses by them has none left that could say how good
the choice is.
"""

from __future__ import annotations

import dataclasses
import hashlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from neurona_training.data import Dataset
from neurona_training.data.digest import data_digest
from neurona_training.errors import DataError, FitError
from neurona_training.learning.calibration import choose_temperature
from neurona_training.learning.evaluation import (
    accuracy,
    auc,
    balanced_accuracy,
    format_metric,
    negative_log_likelihood,
    predict,
    rmse,
    softmax,
)
from neurona_training.learning.initial_weights import describe_weights
from neurona_training.learning.run import InitialWeights, Run
from neurona_training.recipes.recipe import Recipe
from neurona_training.recipes.settings import Settings
from neurona_training.selection.folds import cross_validation
from neurona_training.selection.records import Record, RecordFile
from neurona_training.selection.summary import (
    Summary,
    format_summary,
    higher_is_better,
    summarise,
)

CLASSIFICATION_METRICS = ("accuracy", "balanced_accuracy", "auc", "nll")
REGRESSION_METRICS = ("rmse",)
_CHECKPOINTS = "comparison-*.pt"


@dataclass(frozen=True)
class Candidate:
    """A recipe with the settings and first weights with which it competes."""

    recipe: Recipe
    settings: Settings
    initial_weights: InitialWeights | None = None


@dataclass(frozen=True)
class Plan:
    """How often each candidate is trained, and by what it is judged.

    Args:
        seeds: of weights and order; at least one.
        folds: of the cross-validation; None takes the data set's own validation rows.
        metric: of the validation rows; None: accuracy, or RMSE.
    """

    seeds: tuple[int, ...] = (0,)
    folds: int | None = None
    metric: str | None = None

    def metric_for(self, data: Dataset) -> str:
        """The metric by which candidates for these data are ranked."""
        return self.metric or metrics_for(data)[0]


@dataclass(frozen=True)
class Standing:
    """What a candidate reached.

    Args:
        name: of the recipe or the baseline.
        title: for readers.
        is_network: whether it is a recipe.
        metrics: of the validation rows, one mapping for each training.
        parameters: of the network; 0 of a baseline.
        seconds: of one training, on average.
        failure: why a training failed; then the candidate has no rank.
    """

    name: str
    title: str
    is_network: bool
    metrics: tuple[Mapping[str, float], ...]
    parameters: int = 0
    seconds: float = 0.0
    failure: str = ""

    def values(self, metric: str) -> list[float]:
        """The metric of each training."""
        return [one[metric] for one in self.metrics]

    def summary(self, metric: str) -> Summary:
        """Mean and standard deviation of the metric over the trainings."""
        return summarise(self.values(metric))


@dataclass(frozen=True)
class RecipeComparison:
    """Candidates, the best first.

    Args:
        data_name: of the data set.
        metric: by which they are ranked.
        unit: of the metric.
        standings: ranked; those that failed are last.
        plan: seeds and folds.
    """

    data_name: str
    metric: str
    unit: str
    standings: tuple[Standing, ...]
    plan: Plan

    @property
    def best_network(self) -> Standing:
        """The best recipe; a baseline may be before it."""
        return next(one for one in self.standings if one.is_network and not one.failure)

    def verdict(self) -> str:
        """Says in words who is best, and who may be as good.

        Two candidates are called indistinguishable if their means differ by no more than the
        larger of their standard deviations.
        """
        best, *others = [standing for standing in self.standings if not standing.failure]
        top = best.summary(self.metric)
        text = f"best on validation: {best.title}, {self.format(top)}"
        close = []
        for standing in others:
            summary = standing.summary(self.metric)
            spreads = [one.deviation for one in (top, summary) if one.deviation is not None]
            if abs(summary.mean - top.mean) <= max(spreads, default=0.0):
                close.append(standing.title)
        if close:
            text += (
                f"; within one standard deviation of it: {', '.join(close)} "
                "(the difference may be chance)"
            )
        elif others and all(one.summary(self.metric).count == 1 for one in (best, *others)):
            text += "; one training each, which cannot tell a difference from chance (--seeds 5)"
        return text

    def format(self, summary: Summary) -> str:
        """Formats a summary of the metric."""
        return format_summary(self.metric, summary, self.unit)


def metrics_for(data: Dataset) -> tuple[str, ...]:
    """The metrics by which candidates can be ranked, the default first."""
    return CLASSIFICATION_METRICS if data.is_classification else REGRESSION_METRICS


def compare(
    candidates: Sequence[Candidate],
    data: Dataset,
    plan: Plan,
    records: RecordFile,
    *,
    checkpoints: Path | None = None,
    with_baselines: bool = True,
    report: Callable[[str], None] = lambda _: None,
) -> RecipeComparison:
    """Trains every candidate with every seed on every fold, and ranks them.

    Args:
        candidates: at least one; their recipes take the data.
        data: training and validation rows are used.
        plan: seeds, folds and metric.
        records: has the results of an earlier, interrupted comparison and gets the new ones.
        checkpoints: a folder for checkpoints of the training in progress, from which it
            resumes; None keeps none.
        with_baselines: whether scikit-learn's baselines compete too.
        report: gets a line about each training.

    Raises:
        DataError: too few rows for the folds.
        FitError: every candidate failed.
        OutputError: the results cannot be written.
    """
    metric = plan.metric_for(data)
    standings = [
        _train_candidate(candidate, data, plan, records, checkpoints, report)
        for candidate in candidates
    ]
    ranked = [one for one in standings if not one.failure]
    if not ranked:
        raise FitError("; ".join(f"{one.name}: {one.failure}" for one in standings))
    if with_baselines:
        ranked += _fit_baselines(data, plan, records, report)
    for leftover in checkpoints.glob(_CHECKPOINTS) if checkpoints else ():
        leftover.unlink()  # of trainings with other settings, which nobody continued
    ranked.sort(key=lambda one: one.summary(metric).mean, reverse=higher_is_better(metric))
    return RecipeComparison(
        data_name=data.name,
        metric=metric,
        unit=data.error_unit,
        standings=(*ranked, *(one for one in standings if one.failure)),
        plan=plan,
    )


def validation_parts(data: Dataset, folds: int | None) -> Iterator[Dataset]:
    """Returns the data set itself, or one for each fold.

    Raises:
        DataError: too few rows for the folds.
    """
    return iter((data,)) if folds is None else cross_validation(data, folds)


def validation_metrics(outputs: NDArray[Any], data: Dataset) -> dict[str, float]:
    """Measures predictions for the validation rows.

    Args:
        outputs: probabilities of shape (rows, classes), or values of shape (rows, values).
        data: whose validation rows were predicted.

    Returns:
        Each of `metrics_for` that is defined: an AUC needs a row of every class.
    """
    targets = data.validation.targets
    if not data.is_classification:
        return {"rmse": rmse(outputs, targets, data.error_scales)}
    metrics = {
        "accuracy": accuracy(outputs, targets),
        "balanced_accuracy": balanced_accuracy(outputs, targets),
        "nll": negative_log_likelihood(outputs, targets),
    }
    if np.bincount(targets, minlength=len(data.labels)).all():
        metrics["auc"] = auc(outputs, targets)
    return metrics


def _train_candidate(
    candidate: Candidate,
    data: Dataset,
    plan: Plan,
    records: RecordFile,
    checkpoints: Path | None,
    report: Callable[[str], None],
) -> Standing:
    name, metric = candidate.recipe.name, plan.metric_for(data)
    results: list[Record] = []
    for fold, part in enumerate(validation_parts(data, plan.folds), start=1):
        fingerprint = f"{data_digest(part)}, {candidate.settings}"
        if candidate.initial_weights:
            fingerprint += f", {describe_weights(candidate.initial_weights)}"
        for seed in plan.seeds:
            title = f"{name}, seed {seed}" + (f", fold {fold}" if plan.folds else "")
            record = records.find(title, fingerprint)
            if record is None:
                try:
                    result = _train_once(candidate, part, title, seed, fingerprint, checkpoints)
                except FitError as error:
                    return Standing(name, name, True, (), failure=str(error))
                record = records.add(title, fingerprint, result)
            results.append(record)
            report(f"{title}: {_format_validation(record['metrics'], metric, data)}")
    return Standing(
        name=name,
        title=name,
        is_network=True,
        metrics=tuple(record["metrics"] for record in results),
        parameters=results[0]["parameters"],
        seconds=sum(record["seconds"] for record in results) / len(results),
    )


def _fit_baselines(
    data: Dataset, plan: Plan, records: RecordFile, report: Callable[[str], None]
) -> list[Standing]:
    """Fits scikit-learn's baselines on each fold; once, because a seed changes little in them."""
    from neurona_training.baselines.estimators import fit_baselines

    metric, seed = plan.metric_for(data), plan.seeds[0]
    results: list[Record] = []
    for fold, part in enumerate(validation_parts(data, plan.folds), start=1):
        key = "baselines" + (f", fold {fold}" if plan.folds else "")
        fingerprint = f"{data_digest(part)}, seed {seed}"
        record = records.find(key, fingerprint)
        if record is None:
            # They measure test rows too: here those are the validation rows.
            validated = dataclasses.replace(part, test=part.validation)
            result = {}
            for baseline in fit_baselines(validated, seed):
                metrics = validation_metrics(baseline.predictions, part)
                result[baseline.name] = {"title": baseline.title, "metrics": metrics}
            record = records.add(key, fingerprint, {"baselines": result})
        for baseline in record["baselines"].values():
            title = f"{baseline['title']}" + (f", fold {fold}" if plan.folds else "")
            report(f"{title}: {_format_validation(baseline['metrics'], metric, data)}")
        results.append(record["baselines"])
    return [
        Standing(
            name=name,
            title=baseline["title"],
            is_network=False,
            metrics=tuple(result[name]["metrics"] for result in results),
        )
        for name, baseline in results[0].items()
        if all(name in result for result in results)
    ]


def _format_validation(metrics: Mapping[str, float], metric: str, data: Dataset) -> str:
    if metric not in metrics:
        raise DataError(
            f"data set {data.name!r} has a class without a validation row, so that {metric} is "
            "undefined (expected another --metric)"
        )
    return f"validation {format_metric(metric, metrics[metric], data.error_unit)}"


def _train_once(
    candidate: Candidate,
    data: Dataset,
    title: str,
    seed: int,
    fingerprint: str,
    checkpoints: Path | None,
) -> dict[str, Any]:
    """Trains from one seed; returns what is recorded about it."""
    started = time.monotonic()
    checkpoint = checkpoints / _checkpoint_name(f"{title} {fingerprint}") if checkpoints else None
    torch.set_num_threads(candidate.settings.hyperparameters.threads)
    run = Run(title, seed, checkpoint, resume=True, initial_weights=candidate.initial_weights)
    result = candidate.recipe.fit(data, candidate.settings, run)
    outputs = predict(result.network, data.validation).numpy()
    metrics = validation_metrics(softmax(outputs) if data.is_classification else outputs, data)
    if data.is_classification:  # as the exported network: with a temperature, where that helps
        metrics["nll"] = _calibrated_nll(outputs, data)
    if checkpoint is not None:
        checkpoint.unlink(missing_ok=True)
    return {
        "metrics": metrics,
        "best_epoch": result.best_epoch,
        "parameters": sum(parameter.numel() for parameter in result.network.parameters()),
        "seconds": round(time.monotonic() - started, 2),
    }


def _checkpoint_name(training: str) -> str:
    """A name for each training, so that no other one finds its checkpoint."""
    digest = hashlib.sha256(training.encode()).hexdigest()[:16]
    return _CHECKPOINTS.replace("*", digest)


def _calibrated_nll(logits: NDArray[Any], data: Dataset) -> float:
    """NLL with a temperature that was fitted on other validation rows, if that is smaller."""
    calibration = choose_temperature(logits, data.validation.targets)
    return float(min(calibration.nll, calibration.cross_fitted_nll))
