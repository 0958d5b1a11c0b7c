"""However a call ends, the server keeps nothing of it."""

from concurrent.futures import Future

import numpy as np
import pytest
from prometheus_client import CollectorRegistry
from support.triton_requests import request

from neurona_protos import open_inference_pb2 as pb
from neurona_server.models.lifecycle.registry import Registry
from neurona_server.rpc.open_inference.service import OpenInference
from neurona_server.telemetry.metrics import Metrics

SERVICE = pb.DESCRIPTOR.services_by_name["GRPCInferenceService"]
UNARY = [method.name for method in SERVICE.methods if not method.client_streaming]
COUNTS = {"model": "classifier", "version": "1"}


def message_of(rpc):
    if rpc == "ModelInfer":
        return request("classifier", "1", x=("FP32", np.ones((3, 4))))
    kind = SERVICE.methods_by_name[rpc].input_type._concrete_class
    message = kind()
    for field in ("name", "model_name"):
        if field in kind.DESCRIPTOR.fields_by_name and "SharedMemory" not in rpc:
            setattr(message, field, "classifier")
    if "version" in kind.DESCRIPTOR.fields_by_name:
        message.version = "1"
    return message


class Control:
    def __init__(self):
        self.names = []

    def load(self, name):
        self.names.append(name)
        future = Future()
        future.set_result(None)
        return future

    def unload(self, name):
        return self.load(name)


@pytest.fixture
def idle(make_server):
    """A server that runs nothing, so that a ModelInfer lasts as long as its caller wants."""
    return make_server(start_models=False, shared_memory=True, control=Control())


def test_every_rpc_is_served():
    service = OpenInference(Registry(), Metrics(CollectorRegistry()), lambda: True)
    paths = {f"/{SERVICE.full_name}/{method.name}" for method in SERVICE.methods}
    assert service.methods().keys() == paths
    assert len(UNARY) == 19


def is_clean(server):
    model = server.registry.resolve("classifier", 1)
    return (
        server.count("queue_rows", **COUNTS) == 0
        and not server.listener._streams
        and server.control_calls.pending_count == 0
        and len(server.open_inference.memory.regions) == 0
        and repr(model.batcher.queue) == "<Queue open: 0 requests, 0 rows, 0 bytes>"
    )


@pytest.mark.parametrize("rpc", UNARY)
def test_a_call_whose_deadline_passes_frees_everything(idle, wait_until, rpc):
    method = getattr(idle.triton, rpc)
    timeouts = (-1, 0, 1e-6, 0.001, 0.01)
    codes = {method.future(message_of(rpc), timeout=timeout).code().name for timeout in timeouts}
    assert "DEADLINE_EXCEEDED" in codes
    # The others had the time; an empty registration is invalid.
    assert codes <= {"DEADLINE_EXCEEDED", "OK", "UNIMPLEMENTED", "INVALID_ARGUMENT"}
    wait_until(lambda: is_clean(idle))
    assert idle.triton.ServerLive(pb.ServerLiveRequest(), timeout=10).live


@pytest.mark.parametrize("rpc", UNARY)
def test_a_cancelled_call_leaves_nothing(idle, wait_until, rpc):
    calls = [getattr(idle.triton, rpc).future(message_of(rpc), timeout=60) for _ in range(20)]
    if rpc == "ModelInfer":
        wait_until(lambda: idle.count("queue_rows", **COUNTS) == 60)
    for call in calls:
        call.cancel()
    wait_until(lambda: is_clean(idle))
    if rpc == "ModelInfer":
        assert all(call.cancelled() for call in calls)
        wait_until(lambda: idle.count("requests_total", outcome="cancelled", **COUNTS) == 20)
    assert idle.triton.ServerLive(pb.ServerLiveRequest(), timeout=10).live
