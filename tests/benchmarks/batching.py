"""Benchmarks of batching, each compared in the same run; prints Markdown.

    python tests/benchmarks/batching.py [--seconds 5] [--rounds 3]

(a) a CPU-bound model with 64 requests in flight: batches against single rows;
(b) four input shapes against one shape under the same load.

What becomes of a latency objective beyond the capacity: objectives.py.
"""

import argparse
import sys
import tempfile
from pathlib import Path
from statistics import median

import numpy as np
from load import closed_loop, serving
from onnx import TensorProto, helper

from neurona_protos.prediction_pb2 import PredictRequest
from neurona_protos.tensors import to_tensor

sys.path.insert(0, str(Path(__file__).parents[1]))
from support import onnx_models

WIDTH = 1024
LENGTHS = (12, 14, 18, 20)  # of the four shapes; the one shape has their mean


def save_dense(root: Path) -> None:
    """Eight layers of 1024 x 1024: one row reads 32 MiB of weights, 64 rows read them once."""
    layers = range(8)
    weights = np.random.default_rng(0).normal(0, WIDTH**-0.5, (WIDTH, WIDTH)).astype(np.float32)
    onnx_models.save(
        root / "dense" / "1" / "model.onnx",
        [helper.make_node("MatMul", [f"x{i}", f"w{i}"], [f"x{i + 1}"]) for i in layers],
        {"x0": (TensorProto.FLOAT, ["batch", WIDTH])},
        {"x8": (TensorProto.FLOAT, ["batch", WIDTH])},
        {f"w{i}": weights + i for i in layers},
    )


def save_sequence(root: Path) -> None:
    """The same weights for each step of a sequence: run time is proportional to its length."""
    layers = range(30)
    weights = np.random.default_rng(0).normal(0, 1 / 16, (256, 256)).astype(np.float32)
    nodes = [helper.make_node("MatMul", [f"x{i}", "w"], [f"x{i + 1}"]) for i in layers]
    nodes.append(helper.make_node("ReduceMax", ["x30"], ["y"], axes=[1, 2], keepdims=0))
    onnx_models.save(
        root / "sequence" / "1" / "model.onnx",
        nodes,
        {"x0": (TensorProto.FLOAT, ["batch", "time", 256])},
        {"y": (TensorProto.FLOAT, ["batch"])},
        {"w": weights},
    )


def dense_request() -> PredictRequest:
    return PredictRequest(model="dense", inputs=[to_tensor("x0", np.ones((1, WIDTH), np.float32))])


def sequence_request(length: int) -> PredictRequest:
    values = np.ones((1, length, 256), np.float32)
    return PredictRequest(model="sequence", inputs=[to_tensor("x0", values)])


def compare_batch_sizes(repository: Path, seconds: float, rounds: int) -> None:
    rates: dict[str, list[float]] = {"1": [], "64": []}
    for _ in range(rounds):
        for rows, values in rates.items():
            with serving(repository, "--max-batch-rows", rows) as address:
                values.append(closed_loop(address, [dense_request()], 64, seconds))
    _print_rates("(a) rows in a batch, 64 in flight", rates, base="1")


def compare_shapes(repository: Path, seconds: float, rounds: int) -> None:
    mixed = [sequence_request(length) for length in LENGTHS]
    mean = sum(LENGTHS) // len(LENGTHS)
    rates: dict[str, list[float]] = {"one shape": [], "four shapes": []}
    for _ in range(rounds):
        with serving(repository) as address:
            same = [sequence_request(mean)] * len(LENGTHS)
            rates["one shape"].append(closed_loop(address, same, 64, seconds))
            rates["four shapes"].append(closed_loop(address, mixed, 64, seconds))
    _print_rates("(b) shapes, 64 in flight", rates, base="one shape")


def _print_rates(title: str, rates: dict[str, list[float]], base: str) -> None:
    print(f"\n### {title}\n\n| | responses per second | ratio | spread |\n|---|---|---|---|")
    for name, values in rates.items():
        ratios = [value / other for value, other in zip(values, rates[base], strict=True)]
        spread = f"{min(ratios):.2f} to {max(ratios):.2f}"
        print(f"| {name} | {median(values):.0f} | {median(ratios):.2f} | {spread} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seconds", type=float, default=5.0, help="seconds of each measurement")
    parser.add_argument("--rounds", type=int, default=3, help="rounds of each comparison")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        repository = Path(folder)
        save_dense(repository)
        save_sequence(repository)
        compare_batch_sizes(repository, arguments.seconds, arguments.rounds)
        compare_shapes(repository, arguments.seconds, arguments.rounds)


if __name__ == "__main__":
    main()
