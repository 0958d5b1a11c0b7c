"""Servers with HTTP beside gRPC, on both of gRPC's transports."""

import pytest
from support import onnx_models
from support.http_caller import serve


@pytest.fixture(scope="module", params=["cygrpc", "aio"])
def caller(request, repository):
    flags = ["--transport", request.param, "--max-message-bytes", 1 << 20]
    with serve(repository, *flags, "--http-hosts", "serving.example.com") as caller:
        yield caller


@pytest.fixture(scope="session")
def slow_repository(tmp_path_factory):
    """A model whose runs take some tenths of a second."""
    root = tmp_path_factory.mktemp("slow")
    onnx_models.save_slow(root / "slow" / "1" / "model.onnx")
    return root
