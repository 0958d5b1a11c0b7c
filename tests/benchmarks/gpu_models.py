"""Makes the networks for the tests and the benchmark on a GPU, on a machine that needs none.

    python tests/benchmarks/gpu_models.py [--folder bench/gpu/models] [--only lenet5,lstm]

Each network is in a folder of its own: model.onnx without its large weights (seeded_weights.py)
and, where normally distributed numbers do not suit it, rows.npz with its inputs. networks.json
lists them: for the benchmark those of
BENCHMARK, for the tests each recipe of neurona-train, on data that are bundled or generated. Most
of these are not trained: answers are only compared between devices. What would make such a
comparison worthless is avoided here: outputs of different rows differ by much more than the
tolerance, which networks.json has too, and which is derived from what rounding the weights to TF32
changes.
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
import onnx
import onnxruntime
import torch
from exports import export_network, raise_variances, spread_outputs
from models import LENET5, LSTM100, RESNET18, RESNET50
from numpy.typing import NDArray
from seeded_weights import (
    EXAMPLES,
    LIST,
    MODEL,
    ROWS,
    expand_network,
    read_rows,
    strip_network,
)

from neurona_training.data import Dataset, Input, Split
from neurona_training.data.catalogue import load
from neurona_training.export.metadata import model_metadata
from neurona_training.export.onnx_export import export_trained_network
from neurona_training.learning.run import Run
from neurona_training.recipes import RECIPES
from neurona_training.recipes.recipe import learn_by_gradient

ROOT = Path(__file__).parents[2]

MIN_TOLERANCE = 0.005
ROUNDINGS = 6.0
"""Times the error by rounding weights once that a device may differ by: it rounds the inputs of
each layer, too, and sums in another order."""

MIN_SPREADS = 2.0
"""Times the tolerance that outputs of different rows differ by."""

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
        name,
        "recipe",
        export_trained_network(network, data, described),
        dict(zip(names, arrays, strict=True)),
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
        case "feedforward" | "lenet5":
            return load("digits")
        case "neocognitron":
            return _shortened(load("digits"))
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


def _shortened(data: Dataset) -> Dataset:
    """Of the digits, few enough that the neocognitron learns them in seconds."""
    train = replace(data.train, inputs=data.train.inputs[:200], targets=data.train.targets[:200])
    return replace(data, name="some-digits", train=train)


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
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / LIST
    listed: dict[str, dict[str, Any]] = json.loads(path.read_text()) if path.exists() else {}
    for name in chosen:
        started = time.perf_counter()
        network = makers[name](name)
        shutil.rmtree(folder / name, ignore_errors=True)
        strip_network(network.content, folder / name)
        if network.rows:
            np.savez_compressed(folder / name / ROWS, **network.rows)
        centre_logits(folder / name, network.row)
        spread, error = compare_outputs(folder / name, network.row)
        tolerance = max(MIN_TOLERANCE, ROUNDINGS * error)
        print(
            f"{name}: {time.perf_counter() - started:.1f} s, outputs of its rows differ by "
            f"{spread:.2g}, by TF32 at most {error:.1g}",
            file=sys.stderr,
        )
        if not spread > MIN_SPREADS * tolerance:  # or NaN
            sys.exit(f"{name}: that is too little to compare devices")
        listed[name] = {"use": network.use, "row": network.row, "tolerance": tolerance}
        path.write_text(json.dumps(listed, indent=1))


def centre_logits(folder: Path, row: tuple[int, ...]) -> None:
    """Changes the last bias of a classification so that no class is probable for all rows.

    The weights that `expand_network` draws are not those for which `spread_outputs` did so.
    """
    model = onnx.load(folder / MODEL, load_external_data=False)
    producers = {node.output[0]: node for node in model.graph.node}
    last = producers[model.graph.output[0].name]
    if last.op_type == "Cast":  # of float16
        last = producers[last.input[0]]
    linear = producers.get(last.input[0]) if last.op_type == "Softmax" else None
    if linear is None or linear.op_type != "Gemm":
        return
    (bias,) = [one for one in model.graph.initializer if one.name == linear.input[2]]
    logits = run_expanded(folder, row, linear.output[0])[-1].astype(np.float64)
    values = onnx.numpy_helper.to_array(bias)
    centred = (values - logits.mean(axis=0)).astype(values.dtype)
    bias.CopyFrom(onnx.numpy_helper.from_array(centred, bias.name))
    (folder / MODEL).write_bytes(model.SerializeToString(deterministic=True))


def compare_outputs(folder: Path, row: tuple[int, ...]) -> tuple[float, float]:
    """Compares the outputs of different rows, and with those of weights rounded to TF32.

    Returns:
        By how much two rows differ on the average, and the largest difference of a row by the
        rounding, both relative to the size of a row's outputs; NaN if an output is not finite.
    """
    exact, rounded = run_expanded(folder, row)[0], run_expanded(folder, row, rounding=True)[0]
    exact = exact.astype(np.float64).reshape(len(exact), -1)
    size = np.linalg.norm(exact, axis=1).mean()
    others = np.linalg.norm(np.roll(exact, 1, axis=0) - exact, axis=1).mean()
    error = np.linalg.norm(rounded.reshape(exact.shape) - exact, axis=1).max()
    return float(others / size), float(error / size)


def run_expanded(
    folder: Path, row: tuple[int, ...], further_output: str = "", *, rounding: bool = False
) -> list[NDArray[Any]]:
    """Runs a stripped network on the CPU.

    Args:
        folder: Of the network.
        row: See `read_rows`.
        further_output: A tensor inside it, returned after its outputs.
        rounding: Whether its weights get 10 bits at most, see `_rounded`.
    """
    with tempfile.TemporaryDirectory() as target:
        model = onnx.load(expand_network(folder, Path(target)))
    if further_output:
        model.graph.output.append(onnx.ValueInfoProto(name=further_output))
    for tensor in model.graph.initializer if rounding else ():
        values = onnx.numpy_helper.to_array(tensor)
        if values.ndim > 1 and values.dtype in (np.float32, np.float16):
            tensor.CopyFrom(onnx.numpy_helper.from_array(_rounded(values), tensor.name))
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    outputs: list[NDArray[Any]] = session.run(None, read_rows(folder, row))
    return outputs


def _rounded(values: NDArray[Any]) -> NDArray[Any]:
    """Rounds float32 to the 10 bits of TF32; changes the last of the 10 bits of float16."""
    if values.dtype == np.float16:
        changed = np.random.default_rng(0).integers(0, 2, values.shape, np.uint16)
        return (values.view(np.uint16) ^ changed).view(np.float16)
    return ((values.view(np.uint32) + np.uint32(1 << 12)) & np.uint32(0xFFFFE000)).view(np.float32)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--folder", type=Path, default=ROOT / "bench" / "gpu" / "models")
    parser.add_argument("--only", type=lambda text: text.split(","), default=[])
    return parser.parse_args()


if __name__ == "__main__":
    main()
