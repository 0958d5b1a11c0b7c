"""Reads execution_accelerators of config.pbtxt, and Triton's parameters of the CUDA provider.

Both become provider options, which have more keys than Triton's names for some of them. The
source is the README of Triton's ONNX Runtime backend
(https://github.com/triton-inference-server/onnxruntime_backend).
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from neurona_protos import model_config_pb2 as triton
from neurona_server.errors import LoadError
from neurona_server.models.onnx.provider_options import (
    ProviderOptionError,
    ProviderOptions,
    check_model_options,
    merge_options,
    names_files,
)

CUDA_PARAMETERS = {
    "arena_extend_strategy": {"0": "kNextPowerOfTwo", "1": "kSameAsRequested"},
    "cudnn_conv_algo_search": {"0": "EXHAUSTIVE", "1": "HEURISTIC", "2": "DEFAULT"},
    "do_copy_in_default_stream": {},
    "gpu_mem_limit": {},
}
"""Keys of `parameters` that are options of the CUDA provider, and Triton's names of values."""

_GPU, _CPU = ("tensorrt", "cuda"), ("openvino",)
_PRECISIONS = {
    "FP32": (),
    "FP16": ("trt_fp16_enable",),
    "BF16": ("trt_bf16_enable",),
    "INT8": ("trt_int8_enable",),
}
_OTHER_NAMES = {
    "max_workspace_size_bytes": "trt_max_workspace_size",
    "int8_calibration_table_name": "trt_int8_calibration_table_name",
    "int8_use_native_calibration_table": "trt_int8_use_native_calibration_table",
}
_PATH = "optimization.execution_accelerators"


@dataclass(frozen=True)
class Accelerators:
    """The accelerators of one model."""

    gpu: tuple[str, ...] = ()
    """Short names of providers, in the file's order."""

    cpu: tuple[str, ...] = ()
    provider_options: ProviderOptions = field(default_factory=dict)
    ignored: tuple[str, ...] = ()
    """Paths of the fields without an effect."""


def read_accelerators(config: triton.ModelConfig) -> Accelerators:
    """Return the accelerators of a configuration.

    Raises:
        LoadError: A parameter is unknown or has an invalid value.
    """
    groups = config.optimization.execution_accelerators
    ignored: list[str] = []
    options: ProviderOptions = {}
    names: dict[str, list[str]] = {"gpu": [], "cpu": []}
    for kind, accelerators, supported in (
        ("gpu", groups.gpu_execution_accelerator, _GPU),
        ("cpu", groups.cpu_execution_accelerator, _CPU),
    ):
        for index, accelerator in enumerate(accelerators):
            path = f"{_PATH}.{kind}_execution_accelerator[{index}]"
            if accelerator.name not in supported:
                ignored.append(path)
                continue
            names[kind].append(accelerator.name)
            values, unused = _read_parameters(path, accelerator.name, accelerator.parameters)
            options = merge_options(options, values)
            ignored += unused
    return Accelerators(
        tuple(dict.fromkeys(names["gpu"])),
        tuple(dict.fromkeys(names["cpu"])),
        merge_options(_cuda_parameters(config), options),
        tuple(ignored),
    )


def _read_parameters(
    path: str, provider: str, parameters: Mapping[str, str]
) -> tuple[ProviderOptions, list[str]]:
    values: dict[str, str] = {}
    ignored = []
    for name, value in sorted(parameters.items()):
        where = f"{path}.parameters.{name}"
        key = _OTHER_NAMES.get(name, name) if provider == "tensorrt" else name
        if provider == "tensorrt" and name == "precision_mode":
            if value not in _PRECISIONS:
                expected = " or ".join(_PRECISIONS)
                raise LoadError(f"{where} is {value!r:.100} (expected {expected})")
            values |= dict.fromkeys(_PRECISIONS[value], "1")
        elif names_files(provider, key):  # Neurona has a cache of its own
            ignored.append(where)
        else:
            values[key] = value
    return _check(f"{path}.parameters", provider, values), ignored


def _cuda_parameters(config: triton.ModelConfig) -> ProviderOptions:
    values = {}
    for name in _present(config, CUDA_PARAMETERS):
        value = config.parameters[name].string_value
        values[name] = CUDA_PARAMETERS[name].get(value, value)
    return _check("parameters", "cuda", values) if values else {}


def _present(config: triton.ModelConfig, names: Iterable[str]) -> list[str]:
    return [name for name in names if name in config.parameters]


def _check(where: str, provider: str, values: Mapping[str, str]) -> ProviderOptions:
    try:
        return check_model_options(where, {provider: values})
    except ProviderOptionError as error:
        raise LoadError(str(error)) from error
