"""What a run on own data leaves: a model with metadata, and a page with charts."""

import base64
import io
import re
from html.parser import HTMLParser

import numpy as np
import onnx
import onnxruntime
import pytest
from PIL import Image
from sklearn.datasets import load_digits

from neurona_protos import metadata
from neurona_server.models.repository.scanner import find_models
from neurona_training.cli.main import main
from neurona_training.cli.tables import results_table
from neurona_training.report.glossary import GLOSSARY


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """A model for each kind of own data, trained briefly by the command."""
    folder, out = tmp_path_factory.mktemp("data"), tmp_path_factory.mktemp("models")
    random = np.random.default_rng(0)

    smoker = random.choice(["yes", "no"], 80)
    ages = random.integers(20, 80, 80)
    ill = np.where((ages > 50) ^ (smoker == "yes"), "ill", "<well> & $fit$")
    lines = ["age,smoker,outcome", *map(",".join, zip(map(str, ages), smoker, ill, strict=True))]
    (folder / "patients.csv").write_text("\n".join(lines))

    values = 100 + 10 * np.sin(np.arange(120) / 3) + random.normal(0, 1, 120)
    (folder / "level.csv").write_text("\n".join(["level", *map(str, values)]))

    digits = load_digits()
    for number in range(60):
        place = folder / "digits" / str(digits.target[number] % 2)
        place.mkdir(parents=True, exist_ok=True)
        grey = Image.fromarray((digits.images[number] * 15).astype(np.uint8))
        grey.convert("RGB").save(place / f"{number}.png")

    lengths = random.integers(2, 6, 40)
    np.savez(
        folder / "walks.npz",
        inputs=random.normal(size=(lengths.sum(), 4)),
        lengths=lengths,
        targets=np.array(["left", "right"])[np.arange(40) % 2],
    )
    for arguments in (
        ["mlp", "--data", "patients.csv", "--target", "outcome", "--epochs", "2"],
        ["gru", "--data", "level.csv", "--series", "level", "--unit", "cm", "--horizon", "2"],
        ["lenet5", "--data", "digits", "--image-size", "9"],
        ["lstm", "--data", "walks.npz"],
    ):
        where = [str(folder / one) if (folder / one).exists() else one for one in arguments]
        assert main([*where, "--epochs", "2", "--out", str(out)]) == 0
    return out


def _metadata(models, name):
    model = onnx.load(models / name / "1" / "model.onnx")
    return metadata.from_json({one.key: one.value for one in model.metadata_props}[metadata.KEY])


def test_callers_send_text_and_get_labels(models):
    described = _metadata(models, "mlp-patients")
    assert list(described.labels) == ["<well> & $fit$", "ill"]
    assert [one_input.name for one_input in described.inputs] == ["features", "smoker"]
    session = onnxruntime.InferenceSession(models / "mlp-patients" / "1" / "model.onnx")
    assert session.get_inputs()[1].type == "tensor(string)"
    session_inputs = {
        "features": np.full((3, 1), 60, np.float32),
        "smoker": np.array(["yes", "no", "sometimes"], object),
    }
    (probabilities,) = session.run(None, session_inputs)
    np.testing.assert_allclose(probabilities.sum(axis=1), 1, rtol=1e-5)
    assert (
        len(np.unique(probabilities[:, 0])) == 3
    )  # an unknown category differs from both known ones


def test_units_and_scaling_are_in_the_metadata(models):
    described = _metadata(models, "gru-level")
    assert [(value.name, value.unit) for value in described.values][:3] == [
        ("level, 1 step ahead", "cm"),
        ("level, 2 steps ahead", "cm"),
        ("level, 1 step ahead, lower 90 %", "cm"),
    ]
    assert described.inputs[0].unit == "cm"
    scaling = described.provenance["scaling"]
    assert "last value" in scaling
    for name in ("test", "mean", "persistence", "linear"):
        assert described.figures[f"{name}_rmse"] > 0
    columns = _metadata(models, "mlp-patients").provenance["scaling"]
    assert columns.count(",") == 4  # of age and of both texts, mean and factor


class _Page(HTMLParser):
    def __init__(self):
        super().__init__()
        self.open, self.alts, self.text = [], [], []

    def handle_starttag(self, tag, attrs):
        if tag == "img":
            self.alts.append(dict(attrs)["alt"])
        if tag not in ("img", "meta"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


@pytest.mark.parametrize(
    ("name", "pictures", "words"),
    [
        ("mlp-patients", 7, ["<well> & $fit$", "Recall", "always the most frequent class"]),
        ("gru-level", 8, ["the last value again", "linear autoregression", "Shorter is better"]),
        ("lenet5-digits", 11, ["The worst mistakes", "kernels of the first layer, 'c1'"]),
        ("lstm-walks", 8, ["sequence_lens", "test rows are wrong", "one population"]),
    ],
)
def test_the_page_is_well_formed_and_has_its_charts(models, name, pictures, words):
    html = (models / name / "report" / "report.html").read_text()
    page = _Page()
    page.feed(html)
    assert page.open == []
    assert 'src="http' not in html
    text = " ".join(page.text) + " Recall" * ("class that was found" in " ".join(page.alts))
    assert [word for word in words if word not in text] == []
    images = [
        Image.open(io.BytesIO(base64.b64decode(one)))
        for one in re.findall(r"base64,([^\"]+)", html)
    ]
    assert len(images) == len(page.alts) >= pictures
    for picture in images:
        assert min(picture.size) > 60
        assert np.asarray(picture.convert("L")).std() > 5  # something is drawn


@pytest.mark.parametrize("name", ["mlp-patients", "gru-level", "lenet5-digits", "lstm-walks"])
def test_words_are_explained_once_and_the_page_stays_small(models, name):
    html = (models / name / "report" / "report.html").read_text()
    terms = re.findall(r"<dt>(.*?)</dt>", html)
    assert len(terms) == len(set(terms)) > 10
    assert set(terms) <= set(GLOSSARY)
    assert len(html) < 700_000
    assert "@media print" in html
    links = re.findall(r'href="#(section-\d+)"', html)
    assert len(links) > 5
    assert all(f'id="{link}"' in html for link in links)
    titles = re.findall(r"<h2>(.*?)</h2>", html)
    assert len(titles) == len(set(titles))
    expected = {
        "mlp-patients": ["Which columns matter", "What the first layer looks for"],
        "gru-level": ["The gates over time", "One example as numbers"],
        "lenet5-digits": ["One picture as numbers", "What deeper layers see", "Where it looks"],
        "lstm-walks": ["The gates over time", "The network"],
    }
    assert {*expected[name], "Model card", "The training"} <= set(titles)


def test_a_server_ignores_the_report(models):
    assert (models / "gru-level" / "report" / "report.html").is_file()
    names = ["gru-level", "lenet5-digits", "lstm-walks", "mlp-patients"]
    assert [str(found) for found in find_models([models])] == [f"{name}/1" for name in names]


def test_the_table_has_a_row_for_each_model(models):
    head, rule, *lines = results_table(models)
    assert head.startswith("| model | recipe | data | on the test rows | seeds |")
    assert set(rule) <= set("| -")
    assert [line.split(" | ")[0] for line in lines] == [
        "| mlp-patients",  # in the order of the recipes
        "| lenet5-digits",
        "| gru-level",
        "| lstm-walks",
    ]
    assert {line.count("|") for line in (head, *lines)} == {head.count("|")}
    described = _metadata(models, "gru-level")
    assert f"RMSE {described.figures['test_rmse']:.4g} cm" in lines[2]
    accuracy = _metadata(models, "lstm-walks").figures["test_accuracy"]
    assert f"accuracy {100 * accuracy:.2f} %" in lines[3]


def test_a_table_without_models_is_an_error(tmp_path, capsys):
    assert main(["--table", str(tmp_path)]) == 1
    assert "no trained models" in capsys.readouterr().err
    (tmp_path / "odd" / "1").mkdir(parents=True)
    (tmp_path / "odd" / "1" / "model.onnx").write_bytes(b"no model")
    assert main(["--table", str(tmp_path)]) == 1
    assert "odd/1/model.onnx: " in capsys.readouterr().err


def test_only_weights_that_are_set_by_hand_are_called_so(models, tmp_path):
    """The best epoch of a forecast is 0 too, where its network helps nothing."""
    for name, initialisation in (("hand", "by hand"), ("learned", "units")):
        model = onnx.load(models / "gru-level" / "1" / "model.onnx")
        described = metadata.from_json(model.metadata_props[0].value)
        described.provenance["best_epoch"] = "0"
        described.provenance["initialisation"] = initialisation
        onnx.helper.set_model_props(model, {metadata.KEY: metadata.to_json(described)})
        (tmp_path / name / "1").mkdir(parents=True)
        onnx.save(model, tmp_path / name / "1" / "model.onnx")
    assert [line.split(" | ")[4] for line in results_table(tmp_path)[2:]] == ["by hand", "1"]
