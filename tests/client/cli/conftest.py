"""The commands in processes of their own, as people run them, against a server process."""

import shutil
import subprocess

import pytest
from onnx import TensorProto, helper
from support import onnx_models
from support.cli import NEURONA, environment
from support.server_process import ServerProcess

from neurona_protos.prediction_pb2 import InputDescription, ModelMetadata, Task, ValueDescription


@pytest.fixture(scope="session")
def served(repository, tmp_path_factory):
    """A server that tests share because they do not change it."""
    root = tmp_path_factory.mktemp("served")
    for name in ("classifier", "regressor", "fixed"):
        shutil.copytree(repository / name, root / name)
    save_summing(root / "pixels", ["batch", 4, 4], "", "grey level 0..16")
    save_summing(root / "sound", ["batch", "time"], "at 8 kHz", "amplitude -1..1")
    save_with_lengths(root / "recording", ["batch", "time"], "amplitude -1..1")
    save_with_lengths(root / "gestures", ["batch", "time", 2], "as in the file", ("up", "down"))
    save_weighing(root / "people")
    (root / "broken" / "1").mkdir(parents=True)
    (root / "broken" / "1" / "model.onnx").write_bytes(b"no model")
    shutil.copytree(repository / "fixed" / "1", root / "misnamed" / "v1")
    with ServerProcess(root) as server:
        yield server


def save_summing(folder, shape, description, unit):
    """Save a model whose value is the sum of a row."""
    axes = list(range(1, len(shape)))
    onnx_models.save(
        folder / "1" / "model.onnx",
        [
            helper.make_node("ReduceSum", ["x", "axes"], ["sum"], keepdims=0),
            helper.make_node("Reshape", ["sum", "column"], ["value"]),
        ],
        {"x": (TensorProto.FLOAT, shape)},
        {"value": (TensorProto.FLOAT, ["batch", 1])},
        {"axes": onnx_models.np.array(axes), "column": onnx_models.np.array([-1, 1])},
        ModelMetadata(
            task=Task.TASK_REGRESSION,
            answer="value",
            inputs=[InputDescription(name="x", description=description, unit=unit)],
            values=[ValueDescription(name="total")],
        ),
    )


def save_with_lengths(folder, shape, unit, columns=()):
    """Save a model whose value is the sum of a sequence, channel 2 tenfold, and 1000 a step."""
    axes = list(range(1, len(shape)))
    onnx_models.save(
        folder / "1" / "model.onnx",
        [
            helper.make_node("Mul", ["x", "weights"], ["weighted"]),
            helper.make_node("ReduceSum", ["weighted", "axes"], ["sum"], keepdims=0),
            helper.make_node("Cast", ["sequence_lens"], ["lengths"], to=TensorProto.FLOAT),
            helper.make_node("Mul", ["lengths", "thousand"], ["thousands"]),
            helper.make_node("Add", ["sum", "thousands"], ["total"]),
            helper.make_node("Reshape", ["total", "column"], ["value"]),
        ],
        {"x": (TensorProto.FLOAT, shape), "sequence_lens": (TensorProto.INT32, ["batch"])},
        {"value": (TensorProto.FLOAT, ["batch", 1])},
        {
            "axes": onnx_models.np.array(axes),
            "column": onnx_models.np.array([-1, 1]),
            "weights": onnx_models.np.array([1, 10][: max(1, len(columns))], "float32"),
            "thousand": onnx_models.np.array([1000], "float32"),
        },
        ModelMetadata(
            task=Task.TASK_REGRESSION,
            answer="value",
            inputs=[
                InputDescription(
                    name="x", description="8,000 samples a second", unit=unit, columns=columns
                )
            ],
            values=[ValueDescription(name="total")],
        ),
    )


def save_weighing(folder):
    """Save a model whose value is age + 1000 income, which knows its columns."""
    onnx_models.save(
        folder / "1" / "model.onnx",
        [helper.make_node("MatMul", ["x", "weights"], ["value"])],
        {"x": (TensorProto.FLOAT, ["batch", 2])},
        {"value": (TensorProto.FLOAT, ["batch", 1])},
        {"weights": onnx_models.np.array([[1], [1000]], onnx_models.np.float32)},
        ModelMetadata(
            task=Task.TASK_REGRESSION,
            answer="value",
            inputs=[InputDescription(name="x", columns=["age", "income"], decimal_mark=",")],
            values=[ValueDescription(name="score")],
        ),
    )


@pytest.fixture
def neurona(served):
    """Runs a command, with the address of the server in the environment."""

    def neurona(*arguments, variables=None, **options):
        variables = {"NEURONA_ADDRESS": served.address} | (variables or {})
        pipe = subprocess.PIPE
        options = {"stdout": pipe, "stderr": pipe, "text": True, "timeout": 60} | options
        command = [NEURONA, *map(str, arguments)]
        return subprocess.run(command, env=environment(**variables), check=False, **options)

    return neurona
