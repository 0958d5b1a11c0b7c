"""Run by a Python that has tritonclient: `triton_http_driver.py ADDRESS CA_FILE TOKEN`.

Triton's client for HTTP over TLS, with a token, many calls at a time and compression.
"""

import sys

import numpy as np
import tritonclient.http as triton
from tritonclient.utils import InferenceServerException

ROWS = np.array([[1, 2, 3, 4]], np.float32)


def inputs(array):
    return [triton.InferInput("x", list(array.shape), "FP32").set_data_from_numpy(array)]


def main():
    address, certificate, token = sys.argv[1:]
    headers = {"Authorization": f"Bearer {token}"}
    options = {"ssl": True, "ssl_options": {"ca_certs": certificate}, "concurrency": 8}
    with triton.InferenceServerClient(address, **options) as client:
        assert client.is_server_live()
        assert not client.is_model_ready("m")
        assert client.is_model_ready("m", headers=headers)
        try:
            client.infer("m", inputs(ROWS))
        except InferenceServerException as error:
            rejected = error
        assert rejected.status() == "401", rejected
        calls = [
            client.async_infer(
                "m",
                inputs(ROWS.repeat(1 + number, axis=0)),
                headers=headers,
                request_compression_algorithm=algorithm,
                response_compression_algorithm=algorithm,
            )
            for algorithm in (None, "gzip", "deflate")
            for number in (0, 1, 600)
        ]
        expected = None
        for call in calls:
            rows = call.get_result().as_numpy("probabilities")
            expected = rows[0] if expected is None else expected
            assert np.allclose(rows, expected)


if __name__ == "__main__":
    main()
