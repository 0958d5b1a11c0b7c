"""Triton's own client from PyPI, against a real neurona-serve."""

import re
from pathlib import Path

import pytest
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse
from support import onnx_models, triton_clients
from support.certificates import CertificateAuthority
from support.server_process import ServerProcess, free_addresses, run_neurona_serve

HTTP_DRIVER = Path(__file__).with_name("triton_http_driver.py")
DRIVER = Path(__file__).with_name("triton_driver.py")
SCENARIOS = re.findall(r"(?m)^    (\w+),$", DRIVER.read_text().partition("SYNC = (")[2])


@pytest.fixture(scope="module")
def server(tmp_path_factory, serve_for_module):
    root = onnx_models.save_echoes(tmp_path_factory.mktemp("triton"))
    onnx_models.save_classifier(root / "classifier" / "1" / "model.onnx")
    onnx_models.save_classifier(root / "classifier" / "2" / "model.onnx", offset=1.0)
    onnx_models.save_picker(root / "picker" / "1" / "model.onnx")
    onnx_models.save_fixed(root / "fixed" / "1" / "model.onnx")
    onnx_models.save_adjustable(root / "adjustable" / "1" / "model.onnx")
    onnx_models.save_slow(root / "slow" / "1" / "model.onnx")
    return serve_for_module(root, "--versions", "all", "--shared-memory", "true", "--threads", "1")


def test_health_has_the_service(server):
    request = HealthCheckRequest(service="inference.GRPCInferenceService")
    assert server.health.Check(request, timeout=10).status == HealthCheckResponse.SERVING


def test_there_are_scenarios():
    assert len(SCENARIOS) == 12


@pytest.mark.parametrize("scenario", [*SCENARIOS, "with_asyncio"])
def test_programs_for_triton(server, wait_until, scenario):
    triton_clients.run(DRIVER, server.address, scenario)
    # Cancelled requests have left the queues, which are empty.
    nonempty = re.compile(r"(?m)^neurona_queue_rows\{.*\} (?!0\.0$)")
    wait_until(lambda: not nonempty.search(server.metrics()))
    assert server.is_running


def test_a_draining_server_is_not_ready_but_serves(tmp_path, serve):
    onnx_models.save_picker(tmp_path / "picker" / "1" / "model.onnx")
    server = serve(tmp_path, "--drain-delay-ms", "60000")
    watch = server.health.Watch(HealthCheckRequest(), timeout=60)
    assert next(watch).status == HealthCheckResponse.SERVING
    server.terminate()
    assert next(watch).status == HealthCheckResponse.NOT_SERVING
    triton_clients.run(DRIVER, server.address, "draining")
    assert server.stop() == 1  # a second signal


def test_over_http_with_tls_and_a_token(tmp_path):
    onnx_models.save_classifier(tmp_path / "models" / "m" / "1" / "model.onnx")
    authority = CertificateAuthority(tmp_path, "authority")
    certificate, key = authority.issue("server")
    token = "a token must be long".replace(" ", "-")
    digest = run_neurona_serve("--hash-token", input=token).stdout.strip()
    tokens = tmp_path / "tokens.toml"
    rights = '["predict", "describe"]'
    tokens.write_text(f'[[tokens]]\nname = "n"\nsha256 = "{digest}"\nrights = {rights}\n')
    flags = ("--http-address", free_addresses(1)[0], "--load-check", "false")
    flags += ("--tls-certificate", certificate, "--tls-key", key, "--tokens-file", tokens)
    with ServerProcess(tmp_path / "models", *flags, trusted_ca=authority.certificate) as server:
        triton_clients.run(HTTP_DRIVER, server.http_address, authority.certificate, token)
