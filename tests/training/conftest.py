"""Fixtures of the training tests: each recipe trained once, in full, by the command."""

from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from numpy.typing import NDArray

from neurona_training.cli.main import main

Runner = Callable[[bytes, NDArray[np.float32]], NDArray[np.float32]]


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The model file of a recipe, trained with its own epochs on the first call."""
    out = tmp_path_factory.mktemp("models")

    @cache
    def train(recipe: str) -> Path:
        assert main([recipe, "--no-report", "--out", str(out)]) == 0
        return out / recipe / "1" / "model.onnx"

    return train


@pytest.fixture(scope="session")
def ask() -> Runner:
    """Runs a model of one input and one output in ONNX Runtime on the CPU."""

    def run(model: bytes, inputs: NDArray[np.float32]) -> NDArray[np.float32]:
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4
        session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        (outputs,) = session.run(None, {session.get_inputs()[0].name: inputs})
        return outputs

    return run


@pytest.fixture
def operators() -> Callable[[bytes], list[str]]:
    return lambda model: [node.op_type for node in onnx.load_from_string(model).graph.node]
