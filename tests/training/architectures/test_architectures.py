"""The networks against what their papers say, and against torch's own layers."""

import numpy as np
import pytest
import torch

from neurona_training.architectures.convolutional import (
    LeNet5,
    PartialConvolution,
    Subsampling,
    _resize_to_32,
)
from neurona_training.architectures.input_layers import Denormalise, Normalise
from neurona_training.architectures.recurrent import LastState, Recurrent, RecurrentNodes


def _parameters(module):
    return sum(parameter.numel() for parameter in module.parameters())


def test_lenet5_has_the_parameters_of_the_paper():
    network = LeNet5(torch.nn.Identity(), (8, 8), classes=10)
    counted = [_parameters(getattr(network, name)) for name in ("c1", "s2", "c3", "s4", "c5", "f6")]
    assert counted == [156, 12, 1516, 32, 48120, 10164]  # sum: the paper's 60,000
    assert _parameters(network) == 60_000 + 85 * 10


@pytest.mark.parametrize("size", [1, 8, 28, 32, 49, 98, 200])
def test_lenet5_takes_images_of_any_size(size):
    network = LeNet5(torch.nn.Identity(), (size, size), classes=3)
    assert network(torch.rand(2, size, size)).shape == (2, 3)


def test_a_factor_of_resizing_gives_32_pixels_however_it_is_multiplied():
    """The file has float32; 32 / 400 as float32 times 400 is below 32 in float64."""
    for size in range(1, 2100):
        factors = _resize_to_32((size, 30)).scale_factor
        if factors is not None:
            rounded = np.float32(factors[0])
            assert int(np.float64(rounded) * size) == 32
            assert int(np.float32(rounded * np.float32(size))) == 32
    assert _resize_to_32((400, 400)).size == (32, 32)
    assert _resize_to_32((28, 28)).scale_factor == (32 / 28, 32 / 28)


@pytest.mark.parametrize(
    "module",
    [Subsampling(3), PartialConvolution(3, ((0, 1), (2,), (0, 1, 2), (1, 2)), size=3)],
)
def test_the_form_for_export_gives_equal_outputs(module):
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.uniform_(-1, 1)
    x = torch.randn(2, 3, 8, 8)
    torch.testing.assert_close(module.for_export()(x), module(x), rtol=1e-5, atol=1e-6)


def test_a_map_ignores_input_maps_without_a_connection():
    layer = PartialConvolution(3, ((0, 1), (2,)), size=3)
    x = torch.randn(1, 3, 8, 8)
    changed = x.clone()
    changed[:, 2] += 1
    same, other = (layer(changed) - layer(x)).abs().amax(dim=(0, 2, 3))
    assert same == 0
    assert other > 0


def test_a_layer_that_is_not_one_onnx_operator_is_rejected():
    for layer in (
        torch.nn.LSTM(2, 3, proj_size=2),
        torch.nn.RNN(2, 3, nonlinearity="relu"),
        torch.nn.RNN(2, 3, bias=False),
    ):
        with pytest.raises(ValueError, match=r"RNN|LSTM|GRU"):
            RecurrentNodes(layer)


@pytest.mark.parametrize("cell", ["rnn", "lstm", "gru"])
def test_the_last_state_depends_on_the_first_step(cell):
    layer = Recurrent(cell, 2, 8)
    x = torch.randn(1, 5, 2)
    changed = x.clone()
    changed[:, 0] += 1
    assert layer(x).shape == (1, 8)
    assert (layer(changed) - layer(x)).abs().max() > 1e-6


def test_normalisation_and_its_inverse():
    values = np.array([10.0, 20.0, 60.0], np.float32)
    x = torch.from_numpy(values)
    normal = Normalise.to_unit_variance(values)(x)
    assert normal.mean().item() == pytest.approx(0, abs=1e-6)
    assert normal.std(correction=0).item() == pytest.approx(1, abs=1e-6)
    torch.testing.assert_close(Denormalise(values[:, None])(normal[:, None]), x[:, None])
    constant = np.full(3, 7.0, np.float32)
    assert torch.equal(Normalise.to_unit_variance(constant)(torch.tensor([7.0])), torch.zeros(1))


def test_each_predicted_value_has_a_scale_of_its_own():
    values = np.array([[1.0, 1000], [2, 3000], [3, 5000], [3, 5000]], np.float32)
    layer = Denormalise(values)
    torch.testing.assert_close(layer(torch.zeros(1, 2)), torch.tensor([[2.25, 3500]]))
    assert (layer(torch.ones(1, 2)) - layer(torch.zeros(1, 2))).tolist() == [
        pytest.approx([values[:, 0].std(), values[:, 1].std()])
    ]
    constant = np.full((3, 2), [7, 9], np.float32)
    assert Denormalise(constant)(torch.ones(1, 2)).tolist() == [[8, 10]]


def test_a_regression_predicts_in_the_unit_of_its_targets():
    targets = np.array([[1000.0], [3000.0]], np.float32)
    network = LastState(
        Normalise(0, 1), "rnn", features=1, hidden=4, outputs=1, denormalise=Denormalise(targets)
    )
    with torch.no_grad():
        network.output.weight.zero_()
        network.output.bias.fill_(1)
    assert network(torch.zeros(1, 3, 1)).item() == pytest.approx(3000)


@pytest.mark.parametrize("unit", [1e-25, 1.0, 1e25, 1e36])
def test_a_scale_does_not_depend_on_the_unit(unit):
    """The squares of such numbers are no float32."""
    values = np.random.default_rng(0).normal(3, 2, (500, 4)).astype(np.float32)
    scaled = Normalise.to_unit_variance(values * np.float32(unit))(
        torch.from_numpy(values * np.float32(unit))
    )
    torch.testing.assert_close(
        scaled, Normalise.to_unit_variance(values)(torch.from_numpy(values)), rtol=1e-3, atol=1e-3
    )
