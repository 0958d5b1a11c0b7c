"""Recurrent networks on sequences of different lengths, complete and step by step."""

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from neurona_protos import metadata
from neurona_training.architectures.input_layers import Normalise, channel_scale
from neurona_training.architectures.network_options import NetworkOptions
from neurona_training.architectures.recurrent import NextCount, Recurrent
from neurona_training.cli.main import main
from neurona_training.data import Dataset, Input, Split, Value
from neurona_training.data.transforms import pad_sequences
from neurona_training.errors import ExportError, OptionError
from neurona_training.export.metadata import model_metadata
from neurona_training.export.onnx_export import export_trained_network
from neurona_training.export.stepwise import export_stepwise, has_stepwise_form, verify_pieces
from neurona_training.learning.evaluation import predict, rmse
from neurona_training.learning.gradient_descent import fit
from neurona_training.learning.run import Hyperparameters, Run
from neurona_training.recipes import RECIPES
from neurona_training.recipes.settings import Settings

CELLS = ("rnn", "gru", "lstm")

LONG = [pytest.mark.slow, pytest.mark.long]
QUICK_CELLS = [*[pytest.param(cell, marks=LONG) for cell in CELLS if cell != "lstm"], "lstm"]
"""The one that every run of the tests has, and the others."""


def _session(model):
    return onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])


def _data(*, ragged):
    """Which of two channels is larger in a row's last step?"""
    random = np.random.default_rng(0)

    def split(rows):
        lengths = random.integers(1, 10, rows) if ragged else [9] * rows
        sequences = [random.normal(size=(size, 2)).astype(np.float32) for size in lengths]
        targets = np.array([int(one[-1, 0] > one[-1, 1]) for one in sequences])
        inputs, lengths = pad_sequences(sequences, filler=9)  # padding that must not matter
        return Split(inputs, targets, lengths if ragged else None)

    sequence = Input("sequence", ("batch", "time", "channel"), "two readings", "volt")
    return Dataset("last", "", split(240), split(60), split(60), sequence, labels=("b", "a"))


@pytest.fixture(scope="module")
def ragged():
    return _data(ragged=True)


def _exported(network, data):
    return export_trained_network(network.eval(), data, model_metadata(data, "a test", {}, {}))


def _untrained(cell, data):
    torch.manual_seed(0)
    return RECIPES[cell].network(data, NetworkOptions())


@pytest.mark.parametrize("cell", QUICK_CELLS)
def test_a_padded_batch_gives_the_outputs_of_its_rows(ragged, operators, cell):
    model = _exported(_untrained(cell, ragged), ragged)
    assert operators(model) == [
        *("Sub", "Mul", "Transpose", cell.upper(), "Squeeze", "Gemm", "Softmax")
    ]
    session, test = _session(model), ragged.test
    assert [(i.name, i.type, i.shape) for i in session.get_inputs()] == [
        ("sequence", "tensor(float)", ["batch", "time", 2]),
        ("sequence_lens", "tensor(int32)", ["batch"]),
    ]
    (together,) = session.run(None, {"sequence": test.inputs, "sequence_lens": test.lengths})
    for row, length, answer in zip(test.inputs, test.lengths, together, strict=True):
        alone = {"sequence": row[None, :length], "sequence_lens": np.array([length], np.int32)}
        np.testing.assert_allclose(session.run(None, alone)[0][0], answer, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("cell", QUICK_CELLS)
def test_ragged_sequences_are_learned(ragged, cell):
    """The last step of a row decides, which padding would hide."""
    hyperparameters = Hyperparameters(epochs=5, batch_rows=16, learning_rate=1e-2)
    result = RECIPES[cell].fit(ragged, Settings(hyperparameters), Run(cell, 0))
    assert max(epoch.metric for epoch in result.history) >= 0.9


def test_scaling_ignores_the_padding(ragged):
    columns = _untrained("gru", ragged).reading
    assert columns.mean.abs().max() < 0.2  # with the padding of 9 it would be above 4


@pytest.mark.parametrize("with_lengths", [True, pytest.param(False, marks=LONG)])
@pytest.mark.parametrize("cell", QUICK_CELLS)
def test_steps_with_their_state_give_the_output_of_the_sequence(cell, with_lengths):
    data = _data(ragged=with_lengths)
    model = _exported(_untrained(cell, data), data)
    steps = export_stepwise(model, data)  # which verifies pieces of 1, 3 and 8 steps
    session = _session(steps)
    states = ["initial_h", "initial_c"][: 2 if cell == "lstm" else 1]
    hidden = _untrained(cell, data).output.in_features
    plain = [one_input.name for one_input in data.inputs]
    assert [i.name for i in session.get_inputs()] == [*plain, *states]
    assert [o.name for o in session.get_outputs()] == [
        "probabilities",
        *(name.replace("initial", "Y") for name in states),
    ]
    for tensor in session.get_inputs()[len(plain) :] + session.get_outputs()[1:]:
        assert tensor.shape == ["batch", hidden]  # rows first, as everywhere

    one = np.ones((1, 4, 2), np.float32)
    lengths = {"sequence_lens": np.array([1], np.int32)} if with_lengths else {}
    state = {name: np.zeros((1, hidden), np.float32) for name in states}
    for step in range(4):
        session_inputs = {"sequence": one[:, step : step + 1], **lengths, **state}
        answer, *after = session.run(None, session_inputs)
        state = dict(zip(states, after, strict=True))
    whole_sequence = {
        "sequence": one,
        **({"sequence_lens": np.array([4], np.int32)} if lengths else {}),
    }
    np.testing.assert_allclose(answer, _session(model).run(None, whole_sequence)[0], rtol=1e-4)

    (item,) = [i for i in onnx.load_from_string(steps).metadata_props if i.key == metadata.KEY]
    described = metadata.from_json(item.value)
    assert [one_input.name for one_input in described.inputs] == [*plain, *states]
    assert "zeros begin a sequence" in described.inputs[-1].description


def test_a_lost_state_is_found(ragged):
    model = _exported(_untrained("gru", ragged), ragged)
    graph = onnx.load_from_string(export_stepwise(model, ragged))
    (node,) = [node for node in graph.graph.node if node.op_type == "GRU"]
    del node.input[5]  # starts again with each piece
    with pytest.raises(ExportError, match=r"step.onnx in pieces of 1 steps differs .*by up to 0"):
        verify_pieces(graph.SerializeToString(), model, ragged)


@pytest.mark.parametrize(
    ("cell", "with_lengths", "bidirectional"),
    [
        *[
            pytest.param(cell, True, bidirectional, marks=LONG)
            for cell in CELLS
            for bidirectional in (False, True)
        ],
        ("lstm", False, False),
        pytest.param("gru", False, True, marks=LONG),
    ],
)
def test_layers_above_each_other_are_one_operator_each(
    cell, with_lengths, bidirectional, operators
):
    data = _data(ragged=with_lengths)
    options = NetworkOptions(units=(6,), layers=3, bidirectional=bidirectional, dropout=0.5)
    torch.manual_seed(0)
    network = RECIPES[cell].network(data, options).eval()
    assert network.output.in_features == (12 if bidirectional else 6)
    model = _exported(network, data)  # which is verified, with a different length in each row
    assert operators(model).count(cell.upper()) == 3
    assert has_stepwise_form(network) is not bidirectional
    if bidirectional:
        with pytest.raises(ExportError, match=r"direction 'bidirectional' \(expected 'forward'\)"):
            export_stepwise(model, data)
        return
    steps = _session(export_stepwise(model, data))  # which verifies pieces
    names = ["initial_h", "initial_c"][: 2 if cell == "lstm" else 1]
    states = [f"{name}_{layer}" for layer in (1, 2, 3) for name in names]
    assert [one.name for one in steps.get_inputs()][len(data.inputs) :] == states
    assert [one.name for one in steps.get_outputs()][1:] == [
        name.replace("initial", "Y") for name in states
    ]


def test_a_second_direction_reads_the_end_of_each_row_first():
    """Of padded rows, that is the last step of the row, not of the padding."""
    torch.manual_seed(0)
    layer = Recurrent("gru", 2, 4, bidirectional=True)
    sequence = torch.randn(2, 6, 2)
    whole = layer(sequence, torch.tensor([4, 6]))
    torch.testing.assert_close(whole[:1], layer(sequence[:1, :4]))
    changed = sequence.clone()
    changed[0, 4:] = 9  # padding
    torch.testing.assert_close(layer(changed, torch.tensor([4, 6])), whole)


def test_units_of_recurrent_layers_are_the_same(ragged):
    with pytest.raises(OptionError, match=r"units of recurrent layers are \(8, 4\)"):
        RECIPES["gru"].network(ragged, NetworkOptions(units=(8, 4)))


def _counts(rows=300):
    """A wave of counts whose noise grows with them, forecast one step ahead."""
    random = np.random.default_rng(1)
    time = np.arange(rows + 12)
    series = random.poisson(40 + 35 * np.sin(time / 4)).astype(np.float32)
    windows = np.lib.stride_tricks.sliding_window_view(series, 12)[:-1, :, None].copy()
    targets = series[12:, None]
    parts = [Split(windows[a:b], targets[a:b]) for a, b in ((0, 200), (200, 250), (250, rows))]
    series_input = Input("series", ("batch", "time", "value"), "a wave", "counts")
    return Dataset("wave", "", *parts, series_input, values=(Value("next", "counts"),))


@pytest.mark.long
@pytest.mark.slow
def test_a_forecast_of_counts_starts_as_persistence_and_improves():
    data = _counts()
    torch.manual_seed(0)
    network = NextCount("gru", data.train, hidden=8, dropout=0.0)
    with torch.no_grad():
        network.output.weight.zero_()
        network.output.bias.zero_()
    last = data.test.inputs[:, -1]
    np.testing.assert_allclose(predict(network, data.test).numpy(), last, rtol=1e-4, atol=1e-3)
    hyperparameters = Hyperparameters(epochs=40, batch_rows=32, learning_rate=2e-2)
    fit(network, data, hyperparameters, Run("wave", 0))
    assert rmse(predict(network, data.test).numpy(), data.test.targets) < 0.9 * rmse(
        last, data.test.targets
    )


def test_a_forecast_of_counts_ignores_padding_and_is_never_negative(operators):
    data = _counts()
    network = NextCount("gru", data.train, hidden=8, dropout=0.0).eval()
    sequence = torch.from_numpy(data.test.inputs[:2]).clone()
    expected = network(sequence[:, :5])
    sequence[:, 5:] = 99
    lengths = torch.tensor([5, 5], dtype=torch.int32)
    torch.testing.assert_close(network(sequence, lengths), expected)
    assert operators(_exported(network, data)).count("GRU") == 1  # and it is verified
    with torch.no_grad():
        network.output.bias.fill_(-1000)
    assert network(sequence).tolist() == [[pytest.approx(0, abs=1e-4)]] * 2


@pytest.mark.long
@pytest.mark.slow
def test_the_stepwise_form_is_written_beside_the_model(tmp_path):
    out = ["--out", str(tmp_path), "--epochs", "1", "--no-report", "--name", "it"]
    folder = tmp_path / "it" / "1"
    assert main(["rnn", "--data", "digit-rows", "--layers", "2", *out]) == 0
    states = ["initial_h_1", "initial_h_2"]
    assert [i.name for i in _session(folder / "step.onnx").get_inputs()] == ["sequence", *states]
    assert [i.name for i in _session(folder / "model.onnx").get_inputs()] == ["sequence"]
    assert main(["rnn", "--data", "digit-rows", "--bidirectional", *out]) == 0
    assert [path.name for path in folder.iterdir()] == ["model.onnx"]


def test_channels_of_different_units_have_a_scale_each():
    random = np.random.default_rng(0)
    values = random.normal(size=(50, 8, 3)).astype(np.float32)
    alike = channel_scale(values * [1, 5, 20])
    assert isinstance(alike, Normalise)
    different = values * np.float32([1, 1000, 0])
    spreads = channel_scale(different)(torch.from_numpy(different)).std(dim=(0, 1))
    torch.testing.assert_close(spreads, torch.tensor([1.0, 1.0, 0.0]), atol=0.01, rtol=0)
