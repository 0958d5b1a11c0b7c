"""Calls a server over HTTP; alone, because the tests of several packages do."""

import json
import socket
import ssl
import urllib.error
import urllib.request
from contextlib import contextmanager

import numpy as np

from neurona_protos.prediction_pb2 import PredictRequest
from neurona_protos.tensors import to_tensor
from support.in_process_server import run_app
from support.server_process import free_addresses

PREDICT = "/neurona.v1.Prediction/Predict"
JSON, PROTOBUF = "application/json", "application/x-protobuf"


class Caller:
    """Calls one server over HTTP."""

    def __init__(self, address, app=None, context=None):
        self.address = address
        self.app = app
        self.port = int(address.rpartition(":")[2])
        self._context = context
        self._url = f"{'https' if context else 'http'}://{address}"

    def send(self, path, body=None, method=None, **headers):
        """Return the status, the headers and the content of the response to a request."""
        headers = {name.replace("_", "-"): value for name, value in headers.items()}
        request = urllib.request.Request(  # noqa: S310
            self._url + path, body, headers, method=method
        )
        try:
            with urllib.request.urlopen(request, timeout=30, context=self._context) as answer:  # noqa: S310
                return answer.status, answer.headers, answer.read()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.headers, error.read()

    def post_json(self, path, value, **headers):
        """Return the status and the parsed JSON of the response to JSON."""
        body = value if isinstance(value, bytes) else json.dumps(value).encode()
        status, _, content = self.send(path, body, Content_Type=JSON, **headers)
        return status, json.loads(content)

    def predict(self, rows=1, model="classifier", **headers):
        """Return the status, the headers and the content of the response to a prediction."""
        inputs = [to_tensor("x", np.ones((rows, 4), np.float32))]
        message = PredictRequest(model=model, inputs=inputs).SerializeToString()
        return self.send(PREDICT, message, Content_Type=PROTOBUF, **headers)

    def connect(self):
        """Return a plain connection."""
        return socket.create_connection(("127.0.0.1", self.port), timeout=30)

    def send_raw(self, raw):
        """Return everything received in response to these bytes, until the connection ends."""
        with self.connect() as one:
            one.sendall(raw)
            return b"".join(iter(lambda: one.recv(1 << 16), b""))


@contextmanager
def serve(repository, *flags, context=None):
    (address,) = free_addresses(1)
    arguments = ["--repository", str(repository), *map(str, flags)]
    with run_app(arguments, {}, http_address=address) as running:
        yield Caller(address, running, context)


def trusting(ca, certificate=None):
    """Return a context of TLS for callers that trust a CA and maybe show a certificate."""
    context = ssl.create_default_context(cafile=ca)
    if certificate is not None:
        context.load_cert_chain(*certificate)
    return context
