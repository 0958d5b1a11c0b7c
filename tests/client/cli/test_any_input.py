"""Commands with models, files and streams of unusual kinds: a result or a line, no traceback."""

import json
import os
import subprocess

import numpy as np
import pytest
from onnx import TensorProto, helper
from support import onnx_models
from support.cli import NEURONA, environment
from support.server_process import ServerProcess

from neurona_protos.prediction_pb2 import ModelMetadata, Task

FLOAT, STRING = TensorProto.FLOAT, TensorProto.STRING
CITY = "Köln 東京"


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    root = tmp_path_factory.mktemp("models")

    def save(name, nodes, inputs, outputs, **options):
        nodes = [helper.make_node(*one) for one in nodes]
        onnx_models.save(root / name / "1" / "model.onnx", nodes, inputs, outputs, **options)

    # As silero-vad: the state has the axes layer, batch, unit.
    recurrent = {"x": (FLOAT, ["batch", 3]), "s": (FLOAT, [2, "batch", 4])}
    results = {"y": (FLOAT, ["batch", 3]), "t": (FLOAT, [2, "batch", 4])}
    save("state", [("Relu", ["x"], ["y"]), ("Identity", ["s"], ["t"])], recurrent, results)
    same = {"x": (FLOAT, ["n", 3]), "features": (FLOAT, ["n", 3])}
    save("sum", [("Add", ["x", "features"], ["y"])], same, {"y": (FLOAT, ["n", 3])})
    save("text", [("Identity", ["s"], ["t"])], {"s": (STRING, ["n"])}, {"t": (STRING, ["n"])})
    save("log", [("Log", ["x"], ["y"])], {"x": (FLOAT, ["n", 3])}, {"y": (FLOAT, ["n", 3])})
    save(
        "city",
        [("Softmax", ["x"], ["y"])],
        {"x": (FLOAT, ["n", 2])},
        {"y": (FLOAT, ["n", 2])},
        metadata=ModelMetadata(task=Task.TASK_CLASSIFICATION, answer="y", labels=[CITY, "Bonn"]),
    )
    with ServerProcess(root) as server:
        yield server


@pytest.fixture
def run(server, tmp_path):
    """Runs a command in a folder of its own; its output is bytes."""

    def run(*arguments, variables=None, shell="", **options):
        variables = {"NEURONA_ADDRESS": server.address} | (variables or {})
        command = [os.fsencode(one) for one in (NEURONA, *arguments)]
        if shell:
            command = ["sh", "-c", f'exec "$0" "$@" {shell}', *command]
        options = {"capture_output": True, "timeout": 60, "cwd": tmp_path} | options
        done = subprocess.run(command, env=environment(**variables), check=False, **options)
        for output in (done.stdout or b"", done.stderr or b""):
            assert b"Traceback" not in output, output
            assert b"internal error" not in output, output
        return done

    return run


@pytest.mark.long
@pytest.mark.slow
def test_outputs_whose_first_axes_differ_are_printed_whole(run, tmp_path):
    np.savez(tmp_path / "x.npz", x=np.ones((1, 3), np.float32), s=np.ones((2, 1, 4), np.float32))
    done = run("predict", "state", "x.npz", "--json")
    row = json.loads(done.stdout)
    assert row["outputs"] == {"y": [[1] * 3], "t": [[[1] * 4]] * 2}
    assert run("predict", "state", "x.npz").returncode == done.returncode == 0


def test_inputs_by_name_may_be_called_as_rows_are_in_training(run, tmp_path):
    rows = np.ones((1, 3), np.float32)
    np.savez(tmp_path / "x.npz", x=rows, features=2 * rows)
    done = run("predict", "sum", "x.npz", "--json")
    assert json.loads(done.stdout)["outputs"] == {"y": [3, 3, 3]}


def test_text_is_an_output(run):
    done = run("predict", "text", "-", "--json", input="a\nKöln\n".encode())
    texts = [json.loads(line)["outputs"]["t"] for line in done.stdout.splitlines()]
    assert texts == ["a", "Köln"]
    done = run("predict", "text", "-", input=b"a\nb\n")
    assert done.returncode == 0
    assert b'{"t": "b"}' in done.stdout


def test_json_has_no_nan_and_no_infinities(run):
    done = run("predict", "log", "-", "--json", input=b"0,1,-1\n")

    def refuse(constant):
        raise AssertionError(f"{constant} is not JSON")

    row = json.loads(done.stdout, parse_constant=refuse)
    assert row["outputs"] == {"y": ["-Infinity", 0, "NaN"]}


@pytest.mark.parametrize("encoding", ["cp1252", "ascii"])
def test_output_in_any_encoding(run, encoding):
    variables = {"PYTHONIOENCODING": encoding}
    done = run("predict", "city", "-", "--json", variables=variables, input=b"2,1\n")
    assert json.loads(done.stdout.decode(encoding))["classes"][0]["label"] == CITY
    done = run("predict", "city", "-", variables=variables, input=b"2,1\n")
    assert done.returncode == 0
    assert CITY.encode(encoding, "backslashreplace") in done.stdout


def test_a_histogram_where_the_output_is_not_utf_8(run):
    short = ["--duration", "0.2", "--warm-up", "0", "--concurrency", "2"]
    done = run("bench", "log", *short, variables={"PYTHONIOENCODING": "cp1252"})
    assert done.returncode == 0
    assert b"#" in done.stdout
    assert b"\\u" not in done.stdout


def test_a_file_that_fails_does_not_lose_the_others(run, tmp_path):
    good = np.ones((1, 3), np.float32)
    np.save(tmp_path / "good.npy", good)
    np.save(tmp_path / "last.npy", good)
    (tmp_path / "empty").mkdir()
    (tmp_path / "cut.npy").write_bytes((tmp_path / "good.npy").read_bytes()[:60])
    (tmp_path / "not.npz").write_bytes(b"PK\x03\x04 no archive")
    (tmp_path / "false.png").write_bytes(b"\x89PNG\r\n\x1a\n no picture")
    (tmp_path / "loop.npy").symlink_to("loop.npy")
    (tmp_path / "numbers.csv").write_text("1,1,1\n1,1,x\n")
    bad = ["empty", "cut.npy", "not.npz", "false.png", "loop.npy", "absent.npy", "a" * 3000]
    bad += [b"\xff.npy", "a\nb.npy"]
    done = run("predict", "log", "good.npy", *bad, "numbers.csv", "last.npy", "--json")
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert done.returncode == 1
    assert [row["file"] for row in rows if "outputs" in row] == [
        "good.npy",
        "numbers.csv:1",
        "last.npy",
    ]
    assert all(row["outputs"] == {"y": [0, 0, 0]} for row in rows if "outputs" in row)
    failures = [os.fsencode(row["file"]) for row in rows if "error" in row]
    assert failures == [os.fsencode(one) for one in [*bad, "numbers.csv"]]
    done = run("predict", "log", "good.npy", "empty", ".")
    assert done.returncode == 1
    assert done.stdout.count(b"good.npy") == 2  # also of the folder
    assert done.stdout.count(b"last.npy") == 1


@pytest.mark.parametrize(
    "arguments",
    [
        ("describe", b"\xff"),
        ("health", b"\xff"),
        ("describe", "log", "--label", b"\xff"),
        ("describe", "log", "--timeout=--"),
        ("models", "--address", "http://127.0.0.1:1"),
        ("health", "--address", b"\xff:1"),
        ("models", "--ca", os.devnull, "--timeout", "0.5"),
        ("watch", "--once", "--metrics-address", b"\xff"),
    ],
)
def test_arguments_of_any_kind_fail_in_a_line(run, arguments):
    done = run(*arguments)
    assert done.returncode in (1, 2)
    assert done.stdout == b""
    last = done.stderr.splitlines()[-1]
    assert last.startswith(b"neurona"), done.stderr
    assert done.returncode == 2 or done.stderr.count(b"\n") == 1


@pytest.mark.skipif(not os.path.exists("/dev/zero"), reason="no file without an end")
@pytest.mark.parametrize("flag", ["--token-file", "--ca"])
def test_a_file_without_an_end_is_refused(run, flag):
    done = run("models", flag, "/dev/zero")
    assert done.returncode == 2
    assert done.stderr == b"neurona: /dev/zero is too large (expected at most 16777216 bytes)\n"


def test_durations_of_any_length(run):
    assert run("health", "--timeout", "1e300").stdout == b"SERVING\n"
    assert run("models", "--json", "--timeout", "9" * 30).returncode == 0


@pytest.mark.parametrize(
    ("redirection", "status"),
    [("<&- 2>&-", 0), (">&-", 0), (">/dev/full", 1)],
)
def test_streams_that_are_closed_or_full(run, redirection, status):
    done = run("models", shell=redirection)
    assert done.returncode == status
    assert done.stderr.count(b"\n") == status
