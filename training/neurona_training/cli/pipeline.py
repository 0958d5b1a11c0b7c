"""The pipeline of one model: train, measure, export, report."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from neurona_training.data.catalogue import DataOptions
from neurona_training.data.user.spec import LoadedUserData, UserData
from neurona_training.errors import ExportError
from neurona_training.export.files import write_file
from neurona_training.learning.run import Hyperparameters, Run
from neurona_training.recipes.recipe import Recipe

if TYPE_CHECKING:  # the command line is parsed without torch
    from torch import nn

    from neurona_protos.prediction_pb2 import ModelMetadata
    from neurona_training.data import Dataset
    from neurona_training.report.results import RunResults

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
        epochs, batch_rows, learning_rate: None keeps the recipe's.
        seed: of weights, order, augmentation and dropout.
        resume: continue from the checkpoint if it exists.
        variants: smaller files to write too, "float16" or "int8".
        report: whether to write the page about the model.
    """

    recipe: str
    data: str
    user_data: UserData | None
    options: DataOptions
    out: Path
    name: str
    epochs: int | None
    batch_rows: int | None
    learning_rate: float | None
    seed: int
    resume: bool
    variants: tuple[str, ...]
    report: bool


def model_path(arguments: Arguments) -> Path:
    """Where the model's file is written."""
    return arguments.out / arguments.name / str(VERSION) / "model.onnx"


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
    import torch  # takes seconds, for which --help and --list need not wait

    from neurona_training.architectures.recurrent import LastState
    from neurona_training.export.metadata import describe_scaling, model_metadata
    from neurona_training.export.onnx_export import OPSET, export
    from neurona_training.export.stepwise import STEP_FILE, export_stepwise
    from neurona_training.learning import devices
    from neurona_training.learning.evaluation import evaluate
    from neurona_training.learning.progress_bar import status_line

    started = time.monotonic()
    loaded = _load_data(recipe, arguments)
    data = loaded.caller_view
    hyperparameters = _choose_hyperparameters(recipe, arguments, data)
    torch.set_num_threads(hyperparameters.threads)
    with devices.process_group():
        resume = arguments.resume or devices.was_restarted()
        this_run = Run(arguments.name, arguments.seed, checkpoint, resume)
        result = recipe.fit(loaded.training_view, hyperparameters, this_run)
        if devices.process_rank() > 0:
            return []
    network = _take_caller_view(result.network, loaded)
    metrics = evaluate(network, data)
    parameters = sum(parameter.numel() for parameter in network.parameters())
    provenance = {
        "recipe": recipe.name,
        "seed": arguments.seed,
        "epochs": hyperparameters.epochs,
        "batch_rows": hyperparameters.batch_rows,
        "learning_rate": hyperparameters.learning_rate,
        "best_epoch": result.best_epoch,
        "parameters": parameters,
        "scaling": describe_scaling(network),
        "opset": OPSET,
    }
    described = model_metadata(
        data, f"{recipe.description}, trained on: {data.source}", metrics, provenance
    )
    status_line(f"{arguments.name}: exporting, and comparing ONNX Runtime with torch")
    model = export(network, data, described)
    write_file(model, path)
    if isinstance(network, LastState):
        write_file(export_stepwise(model, data), path.with_name(STEP_FILE))
    else:
        path.with_name(STEP_FILE).unlink(missing_ok=True)  # of an earlier network
    checkpoint.unlink(missing_ok=True)
    seconds = time.monotonic() - started
    lines = [
        f"{arguments.name}: {_format_metrics(metrics, data)}; {parameters:,} parameters, "
        f"{seconds:.0f} s",
        f"{path}: ONNX opset {OPSET}, {len(model):,} bytes, ONNX Runtime agrees with torch",
    ]
    files = {"float32": (len(model), described)}
    errors: list[ExportError] = []
    for variant in arguments.variants:
        try:
            lines.append(_write_variant(variant, model, data, arguments, files))
        except ExportError as error:
            errors.append(error)
    if arguments.report:
        from neurona_training.report.results import RunResults

        status_line(f"{arguments.name}: drawing the report")
        results = RunResults(
            name=arguments.name,
            network=network,
            data=data,
            fit_result=result,
            hyperparameters=hyperparameters,
            metadata=described,
            files=files,
            seconds=seconds,
        )
        lines.append(_write_report(results, path.parents[1] / "report" / "report.html"))
    if errors:  # raised last, when all other files have been written
        print("\n".join(lines))
        raise errors[0]
    return lines


def _load_data(recipe: Recipe, arguments: Arguments) -> LoadedUserData:
    """Loads named or own data; a named data set has one view."""
    if arguments.user_data is None:
        data = recipe.load(arguments.data, arguments.options)
        return LoadedUserData(data, data)
    from neurona_training.data.user.load import load_user_data

    loaded = load_user_data(arguments.user_data)
    recipe.check(loaded.training_view)
    return loaded


def _take_caller_view(network: nn.Module, loaded: LoadedUserData) -> nn.Module:
    """Puts the encoding of a table's columns before the network, if they need one."""
    if loaded.encoding is None:
        return network
    from neurona_training.architectures.columns import EncodedColumns

    return EncodedColumns(network, loaded.encoding)


def _choose_hyperparameters(recipe: Recipe, arguments: Arguments, data: Dataset) -> Hyperparameters:
    """The recipe's for these data, with those of the command line."""
    named = None if arguments.user_data else recipe.hyperparameters.get(data.name)
    hyperparameters = named or recipe.default_hyperparameters
    if named is None and data.kind != "images":
        # The default data may be pictures; other data have no pixels to shift and rotate.
        hyperparameters = dataclasses.replace(hyperparameters, augmentation=None)
    return dataclasses.replace(
        hyperparameters,
        epochs=arguments.epochs or hyperparameters.epochs,
        batch_rows=arguments.batch_rows or hyperparameters.batch_rows,
        learning_rate=arguments.learning_rate or hyperparameters.learning_rate,
    )


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


def _write_report(results: RunResults, path: Path) -> str:
    from neurona_training.report.page import render_page

    write_file(render_page(results).encode(), path)
    return f"{path}: report with charts"


def _format_metrics(metrics: Mapping[str, float], data: Dataset) -> str:
    from neurona_training.learning.evaluation import format_metric

    unit = data.values[0].unit if data.values else ""
    texts = []
    for name, value in metrics.items():
        if name.endswith("rows"):
            texts.append(f"{name.replace('_', ' ')} {value:,.0f}")
        else:
            prefix = "test " if name.startswith("test_") else ""
            texts.append(prefix + format_metric(name, value, unit))
    return ", ".join(texts)
