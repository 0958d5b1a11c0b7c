"""The table of layers has every parameter of every network, and the sizes of the papers."""

import numpy as np
import pytest
import torch

from neurona_training.data import Dataset, Input, Split
from neurona_training.recipes import RECIPES
from neurona_training.report.architecture_drawing import architecture_section
from neurona_training.report.network_layers import trace_layers

DEFAULTS = {name: recipe.default_data for name, recipe in RECIPES.items()}
BUNDLED = {
    **DEFAULTS,
    "feedforward": "digits",
    "gru": "adding",
}


def _layers(recipe_name, data):
    recipe = RECIPES[recipe_name]
    torch.manual_seed(0)
    network = recipe.network(data, recipe.default_settings(data).network)
    return network, trace_layers(network, [array[:1] for array in data.test.arrays])


@pytest.mark.parametrize("recipe_name", BUNDLED)
def test_every_parameter_is_in_the_table_once(recipe_name):
    network, layers = _layers(recipe_name, RECIPES[recipe_name].load(BUNDLED[recipe_name]))
    total = sum(parameter.numel() for parameter in network.parameters())
    assert sum(layer.parameters for layer in layers) == total
    assert all(layer.kind and layer.kind == layer.kind.strip(", ") for layer in layers)


def test_lenet_has_the_sizes_and_parameters_of_its_paper():
    _, layers = _layers("lenet5", RECIPES["lenet5"].load("digits"))
    sizes = {layer.name: (layer.shape, layer.parameters) for layer in layers}
    assert sizes["c1"] == ((6, 28, 28), 156)
    assert sizes["s2"] == ((6, 14, 14), 12)
    assert sizes["c3"] == ((16, 10, 10), 1516)
    assert sizes["s4"] == ((16, 5, 5), 32)
    assert sizes["c5"] == ((120,), 48120)
    kinds = {layer.name: layer.kind for layer in layers}
    assert kinds["c1"] == "convolution, 6 kernels of 5 x 5, tanh"  # also what forward itself does


def test_a_deep_network_has_a_line_for_each_block():
    _, layers = _layers("resnet18", RECIPES["resnet18"].load("digits"))
    blocks = [layer for layer in layers if layer.kind.startswith("residual block")]
    assert len(blocks) == 8
    assert blocks[0].kind == "residual block: convolutions 3 x 3, 3 x 3, added to the input"


def test_parallel_branches_are_one_block():
    _, layers = _layers("inception-v3", RECIPES["inception-v3"].load("digits"))
    kinds = [layer.kind for layer in layers]
    assert kinds.count("4 branches side by side: 7 convolutions") == 3
    assert not any("module list" in kind for kind in kinds)


def _text_data():
    codes = np.array([[0, 1, 2, 3]] * 12, np.int64)
    lengths = np.array([4, 2] * 6, np.int32)
    split = Split(codes, np.arange(12, dtype=np.int64) % 2, lengths=lengths)
    text = Input("text", ("batch", "time"), "letters", "", categories=("a", "b", "c"))
    return Dataset("letters", "made here", split, split, split, text, labels=("no", "yes"))


def test_text_has_its_embedding_in_the_table():
    _, layers = _layers("lstm", _text_data())
    assert layers[0].kind == "embedding: 32 numbers for each of 4 categories"
    assert any(layer.kind.startswith("LSTM, three gates and a memory cell") for layer in layers)


@pytest.mark.parametrize(
    ("recipe_name", "data_name", "words"),
    [
        ("mcculloch-pitts", "xor", "Circles are units"),
        ("adaline", "diabetes", "Circles are units"),
        ("lenet5", "digits", "From the picture"),
        ("rnn", "sunspots", "Each column is one step of time"),
    ],
)
def test_the_drawing_fits_the_network(finished_run, recipe_name, data_name, words):
    section = architecture_section(finished_run(recipe_name, data_name, 1))
    assert words in section.caption
    assert len(section.pictures) == 1
    assert section.table[-1][0] == "together"
