"""What deploy/README.md, the operator's guide, says is there and works."""

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
from neurona_server.processes.supervisor import LEAVING
from neurona_server.telemetry.metrics import Metrics

DEPLOY = ROOT / "deploy"
GUIDE = (DEPLOY / "README.md").read_text(encoding="utf-8")
BOTH = GUIDE + (KUBERNETES / "README.md").read_text(encoding="utf-8")
OPTIONS = set(Config.__struct_fields__)
OF_OTHERS = {"round_robin", "stop_grace_period", "request_id", "trace_id"}
"""In code, with underscores, and no options of this server without its extras."""


def section(title):
    return re.split(r"\n## ", GUIDE.split(f"\n## {title}\n")[1])[0]


def anchors(text):
    """As GitHub makes them of headings."""
    titles = re.findall(r"(?m)^#+ (.+)$", text)
    return {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}


def test_every_option_that_it_names_is_one():
    spans = set(re.findall(r"`([a-z]+(?:_[a-z]+)+)(?: = [^`]*)?`", BOTH))
    found = {span for span in spans if not span.startswith("neurona_")}
    assert found - OPTIONS <= OF_OTHERS
    assert len(found & OPTIONS) > 20


def test_every_metric_that_it_names_is_on_the_page():
    metrics = Metrics(CollectorRegistry())
    metrics.watch_versions(list)
    metrics.watch_process()
    known = {family.name for family in metrics.registry.collect()}
    named = set(re.findall(r"`(neurona_[a-z_]+)", BOTH))
    assert len(named) > 10
    missing = {name for name in named if name.removesuffix("_total") not in known}
    assert not missing


def test_messages_that_it_explains_are_the_servers():
    texts = "\n".join(path.read_text() for path in (ROOT / "server").rglob("*.py"))
    tables = re.findall(r"\| it says \| so \|\n\|---\|---\|\n((?:\|.*\n)+)", GUIDE)
    said = [line.split("|")[1].strip() for table in tables for line in table.splitlines()]
    quoted = [one.strip("`") for one in said if one.startswith("`")]
    assert len(quoted) > 10
    for message in quoted:
        assert message in texts, message


@pytest.mark.parametrize("guide", [DEPLOY / "README.md", KUBERNETES / "README.md"])
def test_links_and_paths_lead_somewhere(guide):
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


def test_every_target_of_make_exists():
    makefile = (ROOT / "Makefile").read_text()
    code = re.findall(r"(?:`|^    )make ([a-z-]+)", BOTH, re.MULTILINE)
    assert {"image", "bench", "test-crds"} <= set(code)
    for target in code:
        assert re.search(rf"(?m)^{target}:", makefile), target


def test_flags_that_it_shows_exist():
    words = section("Install").split("###")[0] + section("Upgrade")
    flags = set(re.findall(r"(--[a-z-]+)", words)) - {
        "--now",
        "--kill-whom",
        "--signal",
    }  # systemctl's
    assert len(flags) > 2
    known = {"--" + option.replace("_", "-") for option in OPTIONS}
    assert flags <= known | {"--help", "--config"}


def test_every_alert_is_in_the_table_and_has_its_page():
    rules = [yaml.safe_load(path.read_text()) for path in (DEPLOY / "prometheus/rules").glob("*")]
    alerts = {
        rule["alert"]: rule["labels"]["severity"]
        for file in rules
        for group in file["groups"]
        for rule in group["rules"]
        if "alert" in rule
    }
    row = r"(?m)^\| \[`(\w+)`\]\(runbooks/\1\.md\) \| (\w+) \|"
    assert dict(re.findall(row, section("What each alert means"))) == alerts


def test_every_rule_that_it_names_is_recorded():
    pages = [page.read_text() for page in (DEPLOY / "runbooks").glob("*.md")]
    named = set(re.findall(r"\bneurona:\w+:\w+", "\n".join([BOTH, *pages])))
    rules = "\n".join(path.read_text() for path in (DEPLOY / "prometheus/rules").glob("*"))
    assert named
    assert named <= set(re.findall(r"- record: (\S+)", rules))


def test_its_build_arguments_are_those_of_the_dockerfile():
    rows = re.findall(r"(?m)^\| `([A-Z_]+)` \| (?:`(.+?)`|\d) \|", section("Install"))
    assert {"BASE_IMAGE", "RUNTIME", "EXTRAS"} <= {name for name, _ in rows}
    text = (DEPLOY / "Dockerfile").read_text()
    for name, default in rows:
        found = re.findall(rf'(?m)^ARG {name}="?([^"\n]*)"?$', text)
        assert found, name
        assert not default or found[0] == default, name


def test_the_table_of_contents_is_whole():
    titles = re.findall(r"(?m)^## (.+)$", GUIDE)
    listed = re.findall(r"\[([^\]]+)\]\(#[^)]+\)", GUIDE.split("\n## ")[0])
    assert [" ".join(one.split()) for one in listed] == titles


def test_its_request_is_answered_by_the_server(tmp_path):
    """The Python block writes it; what is behind gRPC's frame is sent here as it is."""
    (code,) = re.findall(r"```python\n(.*?)```", section("Size"), re.DOTALL)
    subprocess.run([sys.executable, "-c", code], check=True, cwd=tmp_path, timeout=60)
    frame = (tmp_path / "request.bin").read_bytes()
    assert (frame[0], int.from_bytes(frame[1:5], "big")) == (0, len(frame) - 5)
    request = PredictRequest.FromString(frame[5:])
    assert (request.model, request.inputs[0].name) == ("lenet5", "image")


def test_its_load_command_works(tmp_path):
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


def test_its_health_commands_end_as_it_says(tmp_path):
    onnx_models.save_classifier(tmp_path / "lenet5" / "1" / "model.onnx")
    (line,) = re.findall(r"(?m)^    (neurona health) +# exit status 0", GUIDE)
    (model,) = re.findall(r"`neurona health (\w+)` asks for a model", GUIDE)
    with run_app(["--repository", str(tmp_path), "--cache", "off"], {}) as server:
        for services, status in (([], 0), ([model], 0), (["other"], 1)):
            command = [*line.split()[1:], *services, "--address", server.address]
            assert neurona(command) == status, services


def test_its_token_command_makes_a_hash(tmp_path):
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


def test_the_unit_is_one_that_systemd_takes(tmp_path):
    analyze = shutil.which("systemd-analyze")
    if analyze is None:
        pytest.skip("systemd-analyze is not installed")
    text = UNIT.read_text()
    command = "/opt/neurona/bin/neurona-serve"
    assert f"ExecStart={command}\n" in text
    unit = tmp_path / "neurona.service"
    unit.write_text(text.replace(command, sys.executable))  # it wants the program to be there
    done = subprocess.run(
        [analyze, "verify", unit], check=False, capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_the_unit_gives_a_drain_its_time_and_names_real_options():
    text = UNIT.read_text()
    values = dict(re.findall(r"(?m)^Environment=NEURONA_(\w+)=(.*)$", text))
    assert {name.lower() for name in values} - {"config"} <= OPTIONS
    drain = int(values["DRAIN_DELAY_MS"]) + int(values["DRAIN_TIMEOUT_MS"])
    stop = int(re.search(r"(?m)^TimeoutStopSec=(\d+)$", text)[1])
    assert drain / 1000 + LEAVING + 5 <= stop
    assert "\nKillMode=mixed\n" in text  # else the workers of a supervisor get a second SIGTERM
