"""A table with missing cells, dates and texts: all that is done to its columns is in the file."""

import numpy as np
import onnxruntime
import pytest
import torch
from torch import nn

from neurona_training.architectures.columns import EncodedColumns
from neurona_training.architectures.input_layers import Features
from neurona_training.data.user.load import load_user_data
from neurona_training.data.user.spec import UserData
from neurona_training.export.metadata import model_metadata
from neurona_training.export.onnx_export import export_trained_network
from neurona_training.export.parity import caller_inputs
from neurona_training.export.quantization import make_variant, run_model

ROWS = 80


@pytest.fixture(scope="module")
def loaded(tmp_path_factory):
    random = np.random.default_rng(5)
    days = np.datetime64("2019-01-01") + random.integers(0, 2000, ROWS)
    lines = ["age,day,city,y"]
    for row, day in enumerate(days):
        age = "" if row % 5 == 1 else random.integers(18, 80)
        city = "" if row % 7 == 1 else ("Bonn", "Essen")[row % 2]
        lines.append(f"{age},{'' if row % 6 == 1 else day},{city},{row % 9}.5")
    path = tmp_path_factory.mktemp("table") / "table.csv"
    path.write_text("\n".join(lines))
    return load_user_data(UserData(path, target="y"))


@pytest.fixture(scope="module")
def network(loaded):
    torch.manual_seed(0)
    width = loaded.training_view.train.inputs.shape[1]
    return nn.Sequential(Features(loaded.training_view), nn.Linear(width, 1)).eval()


@pytest.fixture(scope="module")
def model(loaded, network):
    data = loaded.caller_view
    described = model_metadata(data, "a table", {"test_rmse": 1.0}, {})
    return export_trained_network(EncodedColumns(network, loaded.encoding), data, described)


@pytest.mark.long
@pytest.mark.slow
def test_the_file_takes_what_a_caller_sends(loaded, network, model):
    inputs = caller_inputs(loaded.caller_view.test.arrays, loaded.caller_view)
    assert np.isnan(inputs["features"]).any()
    assert "" in inputs["city"]
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    (outputs,) = session.run(None, inputs)
    with torch.inference_mode():
        expected = network(torch.from_numpy(loaded.training_view.test.inputs)).numpy()
    np.testing.assert_allclose(outputs, expected, rtol=1e-4, atol=1e-5)


def test_half_precision_has_the_days_and_what_is_missing_as_they_are(loaded, model):
    """In float16 a day after 1975 is one of its neighbours, with another weekday."""
    expected = run_model(model, loaded.caller_view)
    half, _ = make_variant("float16", model, loaded.caller_view)
    np.testing.assert_allclose(run_model(half, loaded.caller_view), expected, atol=5e-3)
