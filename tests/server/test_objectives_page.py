"""The commands and the code of server/docs/objectives.md work, and print what the page says."""

import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from support import onnx_models
from support.server_process import ServerProcess

PAGE = (Path(__file__).parents[2] / "server" / "docs" / "objectives.md").read_text("utf-8")
COMMANDS = re.findall(r"(?m)^    (\S.*)$", re.sub(r"(?ms)^```.*?^```$", "", PAGE))
PROGRAMS = Path(sys.executable).parent

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """What the first command starts, with the setting of the page's model.toml."""
    (command,) = [one for one in COMMANDS if one.startswith("neurona-serve ")]
    *flags, models = shlex.split(command)[1:]
    folder = tmp_path_factory.mktemp("page") / models
    onnx_models.save_classifier(folder / "lenet5" / "1" / "model.onnx")
    (settings,) = re.findall(r"```toml\n(.*?)```", PAGE, re.DOTALL)
    assert tomllib.loads(settings) == {"latency_objective_ms": 50}
    (folder / "lenet5" / "model.toml").write_text(settings)
    with ServerProcess(folder, *flags) as server:
        yield server


def run(*command):
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_commands_work(server):
    bench, describe, metrics = (
        next(one for one in COMMANDS if one.startswith(start))
        for start in ("neurona bench ", "neurona describe ", "curl ")
    )
    address = ["--address", server.address]
    assert "p99" in run(PROGRAMS / "neurona", *shlex.split(bench)[1:], *address)
    text = run(PROGRAMS / "neurona", *shlex.split(describe)[1:], *address)
    assert re.search(r"objective +50 ms", text)
    assert re.search(r"all of a batch in [\d.]+ ms", text)
    text = run("sh", "-c", metrics.replace("127.0.0.1:8002", server.metrics_address))
    labels = '{model="lenet5",version="1"}'
    assert f"neurona_latency_objective_seconds{labels} 0.05\n" in text
    _check_counts(server, float(re.search(r"neurona_objective_met_ratio\S+ (\S+)", text)[1]))


def _check_counts(server, ratio):
    """What was admitted has met the objective or missed it; the rest was told when to retry."""

    def count(name, **labels):
        labels = {"model": "lenet5", "version": "1", **labels}
        pairs = ",".join(f'{label}="{value}"' for label, value in sorted(labels.items()))
        return server.sample(f"neurona_{name}{{{pairs}}}")

    met, missed = (count("objective_requests_total", result=one) for one in ("met", "missed"))
    assert met > 0
    assert ratio == met / (met + missed)
    assert met + missed == sum(count("requests_total", outcome=one) for one in ("ok", "expired"))
    assert count("dropped_requests_total") <= missed


@pytest.mark.long
def test_the_simulations_work(server):
    commands = [shlex.split(one) for one in COMMANDS if one.startswith("neurona-simulate ")]
    for program, *words in commands:
        words[words.index("127.0.0.1:8001")] = server.address
        assert "p99" in run(PROGRAMS / program, *words)


def test_the_python_works(server):
    (code,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    code = code.replace("127.0.0.1:8001", server.address)
    code = code.replace("np.zeros((8, 8), np.float32)", "np.zeros(4, np.float32)")
    run(sys.executable, "-W", "error", "-c", code)


def test_every_command_is_tested():
    programs = {one.split()[0] for one in COMMANDS}
    assert programs == {"neurona-serve", "neurona", "curl", "neurona-simulate"}
    assert len(COMMANDS) == 6
