import gc

import grpc
import pytest
from support import in_process_server, onnx_models
from support.in_process_server import InProcessServer

from neurona_server.batching.policy import BatchPolicy


@pytest.fixture(scope="session", params=["cygrpc", "aio"], autouse=True)
def transport(request):
    """Every test of this folder runs on both transports."""
    in_process_server.TRANSPORT = request.param
    yield request.param
    in_process_server.TRANSPORT = "auto"


@pytest.fixture(scope="session")
def echoes(tmp_path_factory):
    """Further models for the tests of the Open Inference Protocol."""
    root = onnx_models.save_echoes(tmp_path_factory.mktemp("echoes"))
    onnx_models.save_adjustable(root / "adjustable" / "1" / "model.onnx")
    onnx_models.save_sum(root / "sum" / "1" / "model.onnx")
    onnx_models.save_upper(root / "upper" / "1" / "model.onnx")
    return root


@pytest.fixture(scope="session")
def echo_server(echoes, transport):
    server = InProcessServer(echoes, BatchPolicy(inline=False), shared_memory=True)
    yield server
    server.stop()


@pytest.fixture
def rejection():
    """Makes a call that must fail, and returns the name of its status code and its details."""

    def rejection(method, request, timeout=10, **options):
        with pytest.raises(grpc.RpcError) as caught:
            method(request, timeout=timeout, **options)
        return caught.value.code().name, caught.value.details()

    return rejection


@pytest.fixture
def without_collector(transport):
    """Disables the garbage collector, and returns what runs it for aio, whose errors are cycles."""
    gc.collect()
    gc.disable()
    yield lambda: None if transport == "cygrpc" else gc.collect() and None
    gc.enable()
