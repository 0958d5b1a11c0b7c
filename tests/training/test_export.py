"""An export is never trusted: what is broken is found before a file is written."""

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
from neurona_training.export.onnx_export import OPSET, export
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
    return export(
        network, data, model_metadata(data, "a test", {"test_rows": 1}, {"recipe": "none"})
    )


def _probabilities(network):
    return nn.Sequential(network, nn.Softmax(dim=1)).eval()


@pytest.mark.parametrize("cell", ["rnn", "lstm", "gru"])
def test_rows_and_time_are_free_and_plain_units_go_in(sequences, ask, operators, cell):
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
    for rows, time in ((1, 1), (3, 2), (5, 61), (64, 8)):  # none of what the export looked at
        inputs = random.integers(0, 17, (rows, time, 8)).astype(np.float32)
        with torch.no_grad():
            expected = torch.softmax(network(torch.from_numpy(inputs)), dim=1)
        np.testing.assert_allclose(ask(model, inputs), expected, rtol=1e-4, atol=1e-6)


def test_metadata_come_back_as_they_went_in(good, sequences):
    model = onnx.load_from_string(good)
    (text,) = [item.value for item in model.metadata_props if item.key == metadata.KEY]
    said = metadata.from_json(text)
    expected = model_metadata(sequences, "a test", {"test_rows": 1}, {"recipe": "none"})
    assert said == expected
    assert said.provenance["torch"] == torch.__version__
    assert model.opset_import[0].version == OPSET


def test_a_baked_in_time_is_found(untrained, sequences, monkeypatch):
    recurrent = type(untrained.recurrent)
    whole = recurrent.for_export
    monkeypatch.setattr(recurrent, "for_export", lambda self: _Cut(whole(self)))
    # 8 steps and fewer are answered rightly; the first length beyond them is 13.
    with pytest.raises(ExportError, match=r"shape \[1, 13, 8\] differs from torch by up to 0\.0"):
        _export(untrained, sequences)


class _Cut(nn.Module):
    def __init__(self, whole):
        super().__init__()
        self.whole = whole

    def forward(self, sequence, lengths):
        return self.whole(sequence[:, :8], lengths)


def test_an_unrolled_layer_is_found(sequences):
    """torch's exporter writes nn.RNN as a loop over the example's 8 steps, without a word."""

    class Unrolled(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.RNN(8, 10, batch_first=True)

        def forward(self, sequence):
            return self.layer(sequence)[0][:, -1]

    with pytest.raises(ExportError, match=r"no output 'probabilities'.* shape \[1, 1, 8\]"):
        _export(Unrolled(), sequences)


def test_what_torch_cannot_export_is_told_in_one_line(sequences):
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


def test_a_baked_in_batch_is_found(good, untrained, sequences):
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


def test_the_sound_graph_passes(good, untrained, sequences):
    verify_parity(good, _probabilities(untrained), sequences)


def test_another_output_shape_is_found(good, untrained, sequences):
    with pytest.raises(ExportError, match=r"has shape \[1, 10\]; torch gives \[1, 9\]"):
        verify_parity(
            good,
            nn.Sequential(_probabilities(untrained), _DropColumn()),
            sequences,
        )


class _DropColumn(nn.Module):
    def forward(self, probabilities):
        return probabilities[:, 1:]


def test_nan_is_no_agreement():
    nan = np.full((1, 1), np.nan, np.float32)
    assert parity.differs(nan, np.ones((1, 1), np.float32))


def test_bytes_that_are_no_model_are_refused(untrained, sequences):
    with pytest.raises(ExportError, match="cannot load the graph"):
        verify_parity(b"no model", untrained, sequences)
