"""Clients of a headless Service find new replicas, shown with a name server for tests."""

import json
import socket
import struct
import threading
import time

import grpc
import numpy as np
import pytest
from support import onnx_models
from support.in_process_server import InProcessServer

from neurona_protos.prediction_pb2 import PredictRequest
from neurona_protos.prediction_pb2_grpc import PredictionStub
from neurona_protos.tensors import to_tensor
from neurona_server.rpc.transports.listener import ListenerOptions

REQUEST = PredictRequest(model="m", inputs=[to_tensor("x", np.ones((1, 4), np.float32))])
ROUND_ROBIN = {"loadBalancingConfig": [{"round_robin": {}}]}
A_RECORD = 1


class NameServer:
    """Responds to queries for A records with `addresses` and a TTL of 0 (RFC 1035)."""

    def __init__(self):
        self.addresses = []
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._socket.bind(("127.0.0.1", 0))
        self.port = self._socket.getsockname()[1]
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def close(self):
        self._socket.sendto(b"", ("127.0.0.1", self.port))
        self._thread.join()
        self._socket.close()

    def _serve(self):
        while True:
            query, caller = self._socket.recvfrom(4096)
            if not query:
                return
            end = query.index(b"\0", 12) + 5  # the name, its type and its class
            (kind,) = struct.unpack(">H", query[end - 4 : end - 2])
            addresses = self.addresses if kind == A_RECORD else []
            header = query[:2] + struct.pack(">HHHHH", 0x8580, 1, len(addresses), 0, 0)
            record = struct.pack(">HHHIH", 0xC00C, A_RECORD, 1, 0, 4)  # TTL 0
            records = b"".join(record + socket.inet_aton(one) for one in addresses)
            self._socket.sendto(header + query[12:end] + records, caller)


@pytest.fixture
def name_server():
    server = NameServer()
    yield server
    server.close()


@pytest.fixture
def replicas(tmp_path):
    """Two, on one port of two addresses of loopback, which tell a connection to go after 1 s."""
    onnx_models.save_classifier(tmp_path / "m" / "1" / "model.onnx")
    options = ListenerOptions(max_message_bytes=1 << 20, max_connection_age=1.0)
    first = InProcessServer(tmp_path, options=options)
    try:
        second = InProcessServer(tmp_path, options=options, address=f"127.0.0.2:{first.port}")
    except BaseException:
        first.stop()
        raise
    yield first, second
    first.stop()
    second.stop()


def test_a_new_replica_is_found_when_a_connection_reaches_its_age(name_server, replicas):
    name_server.addresses = ["127.0.0.1"]
    target = f"dns://127.0.0.1:{name_server.port}/replicas.test:{replicas[0].port}"
    options = [
        ("grpc.service_config", json.dumps(ROUND_ROBIN)),
        ("grpc.service_config_disable_resolution", 1),
        ("grpc.dns_min_time_between_resolutions_ms", 100),  # default: 30 s
    ]

    def responses(replica):
        return replica.count("requests_total", model="m", version="1", outcome="ok")

    with grpc.insecure_channel(target, options) as channel:
        stub = PredictionStub(channel)
        stub.Predict(REQUEST, timeout=20, wait_for_ready=True)
        assert (responses(replicas[0]), responses(replicas[1])) == (1, 0)
        name_server.addresses = ["127.0.0.1", "127.0.0.2"]
        end = time.monotonic() + 30
        while not responses(replicas[1]):
            assert time.monotonic() < end, "the new replica was not found"
            stub.Predict(REQUEST, timeout=20)  # none fails
