"""Ten thousand batches of mixed sizes and shapes take no more memory than the first ones did.

It is alone since it watches the whole process and the whole GPU: nothing else may run beside it.
"""

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from support.gpu_networks import MAX_ROWS

BATCHES = 10_000
REHEARSED = 400
CALLERS = 8
MIXED = ("feedforward", "lenet5", "lstm", "gru")
GPU_GROWTH = 64 << 20
PROCESS_GROWTH = 96 << 20


@pytest.fixture
def gpu_memory(device):
    """A function that returns the bytes of the GPU that are in use, by this process and others."""
    if device == "cpu":
        return lambda: 0
    from neurona_server.models.onnx.cuda_driver import load_driver

    driver = load_driver()

    def used():
        free, total = driver.memory_info(0)
        return total - free

    return used


def resident():
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGESIZE")


def test_ten_thousand_mixed_batches_take_no_more_memory(server, recipes, device, gpu_memory):
    batches = BATCHES if device == "cuda" else REHEARSED
    send(server, recipes, max(batches // 10, 100), seed=0)  # every size and shape has been run
    gpu_before, before = gpu_memory(), resident()
    runs_before = runs(server, recipes)
    send(server, recipes, batches, seed=1)
    assert runs(server, recipes) - runs_before >= batches // CALLERS
    grown, gpu_grown = resident() - before, gpu_memory() - gpu_before
    assert gpu_grown < GPU_GROWTH, f"the GPU's memory grew by {gpu_grown >> 20} MiB"
    assert grown < PROCESS_GROWTH, f"the process grew by {grown >> 20} MiB"


def send(server, recipes, count, seed):
    """Send requests of 1 to MAX_ROWS rows; those of the GRU have sequences of 5 to 29 steps."""
    random = np.random.default_rng(seed)
    requests = []
    for _ in range(min(count, 500)):
        network = recipes[MIXED[random.integers(len(MIXED))]]
        request, _ = network.request(random.integers(0, 32, random.integers(1, MAX_ROWS + 1)))
        requests.append(request)

    def call(number):
        server.prediction.Predict(requests[number % len(requests)], timeout=60)

    with ThreadPoolExecutor(CALLERS) as pool:
        for _ in pool.map(call, range(count)):
            pass


def runs(server, recipes):
    """Return how many batches the mixed networks have run."""
    labels = [{"model": recipes[name].name, "version": "1"} for name in MIXED]
    return sum(server.count("batch_rows_count", **one) for one in labels)
