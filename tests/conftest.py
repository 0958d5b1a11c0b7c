import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from support import cuda_stub as stubs
from support import onnx_models
from support.cuda_stub import CudaStub
from support.in_process_server import InProcessServer

from neurona_server.batching.policy import BatchPolicy
from neurona_server.telemetry import rate_limit

# Servers that tests start serve no HTTP unless they say so: each needs a port of its own.
os.environ.setdefault("NEURONA_HTTP_ADDRESS", "off")


@pytest.fixture(scope="session", autouse=True)
def quiet_log() -> None:
    """Keep the summaries of suppressed failures out of the logs of later tests."""
    rate_limit.QUIET_SECONDS = 1e6


@pytest.fixture(scope="session")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("repository")
    onnx_models.save_classifier(root / "classifier" / "1" / "model.onnx")
    onnx_models.save_classifier(root / "classifier" / "2" / "model.onnx", offset=1.0)
    onnx_models.save_regressor(root / "regressor" / "1" / "model.onnx")
    onnx_models.save_picker(root / "picker" / "1" / "model.onnx")
    onnx_models.save_fixed(root / "fixed" / "1" / "model.onnx")
    onnx_models.save_running_sum(root / "running_sum" / "1" / "model.onnx")
    return root


@pytest.fixture(scope="session")
def cuda_stub(tmp_path_factory: pytest.TempPathFactory) -> CudaStub:
    return stubs.build(tmp_path_factory.mktemp("cuda_stub"))


@pytest.fixture
def make_server(repository: Path, transport: str) -> Iterator[Callable[..., InProcessServer]]:
    servers: list[InProcessServer] = []

    def make(
        policy: BatchPolicy | None = None, root: Path = repository, **options: Any
    ) -> InProcessServer:
        servers.append(InProcessServer(root, policy, **options))
        return servers[-1]

    yield make
    for server in servers:
        server.stop()


@pytest.fixture(scope="session")
def transport() -> str:
    """The tests of rpc override this fixture with each transport in turn."""
    return "auto"


@pytest.fixture(scope="session", params=[True, False], ids=["inline", "threaded"])
def server(
    repository: Path, transport: str, request: pytest.FixtureRequest
) -> Iterator[InProcessServer]:
    """A server shared by the tests that do not change its state."""
    server = InProcessServer(repository, BatchPolicy(inline=request.param))
    yield server
    server.stop()


@pytest.fixture
def wait_until() -> Callable[[Callable[[], bool]], None]:
    def wait_until(condition: Callable[[], bool]) -> None:
        end = time.monotonic() + 60  # a busy machine is slow
        while not condition():
            assert time.monotonic() < end, "the condition did not come true within 60 s"
            time.sleep(0.005)

    return wait_until
