"""Networks of several inputs: lengths of padded sequences, and strings."""

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import nn

from neurona_training.data import LENGTHS, Dataset, Input, Split, Value
from neurona_training.errors import DataError, ExportError
from neurona_training.export.metadata import model_metadata
from neurona_training.export.onnx_export import export_trained_network
from neurona_training.learning.evaluation import predict
from neurona_training.learning.run import Hyperparameters, Run
from neurona_training.recipes.recipe import Recipe
from neurona_training.recipes.settings import Settings

SEQUENCE = Input("sequence", ("batch", "time", "channel"), "two readings", "volt")
MEAN = (Value("mean", "volt"),)
SETTINGS = Settings(Hyperparameters(epochs=40, batch_rows=10, learning_rate=3e-2))


class MaskedMean(nn.Module):
    """The mean over the steps of each row without padding, through a layer."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(2, 1)

    def forward(self, sequence, lengths):
        steps = torch.arange(sequence.shape[1])
        is_step = (steps[None] < lengths[:, None]).to(sequence.dtype)[:, :, None]
        return self.layer((sequence * is_step).sum(dim=1) / lengths[:, None])


class PlainMean(MaskedMean):
    """Averages the padding too."""

    def forward(self, sequence, lengths):
        return self.layer(sequence.mean(dim=1) + 0 * lengths[:, None])


@pytest.fixture(scope="module")
def ragged():
    random = np.random.default_rng(0)

    def split(rows):
        inputs = random.normal(size=(rows, 9, 2)).astype(np.float32)
        lengths = random.integers(1, 10, rows).astype(np.int32)
        is_step = np.arange(9) < lengths[:, None]
        inputs[~is_step] = 7  # padding that must not matter
        targets = [row[:length].mean() for row, length in zip(inputs, lengths, strict=True)]
        return Split(inputs, np.array(targets, np.float32)[:, None], lengths)

    return Dataset("ragged", "", split(90), split(20), split(20), SEQUENCE, values=MEAN)


def _export(network, data):
    return export_trained_network(network.eval(), data, model_metadata(data, "a test", {}, {}))


def test_lengths_are_learned_from_exported_and_described(ragged):
    recipe = Recipe(
        name="mean",
        description="",
        network=lambda data, options: MaskedMean(),
        tuned={"ragged": SETTINGS},
        takes=("sequences",),
    )
    result = recipe.fit(ragged, SETTINGS, Run("mean", 0))
    assert result.validation_loss < 1e-3  # in units of the variance

    model = _export(result.network, ragged)
    assert [one_input.name for one_input in model_metadata(ragged, "", {}, {}).inputs] == [
        "sequence",
        "sequence_lens",
    ]
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    assert [(i.name, i.type, i.shape) for i in session.get_inputs()] == [
        ("sequence", "tensor(float)", ["batch", "time", 2]),
        ("sequence_lens", "tensor(int32)", ["batch"]),
    ]
    session_inputs = {"sequence": ragged.test.inputs, "sequence_lens": ragged.test.lengths}
    (values,) = session.run(None, session_inputs)
    np.testing.assert_allclose(values, predict(result.network, ragged.test), rtol=1e-4, atol=1e-6)
    session_inputs["sequence"] = np.where(
        np.arange(9)[None, :, None] < ragged.test.lengths[:, None, None],
        session_inputs["sequence"],
        -50,
    ).astype(np.float32)
    np.testing.assert_array_equal(session.run(None, session_inputs)[0], values)


@pytest.mark.long
@pytest.mark.slow
def test_a_graph_that_ignores_lengths_is_found(ragged, monkeypatch):
    def as_plain(masked):
        plain = PlainMean()
        plain.load_state_dict(masked.state_dict())
        return plain

    network = MaskedMean()
    monkeypatch.setattr(MaskedMean, "for_export", as_plain, raising=False)
    with pytest.raises(ExportError, match=r"'sequence_lens' of shape \[2\] differs"):
        _export(network, ragged)


@pytest.mark.long
@pytest.mark.slow
def test_strings_are_looked_up_inside_the_graph():
    class Priced(nn.Module):
        def __init__(self):
            super().__init__()
            self.price = nn.Embedding(3 + 1, 1)  # one more, for unknown strings

        def forward(self, numbers, wood):
            return numbers.sum(dim=1, keepdim=True) * self.price(wood)

    random = np.random.default_rng(0)

    def split(rows):
        numbers = random.normal(size=(rows, 2)).astype(np.float32)
        return Split(numbers, numbers[:, :1], extra_inputs=(random.integers(0, 3, rows),))

    data = Dataset(
        "boards",
        "",
        split(9),
        split(9),
        split(9),
        Input("numbers", ("batch", "column"), "length and width", "m"),
        values=(Value("price", "EUR"),),
        extra_inputs=(
            Input("wood", ("batch",), "of the board", "", categories=("oak", "ash", "fir")),
        ),
    )
    network = Priced().eval()
    model = _export(network, data)
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    assert [(i.name, i.type) for i in session.get_inputs()] == [
        ("numbers", "tensor(float)"),
        ("wood", "tensor(string)"),
    ]
    numbers = np.ones((4, 2), np.float32)
    wood = np.array(["fir", "oak", "ash", "glass"], object)
    (values,) = session.run(None, {"numbers": numbers, "wood": wood})
    prices = network.price.weight.detach().numpy()[[2, 0, 1, 3]]
    np.testing.assert_allclose(values, 2 * prices, rtol=1e-6)

    def swap(graph):
        (node,) = [one for one in graph.graph.node if one.op_type == "LabelEncoder"]
        (keys,) = [one for one in node.attribute if one.name == "keys_strings"]
        keys.strings[:2] = keys.strings[1::-1]

    broken = onnx.load_from_string(model)
    swap(broken)
    from neurona_training.export.parity import verify_parity

    with pytest.raises(ExportError, match="differs from torch"):
        verify_parity(broken.SerializeToString(), network, data)


def test_inconsistent_inputs_are_rejected(ragged):
    inputs, targets = ragged.train.inputs, ragged.train.targets
    with pytest.raises(DataError, match="89 rows of other inputs for 90 rows of input"):
        Split(inputs, targets, ragged.train.lengths[1:])
    with pytest.raises(DataError, match=r"lengths are 2 to 10 \(expected 1 to 9 steps\)"):
        Split(inputs, targets, ragged.train.lengths + np.int32(1))
    with pytest.raises(DataError, match="lengths have dtype int64"):
        Split(inputs, targets, ragged.train.lengths.astype(np.int64))
    without_lengths = Split(inputs, targets)
    with pytest.raises(DataError, match=r"have \[3\] axes \(expected \[3, 1\]\)"):
        Dataset("mixed", "", ragged.train, without_lengths, without_lengths, SEQUENCE, values=MEAN)
    assert ragged.inputs == (SEQUENCE, LENGTHS)
