"""The models that servers are compared with. Their weights are random: only time is measured."""

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
    """A model with one input, and the load to measure it with.

    Attributes:
        name: The name it is served under.
        file: Its ONNX file.
        row: Shape of a row of the input.
        rows: Rows in each request.
        loads: Requests in flight, unless --loads is given.
        batches: Rows in the batches for ONNX Runtime alone.
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
        """Returns normally distributed values, the same each time."""
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
LSTM100 = (100, 32)
_FEW = (1, 8)  # for ResNet-50: with 256 in flight, each would wait for ten seconds

FACTORIES: dict[str, Callable[[Path], Model]] = {
    "mlp": lambda root: Model("mlp", _cached(root, "mlp", save_mlp), (16,)),
    "lenet5": lambda root: Model("lenet5", _cached(root, "lenet5", _export), LENET5),
    "lstm": lambda root: Model("lstm", _cached(root, "lstm", _export), LSTM),
    "lstm32": lambda root: Model("lstm32", _cached(root, "lstm32", _export), LSTM),
    "lstm512": lambda root: Model("lstm512", _cached(root, "lstm512", _export), LSTM),
    "resnet18": lambda root: Model("resnet18", _cached(root, "resnet18", _export), RESNET18),
    "resnet50": lambda root: Model(
        "resnet50", _cached(root, "resnet50", _export), RESNET50, loads=_FEW, batches=_FEW
    ),
    "resnet50x8": lambda root: Model(
        "resnet50x8", _cached(root, "resnet50", _export), RESNET50, 8, loads=(1, 2), batches=(8,)
    ),
}


def create_model(name: str, root: Path) -> Model:
    """Returns a model by its name in FACTORIES; its file is created once, under `root`."""
    return FACTORIES[name](root)


def _cached(root: Path, name: str, save: Callable[[Path], None]) -> Path:
    path = root / f"{name}.onnx"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(".part")  # an interrupted file is created again
        save(partial)
        partial.rename(path)
    return path


def _export(path: Path) -> None:
    from exports import export_network  # imports torch, which takes seconds

    path.write_bytes(export_network(path.stem))


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
    description = ModelMetadata(
        task=Task.TASK_CLASSIFICATION, answer="probabilities", labels=["ant", "bee", "cat"]
    )
    _save(path, nodes, ("x", ["batch", 16]), ("probabilities", ["batch", 3]), weights, description)


def save_identity(path: Path) -> None:
    """Returns rows of any length unchanged: the cost is only that of transport."""
    nodes = [helper.make_node("Identity", ["x"], ["y"])]
    _save(path, nodes, ("x", ["batch", "length"]), ("y", ["batch", "length"]), {}, None)


def _save(
    path: Path,
    nodes: list[onnx.NodeProto],
    input_value: tuple[str, list[Any]],
    output_value: tuple[str, list[Any]],
    weights: dict[str, Array],
    description: ModelMetadata | None,
) -> None:
    graph = helper.make_graph(
        nodes,
        path.stem,
        [helper.make_tensor_value_info(input_value[0], TensorProto.FLOAT, input_value[1])],
        [helper.make_tensor_value_info(output_value[0], TensorProto.FLOAT, output_value[1])],
        [numpy_helper.from_array(array, name) for name, array in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    if description is not None:
        helper.set_model_props(model, {metadata.KEY: metadata.to_json(description)})
    onnx.save(model, path)
