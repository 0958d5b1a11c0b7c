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
from collections.abc import Sequence
from pathlib import Path

import pytest

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
    from neurona_server.models.onnx import runtime
    from neurona_server.models.onnx.gpu_facts import has_cuda_driver

    # With a driver and no GPU that works, tests fail: that is what they are for.
    if reason := runtime.missing_gpu_reason():
        if REQUIRED or has_cuda_driver():
            pytest.fail(f"a GPU is expected here, but {reason}")
        pytest.skip(reason)
    return "cuda"


@pytest.fixture
def cuda(device: str) -> None:
    """For tests that need a real GPU even in a rehearsal."""
    if device != "cuda":
        pytest.skip("needs a GPU; this is a rehearsal on the CPU")


@pytest.fixture(scope="session")
def networks(device: str) -> Path:
    """The folder of the networks, as `make bench-gpu-models` writes it."""
    folder = Path(os.environ.get("NEURONA_GPU_MODELS", ROOT / "bench" / "gpu" / "models"))
    if not (folder / "networks.json").is_file():
        message = f"no networks in {folder} (expected what `make bench-gpu-models` writes)"
        if REQUIRED:
            pytest.fail(message)
        pytest.skip(message)
    return folder
