"""What the tests on a GPU share: when they are skipped, and the networks that they run.

Every test in this folder has the marker `gpu` and is skipped, with the reason, where no GPU can be
used. Two variables of the environment change that:

NEURONA_GPU_REQUIRED=1   they fail instead: on a machine that is known to have a GPU
NEURONA_GPU_REHEARSAL=1  they run on the CPU provider, to be tried before there is a GPU; those
                         that ask for the fixture `cuda` are still skipped

The networks are made beforehand by `make bench-gpu-models`, in bench/gpu/models or the folder that
NEURONA_GPU_MODELS names; see tests/benchmarks/gpu_models.py.
"""

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import pytest
from support.gpu_networks import (
    MAX_ROWS,
    ServedNetwork,
    has_networks,
    list_networks,
    open_network,
)
from support.in_process_server import InProcessServer

from neurona_server.batching.policy import BatchPolicy
from neurona_server.models.onnx import runtime
from neurona_server.models.onnx.gpu_facts import has_cuda_driver

HERE = Path(__file__).parent
ROOT = HERE.parents[1]

REHEARSAL = os.environ.get("NEURONA_GPU_REHEARSAL") == "1"
REQUIRED = os.environ.get("NEURONA_GPU_REQUIRED") == "1"


@pytest.hookimpl(tryfirst=True)  # before -m chooses by markers
def pytest_collection_modifyitems(items: Sequence[pytest.Item]) -> None:
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.gpu)


@pytest.fixture(scope="session", autouse=True)
def device() -> str:
    """The short name of the provider that the tests run on: "cuda", or "cpu" in a rehearsal."""
    if REHEARSAL:
        return "cpu"
    # With a driver and no GPU that works, tests fail: that is what they are for.
    if reason := runtime.missing_gpu_reason():
        if REQUIRED or has_cuda_driver():
            pytest.fail(f"a GPU is expected here, but {reason}")
        pytest.skip(reason)
    return "cuda"


@pytest.fixture(scope="session")
def cuda(device: str) -> None:
    """For tests that need a real GPU even in a rehearsal."""
    if device != "cuda":
        pytest.skip("needs a GPU; this is a rehearsal on the CPU")


@pytest.fixture(scope="session")
def networks(device: str) -> Path:
    """The folder of the networks, as `make bench-gpu-models` writes it."""
    folder = Path(os.environ.get("NEURONA_GPU_MODELS", ROOT / "bench" / "gpu" / "models"))
    if not has_networks(folder):
        message = f"no networks in {folder} (expected what `make bench-gpu-models` writes)"
        if REQUIRED:
            pytest.fail(message)
        pytest.skip(message)
    return folder


@pytest.fixture(scope="session")
def recipes(
    networks: Path, tmp_path_factory: pytest.TempPathFactory
) -> Mapping[str, ServedNetwork]:
    """The network of each recipe of neurona-train, by its name, in one repository."""
    folder = tmp_path_factory.mktemp("recipes")
    names = [name for name, use in list_networks(networks).items() if use == "recipe"]
    return {name.removeprefix("recipe-"): open_network(networks, name, folder) for name in names}


@pytest.fixture(scope="session")
def server(recipes: Mapping[str, ServedNetwork]) -> Iterator[InProcessServer]:
    """A server of all of them, with batches of up to MAX_ROWS rows."""
    repository = next(iter(recipes.values())).path.parents[2]
    server = InProcessServer(repository, BatchPolicy(max_rows=MAX_ROWS), load_timeout=240)
    yield server
    server.stop()
