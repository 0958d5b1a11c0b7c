"""float16 and int8: smaller files with the same inputs and outputs, and measured metrics."""

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import nn

from neurona_protos import metadata
from neurona_training.architectures.network_options import NetworkOptions
from neurona_training.cli.main import main
from neurona_training.data import Dataset, Input, Split, Value
from neurona_training.data.sources import digits
from neurona_training.errors import ExportError
from neurona_training.export import quantization
from neurona_training.export.metadata import model_metadata
from neurona_training.export.onnx_export import export_trained_network
from neurona_training.learning.evaluation import accuracy, evaluate
from neurona_training.recipes import RECIPES


@pytest.fixture(scope="module")
def data():
    return digits.digit_images()


@pytest.fixture(scope="module")
def model(data):
    torch.manual_seed(0)
    network = RECIPES["lenet5"].network(data, NetworkOptions()).eval()
    return export_trained_network(
        network, data, model_metadata(data, "a test", evaluate(network, data), {})
    )


@pytest.mark.parametrize(("variant", "part"), [("float16", 0.6), ("int8", 0.4)])
def test_a_variant_is_smaller_and_has_its_own_metrics(model, data, variant, part):
    smaller, described = quantization.make_variant(variant, model, data)
    assert len(smaller) < part * len(model)
    onnx.checker.check_model(onnx.load_from_string(smaller))
    session = onnxruntime.InferenceSession(smaller)
    assert {one.type for one in (*session.get_inputs(), *session.get_outputs())} == {
        "tensor(float)"
    }
    (outputs,) = session.run(None, {"image": data.test.inputs[:50]})
    (expected,) = onnxruntime.InferenceSession(model).run(None, {"image": data.test.inputs[:50]})
    np.testing.assert_allclose(outputs, expected, atol=0.05)
    assert (outputs != expected).any()

    props = {one.key: one.value for one in onnx.load_from_string(smaller).metadata_props}
    assert metadata.from_json(props[metadata.KEY]) == described
    variant_outputs = quantization.run_model(smaller, data)
    assert described.figures["test_accuracy"] == accuracy(variant_outputs, data.test.targets)
    float32_outputs = quantization.run_model(model, data)
    assert described.figures["float32_test_accuracy"] == accuracy(
        float32_outputs, data.test.targets
    )
    assert "validation_accuracy" not in described.figures
    assert described.provenance["variant"] == variant


def test_a_network_without_large_products_is_rejected(data):
    class Sum(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.linspace(-1, 1, 10))

        def forward(self, image):
            return image.mean(dim=(1, 2))[:, None] * self.weight

    network = Sum()
    model = export_trained_network(
        network, data, model_metadata(data, "a test", evaluate(network, data), {})
    )
    with pytest.raises(ExportError, match="int8 is not possible: no weights of large products"):
        quantization.make_variant("int8", model, data)
    quantization.make_variant("float16", model, data)


def test_numbers_too_large_for_float16_are_rejected(model, data):
    huge = onnx.load_from_string(model)
    (weight,) = [one for one in huge.graph.initializer if one.name.endswith("output.weight")]
    weight.CopyFrom(
        onnx.numpy_helper.from_array(1e7 * onnx.numpy_helper.to_array(weight), weight.name)
    )
    with pytest.raises(
        ExportError, match=r"float16 is not possible: .*output.weight' has a number"
    ):
        quantization.make_variant("float16", huge.SerializeToString(), data)


def test_scaling_stays_in_float32():
    """Inputs and outputs of a million are too large for float16."""
    random = np.random.default_rng(0)
    inputs = (5e6 + 1e6 * random.normal(size=(60, 3))).astype(np.float32)
    targets = inputs.sum(axis=1, keepdims=True)
    parts = [Split(inputs[rows::3], targets[rows::3]) for rows in range(3)]
    features = Input("features", ("batch", "feature"), "three amounts", "EUR")
    data = Dataset("sums", "made here", *parts, input=features, values=(Value("sum", "EUR"),))
    torch.manual_seed(0)
    network = RECIPES["mlp"].network(data, NetworkOptions()).eval()
    model = export_trained_network(
        network, data, model_metadata(data, "a test", evaluate(network, data), {})
    )
    smaller, _ = quantization.make_variant("float16", model, data)
    outputs, expected = quantization.run_model(smaller, data), quantization.run_model(model, data)
    np.testing.assert_allclose(outputs, expected, rtol=0, atol=0.01 * targets.std())


@pytest.mark.long
@pytest.mark.slow
def test_an_impossible_variant_leaves_the_other_files(tmp_path, capsys, monkeypatch):
    original = quantization.make_variant

    def fail_for_int8(variant, model, data):
        if variant == "int8":
            raise ExportError("variant int8 is not possible: a reason")
        return original(variant, model, data)

    monkeypatch.setattr(quantization, "make_variant", fail_for_int8)
    arguments = ["--variant", "int8", "--variant", "float16", "--no-report", "--out", str(tmp_path)]
    assert main(["rnn", "--epochs", "1", *arguments]) == 1
    printed = capsys.readouterr()
    assert printed.err.splitlines()[-1].endswith("variant int8 is not possible: a reason")
    assert "rnn-float16/1/model.onnx: float16" in printed.out
    assert sorted(path.parts[-3] for path in tmp_path.rglob("model.onnx")) == ["rnn", "rnn-float16"]
