"""The export is verified: a wrong graph is found before a file is written."""

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from neurona_protos import metadata
from neurona_training.architectures.input_layers import Normalise
from neurona_training.architectures.recurrent import LastState
from neurona_training.data.sources import digits
from neurona_training.errors import ExportError
from neurona_training.export import parity
from neurona_training.export.metadata import model_metadata
from neurona_training.export.onnx_export import OPSET, export_trained_network
from neurona_training.export.parity import verify_parity


@pytest.fixture(scope="module")
def sequences():
    return digits.digit_rows()


@pytest.fixture(scope="module")
def untrained(sequences):
    torch.manual_seed(0)
    classes = len(sequences.labels)
    normalise = Normalise.to_unit_variance(sequences.train.inputs)
    return LastState(normalise, "gru", features=8, hidden=16, outputs=classes).eval()


@pytest.fixture(scope="module")
def good(untrained, sequences):
    return _export(untrained, sequences)


def _export(network, data):
    return export_trained_network(
        network, data, model_metadata(data, "a test", {"test_rows": 1}, {"recipe": "none"})
    )


def _probabilities(network):
    return nn.Sequential(network, nn.Softmax(dim=1)).eval()


@pytest.mark.parametrize(
    "cell",
    [
        pytest.param("rnn", marks=[pytest.mark.slow, pytest.mark.long]),
        "lstm",
        pytest.param("gru", marks=[pytest.mark.slow, pytest.mark.long]),
    ],
)
def test_rows_and_time_are_of_any_size_and_inputs_are_unscaled(sequences, ask, operators, cell):
    torch.manual_seed(1)
    network = LastState(
        Normalise.to_unit_variance(sequences.train.inputs),
        cell,
        features=8,
        hidden=24,
        outputs=10,
    ).eval()
    model = _export(network, sequences)
    assert operators(model).count(cell.upper()) == 1
    random = np.random.default_rng(0)
    for rows, time in ((1, 1), (3, 2), (5, 61), (64, 8)):  # none of the sizes of the export
        inputs = random.integers(0, 17, (rows, time, 8)).astype(np.float32)
        with torch.no_grad():
            expected = torch.softmax(network(torch.from_numpy(inputs)), dim=1)
        np.testing.assert_allclose(ask(model, inputs), expected, rtol=1e-4, atol=1e-6)


def test_metadata_is_in_the_file(good, sequences):
    model = onnx.load_from_string(good)
    (text,) = [item.value for item in model.metadata_props if item.key == metadata.KEY]
    described = metadata.from_json(text)
    expected = model_metadata(sequences, "a test", {"test_rows": 1}, {"recipe": "none"})
    assert described == expected
    assert described.provenance["torch"] == torch.__version__
    assert model.opset_import[0].version == OPSET


@pytest.mark.long
@pytest.mark.slow
def test_a_fixed_time_axis_is_found(untrained, sequences, monkeypatch):
    recurrent = type(untrained.recurrent)
    original = recurrent.for_export
    monkeypatch.setattr(recurrent, "for_export", lambda self: _Truncated(original(self)))
    # Up to 8 steps the outputs are right; the first length beyond is 13.
    with pytest.raises(ExportError, match=r"shape \[1, 13, 8\] differs from torch by up to 0\.0"):
        _export(untrained, sequences)


class _Truncated(nn.Module):
    def __init__(self, recurrent):
        super().__init__()
        self.recurrent = recurrent

    def forward(self, sequence, lengths):
        return self.recurrent(sequence[:, :8], lengths)


@pytest.mark.long
@pytest.mark.slow
def test_an_unrolled_layer_is_found(sequences):
    """torch's exporter writes nn.RNN as a loop over the example's 8 steps, without a warning."""

    class Unrolled(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.RNN(8, 10, batch_first=True)

        def forward(self, sequence):
            return self.layer(sequence)[0][:, -1]

    with pytest.raises(ExportError, match=r"no output 'probabilities'.* shape \[1, 1, 8\]"):
        _export(Unrolled(), sequences)


def test_an_error_of_the_exporter_is_one_line(sequences):
    class Undecided(nn.Module):
        def forward(self, sequence):
            return sequence[:, 0] if sequence.sum() > 0 else sequence[:, -1]

    with pytest.raises(ExportError, match="torch cannot export the network") as caught:
        _export(Undecided(), sequences)
    assert "\n" not in str(caught.value)


def _edited(model, edit):
    graph = onnx.load_from_string(model)
    edit(graph)
    return graph.SerializeToString()


def test_a_fixed_batch_axis_is_found(good, untrained, sequences):
    def fix_rows(model):
        model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 1

    with pytest.raises(ExportError, match=r"no output 'probabilities'.* shape \[2, 1, 8\]"):
        verify_parity(
            _edited(good, fix_rows),
            _probabilities(untrained),
            sequences,
        )


def test_a_wrong_weight_is_found(good, untrained, sequences):
    def swap_gates(model):
        (weights,) = [item for item in model.graph.initializer if item.dims == [1, 48, 16]]
        array = onnx.numpy_helper.to_array(weights).copy()
        array[:, :16], array[:, 16:32] = array[:, 16:32].copy(), array[:, :16].copy()
        weights.CopyFrom(onnx.numpy_helper.from_array(array, weights.name))

    with pytest.raises(ExportError, match=r"'probabilities' for input 'sequence'.*differs"):
        verify_parity(
            _edited(good, swap_gates),
            _probabilities(untrained),
            sequences,
        )


def test_a_correct_graph_passes(good, untrained, sequences):
    verify_parity(good, _probabilities(untrained), sequences)


def test_another_output_shape_is_found(good, untrained, sequences):
    with pytest.raises(ExportError, match=r"has shape \[1, 10\] \(expected \[1, 9\]"):
        verify_parity(
            good,
            nn.Sequential(_probabilities(untrained), _DropColumn()),
            sequences,
        )


class _DropColumn(nn.Module):
    def forward(self, probabilities):
        return probabilities[:, 1:]


def test_nan_differs_from_everything():
    nan = np.full((1, 1), np.nan, np.float32)
    assert parity.differs(nan, np.ones((1, 1), np.float32))


def test_bytes_that_are_no_model_are_rejected(untrained, sequences):
    with pytest.raises(ExportError, match="cannot load the graph"):
        verify_parity(b"no model", untrained, sequences)
