"""The command `neurona-train`: a recipe by name becomes <out>/<recipe>/1/model.onnx."""

from __future__ import annotations

import argparse
import dataclasses
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NoReturn

from neurona_training.errors import TrainingError
from neurona_training.recipes import RECIPES, Recipe

VERSION = 1  # the folder under the model's name


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """One line, without the usage that argparse puts before it."""
        self.exit(2, f"{self.prog}: error: {message}\n")


def main(argv: Sequence[str] | None = None) -> int:
    """The exit status: 0; 1 when the run failed; 2 for a wrong command line; 130 on Ctrl-C."""
    arguments = _parser().parse_args(argv)
    if arguments.list:
        for recipe in RECIPES.values():
            print(f"{recipe.name:<10} {recipe.description}")
        return 0
    recipe = RECIPES[arguments.recipe]
    path: Path = arguments.out / recipe.name / str(VERSION) / "model.onnx"
    try:
        _check_writable(path)
        for line in run(recipe, path, arguments.epochs, arguments.seed):
            print(line)
    except TrainingError as error:
        return _fail(str(error))
    except OSError as error:
        return _fail(f"{path} cannot be written: {error.strerror or error}")
    except KeyboardInterrupt:
        _fail("interrupted; nothing was written")
        return 130
    return 0


def run(recipe: Recipe, path: Path, epochs: int | None, seed: int) -> list[str]:
    """Trains, measures, exports and writes; what there is to tell, a line each.

    epochs: None takes the recipe's. Raises TrainingError and OSError.
    """
    import torch  # seconds, which --help and --list need not wait for

    from neurona_training.evaluate import figures
    from neurona_training.export import OPSET, export, write
    from neurona_training.fit import fit
    from neurona_training.metadata import describe

    started = time.monotonic()
    torch.set_num_threads(recipe.training.threads)
    training = dataclasses.replace(recipe.training, epochs=epochs or recipe.training.epochs)
    data = recipe.load()
    fitted = fit(recipe, data, training, seed)
    measured = figures(fitted.network, data)
    parameters = sum(parameter.numel() for parameter in fitted.network.parameters())
    provenance = {
        "recipe": recipe.name,
        "seed": seed,
        "epochs": training.epochs,
        "best_epoch": fitted.best_epoch,
        "parameters": parameters,
        "opset": OPSET,
    }
    model = export(fitted.network, data, describe(data, recipe.description, measured, provenance))
    write(model, path)
    seconds = time.monotonic() - started
    return [
        f"{recipe.name}: {_sentence(measured)}; {parameters:,} parameters, {seconds:.0f} s",
        f"{path}: ONNX opset {OPSET}, {len(model):,} bytes, ONNX Runtime agrees with torch",
    ]


def _sentence(measured: dict[str, float]) -> str:
    said = []
    for name, value in measured.items():
        text = f"{value:.2%}" if name.endswith("accuracy") else f"{value:,.4g}"
        said.append(f"{name.replace('_', ' ').replace('rmse', 'RMSE')} {text}")
    return ", ".join(said)


def _check_writable(path: Path) -> None:
    """Before the training, not after it. Raises OSError; leaves nothing behind."""
    folder = path.parent
    while not folder.exists():
        folder = folder.parent
    with tempfile.TemporaryFile(dir=folder):
        pass


def _fail(message: str) -> int:
    print(f"neurona-train: error: {message}", file=sys.stderr)
    return 1


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="neurona-train",
        description="Trains a network on real data and writes it as OUT/RECIPE/1/model.onnx.",
    )
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("recipe", nargs="?", metavar="RECIPE", type=_recipe, help="what to train")
    what.add_argument("--list", action="store_true", help="print the recipes, and exit")
    parser.add_argument(
        "--out", type=Path, default=Path("models"), help="the model repository (default: models)"
    )
    parser.add_argument(
        "--epochs", type=_at_least(1), help="how often each row is seen (default: the recipe's)"
    )
    parser.add_argument(
        "--seed", type=_at_least(0), default=0, help="for weights and order (default: 0)"
    )
    return parser


def _recipe(text: str) -> str:
    if text not in RECIPES:
        raise argparse.ArgumentTypeError(f"no recipe {text!r}; there are {', '.join(RECIPES)}")
    return text


def _at_least(smallest: int) -> Callable[[str], int]:
    def parse(text: str) -> int:
        # 2**63: the seeds that torch takes end there
        if not text.isdecimal() or not smallest <= int(text) < 2**63:
            raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from {smallest}")
        return int(text)

    return parse
