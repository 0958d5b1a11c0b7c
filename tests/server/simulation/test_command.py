"""The manual's commands, as they stand there, and what is printed for wrong ones."""

import json
import re
import shlex
from pathlib import Path

import pytest
from support.in_process_server import InProcessServer
from support.onnx_models import save_classifier

from neurona_server.simulation import command
from neurona_server.simulation.command import main
from neurona_server.simulation.description import describe_models
from neurona_server.simulation.scenario import described_model

MANUAL = Path(__file__).parents[3] / "server" / "docs" / "simulation.md"
QUICK = ["--seconds", "0.05", "--warm-up", "0.02"]


def test_the_commands_of_the_manual(tmp_path, monkeypatch, capsys):
    text = MANUAL.read_text(encoding="utf-8")
    commands = re.findall(r"^    neurona-simulate (.*)$", text, re.MULTILINE)
    (scenario,) = re.findall(r"^```json\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    monkeypatch.chdir(tmp_path)
    Path("scenario.json").write_text(scenario)
    costs = [{"rows": 1, "seconds": 0.004}, {"rows": 64, "seconds": 0.016}]
    description = {"model": "lenet5", "batched": True, "batching": {"costs": costs}}
    monkeypatch.setattr(command, "describe_models", lambda *_: [description])
    for text in commands:
        assert main([*shlex.split(text), *QUICK]) == 0, text
        assert "p99 ms" in capsys.readouterr().out
    assert len(commands) >= 6


def test_a_server_is_asked_for_its_costs(tmp_path, capsys):
    save_classifier(tmp_path / "lenet5" / "1" / "model.onnx")
    server = InProcessServer(tmp_path)
    try:
        (description,) = describe_models(f"127.0.0.1:{server.port}")
        arguments = ["--server", f"127.0.0.1:{server.port}", "--rate", "200"]
        assert main([*arguments, "--model", "lenet5", *QUICK]) == 0
        assert "lenet5" in capsys.readouterr().out
        with pytest.raises(SystemExit, match="2"):
            main([*arguments, "--model", "other", *QUICK])
        assert "other" in capsys.readouterr().err
    finally:
        server.stop()
    costs = described_model(description).batching.costs
    assert [cost.rows for cost in costs] == [1, 2, 4, 8, 16, 32, 64]
    assert all(cost.seconds > 0 for cost in costs)


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
        ('{"replica": 1}', "replica"),
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
