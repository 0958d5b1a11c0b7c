"""What deploy/README.md, the operator's guide, names exists, and its commands work."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml
from prometheus_client import CollectorRegistry
from support import onnx_models
from support.in_process_server import run_app
from support.manifests import KUBERNETES, ROOT

from neurona_client.cli.main import main as neurona
from neurona_protos.prediction_pb2 import PredictRequest
from neurona_protos.tensors import to_tensor
from neurona_server.config.options import Config
from neurona_server.processes.supervisor import EXIT_SECONDS
from neurona_server.telemetry.metrics import Metrics

DEPLOY = ROOT / "deploy"
GUIDE = (DEPLOY / "README.md").read_text(encoding="utf-8")
BOTH = GUIDE + (KUBERNETES / "README.md").read_text(encoding="utf-8")
OPTIONS = set(Config.__struct_fields__)
OTHER_NAMES = {"round_robin", "stop_grace_period", "request_id", "trace_id"}
"""Names in code spans with underscores that are not options of the server."""


def section(title):
    return re.split(r"\n## ", GUIDE.split(f"\n## {title}\n")[1])[0]


def anchors(text):
    """Anchors of headings, as GitHub forms them."""
    titles = re.findall(r"(?m)^#+ (.+)$", text)
    return {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}


def test_options_in_the_guide_exist():
    spans = set(re.findall(r"`([a-z]+(?:_[a-z]+)+)(?: = [^`]*)?`", BOTH))
    names = {span for span in spans if not span.startswith("neurona_")}
    assert names - OPTIONS <= OTHER_NAMES
    assert len(names & OPTIONS) > 20


def test_metrics_in_the_guide_exist():
    metrics = Metrics(CollectorRegistry())
    metrics.watch_versions(list)
    metrics.watch_process()
    exposed = {family.name for family in metrics.registry.collect()}
    names = set(re.findall(r"`(neurona_[a-z_]+)", BOTH))
    assert len(names) > 10
    missing = {name for name in names if name.removesuffix("_total") not in exposed}
    assert not missing


def test_messages_in_the_guide_are_the_servers():
    texts = "\n".join(path.read_text() for path in (ROOT / "server").rglob("*.py"))
    tables = re.findall(r"\| message \| cause \|\n\|---\|---\|\n((?:\|.*\n)+)", GUIDE)
    cells = [line.split("|")[1].strip() for table in tables for line in table.splitlines()]
    messages = [cell.strip("`") for cell in cells if cell.startswith("`")]
    assert len(messages) > 10
    for message in messages:
        assert message in texts, message


@pytest.mark.parametrize("guide", [DEPLOY / "README.md", KUBERNETES / "README.md"])
def test_links_and_paths_exist(guide):
    text = guide.read_text(encoding="utf-8")
    links = re.findall(r"\]\((?!https?:)([^)]+)\)", text)
    assert links
    for link in links:
        path, _, anchor = link.partition("#")
        target = guide.parent / path if path else guide
        assert target.exists(), link
        assert not anchor or anchor in anchors(target.read_text(encoding="utf-8")), link
    for path in re.findall(r"`((?:deploy|tests|protos)/[\w./-]+)`", text):
        assert (ROOT / path).exists(), path


def test_make_targets_in_the_guide_exist():
    makefile = (ROOT / "Makefile").read_text()
    code = re.findall(r"(?:`|^    )make ([a-z-]+)", BOTH, re.MULTILINE)
    assert {"image", "bench", "test-crds"} <= set(code)
    for target in code:
        assert re.search(rf"(?m)^{target}:", makefile), target


def test_flags_in_the_guide_exist():
    text = section("Install").split("###")[0] + section("Upgrade")
    flags = set(re.findall(r"(--[a-z-]+)", text)) - {
        "--now",
        "--kill-whom",
        "--signal",
    }  # systemctl's
    assert len(flags) > 2
    options = {"--" + option.replace("_", "-") for option in OPTIONS}
    assert flags <= options | {"--help", "--config"}


def test_every_alert_is_in_the_table_with_its_runbook():
    rules = [yaml.safe_load(path.read_text()) for path in (DEPLOY / "prometheus/rules").glob("*")]
    alerts = {
        rule["alert"]: rule["labels"]["severity"]
        for file in rules
        for group in file["groups"]
        for rule in group["rules"]
        if "alert" in rule
    }
    row = r"(?m)^\| \[`(\w+)`\]\(runbooks/\1\.md\) \| (\w+) \|"
    assert dict(re.findall(row, section("Alerts"))) == alerts


def test_rules_in_the_guide_and_the_runbooks_are_recorded():
    pages = [page.read_text() for page in (DEPLOY / "runbooks").glob("*.md")]
    names = set(re.findall(r"\bneurona:\w+:\w+", "\n".join([BOTH, *pages])))
    rules = "\n".join(path.read_text() for path in (DEPLOY / "prometheus/rules").glob("*"))
    assert names
    assert names <= set(re.findall(r"- record: (\S+)", rules))


def test_build_arguments_in_the_guide_are_those_of_the_dockerfile():
    rows = re.findall(r"(?m)^\| `([A-Z_]+)` \| (?:`(.+?)`|\d) \|", section("Install"))
    assert {"BASE_IMAGE", "RUNTIME", "EXTRAS"} <= {name for name, _ in rows}
    text = (DEPLOY / "Dockerfile").read_text()
    for name, default in rows:
        defaults = re.findall(rf'(?m)^ARG {name}="?([^"\n]*)"?$', text)
        assert defaults, name
        assert not default or defaults[0] == default, name


def test_the_table_of_contents_is_complete():
    titles = re.findall(r"(?m)^## (.+)$", GUIDE)
    listed = re.findall(r"\[([^\]]+)\]\(#[^)]+\)", GUIDE.split("\n## ")[0])
    assert [" ".join(one.split()) for one in listed] == titles


def test_the_request_in_the_guide_is_valid(tmp_path):
    """The Python block writes gRPC's frame and a PredictRequest."""
    (code,) = re.findall(r"```python\n(.*?)```", section("Size"), re.DOTALL)
    subprocess.run([sys.executable, "-c", code], check=True, cwd=tmp_path, timeout=60)
    frame = (tmp_path / "request.bin").read_bytes()
    assert (frame[0], int.from_bytes(frame[1:5], "big")) == (0, len(frame) - 5)
    request = PredictRequest.FromString(frame[5:])
    assert (request.model, request.inputs[0].name) == ("lenet5", "image")


def test_the_load_command_in_the_guide_works(tmp_path):
    if shutil.which("h2load") is None:
        pytest.skip("h2load is not installed")
    (command,) = re.findall(r"(?m)^    (h2load (?:.*\\\n)*.*)$", GUIDE)
    onnx_models.save_classifier(tmp_path / "models" / "m" / "1" / "model.onnx")
    inputs = [to_tensor("x", np.ones((1, 4), np.float32))]
    body = PredictRequest(model="m", inputs=inputs).SerializeToString()
    (tmp_path / "request.bin").write_bytes(b"\0" + len(body).to_bytes(4, "big") + body)
    arguments = ["--repository", str(tmp_path / "models"), "--cache", "off"]
    with run_app(arguments, {}) as server:
        command = command.replace("127.0.0.1:8001", server.address).replace("-D 3", "-n 200")
        done = subprocess.run(
            ["bash", "-c", command],  # noqa: S607
            check=False,
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert "200 succeeded" in done.stdout, done.stdout + done.stderr
        assert server.count("neurona_requests_total", model="m", outcome="ok") == 200


def test_health_commands_have_the_documented_exit_status(tmp_path):
    onnx_models.save_classifier(tmp_path / "lenet5" / "1" / "model.onnx")
    (line,) = re.findall(r"(?m)^    (neurona health) +# exit status 0", GUIDE)
    (model,) = re.findall(r"`neurona health (\w+)` checks a model", GUIDE)
    with run_app(["--repository", str(tmp_path), "--cache", "off"], {}) as server:
        for services, status in (([], 0), ([model], 0), (["other"], 1)):
            command = [*line.split()[1:], *services, "--address", server.address]
            assert neurona(command) == status, services


def test_the_token_command_prints_a_hash(tmp_path):
    if shutil.which("openssl") is None:
        pytest.skip("openssl is not installed")
    (command,) = re.findall(r"(?m)^ +(openssl .*)$", section("Secure"))
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "-c", command],  # noqa: S607
        check=False,
        cwd=tmp_path,
        env={**os.environ, "PATH": path},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert re.fullmatch(r"[0-9a-f]{64}\n", done.stdout), done.stderr
    assert len((tmp_path / "token").read_text().strip()) >= 40


UNIT = DEPLOY / "systemd" / "neurona.service"


def test_the_unit_passes_systemd_analyze(tmp_path):
    analyze = shutil.which("systemd-analyze")
    if analyze is None:
        pytest.skip("systemd-analyze is not installed")
    text = UNIT.read_text()
    command = "/opt/neurona/bin/neurona-serve"
    assert f"ExecStart={command}\n" in text
    unit = tmp_path / "neurona.service"
    unit.write_text(text.replace(command, sys.executable))  # the program must exist
    done = subprocess.run(
        [analyze, "verify", unit], check=False, capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_the_unit_gives_enough_time_to_drain_and_sets_existing_options():
    text = UNIT.read_text()
    values = dict(re.findall(r"(?m)^Environment=NEURONA_(\w+)=(.*)$", text))
    assert {name.lower() for name in values} - {"config"} <= OPTIONS
    drain = int(values["DRAIN_DELAY_MS"]) + int(values["DRAIN_TIMEOUT_MS"])
    stop = int(re.search(r"(?m)^TimeoutStopSec=(\d+)$", text)[1])
    assert drain / 1000 + EXIT_SECONDS + 5 <= stop
    assert "\nKillMode=mixed\n" in text  # or workers would get SIGTERM twice
