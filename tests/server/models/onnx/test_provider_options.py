"""Options of execution providers: which keys exist, who may set them, and how they are written."""

import re
from pathlib import Path

import onnxruntime
import pytest

from neurona_server.errors import ConfigError
from neurona_server.models.onnx import provider_options
from neurona_server.models.onnx.provider_options import (
    CUDA_DEFAULTS,
    ProviderOptionError,
    allows_cuda_graphs,
    check_model_options,
    check_server_options,
    cuda_options,
    merge_options,
    write_flag,
)

LIBRARIES = Path(onnxruntime.__file__).parent / "capi"


def reject_for_server(options, message):
    with pytest.raises(ConfigError) as caught:
        check_server_options(options)
    assert str(caught.value).startswith(f"option provider_options: {message}")


def reject_for_model(options, message):
    with pytest.raises(ProviderOptionError) as caught:
        check_model_options("settings", options)
    assert str(caught.value).startswith(f"settings.{message}")


@pytest.mark.parametrize(
    ("provider", "key", "value", "written"),
    [
        ("cuda", "use_tf32", "0", "0"),
        ("cuda", "use_tf32", True, "1"),
        ("cuda", "prefer_nhwc", "TRUE", "1"),
        ("cuda", "cudnn_conv_algo_search", "heuristic", "HEURISTIC"),
        ("cuda", "arena_extend_strategy", "ksameasrequested", "kSameAsRequested"),
        ("cuda", "gpu_mem_limit", 1 << 40, "1099511627776"),
        ("tensorrt", "trt_fp16_enable", 1, "True"),
        ("tensorrt", "trt_fp16_enable", "false", "False"),
        ("tensorrt", "trt_auxiliary_streams", "-1", "-1"),
        ("tensorrt", "trt_profile_opt_shapes", "x:0:1x3,y:7", "x:0:1x3,y:7"),
        ("tensorrt", "trt_tactic_sources", "-CUDNN,+CUBLAS", "-CUDNN,+CUBLAS"),
        ("openvino", "disable_dynamic_shapes", "1", "true"),
        ("openvino", "num_of_threads", 3, "3"),
        ("nvtensorrtrtx", "nv_max_workspace_size", 0, "0"),
    ],
)
def test_values_are_written_as_the_provider_takes_them(provider, key, value, written):
    assert check_server_options({provider: {key: value}}) == {provider: {key: written}}
    assert check_model_options("o", {provider: {key: value}}) == {provider: {key: written}}


@pytest.mark.parametrize(
    ("provider", "key", "value", "message"),
    [
        ("cuda", "use_tf32", "2", "cuda.use_tf32 is '2' (expected 0 or 1)"),
        ("cuda", "use_tf32", 1.5, "cuda.use_tf32 is 1.5 (expected 0 or 1)"),
        ("cuda", "use_tf32", [1], "cuda.use_tf32 is [1] (expected 0 or 1)"),
        (
            "cuda",
            "cudnn_conv_algo_search",
            "BEST",
            "cuda.cudnn_conv_algo_search is 'BEST' (expected EXHAUSTIVE or HEURISTIC or DEFAULT)",
        ),
        ("cuda", "gpu_mem_limit", "-1", "cuda.gpu_mem_limit is '-1' (expected an integer of at"),
        ("cuda", "gpu_mem_limit", 2**63, "cuda.gpu_mem_limit is '9223372036854775808' (expected"),
        ("cuda", "gpu_mem_limit", "٣", "cuda.gpu_mem_limit is '٣' (expected an integer of at l"),
        pytest.param(
            "cuda",
            "sdpa_kernel",
            10**5000,
            "cuda.sdpa_kernel is 'a number with too many digits' (",
            id="digits",
        ),
        ("cuda", "use_tf", "1", "cuda.use_tf is an unknown key; did you mean 'use_tf32'?"),
        ("cuda", "x", "1", "cuda.x is an unknown key (expected one of arena_extend_strategy, cud"),
        ("cuda", "a\nb", "1", "cuda has 'a\\nb', which is an unknown key (expected one of arena_"),
        ("openvino", "a\nb", "1", "openvino has 'a\\nb', which is an unknown key (expected one"),
        ("cuda", "device_id", "1", "cuda.device_id cannot be set: Neurona sets it from the opt"),
        ("cuda", "user_compute_stream", "1", "cuda.user_compute_stream cannot be set: it is an a"),
        ("tensorrt", "trt_profile_min_shapes", "x:1xn", "tensorrt.trt_profile_min_shapes is 'x:1x"),
        ("tensorrt", "trt_op_types_to_exclude", "a\nb", "tensorrt.trt_op_types_to_exclude is 'a\\"),
        ("openvino", "num_streams", "", "openvino.num_streams is '' (expected an integer of at le"),
        ("migraphx", "migraphx_x", "y" * 5000, "migraphx.migraphx_x is 'yyyyyy"),
    ],
)
def test_an_invalid_option_is_reported(provider, key, value, message):
    reject_for_server({provider: {key: value}}, message)
    if provider != "migraphx":
        reject_for_model({provider: {key: value}}, message)


def test_other_providers_get_every_key_of_the_server_s_options_but_none_of_a_model_s():
    for provider in ("openvino", "nvtensorrtrtx", "migraphx"):
        options = {provider: {"key_of_2030": "7"}}
        assert check_server_options(options) == options
    reject_for_model(
        {"openvino": {"key_of_2030": "7"}},
        "openvino.key_of_2030 is an unknown key (expected one of cache_dir, device_id, dev",
    )


@pytest.mark.parametrize(
    ("provider", "key"),
    [
        ("tensorrt", "trt_extra_plugin_lib_paths"),
        ("tensorrt", "trt_engine_cache_path"),
        ("openvino", "load_config"),
        ("nvtensorrtrtx", "nv_runtime_cache_path"),
    ],
)
def test_only_the_server_s_options_name_files(provider, key):
    assert check_server_options({provider: {key: "/x"}}) == {provider: {key: "/x"}}
    reject_for_model(
        {provider: {key: "/x"}},
        f"{provider}.{key} names files (expected it in the server's option provider_options only)",
    )


def test_a_model_s_options_override_single_ones_of_the_server():
    server = {"cuda": {"use_tf32": "0", "prefer_nhwc": "1"}}
    model = {"cuda": {"use_tf32": "1"}, "openvino": {"num_streams": "2"}}
    assert merge_options(server, model) == {
        "cuda": {"use_tf32": "1", "prefer_nhwc": "1"},
        "openvino": {"num_streams": "2"},
    }
    assert merge_options({}, {}) == {}


@pytest.mark.parametrize("limit", ["0", "99"])
def test_a_model_does_not_raise_the_server_s_limit_of_gpu_memory(limit):
    model = check_model_options("provider_options", {"cuda": {"gpu_mem_limit": limit}})
    assert cuda_options(model, memory_bytes=9)["gpu_mem_limit"] == "9"
    for server, expected in (("9", "9"), ("0", limit), ("100", limit if limit != "0" else "100")):
        merged = merge_options({"cuda": {"gpu_mem_limit": server}}, model)
        assert merged["cuda"] == {"gpu_mem_limit": expected}


def test_cuda_options():
    assert cuda_options({}) == {**CUDA_DEFAULTS, "device_id": "0"}
    chosen = {"cuda": {"cudnn_conv_algo_search": "EXHAUSTIVE", "gpu_mem_limit": "7"}}
    assert cuda_options(chosen, device=2, memory_bytes=9) == {
        **CUDA_DEFAULTS,
        "device_id": "2",
        "gpu_mem_limit": "7",
        "cudnn_conv_algo_search": "EXHAUSTIVE",
    }
    assert cuda_options({}, memory_bytes=9)["gpu_mem_limit"] == "9"


def test_only_the_session_decides_on_cuda_graphs():
    for value in "01":
        chosen = {"cuda": {"enable_cuda_graph": value}}
        assert "enable_cuda_graph" not in cuda_options(chosen)
        assert cuda_options(chosen, graphs=True)["enable_cuda_graph"] == "1"
        assert allows_cuda_graphs(chosen) == (value == "1")
    assert allows_cuda_graphs({})


def test_flags():
    assert [write_flag(name, value=True) for name in ("cuda", "tensorrt", "other")] == [
        "1",
        "True",
        "1",
    ]
    assert [write_flag(name, value=False) for name in ("cuda", "openvino")] == ["0", "false"]


@pytest.mark.parametrize(
    ("library", "table", "pattern"),
    [
        ("libonnxruntime_providers_tensorrt.so", "_TENSORRT", rb"(?<=\0)trt_[a-z0-9_]+(?=\0)"),
        (
            "onnxruntime_pybind11_state*.so",
            "_TENSORRT",
            rb"(?<=The value for the key ')trt_[a-z0-9_]+(?=')",
        ),
    ],
)
def test_all_keys_of_the_installed_library_are_known(library, table, pattern):
    paths = [*LIBRARIES.glob(library)]
    if not paths:
        pytest.skip(f"this onnxruntime has no {library}")
    keys = {key.decode() for key in re.findall(pattern, paths[0].read_bytes())}
    if not keys:
        pytest.skip(f"{library} names no keys: it is built without TensorRT")
    assert keys <= set(getattr(provider_options, table))
