"""The command `neurona-train`: a recipe by name becomes <out>/<name>/1/model.onnx.

neurona-train lenet5                          the default data set, as model `lenet5`
neurona-train lenet5 --data mnist             another one, as model `lenet5-mnist`
torchrun --nproc-per-node 2 -m neurona_training.train lenet5     in two processes
"""

from __future__ import annotations

import dataclasses
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from neurona_training.arguments import Arguments, parse
from neurona_training.data.catalogue import SOURCES
from neurona_training.errors import TrainingError
from neurona_training.learning import Run
from neurona_training.output import check_writable, write
from neurona_training.recipes import RECIPES, Recipe

VERSION = 1  # the folder under the model's name


def main(argv: Sequence[str] | None = None) -> int:
    """The exit status: 0; 1 when the run failed; 2 for a wrong command line; 130 on Ctrl-C."""
    arguments = parse(argv)
    if arguments is None:
        print("\n".join(listing()))
        return 0
    folder = arguments.out / arguments.name
    path = folder / str(VERSION) / "model.onnx"
    try:
        check_writable(path)
        for line in run(RECIPES[arguments.recipe], arguments, path, folder / "checkpoint.pt"):
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


def run(recipe: Recipe, arguments: Arguments, path: Path, checkpoint: Path) -> list[str]:
    """Trains, measures, exports and writes; what there is to tell, a line each.

    In torchrun's other processes: trains with them, and has nothing to tell.

    Raises TrainingError and OSError.
    """
    import torch  # seconds, which --help and --list need not wait for

    from neurona_training import distributed
    from neurona_training.evaluate import figures
    from neurona_training.export import OPSET, export
    from neurona_training.metadata import describe

    started = time.monotonic()
    data = recipe.load(arguments.data, arguments.options)
    training = recipe.trainings.get(data.name, recipe.training)
    training = dataclasses.replace(training, epochs=arguments.epochs or training.epochs)
    torch.set_num_threads(training.threads)
    with distributed.joined():
        resume = arguments.resume or distributed.was_restarted()
        this = Run(arguments.name, arguments.seed, checkpoint, resume)
        fitted = recipe.fit(data, training, this)
        if distributed.rank() > 0:
            return []
    measured = figures(fitted.network, data)
    parameters = sum(parameter.numel() for parameter in fitted.network.parameters())
    provenance = {
        "recipe": recipe.name,
        "seed": arguments.seed,
        "epochs": training.epochs,
        "best_epoch": fitted.best_epoch,
        "parameters": parameters,
        "opset": OPSET,
    }
    described = describe(
        data, f"{recipe.description}, trained on: {data.source}", measured, provenance
    )
    model = export(fitted.network, data, described)
    write(model, path)
    checkpoint.unlink(missing_ok=True)  # it has served its purpose
    seconds = time.monotonic() - started
    return [
        f"{arguments.name}: {_sentence(measured)}; {parameters:,} parameters, {seconds:.0f} s",
        f"{path}: ONNX opset {OPSET}, {len(model):,} bytes, ONNX Runtime agrees with torch",
    ]


def listing() -> list[str]:
    """The recipes with their data sets, and then the data sets, as a table."""
    recipes = [
        (recipe.name, ", ".join(recipe.trainings), recipe.description)
        for recipe in RECIPES.values()
    ]
    sources = [(source.name, "", source.description) for source in SOURCES.values()]
    rows = [
        ("RECIPE", "DATA (default first)", ""),
        *recipes,
        ("", "", ""),
        ("DATA", "", ""),
        *sources,
    ]
    return _table(rows)


def _table(rows: Sequence[tuple[str, ...]]) -> list[str]:
    widths = [max(len(cell) for cell in column) for column in zip(*rows, strict=True)]
    return [
        "  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]


def _sentence(measured: dict[str, float]) -> str:
    said = []
    for name, value in measured.items():
        whole = f"{value:,.0f}" if name.endswith("rows") else f"{value:,.4g}"
        text = f"{value:.2%}" if name.endswith("accuracy") else whole
        said.append(f"{name.replace('_', ' ').replace('rmse', 'RMSE')} {text}")
    return ", ".join(said)


def _fail(message: str) -> int:
    print(f"neurona-train: error: {message}", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
