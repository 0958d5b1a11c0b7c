"""One file, one command, one call: neurona-serve as a new user types it."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from support.onnx_models import save_classifier, save_regressor
from support.server_process import NEURONA_SERVE, run_neurona_serve

from neurona_client import Client

BIN = Path(sys.executable).parent
PORTS = ("--address", "127.0.0.1:0", "--metrics-address", "127.0.0.1:0")


class Terminal:
    """A neurona-serve in a folder, and what it has printed until it serves."""

    def __init__(self, folder, *arguments):
        command = [NEURONA_SERVE, *arguments, *PORTS, "--http-address", "127.0.0.1:0"]
        self.process = subprocess.Popen(
            [str(word) for word in command],
            cwd=folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.log = []
        self._reading = threading.Thread(
            target=lambda: self.log.extend(self.process.stderr), daemon=True
        )
        self._reading.start()
        lines = []
        for line in self.process.stdout:
            lines.append(line)
            if lines[-2:-1] and lines[-2].startswith("Call "):
                break
        self.text = "".join(lines)

    @property
    def address(self):
        return re.search(r"gRPC +(\S+)", self.text)[1]

    def close(self):
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()
        self._reading.join()
        self.process.stdout.close()
        self.process.stderr.close()


@pytest.fixture
def type_in():
    started = []

    def start(folder, *arguments):
        started.append(Terminal(folder, *arguments))
        assert started[-1].text, "".join(started[-1].log)
        return started[-1]

    yield start
    for terminal in started:
        terminal.close()


def test_the_call_that_is_printed_answers_when_it_is_pasted(tmp_path, type_in):
    save_classifier(tmp_path / "iris.onnx")
    terminal = type_in(tmp_path, "iris.onnx")
    assert len(terminal.text.splitlines()) <= 10
    command = terminal.text.splitlines()[-1].strip()
    assert command.startswith("curl ")
    environment = os.environ | {"PATH": f"{BIN}:{os.environ['PATH']}"}
    done = subprocess.run(  # noqa: S602  as a person pastes it
        command + " --silent",
        shell=True,
        capture_output=True,
        text=True,
        check=False,
        env=environment,
    )
    assert done.returncode == 0, done.stderr
    (output,) = json.loads(done.stdout)["outputs"]
    with Client(terminal.address) as client:
        answer = client.predict("iris", np.float32([0.1, 0.2, 0.3, 0.4]))
    np.testing.assert_allclose(max(np.ravel(output["data"])), answer.probability, rtol=1e-6)


@pytest.mark.slow
def test_a_file_that_is_replaced_is_the_next_version_in_all_processes(
    tmp_path, type_in, wait_until
):
    save_classifier(tmp_path / "m.onnx")
    other = save_classifier(tmp_path / "new", offset=1.0)
    terminal = type_in(tmp_path, "m.onnx", "--processes", "2", "--poll-ms", "50")
    assert terminal.text.count("gRPC ") == 1

    def versions():
        found = set()
        for _ in range(12):  # a new connection each, which any process may have
            with Client(terminal.address, coalesce=False) as client:
                found.add(client.predict("m", np.zeros(4, np.float32)).version)
        return found

    wait_until(lambda: versions() == {1})
    shutil.copy(other, tmp_path / "part")
    (tmp_path / "part").replace(tmp_path / "m.onnx")
    wait_until(lambda: versions() == {2})
    (tmp_path / "m.onnx").write_bytes(b"damaged")
    wait_until(lambda: any("m/3: failed to load" in line for line in terminal.log))
    assert versions() == {2}


def test_check_reports_a_line_for_each_model_and_fault_and_listens_nowhere(tmp_path):
    save_classifier(tmp_path / "good.onnx")
    save_regressor(tmp_path / "repository" / "sum" / "1" / "model.onnx")
    fine = run_neurona_serve("--check", "good.onnx", "--repository", "repository", cwd=tmp_path)
    assert (fine.returncode, fine.stderr) == (0, "")
    assert re.fullmatch(
        r"OK     good/1  x: FP32 \[n, 4\].*\(batched, CPU\w+\)\nOK     sum/1  .*\n", fine.stdout
    )
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "half.onnx").write_bytes((tmp_path / "good.onnx").read_bytes()[:99])
    shutil.copy(tmp_path / "good.onnx", tmp_path / "bad" / "good.onnx")
    faulty = run_neurona_serve("--check", "bad", cwd=tmp_path)
    assert faulty.returncode == 1
    ok, fault = faulty.stdout.splitlines()
    assert ok.startswith("OK     good/1")
    assert fault.startswith("FAULT  half: version 1: its file ends after 99 of at least")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "no models: name an ONNX file or a folder with some, as in 'neurona-serve model.onnx"),
        (["--check", "none.onnx"], "there is no file or folder 'none.onnx'"),
        (["none.onnx"], "there is no file or folder 'none.onnx'"),
        (["notes.txt"], "'notes.txt': its file is not ONNX: it looks like a text .expected an ONN"),
        (["--check", "m.onnx", "--tokens-file", "none"], "cannot read none: No such file"),
        (["--check", "m.onnx", "--tls-certificate", "m.onnx"], "incomplete TLS options"),
    ],
)
def test_what_cannot_be_served_is_said_in_a_line(tmp_path, arguments, message):
    save_classifier(tmp_path / "m.onnx")
    (tmp_path / "notes.txt").write_text("hello\n")
    done = run_neurona_serve(*arguments, cwd=tmp_path)
    assert done.returncode == 1
    assert re.search(f"neurona-serve: {message}", done.stderr)


def test_its_version_and_help():
    assert re.fullmatch(r"neurona \S+\n", run_neurona_serve("--version").stdout)
    text = run_neurona_serve("--help").stdout
    assert text.startswith("usage: neurona-serve [FILE ...] [OPTIONS]\n")
    assert "\nwhat is served:\n  FILE\n" in text
