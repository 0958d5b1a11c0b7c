"""A baseline's file takes and answers what the network's file does."""

import sys

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from support.datasets import make_dataset, make_windows

from neurona_protos import metadata
from neurona_training.architectures.columns import EncodedColumns
from neurona_training.baselines.estimators import fit_baselines
from neurona_training.data import Value
from neurona_training.data.catalogue import load
from neurona_training.data.user.load import load_user_data
from neurona_training.data.user.spec import UserData
from neurona_training.errors import ExportError
from neurona_training.export.estimators import export_baseline
from neurona_training.export.metadata import model_metadata

RANDOM = np.random.default_rng(8)


def run(content, data, arrays):
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    names = [one.name for one in session.get_inputs()]
    assert names == [one.name for one in data.inputs]
    (output,) = session.run(None, dict(zip(names, arrays, strict=True)))
    return output


def check(data, names, level=0.0):
    """Export each baseline, and compare its file with what was measured."""
    baselines = fit_baselines(data)
    assert [one.name for one in baselines] == names
    for baseline in baselines:
        described = model_metadata(data, baseline.title, {}, {})
        content, complete = export_baseline(baseline.model, data, described, level)
        file = onnx.load_from_string(content)
        (text,) = [one.value for one in file.metadata_props if one.key == metadata.KEY]
        assert metadata.from_json(text) == complete
        assert [one.name for one in file.graph.output] == [described.answer]
        decided = ~baseline.model.undecided_rows(*map(torch.from_numpy, data.test.arrays))
        assert decided.mean() > 0.9
        outputs = run(content, data, data.test.arrays)
        assert outputs.shape[1] == baseline.predictions.shape[1] * (3 if level else 1)
        np.testing.assert_allclose(
            outputs[decided, : baseline.predictions.shape[1]],
            baseline.predictions[decided],
            rtol=1e-3,
            atol=1e-5 * abs(baseline.predictions).max(),
        )
        for name, value in baseline.test_metrics.items():
            if name != "nll" and decided.all():
                assert complete.figures[f"test_{name}"] == pytest.approx(value, rel=1e-3)


def test_rows():
    check(load("iris"), ["linear", "gradient_boosting", "nearest_neighbours", "majority"])


@pytest.mark.slow
def test_several_values_of_rows_far_from_0():
    inputs = RANDOM.normal(size=(200, 3)).astype(np.float32) * 40 + [1.7e9, 2000, -3]
    targets = np.stack([inputs[:, 1] * 1000, np.sign(inputs[:, 2])], axis=1)
    data = make_dataset(
        inputs.astype(np.float32),
        targets.astype(np.float32),
        ("batch", "c"),
        values=(Value("a", "m"), Value("b", "km")),
    )
    check(data, ["linear", "gradient_boosting", "nearest_neighbours", "mean"])


@pytest.mark.slow
def test_images():
    check(load("digits"), ["linear", "nearest_neighbours", "support_vectors", "majority"])


@pytest.mark.long
@pytest.mark.slow
def test_sequences():
    lengths = RANDOM.integers(1, 12, 100).astype(np.int32)
    inputs = RANDOM.normal(size=(100, 12, 2)).astype(np.float32)
    targets = inputs[:, :1, 0]
    data = make_dataset(
        inputs, targets, ("batch", "time", "c"), lengths=lengths, values=(Value("y", "m"),)
    )
    check(data, ["linear", "nearest_neighbours", "mean"])


@pytest.mark.slow
def test_statistics_of_sequences():
    kinds = np.arange(60) % 2
    inputs = RANDOM.normal(size=(60, 30, 2)) * (1 + 3 * kinds)[:, None, None]
    data = make_dataset(
        inputs.astype(np.float32), kinds, ("batch", "time", "c"), labels=("rest", "run")
    )
    check(data, ["linear", "nearest_neighbours", "majority"])


@pytest.mark.long
@pytest.mark.slow
def test_a_series_that_is_longer_or_shorter_than_the_window():
    months = np.arange(200)
    series = 1e4 + 9 * months + 300 * np.sin(months * np.pi / 6) + RANDOM.normal(size=200)
    data = make_windows(series, 16, horizon=2)
    names = ["linear", "gradient_boosting", "seasonal_persistence", "persistence", "mean"]
    check(data, names, level=0.9)  # lengths of 1 to 40 steps are compared by the export


@pytest.mark.slow
def test_a_class_without_a_training_row():
    targets = np.array([0, 2, *([0, 2] * 29), *([0, 1, 2, 2] * 10)])
    inputs = RANDOM.normal(size=(100, 3)).astype(np.float32)
    data = make_dataset(inputs, targets, ("batch", "c"), labels=("a", "b", "c"))
    check(data, ["linear", "gradient_boosting", "nearest_neighbours", "majority"])


@pytest.mark.long
@pytest.mark.slow
def test_the_same_estimator_gives_the_same_file():
    data = load("xor")
    neighbours = fit_baselines(data)[2]
    described = model_metadata(data, "", {}, {})
    first, second = (export_baseline(neighbours.model, data, described) for _ in range(2))
    assert first == second


@pytest.mark.long
@pytest.mark.slow
def test_a_file_that_differs_is_refused(monkeypatch):
    data = load("iris")
    (linear, *_) = fit_baselines(data)
    predict = linear.estimator.predict_proba
    monkeypatch.setattr(linear.estimator, "predict_proba", lambda columns: predict(columns) * 0.99)
    with pytest.raises(ExportError, match=r"output 'probabilities' .* differs"):
        export_baseline(linear.model, data, model_metadata(data, "", {}, {}))


def test_without_skl2onnx_the_error_names_the_extra(monkeypatch):
    data = load("xor")
    (linear, *_) = fit_baselines(data)
    monkeypatch.setitem(sys.modules, "skl2onnx", None)
    with pytest.raises(ExportError, match=r"skl2onnx \(expected .*'neurona\[estimators\]'\)"):
        export_baseline(linear.model, data, model_metadata(data, "", {}, {}))


@pytest.mark.long
@pytest.mark.slow
def test_trees_decide_about_dates_as_scikit_learn_does(tmp_path):
    """Sine and cosine of a date differ in their last bits between torch and ONNX Runtime."""
    random = np.random.default_rng(0)
    minutes = random.integers(0, 1400 * 24 * 60, 900)
    times = np.datetime64("2020-01-01T00:00") + minutes.astype("timedelta64[m]")
    values = np.sin(minutes / (24 * 60) * 2 * np.pi) + 0.1 * random.normal(size=900)
    rows = (
        f"{'' if row % 20 == 0 else str(time).replace('T', ' ')},{value}"
        for row, (time, value) in enumerate(zip(times, values, strict=True))
    )
    path = tmp_path / "sales.csv"
    path.write_text("\n".join(["sold,price", *rows]))
    loaded = load_user_data(UserData(path, target="price"))
    data = loaded.caller_view
    boosting = fit_baselines(loaded.training_view)[1]
    model = boosting.model.in_view(lambda module: EncodedColumns(module, loaded.encoding))
    content, _ = export_baseline(model, data, model_metadata(data, "", {}, {}))
    for part in (data.train, data.test):
        with torch.inference_mode():
            expected = model(*map(torch.from_numpy, part.arrays)).numpy()
        np.testing.assert_allclose(run(content, data, part.arrays), expected, rtol=1e-4, atol=1e-6)
