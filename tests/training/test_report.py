"""What a run on own data leaves: a model that says what it knows, and a page with pictures."""

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
from neurona_training.cli.pipeline import main
from neurona_training.cli.tables import table


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Each sort of own data trained for a moment, by the command."""
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


def _said(models, name):
    model = onnx.load(models / name / "1" / "model.onnx")
    return metadata.from_json({one.key: one.value for one in model.metadata_props}[metadata.KEY])


def test_callers_send_texts_and_get_labels(models):
    said = _said(models, "mlp-patients")
    assert list(said.labels) == ["<well> & $fit$", "ill"]
    assert [given.name for given in said.inputs] == ["features", "smoker"]
    session = onnxruntime.InferenceSession(models / "mlp-patients" / "1" / "model.onnx")
    assert session.get_inputs()[1].type == "tensor(string)"
    sent = {
        "features": np.full((3, 1), 60, np.float32),
        "smoker": np.array(["yes", "no", "sometimes"], object),
    }
    (probabilities,) = session.run(None, sent)
    np.testing.assert_allclose(probabilities.sum(axis=1), 1, rtol=1e-5)
    assert len(np.unique(probabilities[:, 0])) == 3  # what is unknown is neither of the known


def test_units_and_scaling_are_in_the_metadata(models):
    said = _said(models, "gru-level")
    assert [(value.name, value.unit) for value in said.values] == [
        ("level, 1 step ahead", "cm"),
        ("level, 2 steps ahead", "cm"),
    ]
    assert said.inputs[0].unit == "cm"
    scaling = said.provenance["scaling"]
    offset, factor = map(float, re.match(r"\(input - (.+?)\) \* (.+?);", scaling).groups())
    assert (offset, factor) == pytest.approx((100, 0.14), rel=0.1)
    assert "answer * " in scaling
    for name in ("test", "mean", "persistence", "linear_autoregression"):
        assert said.figures[f"{name}_rmse"] > 0
    columns = _said(models, "mlp-patients").provenance["scaling"]
    assert columns.count(",") == 4  # of age and of both texts, mean and factor


class _Balanced(HTMLParser):
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
        ("mlp-patients", 4, ["<well> & $fit$", "Recall", "always the most frequent class"]),
        ("gru-level", 5, ["persistence", "linear autoregression", "cm", "Shorter is better"]),
        ("lenet5-digits", 5, ["The worst mistakes", "kernels of the first layer, 'c1'"]),
        ("lstm-walks", 5, ["sequence_lens", "test rows are wrong"]),
    ],
)
def test_the_page_is_whole_and_has_its_pictures(models, name, pictures, words):
    html = (models / name / "report" / "report.html").read_text()
    page = _Balanced()
    page.feed(html)
    assert page.open == []
    assert 'src="http' not in html
    text = " ".join(page.text) + " Recall" * ("class that was found" in " ".join(page.alts))
    assert [word for word in words if word not in text] == []
    drawn = [
        Image.open(io.BytesIO(base64.b64decode(one)))
        for one in re.findall(r"base64,([^\"]+)", html)
    ]
    assert len(drawn) == len(page.alts) == pictures
    for picture in drawn:
        assert min(picture.size) > 60
        assert np.asarray(picture.convert("L")).std() > 5  # something is drawn


def test_a_server_passes_the_report_over(models):
    assert (models / "gru-level" / "report" / "report.html").is_file()
    names = ["gru-level", "lenet5-digits", "lstm-walks", "mlp-patients"]
    assert [str(found) for found in find_models([models])] == [f"{name}/1" for name in names]


def test_the_table_has_a_line_for_each_model(models):
    head, rule, *lines = table(models)
    assert head.startswith("| model | recipe | data | test |")
    assert set(rule) <= set("| -")
    assert [line.split(" | ")[0] for line in lines] == [
        "| gru-level",
        "| lenet5-digits",
        "| lstm-walks",
        "| mlp-patients",
    ]
    assert {line.count("|") for line in (head, *lines)} == {head.count("|")}
    said = _said(models, "gru-level")
    assert f"RMSE {said.figures['test_rmse']:.4g} cm" in lines[0]
    accuracy = _said(models, "lstm-walks").figures["test_accuracy"]
    assert f"accuracy {100 * accuracy:.2f} %" in lines[2]


def test_a_table_of_nothing_is_told(tmp_path, capsys):
    assert main(["--table", str(tmp_path)]) == 1
    assert "no trained models" in capsys.readouterr().err
    (tmp_path / "odd" / "1").mkdir(parents=True)
    (tmp_path / "odd" / "1" / "model.onnx").write_bytes(b"no model")
    assert main(["--table", str(tmp_path)]) == 1
    assert "odd/1/model.onnx cannot be read" in capsys.readouterr().err
