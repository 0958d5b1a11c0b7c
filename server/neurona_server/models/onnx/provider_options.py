"""The options of ONNX Runtime's execution providers: which exist, who may set them, defaults.

An option of the server or of a model is named by the provider's short name and the provider's own
key, as `cuda.use_tf32`. The keys of `cuda` and `tensorrt` are those of onnxruntime-gpu 1.31, read
from its libraries: an unknown one is an error here, since ONNX Runtime would only log it and run
the model on the CPU. Other providers come in several versions, also as packages of their own, and
get every key that the server's options name.

The settings of a model may come from a caller (parameter `config` of a load). So they may not set
keys that name files, folders or libraries, nor keys that are not known here. No one sets
addresses, nor what Neurona decides itself.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from neurona_server.errors import ConfigError, close_match, quoted

ProviderOptions = Mapping[str, Mapping[str, str]]
"""Values by the provider's short name and key."""

KEY_PATTERN: Final = re.compile(r"[A-Za-z][A-Za-z0-9_]{0,63}")
MAX_VALUE_CHARACTERS: Final = 4096

_MEMORY_LIMIT = "gpu_mem_limit"  # 0: none, as in ONNX Runtime's arenas
_TRUE, _FALSE = ("1", "true", "yes", "on"), ("0", "false", "no", "off")
_MAX_INTEGER = 2**63 - 1


class ProviderOptionError(ValueError):
    """A provider option is unknown, has an invalid value, or may not be set there.

    Its message is one line like "cuda.use_tf32 is 'x' (expected 0 or 1)".
    """


@dataclass(frozen=True)
class _Key:
    """What a key takes, and who may set it."""

    kind: str = "text"
    """flag, integer, text or shapes; unused with choices."""

    choices: tuple[str, ...] = ()
    minimum: int = 0
    server_only: bool = False
    """Whether it names a file, a folder or a library."""

    reserved: str = ""
    """Why nobody sets it."""


_FLAG, _INTEGER, _TEXT = _Key("flag"), _Key("integer"), _Key()
_PATH = _Key(server_only=True)
_PLACED = _Key(reserved="Neurona sets it from the option devices")
_ADDRESS = _Key(reserved="it is an address in the memory of a process")
_CAPTURED = _Key(reserved="the inputs of Neurona's runs have changing addresses")

# Of OrtCUDAProviderOptionsV2; source: ONNX Runtime's docs, CUDA Execution Provider.
_CUDA: Final[Mapping[str, _Key]] = {
    "arena_extend_strategy": _Key(choices=("kNextPowerOfTwo", "kSameAsRequested")),
    "cudnn_conv1d_pad_to_nc1d": _FLAG,
    "cudnn_conv_algo_search": _Key(choices=("EXHAUSTIVE", "HEURISTIC", "DEFAULT")),
    "cudnn_conv_use_max_workspace": _FLAG,
    "device_id": _PLACED,
    "do_copy_in_default_stream": _FLAG,
    "enable_cuda_graph": _FLAG,
    "enable_cudnn": _FLAG,
    "enable_skip_layer_norm_strict_mode": _FLAG,
    "external_data_loader_reading_threads": _INTEGER,
    "fuse_conv_bias": _FLAG,
    "gpu_external_alloc": _ADDRESS,
    "gpu_external_empty_cache": _ADDRESS,
    "gpu_external_free": _ADDRESS,
    "gpu_mem_limit": _INTEGER,
    "has_user_compute_stream": _ADDRESS,
    "prefer_nhwc": _FLAG,
    "sdpa_kernel": _INTEGER,
    "tunable_op_enable": _FLAG,
    "tunable_op_max_tuning_duration_ms": _INTEGER,
    "tunable_op_tuning_enable": _FLAG,
    "use_ep_level_unified_stream": _FLAG,
    "use_tf32": _FLAG,
    "user_compute_stream": _ADDRESS,
}

# Of OrtTensorRTProviderOptionsV2; source: ONNX Runtime's docs, TensorRT Execution Provider.
_TENSORRT: Final[Mapping[str, _Key]] = {
    "device_id": _PLACED,
    "has_user_compute_stream": _ADDRESS,
    "trt_auxiliary_streams": _Key("integer", minimum=-1),
    "trt_bf16_enable": _FLAG,
    "trt_build_heuristics_enable": _FLAG,
    "trt_builder_optimization_level": _INTEGER,
    "trt_context_memory_sharing_enable": _FLAG,
    "trt_cuda_graph_enable": _CAPTURED,
    "trt_detailed_build_log": _FLAG,
    "trt_dla_core": _INTEGER,
    "trt_dla_enable": _FLAG,
    "trt_dump_ep_context_model": _Key("flag", server_only=True),
    "trt_dump_subgraphs": _Key("flag", server_only=True),
    "trt_engine_cache_enable": _FLAG,
    "trt_engine_cache_path": _PATH,
    "trt_engine_cache_prefix": _PATH,
    "trt_engine_decryption_enable": _Key("flag", server_only=True),
    "trt_engine_decryption_lib_path": _PATH,
    "trt_engine_hw_compatible": _FLAG,
    "trt_ep_context_embed_mode": _Key("integer", server_only=True),
    "trt_ep_context_file_path": _PATH,
    "trt_external_data_bytestream": _ADDRESS,
    "trt_external_data_bytestream_size": _ADDRESS,
    "trt_extra_plugin_lib_paths": _PATH,
    "trt_force_sequential_engine_build": _FLAG,
    "trt_force_timing_cache": _FLAG,
    "trt_fp16_enable": _FLAG,
    "trt_int8_calibration_table_name": _PATH,
    "trt_int8_enable": _FLAG,
    "trt_int8_use_native_calibration_table": _Key("flag", server_only=True),
    "trt_layer_norm_fp32_fallback": _FLAG,
    "trt_load_user_initializer": _FLAG,
    "trt_max_partition_iterations": _Key("integer", minimum=1),
    "trt_max_workspace_size": _INTEGER,
    "trt_min_subgraph_size": _Key("integer", minimum=1),
    "trt_onnx_bytestream": _ADDRESS,
    "trt_onnx_bytestream_size": _ADDRESS,
    "trt_onnx_model_folder_path": _PATH,
    "trt_op_types_to_exclude": _TEXT,
    "trt_preview_features": _TEXT,
    "trt_profile_max_shapes": _Key("shapes"),
    "trt_profile_min_shapes": _Key("shapes"),
    "trt_profile_opt_shapes": _Key("shapes"),
    "trt_sparsity_enable": _FLAG,
    "trt_tactic_sources": _TEXT,
    "trt_timing_cache_enable": _FLAG,
    "trt_timing_cache_path": _PATH,
    "trt_weight_stripped_engine_enable": _Key("flag", server_only=True),
    "user_compute_stream": _ADDRESS,
}

# Source: tensorrt_rtx_provider_options.h of the package onnxruntime-ep-nv-tensorrt-rtx 0.5. Its
# profiles have a form of their own.
_NV_TENSORRT_RTX: Final[Mapping[str, _Key]] = {
    "device_id": _PLACED,
    "enable_cuda_graph": _CAPTURED,
    "has_user_compute_stream": _ADDRESS,
    "VkExternalComputeQueueDataParamsNV_data": _ADDRESS,
    "nv_detailed_build_log": _FLAG,
    "nv_dump_subgraphs": _Key("flag", server_only=True),
    "nv_enable_profiling": _Key("flag", server_only=True),
    "nv_length_aux_stream_array": _ADDRESS,
    "nv_max_shared_mem_size": _INTEGER,
    "nv_max_workspace_size": _INTEGER,
    "nv_multi_profile_enable": _FLAG,
    "nv_op_types_to_exclude": _TEXT,
    "nv_persistent_context_memory": _FLAG,
    "nv_profile_max_shapes": _TEXT,
    "nv_profile_min_shapes": _TEXT,
    "nv_profile_opt_shapes": _TEXT,
    "nv_profiling_output_file": _PATH,
    "nv_runtime_cache_path": _PATH,
    "nv_use_sync_gpu_allocator": _FLAG,
    "nv_weight_streaming_budget": _TEXT,
    "user_aux_stream_array": _ADDRESS,
    "user_compute_stream": _ADDRESS,
}

# Source: ONNX Runtime's docs, OpenVINO Execution Provider.
_OPENVINO: Final[Mapping[str, _Key]] = {
    "cache_dir": _PATH,
    "context": _ADDRESS,
    "device_id": _TEXT,
    "device_type": _TEXT,
    "disable_dynamic_shapes": _FLAG,
    "enable_causallm": _FLAG,
    "enable_opencl_throttling": _FLAG,
    "enable_qdq_optimizer": _FLAG,
    "load_config": _PATH,
    "model_priority": _Key(choices=("LOW", "MEDIUM", "HIGH", "DEFAULT")),
    "num_of_threads": _Key("integer", minimum=1),
    "num_streams": _Key("integer", minimum=1),
    "precision": _Key(choices=("FP32", "FP16", "ACCURACY")),
    "reshape_input": _TEXT,
}


@dataclass(frozen=True)
class _ProviderKeys:
    keys: Mapping[str, _Key] = field(default_factory=dict)
    complete: bool = False
    """Whether these are all keys that it takes."""

    flags: tuple[str, str] = ("0", "1")
    """How it writes false and true."""


_PROVIDERS: Final[Mapping[str, _ProviderKeys]] = {
    "cuda": _ProviderKeys(_CUDA, complete=True),
    # Its parser in Python takes no other words (onnxruntime_pybind_state.cc).
    "tensorrt": _ProviderKeys(_TENSORRT, complete=True, flags=("False", "True")),
    "nvtensorrtrtx": _ProviderKeys(_NV_TENSORRT_RTX),
    "openvino": _ProviderKeys(_OPENVINO, flags=("false", "true")),
}

CUDA_DEFAULTS: Final[Mapping[str, str]] = {
    # EXHAUSTIVE, the default, runs every algorithm of cuDNN again for each new shape: seconds,
    # while serving. DEFAULT takes one without asking cuDNN, which may be many times slower.
    "cudnn_conv_algo_search": "HEURISTIC",
    # Algorithms that need a large workspace are left out otherwise, often the fastest.
    "cudnn_conv_use_max_workspace": "1",
    # The default doubles the arena each time it grows: up to twice the memory that runs need.
    "arena_extend_strategy": "kSameAsRequested",
}
"""What Neurona sets unless an option does. Written from the documentation, not measured on a GPU
yet. TF32 (on) and NHWC (off) stay as ONNX Runtime has them."""


def check_model_options(where: str, options: Mapping[str, object]) -> ProviderOptions:
    """Check the provider options of a model's settings.

    Args:
        where: Path of the table in messages, such as "provider_options".
        options: Tables of values by the provider's short name.

    Returns:
        The values as ONNX Runtime takes them.

    Raises:
        ProviderOptionError: A provider, a key or a value is not one that a model may set.
    """
    checked: dict[str, Mapping[str, str]] = {}
    for provider, table in options.items():
        if provider not in _PROVIDERS:
            raise ProviderOptionError(
                f"{where} has {quoted(provider)} (expected some of {', '.join(_PROVIDERS)})"
                f"{close_match(provider, _PROVIDERS)}"
            )
        if not isinstance(table, Mapping):
            raise ProviderOptionError(f"{where}.{provider} is no table (expected keys and values)")
        checked[provider] = {
            key: _check_value(f"{where}.{provider}", provider, key, value, by_server=False)
            for key, value in table.items()
        }
    return checked


def check_server_options(options: Mapping[str, Mapping[str, object]]) -> ProviderOptions:
    """Check the option provider_options of the server; which providers exist is not checked.

    Returns:
        The values as ONNX Runtime takes them.

    Raises:
        ConfigError: A key or a value is invalid.
    """
    try:
        return {
            provider: {
                key: _check_value(provider, provider, key, value, by_server=True)
                for key, value in table.items()
            }
            for provider, table in options.items()
        }
    except ProviderOptionError as error:
        raise ConfigError(f"option provider_options: {error}") from error


def names_files(provider: str, key: str) -> bool:
    """Return whether an option is only for the server's owner."""
    declared = _PROVIDERS.get(provider, _ProviderKeys()).keys.get(key)
    return declared is not None and declared.server_only


def merge_options(base: ProviderOptions, overrides: ProviderOptions) -> ProviderOptions:
    """Return all options of both, those of `overrides` for keys that both have.

    But of two limits for the memory of a GPU the lower one: a caller's model does not raise that of
    the server.
    """
    merged = {
        provider: {**base.get(provider, {}), **overrides.get(provider, {})}
        for provider in dict.fromkeys([*base, *overrides])
    }
    limits = [int(one.get("cuda", {}).get(_MEMORY_LIMIT, "0")) for one in (base, overrides)]
    if any(limits):
        merged["cuda"][_MEMORY_LIMIT] = str(min(filter(None, limits)))
    return merged


def cuda_options(
    options: ProviderOptions, device: int = 0, memory_bytes: int = 0, *, graphs: bool = False
) -> dict[str, str]:
    """Return all options of the CUDA provider for one session.

    Args:
        options: Those of the server and of the model.
        device: Number of the GPU in this process.
        memory_bytes: Limit of the session's memory on the GPU, unless an option sets a lower one;
            0: none.
        graphs: Whether the session captures CUDA graphs. A session that may do so captures every
            run without an id of its own, so this is not left to the options.
    """
    limit: ProviderOptions = {"cuda": {_MEMORY_LIMIT: str(memory_bytes)}} if memory_bytes else {}
    merged = merge_options(limit, options).get("cuda", {})
    values = {**CUDA_DEFAULTS, "device_id": str(device), **merged}
    values.pop("enable_cuda_graph", None)
    return values | ({"enable_cuda_graph": "1"} if graphs else {})


def allows_cuda_graphs(options: ProviderOptions) -> bool:
    """Return whether graphs may be tried: unless cuda.enable_cuda_graph is 0."""
    return options.get("cuda", {}).get("enable_cuda_graph") != "0"


def write_flag(provider: str, *, value: bool) -> str:
    """Return a flag as the provider takes it."""
    return _PROVIDERS.get(provider, _ProviderKeys()).flags[value]


def _check_value(where: str, provider: str, key: str, value: object, *, by_server: bool) -> str:
    accepted = _PROVIDERS.get(provider, _ProviderKeys())
    where = f"{where}.{key}" if KEY_PATTERN.fullmatch(key) else f"{where} has {quoted(key)}, which"
    declared = accepted.keys.get(key)
    if declared is None:
        if accepted.complete or not by_server or not KEY_PATTERN.fullmatch(key):
            hint = close_match(key, [*accepted.keys])
            names = sorted(k for k, one in accepted.keys.items() if not one.reserved)
            expected = "" if hint else f" (expected one of {', '.join(names)})"
            raise ProviderOptionError(f"{where} is an unknown key{expected}{hint}")
        declared = _TEXT
    if declared.reserved:
        raise ProviderOptionError(f"{where} cannot be set: {declared.reserved}")
    if declared.server_only and not by_server:
        raise ProviderOptionError(
            f"{where} names files (expected it in the server's option provider_options only)"
        )
    return _convert(where, declared, value, accepted.flags)


def _convert(where: str, key: _Key, value: object, flags: tuple[str, str]) -> str:
    if isinstance(value, bool):
        value = str(value).lower()
    if not isinstance(value, str | int):
        raise ProviderOptionError(f"{where} is {value!r:.100} (expected {_expected(key)})")
    try:
        text = str(value).strip()
    except ValueError:  # Python does not print integers of thousands of digits
        text = "a number with too many digits"
    if key.choices:
        matching = [choice for choice in key.choices if choice.lower() == text.lower()]
        if matching:
            return matching[0]
    elif key.kind == "flag":
        if text.lower() in _TRUE + _FALSE:
            return flags[text.lower() in _TRUE]
    elif key.kind == "integer":
        if re.fullmatch(r"[+-]?[0-9]{1,19}", text) and key.minimum <= int(text) <= _MAX_INTEGER:
            return str(int(text))
    elif key.kind == "shapes":
        if text and all(_SHAPE.fullmatch(part) for part in text.split(",")):
            return text
    elif 0 < len(text) <= MAX_VALUE_CHARACTERS and text.isprintable():
        return text
    raise ProviderOptionError(f"{where} is {quoted(text[:100])} (expected {_expected(key)})")


_SHAPE: Final = re.compile(r"[^,\s]{1,256}:[0-9]{1,10}(x[0-9]{1,10}){0,15}")


def _expected(key: _Key) -> str:
    if key.choices:
        return " or ".join(key.choices)
    if key.kind == "integer":
        return f"an integer of at least {key.minimum}"
    return {
        "flag": "0 or 1",
        "shapes": "INPUT:DIMxDIM, several separated by commas",
    }.get(key.kind, f"1 to {MAX_VALUE_CHARACTERS} printable characters")
