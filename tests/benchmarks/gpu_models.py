"""Makes the networks for the tests and the benchmark on a GPU, on a machine that needs none.

    python tests/benchmarks/gpu_models.py [--folder bench/gpu/models] [--only lenet5,lstm]

Each network is in a folder of its own: model.onnx without its large weights (seeded_weights.py)
and, where normally distributed numbers do not suit it, rows.npz with its inputs. networks.json
lists them: for the benchmark those of
BENCHMARK, for the tests each recipe of neurona-train, on data that are bundled or generated. Most
of these are not trained: answers are only compared between devices. What would make such a
comparison worthless is avoided here: the outputs of the rows differ from each other by much more
than what a device may change.
"""

import argparse
import json
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
from exports import export_network, raise_variances, spread_outputs
from models import LENET5, LSTM100, RESNET18, RESNET50
from numpy.typing import NDArray
from seeded_weights import EXAMPLES, LIST, ROWS, expand_network, read_rows, strip_network

from neurona_training.data import Dataset, Input, Split
from neurona_training.data.catalogue import load
from neurona_training.export.metadata import model_metadata
from neurona_training.export.onnx_export import export
from neurona_training.learning.run import Run
from neurona_training.recipes import RECIPES
from neurona_training.recipes.recipe import learn_by_gradient

ROOT = Path(__file__).parents[2]

BENCHMARK = {
    "resnet50": ("resnet50", "", RESNET50),
    "resnet50-float16": ("resnet50", "float16", RESNET50),
    "resnet18": ("resnet18", "", RESNET18),
    "lenet5": ("lenet5", "", LENET5),
    "lstm256": ("lstm256", "", LSTM100),
}
"""Networks of the benchmark: the name in exports.py, the variant, the shape of a row."""


@dataclass(frozen=True)
class Network:
    """A network to be written.

    Attributes:
        name: Of its folder.
        use: "benchmark" or "recipe".
        content: Its ONNX file.
        rows: Its inputs by name, EXAMPLES rows; empty if they are drawn where they are used.
        row: Then the shape of a row of its one input.
    """

    name: str
    use: str
    content: bytes
    rows: dict[str, NDArray[Any]] = field(default_factory=dict)
    row: tuple[int, ...] = ()


def benchmark_network(name: str) -> Network:
    network, variant, row = BENCHMARK[name]
    return Network(name, "benchmark", export_network(network, variant), row=row)


def recipe_network(name: str) -> Network:
    """Returns the network of a recipe: learned where that is quick, else as it begins."""
    torch.manual_seed(0)
    recipe, data = RECIPES[name], _data_for(name)
    recipe.check(data)
    settings = recipe.settings(data, data.name)
    if recipe.learner is learn_by_gradient:
        network = recipe.network(data, settings.network).eval()
        raise_variances(network)
        spread_outputs(network, data.test.arrays)
    else:
        hyperparameters = replace(settings.hyperparameters, epochs=2)
        network = recipe.fit(
            data, replace(settings, hyperparameters=hyperparameters), Run(name, 0)
        ).network
    described = model_metadata(data, f"{name}, not trained", {}, {"recipe": name})
    arrays = [array[:EXAMPLES] for array in data.test.arrays]
    names = [described_input.name for described_input in data.inputs]
    return Network(
        name, "recipe", export(network, data, described), dict(zip(names, arrays, strict=True))
    )


def _data_for(recipe: str) -> Dataset:
    """Returns data of the kind that a recipe is for, without a download."""
    match recipe:
        case "mcculloch-pitts":
            return _repeated(load("majority"))
        case "vgg16" | "resnet18" | "resnet50" | "xception":
            return _enlarged(load("digits"), 4)
        case "inception-v3":
            return _enlarged(load("digits"), 10)
        case "feedforward" | "neocognitron" | "lenet5":
            return load("digits")
        case "gru":
            return _recordings()
        case "lstm":
            return load("digit-rows")
        case _:
            return load(RECIPES[recipe].default_data)


def _repeated(data: Dataset) -> Dataset:
    """A truth table has fewer rows than EXAMPLES."""

    def repeat(split: Split) -> Split:
        times = -(-EXAMPLES // len(split))
        inputs = np.tile(split.inputs, (times, *[1] * (split.inputs.ndim - 1)))
        return replace(split, inputs=inputs, targets=np.tile(split.targets, times))

    return replace(data, test=repeat(data.test))


def _enlarged(data: Dataset, times: int) -> Dataset:
    def enlarge(split: Split) -> Split:
        inputs = split.inputs[:64].repeat(times, axis=1).repeat(times, axis=2)
        return replace(split, inputs=inputs, targets=split.targets[:64])

    parts = {part: enlarge(getattr(data, part)) for part in ("train", "validation", "test")}
    return replace(data, name="large-digits", **parts)


def _recordings() -> Dataset:
    """Sequences of different lengths, padded: like the vowels, but generated."""
    random = np.random.default_rng(0)
    lengths = random.integers(5, 30, 64).astype(np.int32)
    lengths[0] = 29
    inputs = random.normal(0, 1, (64, 29, 12)).astype(np.float32)
    for row, length in enumerate(lengths):
        inputs[row, length:] = 0
    split = Split(inputs, np.arange(64, dtype=np.int64) % 9, lengths)
    axes = ("batch", "time", "coefficient")
    labels = tuple(f"speaker{number}" for number in range(9))
    described = Input("x", axes, "generated numbers", "")
    return Dataset("recordings", "generated", split, split, split, described, labels)


def main() -> None:
    arguments = _arguments()
    folder: Path = arguments.folder
    makers: dict[str, Callable[[str], Network]] = {
        **dict.fromkeys(BENCHMARK, benchmark_network),
        **{f"recipe-{name}": lambda name: recipe_network(name[7:]) for name in RECIPES},
    }
    chosen = arguments.only or list(makers)
    if unknown := sorted(set(chosen) - set(makers)):
        sys.exit(f"unknown networks: {', '.join(unknown)} (expected some of {', '.join(makers)})")
    listed: dict[str, dict[str, Any]] = {}
    for name in chosen:
        started = time.perf_counter()
        network = makers[name](name)
        shutil.rmtree(folder / name, ignore_errors=True)
        strip_network(network.content, folder / name)
        if network.rows:
            np.savez_compressed(folder / name / ROWS, **network.rows)
        listed[name] = {"use": network.use, "row": network.row}
        listed[name]["spread"] = spread = measure_spread(folder / name, network.row)
        seconds = time.perf_counter() - started
        print(f"{name}: {seconds:.1f} s, outputs of rows differ by {spread:.2g}", file=sys.stderr)
    (folder / LIST).write_text(json.dumps(listed, indent=1))


def measure_spread(folder: Path, row: tuple[int, ...]) -> float:
    """Returns how much the outputs of different rows differ, relative to their size.

    Raises:
        ValueError: That is too little to compare devices, or an output is not finite.
    """
    rows = read_rows(folder, row)
    with tempfile.TemporaryDirectory() as target:
        path = expand_network(folder, Path(target))
        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        outputs = session.run(None, rows)[0].astype(np.float64)
    if not np.isfinite(outputs).all():
        raise ValueError(f"{folder.name} has outputs that are not finite")
    spread = float(np.linalg.norm(np.roll(outputs, 1, axis=0) - outputs) / np.linalg.norm(outputs))
    if spread < 0.05:
        raise ValueError(f"{folder.name}: outputs of its rows differ by {spread:.3g} only")
    return spread


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--folder", type=Path, default=ROOT / "bench" / "gpu" / "models")
    parser.add_argument("--only", type=lambda text: text.split(","), default=[])
    return parser.parse_args()


if __name__ == "__main__":
    main()
