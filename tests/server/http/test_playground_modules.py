"""The playground's modules in Node: their own tests, and the same numbers as Python's client."""

import io
import json
import re
import shutil
import struct
import subprocess
from pathlib import Path

import numpy as np
import pytest

from neurona_client.descriptions import TensorSpec
from neurona_client.files.audio import Sound
from neurona_client.images import image_to_array
from neurona_protos.prediction_pb2 import DataType, Tensor
from neurona_protos.tensors import to_array

PAGE = Path(__file__).parents[3] / "server" / "neurona_server" / "http" / "playground" / "static"
TESTS = Path(__file__).parent / "playground"


@pytest.fixture(scope="module")
def modules(tmp_path_factory):
    """A folder with the page's modules and their tests, which Node takes as modules."""
    if shutil.which("node") is None:
        pytest.skip("node is not installed")
    folder = tmp_path_factory.mktemp("playground")
    for path in [*PAGE.glob("*.js"), *TESTS.glob("*.mjs")]:
        shutil.copy(path, folder)
    (folder / "package.json").write_text('{"type": "module"}')
    return folder


def run(folder, code, value):
    """Runs code in Node that makes `result` of `value`, and returns it."""
    (folder / "value.json").write_text(json.dumps(value))
    script = (
        "import { readFileSync } from 'node:fs';\n"
        f"const value = JSON.parse(readFileSync('value.json', 'utf8'));\n{code}\n"
        "console.log(JSON.stringify(result));"
    )
    command = [shutil.which("node"), "--input-type=module", "-e", script]
    done = subprocess.run(command, cwd=folder, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_the_modules_pass_their_own_tests(modules):
    tests = sorted(path.name for path in modules.glob("*.test.mjs"))
    command = [shutil.which("node"), "--test", "--test-reporter=tap", *tests]
    done = subprocess.run(command, cwd=modules, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-6000:]
    assert int(re.search(r"(?m)^# pass (\d+)$", done.stdout)[1]) >= 20


def picture(width, height, seed=0):
    """Smooth colours with some noise, as RGBA."""
    generator = np.random.default_rng(seed)
    y, x = np.mgrid[0:height, 0:width]
    planes = [128 + 100 * np.sin(x / 7 + c) * np.cos(y / (5 + c)) for c in range(3)]
    levels = np.clip(np.stack(planes, -1) + generator.normal(0, 9, (height, width, 3)), 0, 255)
    return np.concatenate([levels.astype(np.uint8), np.full((height, width, 1), 255, np.uint8)], -1)


@pytest.mark.parametrize(
    ("size", "shape", "description", "layout"),
    [
        ((41, 33), (8, 8), "0 is paper", {"height": 8, "width": 8, "channels": 0}),
        ((90, 50), (3, 32, 24), "", {"height": 32, "width": 24, "channels": 3}),
        ((20, 10), (32, 32, 3), "", {"height": 32, "width": 32, "channels": 3, "last": True}),
        (
            *((60, 60), (32, 32), "brought to 32 x 32 from 28 x 28"),
            {"height": 32, "width": 32, "channels": 0},
        ),
    ],
)
def test_pictures_become_the_same_numbers_as_in_python(modules, size, shape, description, layout):
    from PIL import Image

    pixels = picture(*size)
    file = io.BytesIO()
    Image.fromarray(pixels[..., :3]).save(file, "PNG")
    spec = TensorSpec(
        name="x", dtype="FLOAT", shape=(-1, *shape), axes=("",) * (1 + len(shape)), optional=False,
        unit="level 0..16", description=description, data_type=DataType.DATA_TYPE_FLOAT,
    )  # fmt: skip
    expected = image_to_array(file.getvalue(), spec)
    code = """
        import { imageValues } from "./pixels.js";
        const image = { ...value.size, data: Uint8Array.from(value.pixels) };
        const { values, shape } = imageValues(image, value.layout, value.options);
        const result = { values: Array.from(values), shape };
    """
    stored = {"width": 28, "height": 28} if "brought" in description else None
    result = run(
        modules,
        code,
        {
            "size": {"width": size[0], "height": size[1]},
            "pixels": pixels.ravel().tolist(),
            "layout": {"last": False, **layout},
            "options": {
                "levels": [0, 16],
                "paper": bool(description == "0 is paper"),
                "stored": stored,
            },
        },
    )
    assert tuple(result["shape"]) == expected.shape == shape
    # Pillow rounds to whole levels after each direction.
    difference = np.abs(np.reshape(result["values"], shape) - expected)
    assert difference.max() <= 1.01 * 2 * 16 / 255
    assert difference.mean() < 0.3 * 16 / 255


def wav(samples, rate, channels=1):
    data = (samples * 32767).astype("<i2").tobytes()
    head = struct.pack("<HHIIHH", 1, channels, rate, rate * 2 * channels, 2 * channels, 16)
    body = (
        b"WAVEfmt " + struct.pack("<I", 16) + head + b"data" + struct.pack("<I", len(data)) + data
    )
    return b"RIFF" + struct.pack("<I", len(body)) + body


@pytest.mark.parametrize(("rate", "wanted"), [(44100, 8000), (8000, 16000), (8000, 8000)])
def test_sounds_become_the_same_numbers_as_in_python(modules, rate, wanted):
    time = np.arange(rate // 10) / rate
    left = 0.5 * np.sin(2 * np.pi * 440 * time)
    right = 0.3 * np.sin(2 * np.pi * 3000 * time)
    stereo = np.stack([left, right], -1)
    code = """
        import { mixChannels, readWav, resampleSound } from "./sound.js";
        const { channels, rate } = readWav(Uint8Array.from(value.bytes).buffer);
        const samples = resampleSound(mixChannels(channels), rate, value.wanted);
        const result = { rate, values: Array.from(samples) };
    """
    content = wav(stereo.ravel(), rate, 2)
    result = run(modules, code, {"bytes": list(content), "wanted": wanted})
    samples = np.frombuffer(content[44:], "<i2").reshape(-1, 2).astype(np.float32) / 32768
    expected = Sound(samples, rate).mix(wanted)
    assert result["rate"] == rate
    assert len(result["values"]) == len(expected)
    np.testing.assert_allclose(result["values"], expected, atol=2e-5)


def test_tensors_are_the_bytes_that_python_reads(modules):
    values = {
        "FLOAT": [0.1, -2.5, 3e38], "DOUBLE": [0.1, 1e300, -0.0], "FLOAT16": [0.1, -2.5, 65504.0],
        "INT8": [-128, 0, 127], "UINT16": [0, 1, 65535], "INT64": ["-9223372036854775808", 0, 5],
        "UINT64": ["18446744073709551615", 0, 1], "BOOL": [True, False, True],
        "STRING": ["", "Zürich", "🎈"],
    }  # fmt: skip
    code = """
        import { encodeTensor, toElement } from "./tensors.js";
        const result = Object.entries(value).map(([type, values]) => {
          const dtype = `DATA_TYPE_${type}`;
          const elements = values.map((one) => toElement(one, dtype));
          return encodeTensor({ name: type, dtype, shape: [1, 3], values: elements });
        });
    """
    from google.protobuf import json_format

    for message in run(modules, code, values):
        array = to_array(json_format.ParseDict(message, Tensor()))
        expected = values[message["name"]]
        if message["name"] == "STRING":
            assert [one.decode() if isinstance(one, bytes) else one for one in array[0]] == expected
        else:
            np.testing.assert_array_equal(array[0], np.array(expected).astype(array.dtype))
