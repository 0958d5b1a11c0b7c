"""Loading with TensorRT: profile, engine cache and what happens when it fails.

A function stands in for ONNX Runtime with TensorRT: it writes and reads engines as that does.
"""

import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto, helper
from support import onnx_models

from neurona_server.models.load_cancellation import LoadCancellation
from neurona_server.models.onnx import compiling, engine_cache
from neurona_server.models.onnx.compiled_models import MISSING_PROFILE
from neurona_server.models.onnx.compiling import (
    TensorrtMissingError,
    describe_gpu,
    find_compiler,
)
from neurona_server.models.onnx.runtime import CPU, CUDA, RuntimeOptions

TENSORRT, RTX = "TensorrtExecutionProvider", "NvTensorRTRTXExecutionProvider"


@pytest.fixture(autouse=True)
def _gpu(cuda_stub, monkeypatch):
    cuda_stub.install(monkeypatch, devices=2)
    monkeypatch.setattr(compiling, "load_tensorrt", lambda: "101300")


@pytest.fixture
def model(tmp_path):
    return onnx_models.save(
        tmp_path / "model.onnx",
        [helper.make_node("Mul", ["x", "w"], ["y"])],
        {"x": (TensorProto.FLOAT, ["n", 3])},
        {"y": (TensorProto.FLOAT, ["n", 3])},
        {"w": np.float32([2])},
    )


class StandIn:
    """ONNX Runtime with TensorRT: `load` is called with the providers of each session."""

    def __init__(self, *, partitioned=False):
        self.options = []
        self.compiled = 0
        self.partitioned = partitioned

    def load(self, providers):
        (name, options), *_ = providers
        self.options.append(options)
        if self.partitioned and "trt_profile_min_shapes" in options:
            raise RuntimeError(f"Following input(s) has {MISSING_PROFILE}: inner")
        if folder := options.get("trt_engine_cache_path"):
            engine = Path(folder) / "graph_sm90.engine"
            if engine.exists() and engine.read_bytes() != b"engine":
                raise RuntimeError("the engine cannot be read")
            self.compiled += not engine.exists()
            engine.write_bytes(b"engine")
        return name


def load(path, runtime, options=None, *, name=TENSORRT, device=0, **settings):
    providers = [(name, {"device_id": str(device), **(options or {})}), CUDA, CPU]
    options = RuntimeOptions(**({"cache": path.parent / "cache", "max_rows": 16} | settings))
    compiler = find_compiler(providers, path, (), options, LoadCancellation())
    return compiler.load(runtime.load)


def test_only_tensorrt_compiles(model):
    for providers in ([CPU], [CUDA, CPU], [(CUDA, {"device_id": "0"}), (TENSORRT, {}), CPU]):
        assert find_compiler(providers, model, (), RuntimeOptions(), LoadCancellation()) is None


def test_a_session_gets_a_profile_and_a_folder_of_its_own(model):
    runtime = StandIn()
    _, engines = load(model, runtime)
    (options,) = runtime.options
    assert options == {
        "device_id": "0",
        "trt_profile_min_shapes": "x:1x3",
        "trt_profile_opt_shapes": "x:16x3",
        "trt_profile_max_shapes": "x:16x3",
        "trt_engine_cache_enable": "True",
        "trt_engine_cache_path": str(engines.path),
        "trt_timing_cache_enable": "True",
        "trt_timing_cache_path": str(engines.timing_path),
    }
    assert engines.path.parent == model.parent / "cache" / "engines"


def test_engines_survive_a_restart_and_belong_to_one_model(model):
    runtime = StandIn()
    load(model, runtime)
    load(model, runtime)
    assert runtime.compiled == 1
    load(model, runtime, max_rows=32)  # for other shapes
    assert runtime.compiled == 2
    load(model, runtime, {"trt_fp16_enable": "True"})
    assert runtime.compiled == 3
    model.write_bytes(model.read_bytes().replace(np.float32(2).tobytes(), np.float32(3).tobytes()))
    load(model, runtime)  # of another version, with the same names
    assert runtime.compiled == 4


def test_engines_belong_to_one_kind_of_gpu(model, cuda_stub, monkeypatch):
    runtime = StandIn()
    load(model, runtime)
    load(model, runtime, device=1)  # of the same kind
    assert runtime.compiled == 1
    cuda_stub.configure(monkeypatch, capability=80)
    load(model, runtime)
    assert runtime.compiled == 2


def test_an_engine_that_cannot_be_loaded_is_compiled_again(model, caplog):
    runtime = StandIn()
    _, engines = load(model, runtime)
    (engines.path / "graph_sm90.engine").write_bytes(b"of a broken disk")
    engines.seal()
    load(model, runtime)
    assert runtime.compiled == 2
    assert "engines are compiled again: the engine cannot be read" in caplog.text
    load(model, runtime)
    assert runtime.compiled == 2


def test_a_graph_of_which_parts_run_elsewhere_gets_no_profile(model, caplog):
    runtime = StandIn(partitioned=True)
    with caplog.at_level("INFO"):
        load(model, runtime)
    first, second = runtime.options
    assert "trt_profile_min_shapes" in first
    assert not any(key.startswith("trt_profile") for key in second)
    assert "TensorRT runs parts of it, without a profile" in caplog.text


def test_a_profile_of_the_options_is_not_changed(model):
    runtime = StandIn()
    load(model, runtime, {"trt_profile_min_shapes": "x:2x3"})
    assert [key for key in runtime.options[0] if "profile" in key] == ["trt_profile_min_shapes"]
    with pytest.raises(RuntimeError, match=MISSING_PROFILE):
        load(model, StandIn(partitioned=True), {"trt_profile_min_shapes": "x:2x3"})


def test_without_tensorrt_the_error_says_what_to_install(model, monkeypatch):
    monkeypatch.setattr(compiling, "load_tensorrt", str)

    class Broken:
        def load(self, providers):
            raise RuntimeError("Please install TensorRT libraries")

    with pytest.raises(TensorrtMissingError, match=r"expected libnvinfer.so.10: pip install"):
        load(model, Broken())
    assert load(model, StandIn())[0] == TENSORRT  # one that is found in another way


def test_without_a_cache_engines_are_not_kept(model):
    runtime = StandIn()
    assert load(model, runtime, cache=None) == (TENSORRT, None)
    assert not any("cache" in key for key in runtime.options[0])
    own = {"trt_engine_cache_enable": "True", "trt_engine_cache_path": str(model.parent)}
    assert load(model, runtime, own) == (TENSORRT, None)
    assert runtime.options[1]["trt_engine_cache_path"] == str(model.parent)


def test_a_model_does_not_move_the_engines_to_the_working_directory(model):
    runtime = StandIn()
    flags = dict.fromkeys(("trt_engine_cache_enable", "trt_timing_cache_enable"), "True")
    _, engines = load(model, runtime, flags)
    assert runtime.options[0]["trt_engine_cache_path"] == str(engines.path)
    assert runtime.options[0]["trt_timing_cache_path"] == str(engines.timing_path)
    load(model, runtime, flags, cache=None)
    load(model, runtime, {"trt_engine_cache_enable": "False"})
    for options in runtime.options[1:]:
        assert not any("cache" in key for key in options)


@pytest.mark.parametrize("error", [28, 30])  # ENOSPC, EROFS
def test_with_a_full_or_read_only_cache_the_model_is_compiled_all_the_same(
    model, monkeypatch, caplog, error
):
    runtime = StandIn()
    load(model, runtime)
    model.write_bytes(model.read_bytes().replace(np.float32(2).tobytes(), np.float32(3).tobytes()))

    def fail(folder):
        raise OSError(error, os.strerror(error))

    monkeypatch.setattr(engine_cache, "make_private_folder", fail)
    with caplog.at_level("INFO"):
        assert load(model, runtime) == (TENSORRT, None)
    assert f"its engines are not cached: [Errno {error}]" in caplog.text


def test_a_cache_that_was_deleted_meanwhile_is_made_again(model):
    runtime = StandIn()
    load(model, runtime)
    shutil.rmtree(model.parent / "cache")
    _, engines = load(model, runtime)
    assert engines.is_complete()
    assert (model.parent / "cache" / "engines").stat().st_mode & 0o777 == 0o700
    shutil.rmtree(engines.path)
    assert not engines.is_complete()


def test_engines_are_kept_if_the_gpu_is_full(model):
    runtime = StandIn()
    _, engines = load(model, runtime)

    class Full:
        def load(self, providers):
            raise RuntimeError("CUDA failure 2: out of memory ; GPU=0 ; hostname=h ; file=a.cc")

    with pytest.raises(RuntimeError, match="out of memory"):
        load(model, Full())
    load(model, runtime)
    assert runtime.compiled == 1
    assert engines.is_complete()


def test_without_a_description_of_the_gpu_engines_are_not_kept(
    model, cuda_stub, monkeypatch, caplog
):
    cuda_stub.configure(monkeypatch, devices=0)
    with caplog.at_level("INFO"):
        assert load(model, StandIn()) == (TENSORRT, None)
    assert "its engines are not cached:" in caplog.text


def test_tensorrt_rtx_keeps_its_kernels_in_a_folder_by_model(model):
    runtime = StandIn()
    assert load(model, runtime, name=RTX) == (RTX, None)
    load(model, runtime, {"nv_runtime_cache_path": "/own"}, name=RTX)
    folder, own = [options["nv_runtime_cache_path"] for options in runtime.options]
    assert Path(folder).is_dir()
    assert own == "/own"


def test_the_description_of_a_gpu_has_its_name_and_capability():
    name, capability, driver = describe_gpu(1)
    assert name
    assert capability.startswith("(")
    assert driver.startswith("(")
