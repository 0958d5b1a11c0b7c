"""Providers of packages: found, registered once, given a device; or a clear error."""

import sys
from types import SimpleNamespace

import numpy as np
import onnxruntime
import pytest
from onnx import TensorProto, helper
from support import onnx_models

from neurona_server.models.onnx import plugin_providers
from neurona_server.models.onnx.plugin_providers import (
    PluginError,
    add_provider,
    is_plugin,
    plugin_names,
)
from neurona_server.models.onnx.runtime import CPU, RuntimeOptions
from neurona_server.models.onnx.session import Session

OPENVINO, RTX = "OpenVINOExecutionProvider", "NvTensorRTRTXExecutionProvider"

pytestmark = pytest.mark.skipif(
    not hasattr(onnxruntime, "get_ep_devices"), reason="needs onnxruntime 1.23"
)


class Package:
    """A package with a provider, and the part of ONNX Runtime that registers it."""

    def __init__(self, folder, monkeypatch):
        self.folder = folder
        self.monkeypatch = monkeypatch
        self.registered = []
        self.devices = []
        monkeypatch.syspath_prepend(folder)
        monkeypatch.setattr(plugin_providers, "_registered", set())
        monkeypatch.setattr(onnxruntime, "register_execution_provider_library", self.register)
        monkeypatch.setattr(onnxruntime, "get_ep_devices", lambda: self.devices)

    def install(self, module, code="def get_library_path(): return '/x/lib.so'"):
        (self.folder / f"{module}.py").write_text(code)
        self.monkeypatch.delitem(sys.modules, module, raising=False)

    def register(self, name, library):
        self.registered.append((name, library))

    def add_device(self, name, kind="GPU", **options):
        device = SimpleNamespace(type=SimpleNamespace(name=kind))
        self.devices.append(SimpleNamespace(ep_name=name, ep_options=options, device=device))
        return self.devices[-1]


@pytest.fixture
def package(tmp_path, monkeypatch):
    return Package(tmp_path, monkeypatch)


class Settings:
    """Settings of a session that note what they are given."""

    def __init__(self):
        self.devices = self.options = None

    def add_provider_for_devices(self, devices, options):
        self.devices, self.options = devices, options


def test_installed_packages_are_providers(package):
    package.install("onnxruntime_ep_openvino")
    wanted = ["openvino", "nvtensorrtrtx", "cpu"]
    assert plugin_names(wanted, [CPU]) == [OPENVINO]
    assert plugin_names(wanted, [CPU, OPENVINO]) == []  # built in
    assert plugin_names(["cuda", "cpu"], [CPU]) == []
    assert is_plugin(OPENVINO)
    assert not is_plugin(CPU)


def test_a_package_is_registered_once(package):
    package.install("onnxruntime_ep_openvino")
    package.add_device(OPENVINO, "CPU")
    for _ in range(2):
        add_provider(Settings(), OPENVINO, {})
    assert package.registered == [(OPENVINO, "/x/lib.so")]


@pytest.mark.parametrize(
    ("options", "chosen", "passed"),
    [
        ({"num_streams": "2"}, 1, {"num_streams": "2"}),
        ({"device_type": "GPU"}, 0, {}),
        ({"device_type": "GPU.1", "cache_dir": "/c"}, 0, {"cache_dir": "/c"}),
        ({"device_type": "NPU"}, None, {}),
    ],
)
def test_openvino_runs_on_the_device_of_its_options(package, options, chosen, passed):
    package.install("onnxruntime_ep_openvino")
    devices = [package.add_device(OPENVINO, kind) for kind in ("GPU", "CPU")]
    package.add_device(CPU, "CPU")
    settings = Settings()
    if chosen is None:
        with pytest.raises(PluginError, match="onnxruntime_ep_openvino finds no device"):
            add_provider(settings, OPENVINO, options)
    else:
        add_provider(settings, OPENVINO, options)
        assert settings.devices == [devices[chosen]]
        assert settings.options == passed


@pytest.mark.parametrize("numbers", [({}, {}), ({"device_id": "1"}, {"device_id": "0"})])
def test_tensorrt_rtx_runs_on_the_gpu_with_its_number(package, numbers):
    package.install("onnxruntime_ep_nv_tensorrt_rtx")
    devices = [package.add_device(RTX, **options) for options in numbers]
    if numbers[0]:
        devices.reverse()
    for number, device in enumerate(devices):
        settings = Settings()
        add_provider(settings, RTX, {"device_id": str(number), "nv_max_workspace_size": "9"})
        assert settings.devices == [device]
        assert settings.options == {"nv_max_workspace_size": "9"}
    with pytest.raises(PluginError):
        add_provider(Settings(), RTX, {"device_id": "2"})


@pytest.mark.parametrize("text", ["\u00b2", "9" * 4000, "GPU.0"])
def test_a_device_id_that_is_no_number_is_the_first_device(package, text):
    package.install("onnxruntime_ep_openvino")
    device = package.add_device(OPENVINO, "CPU")
    settings = Settings()
    add_provider(settings, OPENVINO, {"device_id": text, "device_type": "CPU"})
    assert settings.devices == [device]


def test_a_broken_package_is_an_error(package):
    package.install("onnxruntime_ep_openvino", "import nothing_of_this_name")
    with pytest.raises(PluginError, match=r"onnxruntime_ep_openvino cannot be loaded: No module"):
        add_provider(Settings(), OPENVINO, {})


@pytest.fixture
def model(tmp_path):
    return onnx_models.save(
        tmp_path / "model.onnx",
        [helper.make_node("Neg", ["x"], ["y"])],
        {"x": (TensorProto.FLOAT, ["n"])},
        {"y": (TensorProto.FLOAT, ["n"])},
    )


def test_a_model_runs_on_the_cpu_without_a_device_for_its_provider(package, model):
    package.install("onnxruntime_ep_openvino")
    options = RuntimeOptions(providers=("openvino", "cpu"), gpu_expected=True)
    session = Session(model, options)
    assert session.provider == CPU
    assert session.degraded == (
        "runs on the CPU: openvino could not load it: onnxruntime_ep_openvino finds no device "
        "that it can use"
    )


def test_a_session_of_a_registered_device_runs(model, monkeypatch):
    """The CPU provider of ONNX Runtime, treated as that of a package."""
    monkeypatch.setattr(plugin_providers, "_MODULES", {CPU: "onnxruntime"})
    monkeypatch.setattr(plugin_providers, "_registered", {CPU})
    monkeypatch.setattr(onnxruntime, "get_available_providers", list)
    settings = onnxruntime.SessionOptions()
    add_provider(settings, CPU, {})
    session = onnxruntime.InferenceSession(model, settings, enable_fallback=0)
    assert session.get_providers() == [CPU]
    assert session.run(None, {"x": np.float32([2])})[0].tolist() == [-2]
