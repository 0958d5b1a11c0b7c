"""Any torch module becomes a verified file, or an error that says what to do."""

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import nn

from neurona_protos import metadata
from neurona_protos.prediction_pb2 import (
    TASK_CLASSIFICATION,
    TASK_REGRESSION,
    ImageDescription,
    InputDescription,
)
from neurona_training.errors import ExportError, OutputError
from neurona_training.export import export


class Recurrent(nn.Module):
    """A classifier of sequences that also answers its states."""

    def __init__(self, layer):
        super().__init__()
        self.layer = layer
        self.dropout = nn.Dropout(0.5)
        self.output = nn.Linear(layer.hidden_size * (1 + layer.bidirectional), 3)

    def forward(self, sequence):
        states, _ = self.layer(sequence)
        return self.output(self.dropout(states[:, -1])), states


class Several(nn.Module):
    """Integers, booleans and floats in; a mapping with a tuple out."""

    def __init__(self):
        super().__init__()
        self.words = nn.Embedding(10, 4)
        self.register_buffer("offset", torch.arange(4.0))

    def forward(self, ids, mask, scale, flag=False):
        vectors = (self.words(ids) + self.offset) * mask.unsqueeze(-1) * scale
        assert flag
        return {"mean": vectors.mean(1), "parts": (vectors, None, vectors.argmax(-1))}


def _session(path):
    return onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])


def _described(path):
    properties = {one.key: one.value for one in onnx.load(path).metadata_props}
    return metadata.from_json(properties[metadata.KEY])


@pytest.fixture(scope="module")
def recurrent(tmp_path_factory):
    """A plain recurrent network, which torch's exporter would unroll, in training mode."""
    torch.manual_seed(0)
    module = Recurrent(nn.RNN(4, 6, batch_first=True, bidirectional=True)).train()
    report = export(
        module,
        torch.randn(1, 5, 4),
        tmp_path_factory.mktemp("models") / "reader",
        axes=("batch", "time", None),
        outputs=("probabilities", "states"),
        labels=("a", "b", "c"),
        logits=True,
        description="a reader",
        figures={"test_accuracy": 0.9},
        provenance={"seed": 0},
    )
    return module, report


def test_a_recurrent_module_is_of_any_length(recurrent):
    module, report = recurrent
    assert module.training
    assert module.dropout.training
    assert report.inputs == {"sequence": ("batch", "time", 4)}
    assert report.outputs == {"probabilities": ("batch", 3), "states": ("batch", "time", 12)}
    assert report.free_axes == ("batch", "time")
    assert 0 <= report.largest_difference < 1e-5
    assert {"batch 1, time 1, random", "batch 7, time 5, example"} <= set(report.differences)
    assert not report.skipped
    assert "equal to torch in" in str(report)
    session = _session(report.path)
    for rows, time in ((4, 23), (1, 1)):
        sequence = torch.randn(rows, time, 4)
        with torch.inference_mode():
            module.eval()
            logits, states = module(sequence)
            module.train()
        probabilities, actual = session.run(None, {"sequence": sequence.numpy()})
        np.testing.assert_allclose(probabilities, logits.softmax(1), atol=1e-5)
        np.testing.assert_allclose(actual, states, atol=1e-5)


def test_the_file_is_in_the_layout_of_a_repository_and_has_metadata(recurrent):
    _, report = recurrent
    assert report.path.parts[-3:] == ("reader", "1", "model.onnx")
    graph = onnx.load(report.path).graph
    assert [node.op_type for node in graph.node].count("RNN") == 1
    assert [one.dim_param for one in graph.output[1].type.tensor_type.shape.dim][:2] == [
        "batch",
        "time",
    ]
    described = _described(report.path)
    assert described.task == TASK_CLASSIFICATION
    assert described.answer == "probabilities"
    assert list(described.labels) == ["a", "b", "c"]
    assert described.description == "a reader"
    assert described.figures == {"test_accuracy": 0.9}
    assert described.provenance["seed"] == "0"
    assert described.provenance["torch"] == torch.__version__


@pytest.fixture(scope="module")
def several(tmp_path_factory):
    torch.manual_seed(1)
    example = {
        "ids": torch.tensor([[1, 9, 3]]),
        "mask": np.array([[True, False, True]]),
        "scale": torch.ones(1, 1, 1),
        "flag": True,
    }
    path = tmp_path_factory.mktemp("several") / "x.onnx"
    axes = {"ids": ("batch", "time"), "mask": ("batch", "time")}
    return export(Several(), example, path, axes=axes)


def test_several_inputs_and_outputs_keep_names_and_types(several):
    session = _session(several.path)
    assert [(one.name, one.type) for one in session.get_inputs()] == [
        ("ids", "tensor(int64)"),
        ("mask", "tensor(bool)"),
        ("scale", "tensor(float)"),
    ]
    assert [one.name for one in session.get_outputs()] == ["mean", "parts_0", "parts_2"]
    assert several.outputs["parts_0"] == ("batch", "time", 4)
    assert several.largest_difference < 1e-5


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """Limits of an axis, an input's description, and hooks."""
    torch.manual_seed(2)
    module = nn.Sequential(
        nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    )
    module.train()(torch.randn(8, 1, 8, 8))
    module[3].register_forward_hook(lambda _module, _inputs, output: output + 1)
    image = ImageDescription(width=8, height=8, white=1.0)
    path = tmp_path_factory.mktemp("images") / "x.onnx"
    report = export(
        module,
        np.zeros((2, 1, 8, 8), np.float32),
        path,
        inputs=["picture"],
        axes={0: torch.export.Dim("batch", min=1, max=8)},
        values={"area": "cm2", "depth": "mm"},
        descriptions={"picture": InputDescription(unit="levels")},
        image=image,
    )
    return module, report


@pytest.mark.slow
def test_buffers_hooks_and_training_mode_are_as_in_evaluation(images):
    module, report = images
    before = module[1].running_mean.clone()
    pictures = torch.randn(5, 1, 8, 8)
    (actual,) = _session(report.path).run(["value"], {"picture": pictures.numpy()})
    assert torch.equal(module[1].running_mean, before)
    assert module[1].training
    with torch.inference_mode():
        expected = module.eval()(pictures)
        module.train()
    np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_values_units_and_images_are_described(images):
    described = _described(images[1].path)
    assert described.task == TASK_REGRESSION
    assert [(one.name, one.unit) for one in described.values] == [("area", "cm2"), ("depth", "mm")]
    (picture,) = described.inputs
    assert (picture.name, picture.unit, picture.image.width) == ("picture", "levels", 8)


class Branches(nn.Module):
    def forward(self, x):
        return x[:, :1] if x.sum() > 0 else x[:, -1:]


class Loops(nn.Module):
    def __init__(self):
        super().__init__()
        self.cell = nn.RNNCell(4, 4)

    def forward(self, x):
        state = x.new_zeros(x.shape[0], 4)
        for step in range(x.shape[1]):
            state = self.cell(x[:, step], state)
        return state


class Eigenvalues(nn.Module):
    def forward(self, x):
        return torch.linalg.eigvals(x.mT @ x).real


class Drops(nn.Module):
    def forward(self, x):
        return nn.functional.dropout(x, 0.5, training=True)


class FixesRows(nn.Module):
    def forward(self, x):
        return x.reshape(3, -1)


class Strings(nn.Module):
    def forward(self, x):
        return {"x": x, "kind": "text"}


class Different(nn.Module):
    """Another function in the graph than in torch."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 2)

    def forward(self, x):
        return self.layer(x) * (0.5 if torch.compiler.is_exporting() else 1)


_ROWS = torch.arange(12.0).reshape(3, 4)
_SEQUENCES = torch.linspace(-1, 1, 60).reshape(3, 5, 4)


@pytest.mark.parametrize(
    ("module", "example", "options", "expected"),
    [
        (Branches(), _ROWS, {}, r"branches .* on the values of a tensor.*expected torch.where"),
        (Loops(), _SEQUENCES, {"axes": ("batch", "time")}, r"axis 'time' .*fixes it at 5"),
        pytest.param(
            Eigenvalues(),
            _SEQUENCES,
            {},
            r"operator without an ONNX form: aten.linalg_eig",
            marks=pytest.mark.slow,
        ),
        (Drops(), _ROWS, {}, r"differs between two runs .*dropout with training=True"),
        (FixesRows(), _ROWS, {}, r"rows of the batch on axes \[3, 'batch_1'\]"),
        (Strings(), _ROWS, {}, r"output kind is a str \(expected tensors"),
        (
            nn.Linear(4, 2),
            torch.ones(4),
            {},
            r"no other size of axis 'batch' than 4: .*example\[No",
        ),
        (nn.Linear(4, 2), torch.ones(3, 5), {}, r"does not take the example, of shapes .*\[3, 5\]"),
        (nn.Linear(4, 2), np.array(["a"]), {}, r"argument 0 of the example is a ndarray"),
        (nn.Linear(4, 2), (), {}, r"example without a tensor"),
        (nn.Linear(4, 2), _ROWS, {"labels": list("ab")}, r"no probabilities: .*logits=True adds"),
        (nn.Linear(4, 2), _ROWS, {"labels": list("abc"), "logits": True}, r"for 3 labels"),
        (nn.Linear(4, 2), _ROWS, {"values": ["a"]}, r"\[3, 2\] for 1 values \(expected \(batch, 1"),
        (
            nn.Linear(4, 2),
            _ROWS,
            {"labels": list("ab"), "values": list("ab")},
            r"labels and values together",
        ),
        (nn.Linear(4, 2), _ROWS, {"logits": True}, r"logits without labels"),
        (nn.Linear(4, 2), _ROWS, {"answer": "y"}, r"unknown answer 'y' \(available: output\)"),
        (nn.Linear(4, 2), _ROWS, {"inputs": ["a", "b"]}, r"2 input names .*\(expected 1"),
        (nn.Linear(4, 2), _ROWS, {"outputs": ["input"]}, r"name 'input' of an input and an output"),
        (nn.Linear(4, 2), _ROWS, {"axes": {2: "time"}}, r"axis 2 of input 'input' does not exist"),
        (nn.Linear(4, 2), _ROWS, {"axes": {"x": {0: "batch"}}}, r"axes of unknown input 'x'"),
        (nn.Linear(4, 2), _ROWS, {"axes": "batch"}, r"axes of input 'input' are a text"),
        (nn.Linear(4, 2), _ROWS, {"axes": 1}, r"axes of input 'input' are 1 \(expected a seq"),
        (nn.Linear(4, 2), _ROWS, {"labels": "ab"}, r"labels are a text, 'ab'"),
        (nn.Linear(4, 2), _ROWS, {"inputs": "x"}, r"inputs are a text, 'x'"),
        (nn.Linear(4, 2), _ROWS, {"labels": [0, 1]}, r"labels with 0, a int \(expected texts"),
        (nn.Linear(4, 2), _ROWS, {"values": {"a": 1}}, r"values with 1, a int"),
        (nn.Linear(4, 2), _ROWS, {"labels": ["a", "a"]}, r"label 'a' repeated"),
        (nn.Linear(4, 2), _ROWS, {"version": "2"}, r"version '2' \(expected an integer"),
        (nn.Linear(4, 2), _ROWS, {"description": 5}, r"description is a int"),
        (nn.Linear(4, 2), _ROWS, {"figures": {"a": "high"}}, r"figure 'a' is 'high'"),
        (nn.Linear(4, 2), _ROWS, {"tolerance": 0.1}, r"tolerance is a float"),
        (nn.Linear(4, 2), _ROWS, {"descriptions": {"input": {}}}, r"of input 'input' is a dict"),
        (
            Recurrent(nn.LSTM(4, 3, batch_first=True)).double(),
            _SEQUENCES.double(),
            {"axes": ("batch", "time")},
            r"exports 'layer', a recurrent layer of float64, with \d+ steps",
        ),
        (nn.Linear(4, 2), _ROWS, {"opset": 9}, r"opset 9 \(expected 18 to 21\)"),
        (nn.Linear(4, 2).bfloat16(), _ROWS.bfloat16(), {}, r"not bfloat16"),
        (
            nn.Linear(4, 2),
            _ROWS,
            {"image": ImageDescription(width=9)},
            r"image of width 9 .*\[3, 4",
        ),
        (
            nn.Bilinear(4, 4, 2),
            (_ROWS, _ROWS[:2]),
            {},
            r"axis 'batch' is of size 3 in input 'input1' and 2 in 'input2'",
        ),
        ("linear", _ROWS, {}, r"module is a str"),
    ],
)
def test_what_cannot_be_exported_is_said_and_nothing_is_written(
    tmp_path, module, example, options, expected
):
    with pytest.raises(ExportError, match=expected) as caught:
        export(module, example, tmp_path / "model", **options)
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_random_numbers_of_the_caller_stay_as_they_are(tmp_path):
    torch.manual_seed(1)
    state = torch.get_rng_state()
    with pytest.raises(ExportError):
        export(Drops(), _ROWS, tmp_path / "m.onnx")
    assert torch.equal(torch.get_rng_state(), state)


class Logarithm(nn.Module):
    def forward(self, x):
        return torch.log(x), 1 / torch.relu(x)


@pytest.mark.slow
def test_nan_and_infinity_of_both_are_equal(tmp_path):
    report = export(Logarithm(), _ROWS, tmp_path / "m.onnx")
    assert report.largest_difference < 1e-4


@pytest.mark.slow
def test_a_difference_names_place_and_layer_and_leaves_the_earlier_file(tmp_path):
    (tmp_path / "x.onnx").write_bytes(b"earlier")
    expected = (
        r"differs from torch at batch 3, example: output 'output'\[.* is .* \(expected .*; "
        r"the first layer that differs is 'network' \(Different; "
    )
    with pytest.raises(ExportError, match=expected):
        export(Different(), _ROWS, tmp_path / "x.onnx")
    assert (tmp_path / "x.onnx").read_bytes() == b"earlier"


def test_an_unwritable_path_is_an_error_before_the_work(tmp_path):
    (tmp_path / "x.onnx").write_bytes(b"earlier")
    with pytest.raises(OutputError, match="cannot write"):
        export(nn.Linear(4, 2), _ROWS, tmp_path / "x.onnx" / "below.onnx")
