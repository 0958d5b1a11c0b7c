"""The manual's commands, as they stand there, and what is printed for wrong ones."""

import json
import re
import shlex
from pathlib import Path

import pytest
from support.in_process_server import InProcessServer
from support.onnx_models import save_classifier

from neurona_server.simulation.command import main

MANUAL = Path(__file__).parents[3] / "server" / "docs" / "simulation.md"
QUICK = ["--seconds", "0.05", "--warm-up", "0.02"]


def test_the_commands_of_the_manual(tmp_path, monkeypatch, capsys):
    text = MANUAL.read_text(encoding="utf-8")
    commands = re.findall(r"^    neurona-simulate (.*)$", text, re.MULTILINE)
    (scenario,) = re.findall(r"^```json\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    monkeypatch.chdir(tmp_path)
    Path("scenario.json").write_text(scenario)
    save_classifier(tmp_path / "models" / "lenet5" / "1" / "model.onnx")
    server = InProcessServer(tmp_path / "models")
    try:
        for command in commands:
            arguments = shlex.split(command.replace("localhost:50051", f"127.0.0.1:{server.port}"))
            assert main([*arguments, *QUICK]) == 0, command
            assert "p99 ms" in capsys.readouterr().out
    finally:
        server.stop()
    assert len(commands) >= 6


def test_json_has_what_the_table_has(tmp_path, capsys):
    file = tmp_path / "costs.json"
    batching = {"costs": [{"rows": 1, "seconds": 0.001, "padded": False}], "maxRows": 3}
    file.write_text(json.dumps({"model": "m", "batching": batching}))
    assert main(["--costs", str(file), *QUICK, "--json", "--rate", "400"]) == 0
    (report,) = json.loads(capsys.readouterr().out)["models"]
    assert report["model"] == "m"
    assert report["p50_ms"] == pytest.approx(1.0, rel=0.5)
    assert report["refusal_p99_ms"] is None
    assert main(["--costs", str(file), *QUICK, "--find", "replicas", "--p99-ms", "0.5"]) == 1
    assert "more servers do not help" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "truncated"),
        ('{"models": []}', "length >= 1"),
        ('{"models": [{"name": "m", "batching": {"costs": []}}]}', "costs"),
        ('{"model": "m", "batching": {}}', "costs"),
        ('{"models": [], "replica": 1}', "replica"),
    ],
)
def test_a_wrong_file_is_named(content, message, tmp_path, capsys):
    file = tmp_path / "costs.json"
    file.write_text(content)
    with pytest.raises(SystemExit, match="2"):
        main(["--costs", str(file)])
    error = capsys.readouterr().err
    assert str(file) in error
    assert message in error
