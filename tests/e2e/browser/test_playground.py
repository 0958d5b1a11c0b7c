"""The playground of a real server, in a real browser."""

import base64
import hashlib
import io
import json
import os
import shutil
import struct
from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto, helper
from PIL import Image
from support import onnx_models
from support.recurrent_models import save_recurrent
from support.server_process import ServerProcess, free_addresses
from test_page_alone import HOSTILE

from neurona_protos.prediction_pb2 import (
    IMAGE_INVERSION_BRIGHT_BORDER,
    ImageDescription,
    InputDescription,
    ModelMetadata,
    Task,
    ValueDescription,
)

TOKEN = "a-token-of-a-person"  # noqa: S105
ANSWERED = "!!document.querySelector('#answer-content dl')"
SEVEN = [(0.25, 0.2), (0.5, 0.2), (0.75, 0.2), (0.6, 0.45), (0.5, 0.65), (0.42, 0.9)]
FOLDER = "a<img src=x onerror=window.broken=1>"
FORGED = "<b onclick=window.broken=1>bold</b>"


def save_ink(path, image=None):
    """Save a classifier of images of 8 x 8: whether the upper or the lower half has more ink."""
    weights = np.zeros((64, 2), np.float32)
    weights[:32, 0] = weights[32:, 1] = 1 / 64
    nodes = [
        helper.make_node("Flatten", ["image"], ["flat"]),
        helper.make_node("MatMul", ["flat", "weights"], ["logits"]),
        helper.make_node("Softmax", ["logits"], ["probabilities"]),
    ]
    described = InputDescription(
        name="image",
        image=image,
        unit="grey level 0..16",
        description="8 x 8 grey levels: 0 is paper, 16 is ink",
    )
    metadata = ModelMetadata(
        task=Task.TASK_CLASSIFICATION, answer="probabilities", labels=["upper", "lower"],
        inputs=[described], description="Where the ink is",
    )  # fmt: skip
    inputs = {"image": (TensorProto.FLOAT, ["batch", 8, 8])}
    outputs = {"probabilities": (TensorProto.FLOAT, ["batch", 2])}
    onnx_models.save(path, nodes, inputs, outputs, {"weights": weights}, metadata)


def save_mean(path, shape, described, values):
    """Save a regression: the mean of each row."""
    axes = np.arange(1, len(shape), dtype=np.int64)
    nodes = [
        helper.make_node("ReduceMean", ["x"], ["mean"], axes=axes.tolist(), keepdims=0),
        helper.make_node("Unsqueeze", ["mean", "one"], ["value"]),
    ]
    metadata = ModelMetadata(
        task=Task.TASK_REGRESSION, answer="value", inputs=[described], values=values
    )
    constants = {"one": np.array([1], np.int64)}
    inputs = {"x": (TensorProto.FLOAT, shape)}
    outputs = {"value": (TensorProto.FLOAT, ["batch", 1])}
    onnx_models.save(path, nodes, inputs, outputs, constants, metadata)


def save_hostile(path):
    """Save a classifier whose texts are markup, and its input's name too."""
    nodes = [helper.make_node("Softmax", [FORGED], ["probabilities"])]
    words = InputDescription(name=FORGED, description=HOSTILE[1], columns=HOSTILE, unit=HOSTILE[2])
    metadata = ModelMetadata(
        task=Task.TASK_CLASSIFICATION, answer="probabilities", labels=HOSTILE, inputs=[words],
        description=HOSTILE[0], figures={f"test_{HOSTILE[0]}": 1.0},
    )  # fmt: skip
    shape = (TensorProto.FLOAT, ["batch", len(HOSTILE)])
    onnx_models.save(path, nodes, {FORGED: shape}, {"probabilities": shape}, {}, metadata)


@pytest.fixture(scope="module")
def server(command, tmp_path_factory):
    root = tmp_path_factory.mktemp("models")
    save_ink(root / "ink" / "1" / "model.onnx")
    described = ImageDescription(
        width=8, height=8, white=16, inversion=IMAGE_INVERSION_BRIGHT_BORDER
    )
    save_ink(root / "picture" / "1" / "model.onnx", described)
    row = InputDescription(name="x", columns=["area", "built"], date_columns=["built"])
    price = [ValueDescription(name="price", unit="EUR")]
    save_mean(root / "row" / "1" / "model.onnx", ["batch", 2], row, price)
    series = InputDescription(name="x", unit="sunspots", columns=["count"], window=12)
    spots = [ValueDescription(name="next", unit="sunspots")]
    save_mean(root / "series" / "1" / "model.onnx", ["batch", "time", 1], series, spots)
    sound = InputDescription(name="x", unit="amplitude -1..1", sample_rate=8000)
    loudness = [ValueDescription(name="mean", unit="")]
    save_mean(root / "sound" / "1" / "model.onnx", ["batch", "time"], sound, loudness)
    onnx_models.save_sum(root / "sum" / "1" / "model.onnx")
    save_recurrent(root / "sums" / "1" / "model.onnx")
    save_hostile(root / "hostile" / "1" / "model.onnx")
    shutil.copytree(root / "hostile", root / FOLDER)  # listed, but not served
    (http_address,) = free_addresses(1)
    with ServerProcess(root, "--http-address", http_address, "--load-check", "false") as server:
        yield server


@pytest.fixture(scope="module")
def guarded_server(server, tmp_path_factory):
    """A server that wants a token, and whose token may see one model."""
    folder = tmp_path_factory.mktemp("guarded")
    save_ink(folder / "models" / "ink" / "1" / "model.onnx")
    save_ink(folder / "models" / "secret" / "1" / "model.onnx")
    digest = hashlib.sha256(TOKEN.encode()).hexdigest()
    (folder / "tokens.toml").write_text(
        f'[[tokens]]\nname = "person"\nsha256 = "{digest}"\nmodels = ["ink"]\n'
        'rights = ["predict", "describe"]\n'
    )
    (http_address,) = free_addresses(1)
    flags = ("--http-address", http_address, "--tokens-file", folder / "tokens.toml")
    with ServerProcess(folder / "models", *flags, "--load-check", "false") as guarded:
        yield guarded


@pytest.fixture
def open_model(browser, server):
    def open_model(name, **options):
        browser.open("about:blank")
        browser.open(f"http://{server.http_address}/#model={name}", **options)
        browser.wait_until("!!document.querySelector('#form')")

    return open_model


@pytest.fixture(scope="session")
def axe():
    """The source of axe-core, from npm: $AXE_MODULES, or `npm ci` in this folder."""
    modules = Path(os.environ.get("AXE_MODULES") or Path(__file__).parent / "node_modules")
    path = modules / "axe-core" / "axe.min.js"
    if not path.is_file():
        pytest.skip("npm ci was not run in tests/e2e/browser")
    return path.read_text()


def draw(browser, points):
    script = "document.querySelector('canvas.drawing').getBoundingClientRect().toJSON()"
    box = browser.evaluate(script)
    for index, (x, y) in enumerate(points):
        browser.send_command(
            "Input.dispatchMouseEvent",
            type="mouseMoved" if index else "mousePressed",
            x=box["left"] + x * box["width"],
            y=box["top"] + y * box["height"],
            button="left", buttons=1, clickCount=1,
        )  # fmt: skip
    browser.send_command("Input.dispatchMouseEvent", type="mouseReleased", x=1, y=1, button="left")


def choose_file(browser, name, content, kind):
    """Gives a file to the form's chooser of files."""
    data = base64.b64encode(content).decode()
    browser.evaluate(f"""(() => {{
      const bytes = Uint8Array.from(atob({json.dumps(data)}), (one) => one.charCodeAt(0));
      const files = new DataTransfer();
      files.items.add(new File([bytes], {json.dumps(name)}, {{ type: {json.dumps(kind)} }}));
      const input = document.querySelector("input[type=file]");
      input.files = files.files;
      input.dispatchEvent(new Event("change"));
    }})()""")


def predict(browser):
    browser.evaluate("document.querySelector('button.primary').click()")
    browser.wait_until(f"{ANSWERED} || !document.querySelector('#error').hidden")


def test_a_drawing_is_classified_at_once(browser, open_model, screenshot):
    open_model("ink")
    draw(browser, [(0.3, 0.2), (0.7, 0.2), (0.7, 0.3), (0.3, 0.3), (0.3, 0.25), (0.5, 0.9)])
    browser.wait_until(ANSWERED)
    assert browser.text(".bars .best").split("\n")[0] == "upper"
    for name in ("round trip", "queue", "run", "batch", "version", "provider", "sent, received"):
        assert name in browser.text("#answer-content dl")
    assert "upper" in browser.evaluate("document.querySelector('[aria-live]').textContent")
    screenshot("playground-drawing")
    assert browser.errors == []


# "ink" is decoded by the page, "picture" by the server, which does not decode WebP.
@pytest.mark.parametrize(
    ("name", "kind"), [("ink", "PNG"), ("picture", "PNG"), ("picture", "WEBP")]
)
def test_a_picture_is_brought_to_the_levels_of_the_model(browser, open_model, name, kind):
    levels = np.full((40, 40), 255, np.uint8)
    levels[25:35, 10:30] = 0  # ink in the lower half of white paper
    file = io.BytesIO()
    Image.fromarray(levels).save(file, kind)
    open_model(name)
    choose_file(browser, "ink.png", file.getvalue(), "image/png")
    browser.wait_until(ANSWERED)
    assert browser.text(".bars .best").split("\n")[0] == "lower"
    assert ("base64" in browser.text("#code-content pre")) == (name == "picture")
    draw(browser, [(0.3, 0.2), (0.7, 0.2), (0.7, 0.3), (0.3, 0.3), (0.3, 0.25), (0.5, 0.9)])
    browser.wait_until("document.querySelector('.bars .best').innerText.startsWith('upper')")
    open_model(name)
    choose_file(browser, "no.png", b"no picture", "image/png")
    browser.wait_until("document.body.innerText.includes('not a picture')")


def test_a_row_is_a_form_and_its_errors_stand_beside_it(browser, open_model, screenshot):
    open_model("row")
    fields = "[...document.querySelectorAll('.fields input')]"
    assert browser.evaluate(f"{fields}.length") == 2
    browser.evaluate(f"{fields}[0].value = '100'; {fields}[1].value = '1970-01-11'")
    predict(browser)
    assert "price" in browser.text("#answer-content .value")
    assert browser.text("#answer-content .value strong") == "55"
    browser.evaluate(f"{fields}[0].value = 'large'")
    browser.evaluate("document.querySelector('button.primary').click()")
    browser.wait_until("!document.querySelector('#error').hidden")
    assert browser.text("#error") == 'area: "large" is not a number'
    assert browser.evaluate("document.activeElement.getAttribute('aria-invalid')") == "true"
    screenshot("playground-row-error")
    assert browser.errors == []


def test_a_forecast_is_drawn_behind_its_series(browser, open_model, screenshot):
    open_model("series")
    area = "document.querySelector('textarea')"
    browser.evaluate(
        f"{area}.value = 'year,count\\n2001,10\\n2002,20\\n2003,60';"
        f"{area}.dispatchEvent(new Event('input', {{ bubbles: true }}))"
    )
    browser.wait_until("document.querySelectorAll('.plot path').length > 0")
    predict(browser)
    assert browser.text("#answer-content .value strong") == "30"
    assert browser.evaluate("document.querySelectorAll('#answer-content .forecast').length") >= 2
    screenshot("playground-series")


def test_a_sound_is_resampled_to_the_rate_of_the_model(browser, open_model):
    samples = (0.25 * np.ones(1600) * 32767).astype("<i2").tobytes()
    head = struct.pack("<HHIIHH", 1, 1, 16000, 32000, 2, 16)
    body = b"WAVEfmt " + struct.pack("<I", 16) + head + b"data" + struct.pack("<I", len(samples))
    content = b"RIFF" + struct.pack("<I", len(body) + len(samples)) + body + samples
    open_model("sound")
    choose_file(browser, "constant.wav", content, "audio/wav")
    browser.wait_until(ANSWERED)
    assert "800 samples at 8000 Hz, from 16000 Hz" in browser.text("#form")
    assert float(browser.text("#answer-content .value strong")) == pytest.approx(0.25, abs=0.01)


def test_several_inputs_and_raw_tensors_are_json(browser, open_model):
    open_model("sum")
    browser.evaluate("""document.querySelectorAll('.input-head select').forEach((one) => {
      one.value = 'json';
      one.dispatchEvent(new Event('change'));
    })""")
    areas = "[...document.querySelectorAll('textarea')]"
    browser.evaluate(
        f"{areas}[0].value = '[[1, 2], [3, 4]]'; {areas}[1].value = '[[10, 20], [30, 40]]'"
    )
    predict(browser)
    cells = browser.evaluate(
        "[...document.querySelectorAll('#answer-content td')].map(c => c.innerText)"
    )
    assert cells == ["11", "22", "33", "44"]
    browser.evaluate(f"{areas}[0].value = '[[1, 2, 3]]'")
    browser.evaluate("document.querySelector('button.primary').click()")
    browser.wait_until("!document.querySelector('#error').hidden")
    assert browser.text("#error").startswith("INVALID_ARGUMENT: ")
    assert "expected" in browser.text("#error")


def test_a_recurrent_model_is_asked_about_each_step(browser, open_model, screenshot):
    open_model("sums")
    area = "document.querySelector('textarea')"
    browser.evaluate(
        f"{area}.value = '1, 1, 0\\n2, 2, 0\\n3, 3, 1\\n4, 4, 1';"
        f"{area}.dispatchEvent(new Event('input', {{ bubbles: true }}))"
    )
    predict(browser)
    browser.wait_until("document.querySelectorAll('.steps li').length === 4")
    browser.wait_until("document.querySelector('#steps').innerText.includes('a call for each')")
    assert browser.text(".steps li").startswith("step 1")
    texts = browser.evaluate("[...document.querySelectorAll('.steps li')].map(n => n.innerText)")
    assert len({text.split("\n")[-1] for text in texts}) > 1
    screenshot("playground-steps")


def test_a_token_is_asked_for_and_kept_in_the_tab_only(browser, guarded_server, screenshot):
    browser.open("about:blank")
    browser.open(f"http://{guarded_server.http_address}/")
    browser.wait_until("!document.querySelector('#token-form').hidden")
    assert browser.evaluate("document.activeElement.id") == "token"
    browser.write("wrong")
    browser.press("Enter", "\r")
    browser.wait_until("!document.querySelector('#notice').hidden")
    assert browser.evaluate("sessionStorage.length") == 0
    browser.wait_until("document.querySelector('#token').value === ''")
    browser.write(TOKEN)
    browser.press("Enter", "\r")
    browser.wait_until("document.querySelectorAll('#list li').length === 1")
    browser.wait_until("!!document.querySelector('#form')")
    assert "secret" not in browser.text("#list")
    assert browser.evaluate("document.querySelector('#token-form').hidden")
    draw(browser, SEVEN)
    browser.wait_until(ANSWERED)
    code = browser.text("#code-content pre")
    assert "NEURONA_TOKEN" in code
    assert TOKEN not in browser.evaluate("document.documentElement.outerHTML")
    assert browser.evaluate("localStorage.length + document.cookie.length") == 0
    screenshot("playground-token")


def test_texts_of_a_model_are_never_markup(browser, open_model, screenshot):
    open_model("hostile")
    predict(browser)
    assert FOLDER in browser.text("#list")
    assert HOSTILE[0] in browser.text("#model")
    labels = browser.evaluate(
        "[...document.querySelectorAll('.bar-label')].map(n => n.textContent)"
    )
    assert set(labels) < set(HOSTILE)
    browser.evaluate("document.querySelector('details').open = true")
    assert browser.evaluate("window.broken") is None
    elements = "document.querySelectorAll('img, b, iframe, main script').length"
    assert browser.evaluate(elements) == 0
    assert browser.evaluate("document.documentElement.scrollWidth") <= 1400
    assert browser.errors == []
    screenshot("playground-hostile")
    browser.evaluate(f"location.hash = `model=${{encodeURIComponent({FOLDER!r})}}`")
    browser.wait_until("!!document.querySelector('#model > .error')")
    assert FOLDER in browser.text("#model > .error")
    assert browser.evaluate(elements) == 0
    assert browser.evaluate("window.broken") is None


def test_injected_code_does_not_run(browser, open_model):
    open_model("row")
    script = "document.body.insertAdjacentHTML('beforeend', '<img src=x onerror=window.broken=1>')"
    thrown = f"(() => {{ try {{ {script}; return ''; }} catch (e) {{ return String(e); }} }})()"
    assert "TrustedHTML" in browser.evaluate(thrown)
    browser.evaluate("fetch('http://127.0.0.2:1/').catch(() => null)")
    browser.wait_until("true")
    assert browser.evaluate("window.broken") is None
    assert any("Content Security Policy" in str(error) for error in browser.errors)


def test_all_works_with_the_keyboard_alone(browser, open_model):
    open_model("row")
    focused = "document.activeElement.innerText"
    reached = set()
    for _ in range(40):
        browser.press("Tab")
        reached.add(
            browser.evaluate("document.activeElement.innerText || document.activeElement.id")
        )
        if browser.evaluate(focused) == "Predict":
            break
    assert browser.evaluate(focused) == "Predict"
    assert {"Skip to the model", "Reload"} <= reached
    browser.press("Enter", "\r")
    browser.wait_until(ANSWERED)


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("name", ["ink", "row", "series", "sound", "sum"])
def test_axe_finds_nothing(browser, open_model, axe, name, dark):
    open_model(name, dark=dark, width=360 if dark else 1400)
    if name == "ink":
        draw(browser, SEVEN)
    if name != "sound":
        predict(browser)
    browser.evaluate("document.querySelector('details').open = true")
    assert browser.evaluate("document.documentElement.scrollWidth") <= (360 if dark else 1400)
    browser.evaluate(f"{axe};0")
    found = browser.evaluate("""axe.run(document, { resultTypes: ['violations'] }).then((result) =>
      result.violations.map(({ id, nodes }) => [id, nodes.map(({ target }) => target.join())]))""")
    assert found == []
