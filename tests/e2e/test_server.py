"""From training to predictions: files of neurona-train, a real neurona-serve, calls by stubs."""

import collections
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import grpc
import numpy as np
import onnx
import onnxruntime
import pytest
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse
from grpc_health.v1.health_pb2_grpc import HealthStub
from support import onnx_models
from support.certificates import CertificateAuthority
from support.server_process import free_addresses, run_neurona_serve

from neurona_protos import metadata as model_metadata
from neurona_protos.prediction_pb2 import ListModelsRequest, PredictRequest, State
from neurona_protos.prediction_pb2_grpc import ModelsStub, PredictionStub
from neurona_protos.tensors import to_array, to_tensor
from neurona_server.config.options import Config
from neurona_training.recipes import RECIPES

ROOT = Path(__file__).parents[2]
MODELS = ("lenet5", "lstm", "rnn")


def slow_repository(root):
    onnx_models.save_slow(root / "slow" / "1" / "model.onnx")
    return root


def slow_request():
    return PredictRequest(model="slow", inputs=[to_tensor("x", np.ones(1, np.float32))])


def test_the_demo_trains_and_serves(demo):
    _, printed = demo
    for name in MODELS:
        assert f"{name}, version 1: " in printed
        requests, batches = re.search(rf"{name}: (\d+) requests in (\d+) batches", printed).groups()
        assert int(requests) == len(RECIPES[name].load().test)
        assert 1 <= int(batches) <= int(requests)
    assert "sunspots" in printed
    *_, how, page = printed.strip().splitlines()
    assert how.startswith("To try the models in a browser: make serve")
    assert page.strip() == f"http://{Config().http_address}/"


@pytest.mark.slow
def test_the_load_of_compose_reaches_every_model_with_faults_and_sessions(demo, serve):
    repository, _ = demo
    server = serve(repository)
    command = [sys.executable, "-W", "error", ROOT / "deploy" / "demo_load.py"]
    command += ["--address", server.address, "--rate", "150", "--seconds", "3"]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
    for name in MODELS:
        series = f'neurona_requests_total{{model="{name}",outcome="ok",version="1"}}'
        assert server.sample(series) > 0
    unknown = 'neurona_requests_total{model="",outcome="invalid",version=""}'
    assert server.sample(unknown) > 0
    assert server.sample('neurona_session_steps_total{model="lstm",version="1"}') > 0


@pytest.mark.parametrize("name", MODELS)
def test_predictions_equal_those_of_onnxruntime(demo, serve, name):
    repository, _ = demo
    server = serve(repository)
    data = RECIPES[name].load()
    samples = data.test.inputs[:40]
    session = onnxruntime.InferenceSession(
        repository / name / "1" / "model.onnx", providers=["CPUExecutionProvider"]
    )
    described = model_metadata.from_json(
        session.get_modelmeta().custom_metadata_map[model_metadata.KEY]
    )
    answer = [output.name for output in session.get_outputs()].index(described.answer)
    (input_name,) = [node.name for node in session.get_inputs()]
    expected = session.run(None, {input_name: samples})[answer]
    stub = PredictionStub(server.channel)

    def request(rows):
        inputs = [to_tensor(input_name, rows)]
        return PredictRequest(model=name, inputs=inputs, top_k=10, raw_outputs=True)

    batched = stub.Predict(request(samples))
    singles = [stub.Predict.future(request(sample[None])) for sample in samples]
    singles = [call.result() for call in singles]
    np.testing.assert_allclose(to_array(batched.outputs[answer]), expected, rtol=1e-5, atol=1e-5)
    for index, single in enumerate(singles):
        raw = to_array(single.outputs[answer])[0]
        np.testing.assert_allclose(raw, expected[index], rtol=1e-5, atol=1e-5)
        if data.labels:
            (row,) = single.classification.rows
            assert row.labels[0] == data.labels[expected[index].argmax()]
            np.testing.assert_allclose(
                row.probabilities, -np.sort(-expected[index]), rtol=1e-5, atol=1e-5
            )
        else:
            (row,) = single.regression.rows
            np.testing.assert_allclose(row.values, expected[index], rtol=1e-5, atol=1e-5)
            assert single.regression.values[0].unit
    assert server.stop() == 0


def test_served_models_are_listed_healthy_and_measured(demo, serve):
    repository, _ = demo
    server = serve(repository)
    models = ModelsStub(server.channel).List(ListModelsRequest()).models
    assert [model.model for model in models] == list(MODELS)
    for name in ("", "neurona.v1.Prediction", "neurona.v1.Models", "lenet5", "lenet5/1"):
        state = server.health.Check(HealthCheckRequest(service=name), timeout=10)
        assert state.status == HealthCheckResponse.SERVING
    metrics = server.metrics()
    assert 'neurona_model_info{model="rnn",provider="' in metrics
    assert 'neurona_transport_info{transport="cygrpc"} 1.0' in metrics


def test_sigterm_completes_accepted_requests_and_rejects_new_ones(tmp_path, serve, wait_until):
    server = serve(slow_repository(tmp_path), "--threads", "1")
    stub = PredictionStub(server.channel)
    watch = server.health.Watch(HealthCheckRequest(service="slow"), timeout=60)
    assert next(watch).status == HealthCheckResponse.SERVING
    calls = [stub.Predict.future(slow_request(), timeout=60) for _ in range(3)]
    wait_until(lambda: 'queue_rows{model="slow",version="1"} 2.0' in server.metrics())  # one runs
    server.terminate()
    assert next(watch).status == HealthCheckResponse.NOT_SERVING
    for call in calls:
        assert to_array(call.result().outputs[0]) == 1
    status, log = server.wait(), server.log
    assert status == 0, log
    with pytest.raises(grpc.RpcError) as caught:
        stub.Predict(slow_request(), timeout=10)
    assert caught.value.code() == grpc.StatusCode.UNAVAILABLE
    assert log.rstrip().endswith("stopped")


@pytest.mark.parametrize("attempt", range(3))  # a crash at the end would be rare
def test_drain_timeout_ends_a_long_drain(tmp_path, serve, wait_until, attempt):
    server = serve(slow_repository(tmp_path), "--threads", "1", "--drain-timeout-ms", "100")
    stub = PredictionStub(server.channel)
    calls = [stub.Predict.future(slow_request(), timeout=60) for _ in range(50)]
    rows = r'queue_rows{model="slow",version="1"} 4[5-9]\.0'
    wait_until(lambda: re.search(rows, server.metrics()))
    status, log = server.stop(), server.log
    assert status == 0, log
    codes = [call.code() for call in calls]
    assert set(codes) <= {grpc.StatusCode.OK, grpc.StatusCode.UNAVAILABLE}
    assert codes.count(grpc.StatusCode.UNAVAILABLE) >= 45


def test_a_second_signal_ends_the_server_immediately(tmp_path, serve):
    server = serve(slow_repository(tmp_path), "--drain-delay-ms", "60000")
    server.send_signal(signal.SIGINT)
    watch = server.health.Watch(HealthCheckRequest(), timeout=60)
    while next(watch).status == HealthCheckResponse.SERVING:
        pass
    status, log = server.stop(signal.SIGINT), server.log
    assert status == 1
    assert "second signal" in log


def save_with_property(path, key, value):
    onnx_models.save_classifier(path)
    model = onnx.load(path)
    del model.metadata_props[:]
    path.write_bytes(
        model.SerializeToString() + b"\x72" + _field(_field(key, 1) + _field(value, 2))
    )


def _field(content, number=None):
    """Returns a protobuf field of bytes; without a number, only its length and content."""
    tag = b"" if number is None else bytes([number << 3 | 2])
    return tag + bytes([len(content)]) + content


def test_invalid_models_do_not_stop_the_others(tmp_path, serve):
    onnx_models.save_classifier(tmp_path / "good" / "1" / "model.onnx")
    (tmp_path / "bad" / "1").mkdir(parents=True)
    (tmp_path / "bad" / "1" / "model.onnx").write_bytes(b"not a model")
    for name, key, value in [
        ("odd-task", model_metadata.KEY.encode(), b'{"task": 7}'),
        ("odd-text", b"author", b"\xff\xfe"),
    ]:
        save_with_property(tmp_path / name / "1" / "model.onnx", key, value)
    server = serve(tmp_path)
    models = {m.model: m for m in ModelsStub(server.channel).List(ListModelsRequest()).models}
    (version,) = models["bad"].versions
    assert "its file is not ONNX" in version.reason
    assert "task 7" in models["odd-task"].versions[0].reason
    assert [v.state for v in models["good"].versions] == [State.STATE_READY]
    assert str(tmp_path) not in version.reason
    state = server.health.Check(HealthCheckRequest(service="bad"), timeout=10)
    assert state.status == HealthCheckResponse.NOT_SERVING
    with pytest.raises(grpc.RpcError) as caught:
        PredictionStub(server.channel).Predict(PredictRequest(model="bad"), timeout=10)
    assert caught.value.code() == grpc.StatusCode.NOT_FOUND


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([], "no models: name an ONNX file or a folder with some"),
        (["--repository", "nowhere"], "cannot read the repository nowhere: No such file"),
        (["--repository", "."], "(expected <name>/<version>/model.onnx): broken: 'm' is not"),
        (["--repository", "broken"], "none of the models can be served"),
        (["--repository", "good", "--address", "nohost.invalid:1"], "cannot listen on nohost"),
        (["--repository", "good", "--metrics-address", "127.0.0.1:{taken}"], "Address already in"),
        (["--repository", "good", "--address", "127.0.0.1:{taken}"], "cannot listen on 127.0.0.1"),
        (["--repository", "good", "--tls-key", "k"], "incomplete TLS options (expected"),
        (["--repository", "good", "--tls-certificate", "c", "--tls-key", "k"], "cannot read c: No"),
        (["--repository", "good", "--tokens-file", "t"], "cannot read t: No such file"),
    ],
)
def test_a_failed_start_ends_with_one_line(tmp_path, flags, message):
    onnx_models.save_classifier(tmp_path / "good" / "m" / "1" / "model.onnx")
    (tmp_path / "broken" / "m" / "1").mkdir(parents=True)
    (tmp_path / "broken" / "m" / "1" / "model.onnx").touch()
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        port = listener.getsockname()[1]
        done = run_neurona_serve(*(flag.format(taken=port) for flag in flags), cwd=tmp_path)
    assert done.returncode == 1
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("neurona-serve: ")
    assert message in last
    assert "Traceback" not in done.stderr


def test_a_server_with_tls_and_tokens(tmp_path, serve):
    onnx_models.save_classifier(tmp_path / "models" / "m" / "1" / "model.onnx")
    authority = CertificateAuthority(tmp_path, "ca")
    certificate, key = authority.issue("server")
    token = "a token must be long".replace(" ", "-")
    digest = run_neurona_serve("--hash-token", input=token)
    entry = f'name = "n"\nsha256 = "{digest.stdout.strip()}"\nrights = ["predict"]\n'
    (tmp_path / "tokens.toml").write_text("[[tokens]]\n" + entry)
    server = serve(
        *(tmp_path / "models", "--tls-certificate", certificate, "--tls-key", key),
        *("--tokens-file", tmp_path / "tokens.toml"),
        trusted_ca=authority.certificate,
    )
    stub = PredictionStub(server.channel)
    request = PredictRequest(model="m", inputs=[to_tensor("x", np.ones((1, 4), np.float32))])
    with pytest.raises(grpc.RpcError) as caught:
        stub.Predict(request, timeout=10)
    assert caught.value.code() == grpc.StatusCode.UNAUTHENTICATED
    metadata = [("authorization", f"Bearer {token}")]
    assert stub.Predict(request, timeout=10, metadata=metadata).model == "m"
    status, log = server.stop(), server.log
    assert status == 0
    assert token not in log
    assert "no TLS" not in log


@pytest.mark.parametrize(("host", "warned"), [("127.0.0.1", False), ("0.0.0.0", True)])  # noqa: S104
def test_plaintext_for_other_machines_is_a_warning(tmp_path, serve, host, warned):
    onnx_models.save_classifier(tmp_path / "m" / "1" / "model.onnx")
    port = free_addresses(1)[0].rpartition(":")[2]
    server = serve(tmp_path, "--address", f"{host}:{port}")
    assert server.stop() == 0
    assert ("accepts unencrypted calls from other machines" in server.log) is warned


def test_calls_during_sigterm_succeed_or_are_unavailable(tmp_path, serve):
    onnx_models.save_classifier(tmp_path / "m" / "1" / "model.onnx")
    server = serve(tmp_path)
    request = PredictRequest(model="m", inputs=[to_tensor("x", np.ones((1, 4), np.float32))])
    stopped = threading.Event()
    codes = collections.Counter()

    def call():
        with grpc.insecure_channel(server.address) as channel:
            stub, health = PredictionStub(channel), HealthStub(channel)
            while not stopped.is_set():
                try:
                    stub.Predict(request, timeout=10)
                    next(iter(health.Watch(HealthCheckRequest(), timeout=10)))
                except grpc.RpcError as error:
                    codes[error.code()] += 1
                    return
                codes[grpc.StatusCode.OK] += 1

    callers = [threading.Thread(target=call) for _ in range(16)]
    for caller in callers:
        caller.start()
    time.sleep(1)
    started = time.monotonic()
    status, log = server.stop(), server.log
    seconds = time.monotonic() - started
    stopped.set()
    for caller in callers:
        caller.join()
    assert status == 0, log
    assert seconds < 10, "an open stream delayed the stop"
    assert codes[grpc.StatusCode.OK] > 0
    assert codes.keys() <= {grpc.StatusCode.OK, grpc.StatusCode.UNAVAILABLE}
