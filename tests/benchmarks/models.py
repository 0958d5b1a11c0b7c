"""The models that servers are compared on, with fresh weights: what is measured is time."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from neurona_protos import metadata
from neurona_protos.open_inference_pb2 import ModelInferRequest
from neurona_protos.prediction_pb2 import ModelMetadata, PredictRequest, Task
from neurona_protos.tensors import to_tensor

Array = NDArray[np.float32]


@dataclass(frozen=True)
class Model:
    """row: the shape of one row of its one input.  rows: in each request.

    loads: how many requests are in flight, unless a person says other.
    batches: rows in the ready-made batches of the floor.
    """

    name: str
    file: Path
    row: tuple[int, ...]
    rows: int = 1
    loads: tuple[int, ...] = (1, 8, 64, 256)
    batches: tuple[int, ...] = (1, 8, 64)

    @cached_property
    def graph(self) -> onnx.GraphProto:
        return onnx.load(self.file, load_external_data=False).graph

    def batch(self, rows: int) -> Array:
        """Always the same numbers, near 0."""
        generator = np.random.default_rng(rows)
        return generator.normal(0, 1, (rows, *self.row)).astype(np.float32)

    def predict_request(self) -> PredictRequest:
        tensor = to_tensor(self.graph.input[0].name, self.batch(self.rows))
        return PredictRequest(model=self.name, inputs=[tensor])

    def infer_request(self) -> ModelInferRequest:
        values = self.batch(self.rows)
        request = ModelInferRequest(model_name=self.name, raw_input_contents=[values.tobytes()])
        request.inputs.add(name=self.graph.input[0].name, datatype="FP32", shape=values.shape)
        return request


LENET5, LSTM, RESNET18, RESNET50 = (28, 28), (20, 16), (28, 28), (3, 224, 224)
_FEW = (1, 8)  # of ResNet-50, as 256 of them in flight would wait for ten seconds each

MAKERS: dict[str, Callable[[Path], Model]] = {
    "mlp": lambda root: Model("mlp", _made(root, "mlp", save_mlp), (16,)),
    "lenet5": lambda root: Model("lenet5", _made(root, "lenet5", _export), LENET5),
    "lstm": lambda root: Model("lstm", _made(root, "lstm", _export), LSTM),
    "resnet18": lambda root: Model("resnet18", _made(root, "resnet18", _export), RESNET18),
    "resnet50": lambda root: Model(
        "resnet50", _made(root, "resnet50", _export), RESNET50, loads=_FEW, batches=_FEW
    ),
    "resnet50x8": lambda root: Model(
        "resnet50x8", _made(root, "resnet50", _export), RESNET50, 8, loads=(1, 2), batches=(8,)
    ),
}


def make(name: str, root: Path) -> Model:
    """A model by its name in MAKERS; its file is made the first time, and kept under `root`."""
    return MAKERS[name](root)


def _made(root: Path, name: str, save: Callable[[Path], None]) -> Path:
    path = root / f"{name}.onnx"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        unfinished = path.with_suffix(".part")  # what a Ctrl-C leaves is made anew
        save(unfinished)
        unfinished.rename(path)
    return path


def _export(path: Path) -> None:
    from exports import export_fresh  # torch takes seconds, and the MLP does without

    path.write_bytes(export_fresh(path.stem))


def save_mlp(path: Path) -> None:
    """16 numbers, 64 tanh units, 3 probabilities."""
    generator = np.random.default_rng(0)
    sizes = {"w1": (16, 64), "b1": (64,), "w2": (64, 3), "b2": (3,)}
    weights = {
        name: generator.normal(0, 0.25, size).astype(np.float32) for name, size in sizes.items()
    }
    nodes = [
        helper.make_node("Gemm", ["x", "w1", "b1"], ["sums"]),
        helper.make_node("Tanh", ["sums"], ["hidden"]),
        helper.make_node("Gemm", ["hidden", "w2", "b2"], ["logits"]),
        helper.make_node("Softmax", ["logits"], ["probabilities"], axis=1),
    ]
    described = ModelMetadata(
        task=Task.TASK_CLASSIFICATION, answer="probabilities", labels=["ant", "bee", "cat"]
    )
    _save(path, nodes, ("x", ["batch", 16]), ("probabilities", ["batch", 3]), weights, described)


def save_identity(path: Path) -> None:
    """A row of any length comes back as it is: all cost is that of carrying it."""
    nodes = [helper.make_node("Identity", ["x"], ["y"])]
    _save(path, nodes, ("x", ["batch", "length"]), ("y", ["batch", "length"]), {}, None)


def _save(
    path: Path,
    nodes: list[onnx.NodeProto],
    given: tuple[str, list[Any]],
    answer: tuple[str, list[Any]],
    weights: dict[str, Array],
    described: ModelMetadata | None,
) -> None:
    graph = helper.make_graph(
        nodes,
        path.stem,
        [helper.make_tensor_value_info(given[0], TensorProto.FLOAT, given[1])],
        [helper.make_tensor_value_info(answer[0], TensorProto.FLOAT, answer[1])],
        [numpy_helper.from_array(array, name) for name, array in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    if described is not None:
        helper.set_model_props(model, {metadata.KEY: metadata.to_json(described)})
    onnx.save(model, path)
