"""The pipeline of one model, stage by stage.

load -> settings -> fit -> calibrate -> measure -> export -> variants -> baseline -> report

It is one file, so that the stages are read in their order.
"""

from __future__ import annotations

import dataclasses
import os
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from neurona_training.data.catalogue import DataOptions
from neurona_training.data.user.spec import LoadedUserData, UserData
from neurona_training.errors import ExportError, OptionError
from neurona_training.export.files import write_file
from neurona_training.learning.run import Epoch, FitResult, InitialWeights, Run
from neurona_training.recipes.recipe import Recipe
from neurona_training.recipes.settings import Changes, Settings
from neurona_training.tracking.tracker import Tracker, open_tracker

if TYPE_CHECKING:  # the command line is parsed without torch
    from torch import nn

    from neurona_protos.prediction_pb2 import ModelMetadata
    from neurona_training.baselines.comparison import Comparison
    from neurona_training.baselines.estimators import Baseline
    from neurona_training.data import Dataset
    from neurona_training.learning.populations import Populations

_SERIES_INTERVAL = 90.0  # per cent

VERSION = 1  # the folder below the model's name


@dataclass(frozen=True)
class Arguments:
    """What is trained, and what is written about it.

    Args:
        recipe: name of the recipe.
        data: name of the data set, unless `user_data` is given.
        user_data: the user's own data.
        options: folder of published files, and size of images.
        out: the model repository.
        name: of the model in it.
        changes: settings of the user's choice, by field.
        seed: of weights, order, augmentation and dropout.
        resume: continue from the checkpoint if it exists.
        variants: smaller files to write too, "float16" or "int8".
        baseline: the one to write as a model of its own: its name, "best" or "" for none.
        report: whether to write the page about the model.
        interval: percentage of the prediction intervals of a regression, 0 for none; None adds
            them to the forecast of a series.
        log: services to which the training is logged, names of `tracking.tracker.BACKENDS`.
        initial_weights: that the training starts from; None starts from random ones.
        seeds: from how many seeds it is trained, `seed` the first.
        trials: of a search for settings before the training; 0 searches none.
        folds: of the cross-validation in this search; None takes the validation rows.
        origin: how recipe or settings were chosen, for the provenance.
    """

    recipe: str
    data: str
    user_data: UserData | None
    options: DataOptions
    out: Path
    name: str
    changes: Changes
    seed: int
    resume: bool
    variants: tuple[str, ...]
    baseline: str
    report: bool
    interval: float | None = None
    log: tuple[str, ...] = ()
    initial_weights: InitialWeights | None = None
    seeds: int = 1
    trials: int = 0
    folds: int | None = None
    origin: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class TrainedModel:
    """What the stages after training work on.

    Args:
        network: takes what a caller sends.
        data: in the caller's view.
        settings: with which it was trained.
        fit_result: the epochs, and the network in the training's view.
        baselines: rules and estimators on the same rows, in the training's view.
        comparison: of the network with them.
        metrics: of the network and the baselines, by name.
        metadata: what the model's file says about it.
        populations: how validation and test rows compare.
    """

    network: nn.Module
    data: Dataset
    settings: Settings
    fit_result: FitResult
    baselines: tuple[Baseline, ...]
    comparison: Comparison
    metrics: Mapping[str, float]
    metadata: ModelMetadata
    populations: Populations


def model_path(arguments: Arguments) -> Path:
    """Where the model's file is written."""
    return arguments.out / arguments.name / str(VERSION) / "model.onnx"


def checkpoint_path(path: Path) -> Path:
    """Where an interrupted training of model.onnx continues from; no file once all is written."""
    return path.parents[1] / "checkpoint.pt"


def run(recipe: Recipe, arguments: Arguments, path: Path, checkpoint: Path) -> list[str]:
    """Trains a model, measures it and writes its files.

    In torchrun's other processes: takes part in the training, and returns no lines.

    Args:
        recipe: what is trained.
        arguments: of the command line.
        path: of model.onnx.
        checkpoint: from which an interrupted training resumes; deleted at the end.

    Returns:
        Lines for the person who started the run.

    Raises:
        TrainingError: data, training, export or output failed.
        OSError: a file cannot be read.
    """
    started = time.monotonic()
    loaded = load_data(recipe, arguments)
    check_baseline(arguments, loaded.training_view)
    with track(recipe, arguments, loaded) as tracker:
        return _run_stages(recipe, arguments, loaded, path, checkpoint, tracker, started)


def _run_stages(
    recipe: Recipe,
    arguments: Arguments,
    loaded: LoadedUserData,
    path: Path,
    checkpoint: Path,
    tracker: Tracker,
    started: float,
) -> list[str]:
    trained = train(recipe, arguments, loaded, checkpoint, listeners=(tracker.log_epoch,))
    if trained is None:
        return []
    model = export_model(arguments, trained, path)
    write_weights(recipe, loaded, trained.fit_result, path)
    seconds = time.monotonic() - started
    lines = _summary(arguments, trained, model, path, seconds)
    files = {"float32": (len(model), trained.metadata)}
    variant_lines, errors = write_variants(arguments, trained, model, files)
    lines += variant_lines
    if arguments.baseline:
        try:
            lines.append(write_baseline(arguments, trained, loaded))
        except ExportError as error:
            errors.append(error)
    if arguments.report:
        lines.append(write_report(arguments, trained, model, files, seconds, path))
    logged_files = [path, *([report_path(path)] if arguments.report else [])]
    result = trained.fit_result
    tracker.log_results(result.history, trained.metrics, logged_files, result.best_epoch)
    checkpoint.unlink(missing_ok=True)  # last, so that a kill before leaves little to do again
    if errors:  # raised last, when all other files have been written
        print("\n".join(lines))
        raise errors[0]
    return lines


def report_path(path: Path) -> Path:
    """Where the page about the model is written, of which this is model.onnx."""
    return path.parents[1] / "report" / "report.html"


def track(
    recipe: Recipe, arguments: Arguments, loaded: LoadedUserData
) -> AbstractContextManager[Tracker]:
    """Opens a run in each service of `arguments.log`; in torchrun's first process only."""
    is_first = os.environ.get("RANK", "0") == "0"
    settings = choose_settings(recipe, arguments, loaded.training_view)
    parameters = {
        "recipe": recipe.name,
        "data": loaded.training_view.name,
        "seed": arguments.seed,
        **dataclasses.asdict(settings.hyperparameters),
        "network": dataclasses.asdict(settings.network),
    }
    return open_tracker(
        arguments.log if is_first else (),
        arguments.name,
        arguments.out / arguments.name,
        parameters,
        is_classification=loaded.training_view.is_classification,
    )


def train(
    recipe: Recipe,
    arguments: Arguments,
    loaded: LoadedUserData,
    checkpoint: Path,
    baselines: tuple[Baseline, ...] | None = None,
    listeners: tuple[Callable[[Epoch], None], ...] = (),
) -> TrainedModel | None:
    """Trains a network and measures it, without writing its files.

    Args:
        recipe: what is trained.
        arguments: of the command line.
        loaded: the data.
        checkpoint: from which an interrupted training resumes; it stays at the end.
        baselines: of these data, where they have been fitted already.
        listeners: of `Run`.

    Returns:
        None in all processes of torchrun but the first.
    """
    settings = choose_settings(recipe, arguments, loaded.training_view)
    result = fit_network(recipe, arguments, loaded, settings, checkpoint, listeners)
    if result is None:
        return None
    network = calibrate(arguments, result.network, loaded)
    return measure(recipe, arguments, network, loaded, settings, result, baselines)


def load_data(recipe: Recipe, arguments: Arguments) -> LoadedUserData:
    """Loads named or own data; a named data set has one view."""
    if arguments.user_data is None:
        data = recipe.load(arguments.data, arguments.options)
        return LoadedUserData(data, data)
    from neurona_training.data.user.load import load_user_data

    loaded = load_user_data(arguments.user_data)
    recipe.check(loaded.training_view)
    if os.environ.get("RANK", "0") == "0":  # of torchrun, whose other processes say nothing
        for note in loaded.notes:
            print(note, file=sys.stderr)
    return loaded


def check_baseline(arguments: Arguments, data: Dataset) -> None:
    """Checks before the training that the data have the baseline that is to be written.

    Raises:
        OptionError: with those that they have.
        ExportError: a package is not installed.
    """
    if not arguments.baseline:
        return
    from neurona_training.baselines.estimators import baseline_names
    from neurona_training.export.estimators import require_converter

    require_converter()
    if arguments.baseline == "best":
        return

    names = baseline_names(data)
    if arguments.baseline not in names:
        raise OptionError(
            f"data set {data.name!r} has no baseline {arguments.baseline!r} "
            f"(available: {', '.join(names)})"
        )


def choose_settings(recipe: Recipe, arguments: Arguments, data: Dataset) -> Settings:
    """Returns the recipe's settings for these data, with the user's changes."""
    recipe.check_changes(arguments.changes, data)
    catalogue_name = None if arguments.user_data else arguments.data
    return recipe.settings(data, catalogue_name).with_changes(arguments.changes)


def fit_network(
    recipe: Recipe,
    arguments: Arguments,
    loaded: LoadedUserData,
    settings: Settings,
    checkpoint: Path,
    listeners: tuple[Callable[[Epoch], None], ...] = (),
) -> FitResult | None:
    """Trains the network; None in all processes of torchrun but the first."""
    import torch  # takes seconds, for which --help and --list need not wait

    import neurona_training.export.parity  # noqa: F401 - what it lacks shows before hours of work
    from neurona_training.learning import devices

    torch.set_num_threads(settings.hyperparameters.threads)
    with devices.process_group():
        resume = arguments.resume or devices.was_restarted()
        this_run = Run(
            arguments.name,
            arguments.seed,
            checkpoint,
            resume,
            listeners=listeners,
            initial_weights=arguments.initial_weights,
        )
        result = recipe.fit(loaded.training_view, settings, this_run)
        return result if devices.process_rank() == 0 else None


def calibrate(arguments: Arguments, network: nn.Module, loaded: LoadedUserData) -> nn.Module:
    """Returns the network that takes what a caller sends, with probabilities or intervals.

    A classification gives calibrated logits, a regression with intervals their bounds too.
    """
    from neurona_training.learning import calibration
    from neurona_training.learning.intervals import add_intervals

    network, data = _take_caller_view(network, loaded), loaded.caller_view
    level = _interval_level(arguments, data)
    return add_intervals(network, data, level) if level else calibration.calibrate(network, data)[0]


def _interval_level(arguments: Arguments, data: Dataset) -> float:
    """The probability of the intervals, 0..1; 0 for none."""
    if data.is_classification:
        return 0.0
    percentage = arguments.interval
    if percentage is None:
        percentage = _SERIES_INTERVAL if data.input.window else 0.0
    return percentage / 100


def measure(
    recipe: Recipe,
    arguments: Arguments,
    network: nn.Module,
    loaded: LoadedUserData,
    settings: Settings,
    result: FitResult,
    baselines: tuple[Baseline, ...] | None = None,
) -> TrainedModel:
    """Measures the network and the baselines on the test rows, and describes the network.

    Baselines that are given have been fitted to the same data.
    """
    from neurona_training.baselines.comparison import compare
    from neurona_training.baselines.estimators import baseline_figures, fit_baselines
    from neurona_training.data.digest import data_digest
    from neurona_training.export.metadata import describe_scaling, model_metadata
    from neurona_training.export.onnx_export import OPSET
    from neurona_training.learning.calibration import find_temperature
    from neurona_training.learning.evaluation import evaluate, predict, softmax
    from neurona_training.learning.intervals import interval_bounds
    from neurona_training.learning.populations import compare_populations
    from neurona_training.learning.progress_bar import status_line

    data = loaded.caller_view
    provenance = {
        "recipe": recipe.name,
        "seed": arguments.seed,
        **recipe.describe_settings(settings),
        "best_epoch": result.best_epoch,
        "parameters": sum(parameter.numel() for parameter in network.parameters()),
        "scaling": describe_scaling(network),
        "opset": OPSET,
        "data_sha256": data_digest(data),
        **_origin(arguments.user_data),
        **({"reading": "; ".join(loaded.notes)} if loaded.notes else {}),
        **arguments.origin,
    }
    if arguments.initial_weights:
        from neurona_training.learning.initial_weights import describe_weights

        fresh = ", ".join(result.fresh_layers) or "none"
        weights = describe_weights(arguments.initial_weights)
        provenance["initial_weights"] = f"{weights}; fresh layers: {fresh}"
    metrics = evaluate(network, data)
    level = _interval_level(arguments, data)
    if data.is_classification:
        metrics["temperature"] = find_temperature(network)
    populations = compare_populations(network, data)
    if populations.tests:
        metrics["population_p_value"] = populations.p_value
    if baselines is None:
        status_line(f"{arguments.name}: fitting baselines")
        baselines = fit_baselines(loaded.training_view, arguments.seed)
    outputs = predict(network, data.test).numpy()
    # Bounds of intervals may follow the values.
    predictions = softmax(outputs) if data.is_classification else outputs[:, : len(data.values)]
    comparison = compare(predictions, data, baselines)
    metrics |= baseline_figures(baselines)
    described = model_metadata(
        data,
        f"{recipe.description}, trained on: {data.source}",
        metrics,
        provenance,
        interval_bounds(data, level) if level else (),
    )
    return TrainedModel(
        network=network,
        data=data,
        settings=settings,
        fit_result=result,
        baselines=baselines,
        comparison=comparison,
        metrics=metrics,
        metadata=described,
        populations=populations,
    )


def _origin(user_data: UserData | None) -> dict[str, str]:
    """The seed by which own rows were divided, and the date of the data.

    The date is SOURCE_DATE_EPOCH or that of the newest of the user's files, never the clock's,
    so that the same data give the same file.
    """
    from neurona_training.data.splits import USER_SEED

    entries = {}
    if user_data is not None and user_data.series is None and user_data.time is None:
        entries["split_seed"] = str(USER_SEED)  # what is divided by time has none
    seconds = os.environ.get("SOURCE_DATE_EPOCH", "")
    if seconds.isdecimal():
        newest = float(seconds)
    elif user_data is not None:
        own_files = (user_data.path, user_data.validation, user_data.test)
        files = [path for one in own_files if one for path in (one, *one.rglob("*"))]
        newest = max(path.stat().st_mtime for path in files if path.exists())
    else:
        return entries
    return {**entries, "date": datetime.fromtimestamp(newest, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")}


def export_model(arguments: Arguments, trained: TrainedModel, path: Path) -> bytes:
    """Writes model.onnx, and step.onnx for a recurrent network; returns the former."""
    from neurona_training.export.onnx_export import export_trained_network
    from neurona_training.export.stepwise import STEP_FILE, export_stepwise, has_stepwise_form
    from neurona_training.learning.progress_bar import status_line

    status_line(f"{arguments.name}: exporting, and comparing ONNX Runtime with torch")
    model = export_trained_network(trained.network, trained.data, trained.metadata)
    write_file(model, path)
    step_path = path.with_name(STEP_FILE)
    if has_stepwise_form(trained.network):
        write_file(export_stepwise(model, trained.data), step_path)
    else:
        step_path.unlink(missing_ok=True)  # of an earlier network
    return model


def write_weights(recipe: Recipe, loaded: LoadedUserData, result: FitResult, path: Path) -> None:
    """Writes the weights that another training can start from (`--from`)."""
    from neurona_training.learning.initial_weights import WEIGHTS_FILE, weights_file

    content = weights_file(result.network, recipe.name, loaded.training_view)
    write_file(content, path.parents[1] / "report" / WEIGHTS_FILE)


def write_variants(
    arguments: Arguments,
    trained: TrainedModel,
    model: bytes,
    files: dict[str, tuple[int, ModelMetadata]],
) -> tuple[list[str], list[ExportError]]:
    """Writes the smaller files and adds them to `files`; returns lines about them, and errors."""
    lines: list[str] = []
    errors: list[ExportError] = []
    for variant in arguments.variants:
        try:
            lines.append(_write_variant(variant, model, trained.data, arguments, files))
        except ExportError as error:
            errors.append(error)
    return lines, errors


def write_baseline(arguments: Arguments, trained: TrainedModel, loaded: LoadedUserData) -> str:
    """Writes a baseline as a model that is called as the network is; returns a line about it."""
    from neurona_training.baselines.estimators import choose_best
    from neurona_training.export.estimators import export_baseline
    from neurona_training.export.metadata import model_metadata
    from neurona_training.export.onnx_export import OPSET
    from neurona_training.learning.intervals import interval_bounds
    from neurona_training.learning.progress_bar import status_line

    by_name = {baseline.name: baseline for baseline in trained.baselines}
    if arguments.baseline == "best":
        baseline = choose_best(trained.baselines)
    else:
        baseline = by_name[arguments.baseline]
    name = f"{arguments.name}-{baseline.name.replace('_', '-')}"
    status_line(f"{name}: exporting, and comparing ONNX Runtime with scikit-learn")
    data = trained.data
    level = _interval_level(arguments, data)
    provenance = {
        "baseline": baseline.name,
        "setting": baseline.note,
        "beside": arguments.name,
        "seed": arguments.seed,
        "opset": OPSET,
        **{
            key: trained.metadata.provenance[key]
            for key in ("data_sha256", "split_seed", "date", "reading")
            if key in trained.metadata.provenance
        },
    }
    figures = {f"validation_{key}": value for key, value in baseline.validation_metrics.items()}
    content, described = export_baseline(
        baseline.model.in_view(lambda module: _take_caller_view(module, loaded)),
        data,
        model_metadata(
            data,
            f"{baseline.title}, fitted on: {data.source}",
            figures,
            provenance,
            interval_bounds(data, level) if level else (),
        ),
        level,
    )
    path = model_path(dataclasses.replace(arguments, name=name))
    write_file(content, path)
    metrics = {key: value for key, value in described.figures.items() if key.startswith("test_")}
    return f"{path}: {baseline.title}, {len(content):,} bytes, {_format_metrics(metrics, data)}"


def write_report(
    arguments: Arguments,
    trained: TrainedModel,
    model: bytes,
    files: Mapping[str, tuple[int, ModelMetadata]],
    seconds: float,
    path: Path,
) -> str:
    """Writes the page about the model; returns a line about it."""
    from neurona_training.learning.progress_bar import status_line
    from neurona_training.report.page import render_page
    from neurona_training.report.results import RunResults

    status_line(f"{arguments.name}: drawing the report")
    results = RunResults(
        name=arguments.name,
        network=trained.network,
        data=trained.data,
        fit_result=trained.fit_result,
        hyperparameters=trained.settings.hyperparameters,
        baselines=trained.baselines,
        comparison=trained.comparison,
        metadata=trained.metadata,
        files=files,
        seconds=seconds,
        populations=trained.populations,
        model=model,
    )
    page = report_path(path)
    write_file(render_page(results).encode(), page)
    return f"{page}: report with charts"


def _summary(
    arguments: Arguments, trained: TrainedModel, model: bytes, path: Path, seconds: float
) -> list[str]:
    from neurona_training.learning.intervals import rows_needed

    provenance = trained.metadata.provenance
    metrics = _format_metrics(trained.metrics, trained.data)
    lines = [
        f"{arguments.name}: {metrics}; {int(provenance['parameters']):,} parameters, "
        f"{seconds:.0f} s",
        f"{path}: ONNX opset {provenance['opset']}, {len(model):,} bytes, ONNX Runtime agrees "
        "with torch",
        trained.comparison.sentence,
    ]
    if trained.populations.differ:
        lines.append(trained.populations.summary)
    level, rows = _interval_level(arguments, trained.data), len(trained.data.validation)
    if level and rows < (needed := rows_needed(level)):
        lines.append(
            f"intervals of {100 * level:g} % are of the largest error of {rows} validation rows, "
            f"which is too small (expected at least {needed} rows)"
        )
    return lines


def _take_caller_view(network: nn.Module, loaded: LoadedUserData) -> nn.Module:
    """Puts the encoding of a table's columns before the network, if they need one."""
    if loaded.encoding is None:
        return network
    from neurona_training.architectures.columns import EncodedColumns

    return EncodedColumns(network, loaded.encoding)


def _write_variant(
    variant: str,
    model: bytes,
    data: Dataset,
    arguments: Arguments,
    files: dict[str, tuple[int, ModelMetadata]],
) -> str:
    """Writes one variant beside the model and adds it to `files`; returns a line about it."""
    from neurona_training.export.quantization import make_variant
    from neurona_training.learning.evaluation import TEST_METRICS

    smaller, described = make_variant(variant, model, data)
    path = model_path(dataclasses.replace(arguments, name=f"{arguments.name}-{variant}"))
    write_file(smaller, path)
    files[variant] = (len(smaller), described)
    metrics = {name: described.figures[name] for name in TEST_METRICS if name in described.figures}
    return f"{path}: {variant}, {len(smaller):,} bytes, {_format_metrics(metrics, data)}"


def _format_metrics(metrics: Mapping[str, float], data: Dataset) -> str:
    from neurona_training.learning.evaluation import format_metric

    unit = data.error_unit
    texts = []
    for name, value in metrics.items():
        if name in ("temperature", "population_p_value"):
            continue  # the report explains them
        if name.endswith("rows"):
            texts.append(f"{name.replace('_', ' ')} {value:,.0f}")
        else:
            prefix = "test " if name.startswith("test_") else ""
            texts.append(prefix + format_metric(name, value, unit))
    return ", ".join(texts)
