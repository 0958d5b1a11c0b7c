"""Providers that come as packages of their own, beside ONNX Runtime: OpenVINO and TensorRT-RTX.

Each package has a library that is registered with ONNX Runtime 1.23 and later; it then reports the
devices that it can use, and a session is given those. Source: ONNX Runtime's docs, Plugin Execution
Provider Libraries, and the packages. Registering was tried with onnxruntime-ep-openvino 1.8 on a
machine without a device for it; sessions were not.
"""

import importlib
import importlib.util
import logging
import re
import threading
from collections.abc import Collection, Mapping, Sequence
from typing import Any, Final

import onnxruntime

log = logging.getLogger(__name__)

_MODULES: Final[Mapping[str, str]] = {
    "OpenVINOExecutionProvider": "onnxruntime_ep_openvino",
    "NvTensorRTRTXExecutionProvider": "onnxruntime_ep_nv_tensorrt_rtx",
}
"""Modules of the packages by provider; each has a function `get_library_path`."""

_DEVICE_KEYS: Final = ("device_id", "device_type")

_registered: set[str] = set()
_registering = threading.Lock()


class PluginError(Exception):
    """A provider's package is there, but cannot be used."""


def plugin_names(wanted: Collection[str], available: Collection[str]) -> list[str]:
    """Return the full names of the providers of installed packages.

    Args:
        wanted: Short names of those to look for: to find out that a package is not there takes
            0.1 ms, several times in each load of a model.
        available: Full names of those that ONNX Runtime has built in, which are left out.
    """
    if not hasattr(onnxruntime, "register_execution_provider_library"):
        return []
    return [
        name
        for name, module in _MODULES.items()
        if name not in available
        and name.removesuffix("ExecutionProvider").lower() in wanted
        and importlib.util.find_spec(module) is not None
    ]


def is_plugin(name: str) -> bool:
    """Return whether a session needs `add_provider` for this provider, by its full name."""
    return name in _MODULES and name not in onnxruntime.get_available_providers()


def add_provider(
    settings: onnxruntime.SessionOptions, name: str, options: Mapping[str, str]
) -> None:
    """Let a session use a provider; without a device of its own, one of a package.

    Args:
        settings: Of the session. With a provider in them, it must be given no others.
        name: Full name of the provider.
        options: Its options. `device_id` (TensorRT-RTX) and `device_type` (OpenVINO; by default
            the CPU) choose the device.

    Raises:
        PluginError: Its library cannot be registered, or finds no device.
    """
    if not is_plugin(name):
        settings.add_provider(name, dict(options))
        return
    device = _choose_device(_find_devices(name), options)
    if device is None:
        raise PluginError(f"{_MODULES[name]} finds no device that it can use")
    # The device says what these say, and a package may not know their keys.
    options = {key: value for key, value in options.items() if key not in _DEVICE_KEYS}
    settings.add_provider_for_devices([device], options)


def _find_devices(name: str) -> list[Any]:
    module = _MODULES[name]
    with _registering:
        if name not in _registered:
            try:
                library = importlib.import_module(module).get_library_path()
                onnxruntime.register_execution_provider_library(name, library)
            except Exception as error:  # whatever goes wrong in a package
                raise PluginError(f"{module} cannot be loaded: {error}") from error
            log.info("provider %s of the package %s", name, module)
            _registered.add(name)
    return [device for device in onnxruntime.get_ep_devices() if device.ep_name == name]


def _choose_device(devices: Sequence[Any], options: Mapping[str, str]) -> Any:
    """Return the device that the options name, None if there is none."""
    if "device_type" in options or "device_id" not in options:
        kind = options.get("device_type", "CPU").partition(".")[0].upper()  # GPU.1 is one, too
        devices = [device for device in devices if device.device.type.name == kind]
    text = options.get("device_id", "0")
    number = int(text) if re.fullmatch("[0-9]{1,9}", text) else 0
    numbered = [one for one in devices if str(one.ep_options.get("device_id")) == str(number)]
    return next(iter([*numbered, *devices[number : number + 1]]), None)
