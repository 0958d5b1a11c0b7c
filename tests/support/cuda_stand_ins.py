"""CUDA devices that are not there: the stub of the driver lists them, and the CPU runs the models.

So that the choice of devices, the scheduler and everything by device are tested with real sessions.
"""

import pytest

from neurona_server.models.onnx import devices, runtime, session
from neurona_server.models.onnx.devices import DeviceTable
from neurona_server.models.onnx.runtime import CPU
from support.cuda_stub import CudaStub


def install(monkeypatch: pytest.MonkeyPatch, stub: CudaStub, **values: object) -> None:
    """Have sessions loaded on the devices of the stub, which the CPU's provider stands in for.

    Args:
        monkeypatch: Ends it with the test.
        stub: The driver.
        **values: What it is like, as devices=2.
    """
    stub.install(monkeypatch, **values)
    monkeypatch.setattr(devices, "DEVICES", DeviceTable())
    monkeypatch.setattr(runtime, "has_cuda_driver", lambda: True)
    monkeypatch.setattr(runtime, "explain_build", lambda *_: "")
    monkeypatch.setattr(runtime, "choose_providers", lambda *_: [CPU])
    monkeypatch.setattr(runtime, "CUDA_PROVIDERS", (CPU,))
    monkeypatch.setattr(session, "_explain_degraded", lambda *_: "")
