"""First weights by rule: their spread in every kind of layer."""

import pytest
import torch
from torch import nn

from neurona_training.architectures.convolutional import LeNet5
from neurona_training.architectures.initialisation import initialise


@pytest.mark.parametrize(
    ("rule", "spread"),
    [
        ("inputs", (1 / 3) ** 0.5 * 400**-0.5),
        ("he", (2 / 400) ** 0.5),
        ("xavier", (2 / (400 + 120)) ** 0.5),
    ],
)
def test_the_spread_follows_the_number_of_inputs(rule, spread):
    torch.manual_seed(0)
    network = LeNet5(nn.Identity(), size=(28, 28), classes=10)
    initialise(network, rule)
    assert network.c5.weight.std().item() == pytest.approx(spread, rel=0.03)
    assert bool(network.c5.bias.any()) == (rule == "inputs")
    assert network.s2.weight.tolist() == [0.25] * 6  # a scale, not a layer's weight


@pytest.mark.parametrize("layer", [nn.RNN, nn.GRU, nn.LSTM])
def test_weights_of_state_and_input_have_their_own_spread(layer):
    recurrent = layer(10, 200)
    initialise(nn.Sequential(recurrent), "he")
    assert recurrent.weight_ih_l0.std().item() == pytest.approx((2 / 10) ** 0.5, rel=0.1)
    assert recurrent.weight_hh_l0.std().item() == pytest.approx((2 / 200) ** 0.5, rel=0.1)
