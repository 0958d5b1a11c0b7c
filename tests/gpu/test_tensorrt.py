"""TensorRT on a GPU, where it is installed: the profile, the cache of engines, and the answers."""

import time

import numpy as np
import pytest
from onnx import TensorProto, helper
from support import onnx_models

from neurona_server.models.onnx.compiling import load_tensorrt
from neurona_server.models.onnx.runtime import RuntimeOptions
from neurona_server.models.onnx.session import Session

pytestmark = pytest.mark.usefixtures("cuda")

TENSORRT = "TensorrtExecutionProvider"


@pytest.fixture(scope="module", autouse=True)
def _tensorrt(cuda_module):
    if not load_tensorrt():
        pytest.skip("TensorRT 10 is not installed: pip install 'tensorrt-cu13-libs<11'")


@pytest.fixture(scope="module")
def cuda_module(device):
    if device != "cuda":
        pytest.skip("needs a GPU; this is a rehearsal on the CPU")


def save(folder, factor):
    random = np.random.default_rng(1)
    return onnx_models.save(
        folder / "model.onnx",
        [
            helper.make_node("MatMul", ["x", "w"], ["h"]),
            helper.make_node("Tanh", ["h"], ["y"]),
        ],
        {"x": (TensorProto.FLOAT, ["n", 32])},
        {"y": (TensorProto.FLOAT, ["n", 8])},
        {"w": (factor * random.standard_normal((32, 8))).astype(np.float32)},
    )


def load(path, cache):
    options = RuntimeOptions(
        providers=("tensorrt", "cuda", "cpu"), gpu_expected=True, max_rows=16, cache=cache
    )
    started = time.monotonic()
    session = Session(path, options)
    assert session.provider == TENSORRT, session.degraded
    return session, time.monotonic() - started


def test_answers_at_every_batch_size_and_engines_that_survive_a_restart(tmp_path):
    cache = tmp_path / "cache"
    path = save(tmp_path / "a", 0.1)
    session, first = load(path, cache)
    reference = Session(path, RuntimeOptions(providers=("cpu",)))
    engines = [*(cache / "engines").rglob("*.engine")]
    assert len(engines) == 1, "the profile makes one engine for all batch sizes, at the load"
    for rows in (1, 2, 3, 8, 16):
        inputs = {"x": np.random.default_rng(rows).standard_normal((rows, 32), np.float32)}
        np.testing.assert_allclose(
            session.run(inputs)[0], reference.run(inputs)[0], rtol=0, atol=5e-3
        )
    assert [*(cache / "engines").rglob("*.engine")] == engines, "a run compiled again"
    session.close()
    written = engines[0].stat().st_mtime_ns
    again, second = load(path, cache)
    assert engines[0].stat().st_mtime_ns == written, "the engine was compiled again"
    print(f"compiled and loaded in {first:.1f} s, loaded from the cache in {second:.1f} s")
    again.close()


def test_a_new_version_with_the_same_names_gets_its_own_engine(tmp_path):
    cache = tmp_path / "cache"
    outputs = []
    for name, factor in (("a", 0.1), ("b", -0.1)):
        session, _ = load(save(tmp_path / name, factor), cache)
        outputs.append(session.run({"x": np.ones((4, 32), np.float32)})[0])
    np.testing.assert_allclose(outputs[0], -outputs[1], rtol=0, atol=5e-3)
