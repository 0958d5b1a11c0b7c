"""TLS of a real server: it survives every kind of connection, through renewals."""

import contextlib
import itertools
import os
import shutil
import socket
import ssl
import threading
import time

import grpc
import numpy as np
import pytest
from support import onnx_models
from support.certificates import CertificateAuthority
from support.server_process import run_neurona_serve

from neurona_protos.prediction_pb2 import PredictRequest
from neurona_protos.prediction_pb2_grpc import PredictionStub
from neurona_protos.tensors import to_tensor

REQUEST = PredictRequest(model="m", inputs=[to_tensor("x", np.ones((1, 4), np.float32))])
ANSWERS = 2000
"""A server that gave gRPC one configuration again and again died after some 1,300."""

HALF_HELLO = bytes.fromhex("16030102000100") + b"\x01\xfc\x03\x03"
ABORTED = (b"", HALF_HELLO, b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", bytes(range(256)) * 2)


@pytest.fixture(scope="module")
def authority(tmp_path_factory):
    return CertificateAuthority(tmp_path_factory.mktemp("authority"), "authority")


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    root = tmp_path_factory.mktemp("models")
    onnx_models.save_classifier(root / "m" / "1" / "model.onnx")
    return root


def shown_certificate(server, ca, client):
    context = ssl.create_default_context(cafile=ca)
    context.set_alpn_protocols(["h2"])
    if client:
        context.load_cert_chain(*client)
    with (
        socket.create_connection(("127.0.0.1", server.port), timeout=10) as plain,
        context.wrap_socket(plain, server_hostname="127.0.0.1") as tls,
    ):
        return tls.getpeercert(binary_form=True)


@pytest.mark.long
@pytest.mark.slow
@pytest.mark.parametrize("mutual", [False, True], ids=["plain", "mutual"])
@pytest.mark.parametrize(
    "flags",
    [("--transport", "cygrpc"), ("--transport", "aio"), ("--processes", "2")],
    ids=["cygrpc", "aio", "processes"],
)
def test_callers_come_and_go_through_renewals(
    models, authority, tmp_path, serve, flags, mutual, wait_until
):
    certificate, key = tmp_path / "tls.crt", tmp_path / "tls.key"
    pairs = [authority.issue("first"), authority.issue("second")]
    client = authority.issue("client") if mutual else None

    def install(pair):
        for source, target in zip(pair, (certificate, key), strict=True):
            # Replaced as a whole, as by every program that renews certificates.
            shutil.copy(source, target.with_suffix(".new"))
            os.replace(target.with_suffix(".new"), target)

    install(pairs[0])
    server = serve(
        models,
        *("--tls-certificate", certificate, "--tls-key", key, *flags),
        *(("--tls-client-ca", authority.certificate) if mutual else ()),
        trusted_ca=authority.certificate,
        client_certificate=client,
    )
    chain, private = [path.read_bytes() for path in client] if client else (None, None)
    credentials = grpc.ssl_channel_credentials(authority.certificate.read_bytes(), private, chain)
    stop = threading.Event()
    answers, failures, aborted = [], [], []

    def ask():
        options = [("grpc.use_local_subchannel_pool", 1)]
        while not stop.is_set():
            with grpc.secure_channel(server.address, credentials, options) as channel:
                try:
                    answers.append(PredictionStub(channel).Predict(REQUEST, timeout=30).model)
                except grpc.RpcError as error:
                    failures.append(error)
                    stop.set()

    def abort():
        for content in itertools.cycle(ABORTED):
            if stop.is_set():
                return
            with contextlib.suppress(OSError):
                with socket.create_connection(("127.0.0.1", server.port), timeout=10) as one:
                    one.sendall(content)
                aborted.append(content)
            time.sleep(0.002)

    threads = [threading.Thread(target=ask) for _ in range(4)] + [threading.Thread(target=abort)]
    for thread in threads:
        thread.start()
    end = time.monotonic() + 180
    renewals = 0
    while len(answers) < ANSWERS and not stop.wait(1.2) and time.monotonic() < end:
        renewals += 1
        install(pairs[renewals % 2])
    stop.set()
    for thread in threads:
        thread.join()
    assert server.is_running, server.log
    assert not failures, f"{failures[0]}\n{server.log}"
    assert len(answers) >= ANSWERS
    assert len(aborted) > 50
    assert renewals > 1
    renewed = ssl.PEM_cert_to_DER_cert(pairs[renewals % 2][0].read_text())
    wait_until(lambda: shown_certificate(server, authority.certificate, client) == renewed)
    assert PredictionStub(server.channel).Predict(REQUEST, timeout=10).model == "m"


@pytest.mark.parametrize("option", ["--tls-certificate", "--tls-key", "--tokens-file"])
def test_a_file_that_blocks_is_an_error_at_the_start(models, authority, tmp_path, option):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    certificate, key = authority.issue("server")
    flags = {"--tls-certificate": certificate, "--tls-key": key, option: pipe}
    arguments = [word for flag in flags.items() for word in flag]
    done = run_neurona_serve("--repository", models, *arguments)
    assert done.returncode == 1
    assert f"cannot read {pipe}: not a regular file" in done.stderr
    assert "Traceback" not in done.stderr
