"""On a GPU the network of every recipe runs there, and answers as it does on the CPU.

TF32, ONNX Runtime's default for products on a GPU, keeps 10 bits of a number. What that may change
in a network's outputs is its tolerance; those of different rows differ by much more
(tests/benchmarks/gpu_models.py).
"""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import onnxruntime
import pytest
from support.gpu_networks import MAX_ROWS, relative_error

from neurona_protos.tensors import to_array
from neurona_server.models.onnx.runtime import CPU, CUDA, SHAPE_OPERATORS
from neurona_training.recipes import RECIPES

CALLERS = 16
"""Requests in flight at once, so that batches are of mixed sizes, and some are padded."""

ON_CPU = {"LabelEncoder"}
"""Operators for which ONNX Runtime has no kernel on a GPU: those of strings."""

recipes_of_all = pytest.mark.parametrize("recipe", RECIPES)


def test_there_is_a_network_of_every_recipe(recipes):
    assert recipes.keys() == RECIPES.keys()


@recipes_of_all
def test_recipe_runs_on_the_gpu(cuda, server, recipes, recipe):
    model = server.registry.resolve(recipes[recipe].name)
    assert model.provider == CUDA, model.degraded
    on_cpu = set(nodes_on_the_cpu(recipes[recipe].path)) - SHAPE_OPERATORS
    assert on_cpu <= ON_CPU, f"on the CPU instead of the GPU: {', '.join(on_cpu)}"
    assert bool(model.degraded) == bool(on_cpu), model.degraded
    assert model.placement[CUDA] > 0


def nodes_on_the_cpu(path):
    """Return the operators of the nodes that ONNX Runtime itself places on the CPU."""
    options = onnxruntime.SessionOptions()
    options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    session = onnxruntime.InferenceSession(path, options, providers=[CUDA, CPU])
    parts = session.get_provider_graph_assignment_info()
    return [node.op_type for part in parts if part.ep_name == CPU for node in part.get_nodes()]


@recipes_of_all
def test_recipe_answers_as_on_the_cpu_at_every_batch_size(server, recipes, recipe):
    network = recipes[recipe]
    tolerance = network.tolerance
    assert server.registry.resolve(network.name).batcher.cost_model.batch_sizes == (1, 2, 4, 8, 16)
    # In between, batches may be padded; beyond MAX_ROWS, a request is split into several.
    errors = {
        rows: ask(server, network, range(rows, 2 * rows)) for rows in [*range(1, MAX_ROWS + 2), 32]
    }
    wrong = {rows: f"{error:.2g}" for rows, error in errors.items() if not error < tolerance}
    assert not wrong, f"relative errors by rows: {wrong} (expected below {tolerance:.2g})"


@recipes_of_all
def test_requests_that_share_batches_get_their_own_answers(server, recipes, recipe):
    network = recipes[recipe]
    random = np.random.default_rng(0)
    chosen = [random.integers(0, 32, random.integers(1, 8)).tolist() for _ in range(96)]
    with ThreadPoolExecutor(CALLERS) as pool:
        errors = list(pool.map(lambda indices: ask(server, network, indices), chosen))
    tolerance = network.tolerance
    assert max(errors) < tolerance, f"relative error {max(errors):.2g} (expected < {tolerance:.2g})"


def ask(server, network, indices):
    """Send some of the network's rows, and return the relative error of the answer."""
    request, answers = network.request(indices)
    response = server.prediction.Predict(request, timeout=60)
    outputs = [to_array(output) for output in response.outputs]
    assert len(outputs) == len(answers)
    return max(
        relative_error(output, answer) for output, answer in zip(outputs, answers, strict=True)
    )
