"""Fuzzing of the command line: arguments, files and metrics pages of all kinds.

Files go through the reader that `predict` uses, arguments through the whole command, in this
process. The cases are the same in each run; the slow tests try more of them.
"""

import contextlib
import io
import random
import sys
import warnings
import wave

import numpy as np
import pytest
from PIL import Image
from support.damage import damage

from neurona_client.cli.main import main
from neurona_client.cli.metrics_page import MetricsPage, compute_rates, parse_metrics
from neurona_client.cli.sample_files import read_samples
from neurona_client.descriptions import ModelDescription, TensorSpec
from neurona_client.errors import InvalidInputError
from neurona_client.inputs import prepare_inputs
from neurona_protos import prediction_pb2 as pb

COUNTS = [pytest.param(400, 1), pytest.param(5_000, 2, marks=pytest.mark.slow)]

TEXTS = [
    *("", "0", "-1", "2", "nan", "inf", "1e400", "1e300", "9" * 30, "9" * 5000, "½", "٣", "0x10"),
    *("\udcff", "ü", "a\nb", "\x1b[31m", "\u202e", "--", "-", " ", "=", ",", "%s", "{}"),
    *(
        "/",
        ".",
        "/dev/null",
        "/nonexistent/x",
        "a" * 5000,
        "classifier",
        "classifier/1",
        "regressor",
    ),
    *("localhost", "unix:", "unix:/", "[::1", "[::1]:1", "http://x", "dns:///", "ipv4:", "1.0"),
]
CONNECTION = [
    *("--timeout", "--address", "--tls", "--ca", "--certificate", "--key", "--server-name"),
    *("--token-file", "--token-in-plaintext"),
]
FLAGS = {
    "health": CONNECTION,
    "models": ["--json", *CONNECTION],
    "describe": ["--version", "--label", "--json", *CONNECTION],
    "predict": ["--top", "--version", "--label", "--json", *CONNECTION],
    "bench": ["--rate", "--unary", "--rows", "--plot", "--json", "--version", *CONNECTION],
    "watch": ["--metrics-address", "--json"],
}
WITHOUT_VALUE = ("--tls", "--token-in-plaintext", "--json", "--unary")


def model(*inputs):
    specs = tuple(
        TensorSpec(
            f"x{number}", dtype, shape, unit=unit, data_type=getattr(pb, f"DATA_TYPE_{dtype}")
        )
        for number, (dtype, shape, unit) in enumerate(inputs)
    )
    message = pb.DescribeModelResponse()
    return ModelDescription("m", 1, "tensors", "", specs, (), (), (), True, {}, {}, message)


MODELS = [
    model(),
    model(("FLOAT", (), "")),
    model(("FLOAT", (-1, 4), "")),
    model(("FLOAT", (-1, 8, 8), "grey level 0..255")),
    model(("FLOAT", (-1, 3, -1, -1), "0..1")),
    model(("UINT8", (1, 8, 8, 3), "0..255")),
    model(("FLOAT", (-1, -1), "amplitude -1..1")),
    model(("FLOAT", (-1, -1, 2), ""), ("INT64", (-1,), "")),
    model(("STRING", (-1,), "")),
    model(("INT64", (-1, 1), ""), ("FLOAT", (-1, 1), ""), ("STRING", (-1, 1), "")),
    model(("BOOL", (-1, 2), "")),
    model(("BFLOAT16", (-1, 0), "")),
]


def valid_files():
    """Return the content of files by name."""
    rng = np.random.default_rng(0)
    files = {}
    for name in ("png", "jpeg", "gif", "bmp", "tiff", "webp"):
        stream = io.BytesIO()
        Image.fromarray(rng.integers(0, 255, (9, 8, 3), np.uint8)).save(stream, name)
        files[f"picture.{name}"] = stream.getvalue()
    sequences = {"inputs": rng.random((9, 5, 2)), "lengths": np.arange(1, 10) % 5 + 1}
    for name, content in {
        "array.npy": rng.random((3, 8, 8)).astype(np.float32),
        "objects.npy": np.array([{"a": 1}], dtype=object),
        "arrays.npz": {"x0": rng.random((3, 4))},
        "sequences.npz": sequences,
    }.items():
        stream = io.BytesIO()
        if isinstance(content, dict):
            np.savez_compressed(stream, **content)
        else:
            np.save(stream, content)
        files[name] = stream.getvalue()
    stream = io.BytesIO()
    with wave.open(stream, "wb") as sound:
        sound.setparams((1, 2, 8000, 0, "NONE", None))
        sound.writeframes(bytes(800))
    files["sound.wav"] = stream.getvalue()
    rows = "".join(f"{number},{number / 2},{'ab'[number % 2]},1\n" for number in range(20))
    files["named.csv"] = f"\ufeffx0,x1,x2,x3\n{rows}".encode()
    files["latin.csv"] = f"x0;x1;x2;größe\n{rows.replace(',', ';')}".encode("latin-1")
    files["numbers.csv"] = b"1,2,3,4\n" * 20
    files["wide.csv"] = "x0,x1\n1,2\n".encode("utf-16")
    return files


@pytest.mark.parametrize(("count", "seed"), COUNTS)
def test_a_file_gives_samples_or_an_error_that_says_why(tmp_path, count, seed):
    rng = random.Random(seed)  # noqa: S311
    files = valid_files()
    samples, reasons = 0, set()
    for _ in range(count):
        name = rng.choice(list(files))
        content = files[name] if rng.random() < 0.1 else damage(rng, files[name])
        path = tmp_path / (name if rng.random() < 0.9 else rng.choice(list(files)))
        path.write_bytes(content)
        described = rng.choice(MODELS)
        try:
            with warnings.catch_warnings():  # as Pillow's of damaged pictures
                warnings.simplefilter("ignore")
                for sample in read_samples(str(path), described):
                    prepare_inputs(described, sample.inputs)
                    samples += 1
        except (InvalidInputError, OSError) as error:
            reasons.add(str(error))
    assert samples
    assert "" not in reasons


def random_arguments(rng, folder):
    command = rng.choice(list(FLAGS))
    arguments = [command]
    if command in ("describe", "predict", "bench"):
        arguments.append(rng.choice([*TEXTS, "classifier", "regressor"]))
    if command == "predict":
        arguments += [rng.choice([*TEXTS, str(folder / "x.npy")]) for _ in range(2)]
    if command == "bench":
        arguments += ["--duration", "0.02", "--warm-up", "0", "--concurrency", "2"]
    if command == "watch":
        arguments += ["--once", "--every", "0.01"]
    if command == "health" and rng.random() < 0.5:
        arguments.append(rng.choice(TEXTS))
    for _ in range(rng.randrange(4)):
        flag, value = rng.choice(FLAGS[command]), rng.choice(TEXTS)
        with_value = [f"{flag}={value}"] if rng.random() < 0.5 else [flag, value]
        arguments += [flag] if flag in WITHOUT_VALUE else with_value
    return arguments if command == "watch" else [*arguments, "--timeout", "0.2"]


@pytest.mark.parametrize(("count", "seed"), [(10, 1), pytest.param(400, 2, marks=pytest.mark.slow)])
def test_arguments_succeed_or_fail_with_a_line(served, tmp_path, monkeypatch, count, seed):
    rng = random.Random(seed)  # noqa: S311
    np.save(tmp_path / "x.npy", np.ones((1, 4), np.float32))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("NEURONA_ADDRESS", served.address)
    monkeypatch.setenv("NEURONA_METRICS_ADDRESS", served.metrics_address)
    statuses = set()
    for _ in range(count):
        arguments = random_arguments(rng, tmp_path)
        output, errors = io.StringIO(), io.StringIO()
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"1,2,3,4\n")))
        with contextlib.redirect_stdout(output), contextlib.redirect_stderr(errors):
            try:
                status = main(arguments)
            except SystemExit as stop:
                status = stop.code
        assert status in (0, 1, 2), arguments
        assert "internal error" not in errors.getvalue(), (arguments, errors.getvalue())
        assert status == 0 or errors.getvalue() or status == 1, arguments
        statuses.add(status)
    assert statuses == {0, 1, 2}


@pytest.mark.parametrize(("count", "seed"), COUNTS)
def test_a_metrics_page_gives_rates(count, seed):
    rng = random.Random(seed)  # noqa: S311
    page = b"""\
neurona_version_state{model="m",version="1",state="ready"} 1
neurona_requests_total{model="m",version="1",outcome="ok"} 7
neurona_batch_rows_sum{model="m",version="1"} 7
neurona_batch_rows_count{model="m",version="1"} 2
neurona_queue_rows{model="m",version="1"} 0
neurona_request_duration_seconds_bucket{model="m",version="1",le="0.5"} 3
neurona_request_duration_seconds_bucket{model="m",version="1",le="+Inf"} 7
"""
    before = MetricsPage(0.0, parse_metrics(page.decode().splitlines()))
    assert compute_rates(None, before)[0].batch == 3.5
    for _ in range(count):
        text = damage(rng, page).decode("utf-8", "replace")
        for one in compute_rates(before, MetricsPage(1.0, parse_metrics(text.splitlines()))):
            assert isinstance(one.model, str)
