"""Servers with small models that stand in for those of the demo; the built Node package."""

import hashlib
import os
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto, helper
from support import onnx_models
from support.certificates import CertificateAuthority
from support.server_process import ServerProcess

from neurona_protos.prediction_pb2 import InputDescription, ModelMetadata, Task, ValueDescription

NODE_CLIENT = Path(__file__).parents[2] / "client" / "node"
TOKEN = "a-token-of-this-service"  # noqa: S105


@pytest.fixture(scope="session")
def demo_repository(tmp_path_factory):
    root = tmp_path_factory.mktemp("demo")
    save_lenet5(root / "lenet5" / "1" / "model.onnx")
    save_rnn(root / "rnn" / "1" / "model.onnx")
    save_lstm(root / "lstm" / "1" / "model.onnx")
    return root


@pytest.fixture(scope="session")
def demo_server(demo_repository):
    with ServerProcess(demo_repository) as server:
        yield server


@pytest.fixture(scope="session")
def secure_demo_server(demo_repository, tmp_path_factory):
    """A server with TLS and a token; `ca.pem` is in the folder."""
    folder = tmp_path_factory.mktemp("secure")
    authority = CertificateAuthority(folder, "authority")
    certificate, key = authority.issue("server")
    digest = hashlib.sha256(TOKEN.encode()).hexdigest()
    rights = '["predict", "describe"]'
    (folder / "tokens.toml").write_text(
        f'[[tokens]]\nname = "service"\nsha256 = "{digest}"\nrights = {rights}\n'
    )
    (folder / "ca.pem").write_bytes(authority.certificate.read_bytes())
    flags = ["--tls-certificate", certificate, "--tls-key", key]
    flags += ["--tokens-file", folder / "tokens.toml"]
    with ServerProcess(demo_repository, *flags, trusted_ca=authority.certificate) as server:
        yield server, folder


@pytest.fixture(scope="session")
def node_modules():
    """The npm packages, in $NODE_MODULES (as in `make test`) or, after `npm ci`, in client/node."""
    if shutil.which("node") is None:
        pytest.skip("node is not installed")
    modules = Path(os.environ.get("NODE_MODULES") or NODE_CLIENT / "node_modules").absolute()
    if not (modules / "typescript").is_dir():
        pytest.skip("npm ci was not run")
    return modules


@pytest.fixture(scope="session")
def node_package(node_modules, tmp_path_factory):
    """The folder of the compiled package, outside the source tree."""
    folder = tmp_path_factory.mktemp("node")
    for name in ("src", "test"):
        shutil.copytree(NODE_CLIENT / name, folder / name)
    for name in ("package.json", "tsconfig.json", "README.md"):
        shutil.copy(NODE_CLIENT / name, folder)
    (folder / "node_modules").symlink_to(node_modules)
    compiler = node_modules / "typescript" / "bin" / "tsc"
    done = subprocess.run(
        [shutil.which("node"), compiler], cwd=folder, check=False, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout
    return folder


def save_lenet5(path):
    """Save a linear classifier of images of 8 x 8 pixels."""
    onnx_models.save(
        path,
        [
            helper.make_node("Reshape", ["image", "row"], ["pixels"]),
            helper.make_node("MatMul", ["pixels", "weights"], ["logits"]),
            helper.make_node("Softmax", ["logits"], ["probabilities"], axis=1),
        ],
        {"image": (TensorProto.FLOAT, ["batch", 8, 8])},
        {"probabilities": (TensorProto.FLOAT, ["batch", 10])},
        {
            "row": np.array([-1, 64]),
            "weights": np.random.default_rng(0).normal(0, 0.1, (64, 10)).astype(np.float32),
        },
        ModelMetadata(
            task=Task.TASK_CLASSIFICATION,
            answer="probabilities",
            labels=[str(digit) for digit in range(10)],
            inputs=[InputDescription(name="image", unit="grey level 0..16")],
        ),
    )


def save_rnn(path):
    """Save a forecast of a series of any length: the mean of its values."""
    onnx_models.save(
        path,
        [helper.make_node("ReduceMean", ["series"], ["forecast"], axes=[1], keepdims=0)],
        {"series": (TensorProto.FLOAT, ["batch", "time", 1])},
        {"forecast": (TensorProto.FLOAT, ["batch", 1])},
        None,
        ModelMetadata(
            task=Task.TASK_REGRESSION,
            answer="forecast",
            values=[ValueDescription(name="sunspots", unit="sunspots")],
        ),
    )


def save_lstm(path):
    """Save a classifier of images that are sent row by row, of 8 pixels each."""
    random = np.random.default_rng(0)

    def weights(*shape):
        return random.normal(0, 0.3, shape).astype(np.float32)

    onnx_models.save(
        path,
        [
            helper.make_node("Transpose", ["sequence"], ["steps"], perm=[1, 0, 2]),
            helper.make_node("LSTM", ["steps", "w", "r"], ["", "last"], hidden_size=6),
            helper.make_node("Squeeze", ["last", "axes"], ["features"]),
            helper.make_node("MatMul", ["features", "classes"], ["logits"]),
            helper.make_node("Softmax", ["logits"], ["probabilities"], axis=1),
        ],
        {"sequence": (TensorProto.FLOAT, ["batch", "time", 8])},
        {"probabilities": (TensorProto.FLOAT, ["batch", 10])},
        {
            "w": weights(1, 24, 8),
            "r": weights(1, 24, 6),
            "axes": np.array([0]),
            "classes": weights(6, 10),
        },
        ModelMetadata(
            task=Task.TASK_CLASSIFICATION,
            answer="probabilities",
            labels=[str(digit) for digit in range(10)],
            inputs=[InputDescription(name="sequence", unit="grey level 0..16")],
        ),
    )
