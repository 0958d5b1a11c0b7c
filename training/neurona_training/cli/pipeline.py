"""The command `neurona-train`: a recipe by name becomes <out>/<name>/1/model.onnx.

neurona-train lenet5                          the default data set, as model `lenet5`
neurona-train lenet5 --data mnist             another one, as model `lenet5-mnist`
neurona-train lenet5 --data flowers/          own data, here a folder of images for each class
torchrun --nproc-per-node 2 -m neurona_training.cli.pipeline lenet5     in two processes
"""

from __future__ import annotations

import dataclasses
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from neurona_training.cli.arguments import Arguments, Every, Table, parse
from neurona_training.cli.tables import TESTED, listing, table, told
from neurona_training.data.user import load
from neurona_training.errors import ExportError, TrainingError
from neurona_training.export.files import check_writable, write
from neurona_training.learning.run import Run
from neurona_training.recipes import RECIPES, Recipe

if TYPE_CHECKING:
    from neurona_protos.prediction_pb2 import ModelMetadata
    from neurona_training.data import Dataset
    from neurona_training.data.user.load import Brought
    from neurona_training.recipes import Training

VERSION = 1  # the folder under the model's name


def main(argv: Sequence[str] | None = None) -> int:
    """The exit status: 0; 1 when the run failed; 2 for a wrong command line; 130 on Ctrl-C."""
    asked = parse(argv)
    if asked is None:
        return _told(listing)
    if isinstance(asked, Table):
        return _told(partial(table, asked.models))
    if isinstance(asked, Every):
        return _every(asked)
    return _told(partial(_one, asked))


def _every(asked: Every) -> int:
    """What is there is passed over, so that the command can be given again after a stop."""
    failed = []
    for place, arguments in enumerate(asked.models, start=1):
        where = f"{place}/{len(asked.models)} {arguments.name}"
        if _path(arguments).exists():
            print(f"{where}: is there already")
            continue
        print(f"{where}: {arguments.recipe} on {arguments.data}", flush=True)
        status = _told(partial(_one, arguments))
        if status == 130:
            return status
        if status:
            failed.append(arguments.name)
    return _fail(f"not trained: {', '.join(failed)}") if failed else 0


def _told(work: Callable[[], list[str]]) -> int:
    """Prints what the work gives, or the one line about what went wrong in it."""
    try:
        for line in work():
            print(line)
    except TrainingError as error:
        return _fail(str(error))
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        return _fail(f"{where}{error.strerror or error}")
    except KeyboardInterrupt:
        _fail("interrupted; --resume goes on after the last whole epoch")
        return 130
    return 0


def _one(arguments: Arguments) -> list[str]:
    path = _path(arguments)
    check_writable(path)
    checkpoint = path.parents[1] / "checkpoint.pt"
    return run(RECIPES[arguments.recipe], arguments, path, checkpoint)


def _path(arguments: Arguments) -> Path:
    return arguments.out / arguments.name / str(VERSION) / "model.onnx"


def run(recipe: Recipe, arguments: Arguments, path: Path, checkpoint: Path) -> list[str]:
    """Trains, measures, exports and writes; what there is to tell, a line each.

    In torchrun's other processes: trains with them, and has nothing to tell.

    Raises TrainingError and OSError.
    """
    import torch  # seconds, which --help and --list need not wait for

    from neurona_training.architectures.recurrent import LastState
    from neurona_training.export.metadata import describe, scaling
    from neurona_training.export.onnx_export import OPSET, export
    from neurona_training.export.stepwise import STEPS, stepwise
    from neurona_training.learning import devices
    from neurona_training.learning.evaluation import figures
    from neurona_training.learning.progress import say

    started = time.monotonic()
    brought = _brought(recipe, arguments)
    data = brought.asked
    training = _training(recipe, arguments, data)
    torch.set_num_threads(training.threads)
    with devices.joined():
        resume = arguments.resume or devices.was_restarted()
        this = Run(arguments.name, arguments.seed, checkpoint, resume)
        fitted = recipe.fit(brought.learned, training, this)
        if devices.rank() > 0:
            return []
    network = brought.facing(fitted.network)
    measured = figures(network, data)
    parameters = sum(parameter.numel() for parameter in network.parameters())
    provenance = {
        "recipe": recipe.name,
        "seed": arguments.seed,
        "epochs": training.epochs,
        "batch_rows": training.batch_rows,
        "learning_rate": training.learning_rate,
        "best_epoch": fitted.best_epoch,
        "parameters": parameters,
        "scaling": scaling(network),
        "opset": OPSET,
    }
    described = describe(
        data, f"{recipe.description}, trained on: {data.source}", measured, provenance
    )
    say(f"{arguments.name}: exporting, and asking ONNX Runtime what torch was asked")
    model = export(network, data, described)
    write(model, path)
    if isinstance(network, LastState):  # reads step by step, so it can be served so
        write(stepwise(model, data), path.with_name(STEPS))
    else:
        path.with_name(STEPS).unlink(missing_ok=True)  # an earlier network's
    checkpoint.unlink(missing_ok=True)  # it has served its purpose
    seconds = time.monotonic() - started
    lines = [
        f"{arguments.name}: {_sentence(measured, data)}; {parameters:,} parameters, "
        f"{seconds:.0f} s",
        f"{path}: ONNX opset {OPSET}, {len(model):,} bytes, ONNX Runtime agrees with torch",
    ]
    sizes = {"float32": (len(model), described)}
    refused: list[ExportError] = []
    for variant in arguments.variants:
        try:
            lines.append(_vary(variant, model, data, arguments, sizes))
        except ExportError as error:
            refused.append(error)
    if arguments.report:
        from neurona_training.report import Story, page

        say(f"{arguments.name}: drawing the report")
        story = Story(arguments.name, network, data, fitted, training, described, sizes, seconds)
        place = path.parents[1] / "report" / "report.html"
        write(page(story).encode(), place)
        lines.append(f"{place}: what was learned, in pictures")
    if refused:  # told at the end: what could be written stands there
        print("\n".join(lines))
        raise refused[0]
    return lines


def _brought(recipe: Recipe, arguments: Arguments) -> Brought:
    if arguments.own is None:
        data = recipe.load(arguments.data, arguments.options)
        return load.Brought(data, data)
    brought = load.load(arguments.own)
    recipe.check(brought.learned)
    return brought


def _training(recipe: Recipe, arguments: Arguments, data: Dataset) -> Training:
    """The recipe's hyper-parameters for these data, with what the user has said."""
    known = None if arguments.own else recipe.trainings.get(data.name)
    training = known or recipe.training
    return dataclasses.replace(
        training,
        epochs=arguments.epochs or training.epochs,
        batch_rows=arguments.batch_rows or training.batch_rows,
        learning_rate=arguments.learning_rate or training.learning_rate,
    )


def _vary(
    variant: str,
    model: bytes,
    data: Dataset,
    arguments: Arguments,
    sizes: dict[str, tuple[int, ModelMetadata]],
) -> str:
    """Writes one variant beside the model, notes it in `sizes`, and tells what it reached."""
    from neurona_training.export.quantization import made

    smaller, described = made(variant, model, data)
    place = _path(dataclasses.replace(arguments, name=f"{arguments.name}-{variant}"))
    write(smaller, place)
    sizes[variant] = (len(smaller), described)
    reached = {one: described.figures[one] for one in TESTED if one in described.figures}
    return f"{place}: {variant}, {len(smaller):,} bytes, {_sentence(reached, data)}"


def _sentence(measured: Mapping[str, float], data: Dataset) -> str:
    unit = data.values[0].unit if data.values else ""
    said = []
    for name, value in measured.items():
        if name.endswith("rows"):
            said.append(f"{name.replace('_', ' ')} {value:,.0f}")
        else:
            prefix = "test " if name.startswith("test_") else ""
            said.append(prefix + told(name, value, unit))
    return ", ".join(said)


def _fail(message: str) -> int:
    print(f"neurona-train: error: {message}", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
