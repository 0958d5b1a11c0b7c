"""The methods of neurona.v1 as JSON and as protobuf, and every request that is wrong."""

import base64
import gzip
import json
import zlib

import numpy as np
import pytest
from support.http_caller import JSON, PREDICT, PROTOBUF

from neurona_protos.prediction_pb2 import PredictResponse

ONE_ROW = {"name": "x", "dtype": "DATA_TYPE_FLOAT", "shape": [1, 4]}
DATA = base64.b64encode(np.ones((1, 4), np.float32).tobytes()).decode()
ROW = {"model": "classifier", "inputs": [{**ONE_ROW, "data": DATA}]}


def test_a_prediction_is_the_same_as_json_and_as_protobuf(caller):
    status, answer = caller.post_json(PREDICT, ROW)
    assert status == 200
    status, headers, content = caller.predict()
    assert (status, headers["Content-Type"]) == (200, PROTOBUF)
    row = PredictResponse.FromString(content).classification.rows[0]
    assert answer["classification"]["rows"][0]["labels"] == [*row.labels]
    assert answer["version"] == "2"  # a 64-bit number


def test_models_are_listed_and_described(caller):
    status, answer = caller.post_json("/neurona.v1.Models/List", {})
    assert status == 200
    assert {one["model"] for one in answer["models"]} >= {"classifier", "regressor"}
    status, answer = caller.post_json("/neurona.v1.Models/Describe", {"model": "classifier"})
    assert status == 200
    assert answer["inputs"][0]["name"] == "x"


def test_an_empty_body_is_an_empty_message(caller):
    assert caller.post_json("/neurona.v1.Models/List", b"")[0] == 200


def test_health_has_a_text_and_a_status(caller):
    status, _, content = caller.send("/healthz")
    assert (status, content) == (200, b"SERVING\n")
    assert caller.send("/healthz", method="HEAD")[::2] == (200, b"")


@pytest.mark.parametrize(
    ("path", "value", "status", "code", "words"),
    [
        (PREDICT, {"model": "nothing"}, 404, "NOT_FOUND", "nothing"),
        (PREDICT, {"model": "classifier"}, 400, "INVALID_ARGUMENT", "expected 'x'"),
        (PREDICT, {"model": 5}, 400, "INVALID_ARGUMENT", "neurona.v1.PredictRequest"),
        (PREDICT, {"mudel": "a"}, 400, "INVALID_ARGUMENT", "mudel"),
        (PREDICT, [1], 400, "INVALID_ARGUMENT", "neurona.v1.PredictRequest"),
        (PREDICT, b"{", 400, "INVALID_ARGUMENT", "no JSON"),
        (PREDICT, b"\xff{}", 400, "INVALID_ARGUMENT", "no JSON"),
        (PREDICT, b'{"model": NaN}', 400, "INVALID_ARGUMENT", "no JSON"),
        (PREDICT, b'{"version": 1e999}', 400, "INVALID_ARGUMENT", ""),
        (PREDICT, b'{"version": ' + b"9" * 5000 + b"}", 400, "INVALID_ARGUMENT", ""),
        (PREDICT, b'{"version": 1.5}', 400, "INVALID_ARGUMENT", "version"),
        (PREDICT, b'{"version": "99999999999999999999"}', 400, "INVALID_ARGUMENT", "version"),
        (PREDICT, b"[" * 50_000, 400, "INVALID_ARGUMENT", ""),
        (PREDICT, b"[" * 5_000 + b"]" * 5_000, 400, "INVALID_ARGUMENT", ""),
        (PREDICT, b'{"a":' * 5_000 + b"1" + b"}" * 5_000, 400, "INVALID_ARGUMENT", ""),
        (PREDICT, b"[" + b"0," * 100_000 + b"0]", 400, "INVALID_ARGUMENT", "values"),
        (PREDICT, {"model": "classifier", "inputs": [{**ONE_ROW, "data": "***"}]}, 400, "", ""),
        (PREDICT, {"inputs": [{"dtype": "nothing"}]}, 400, "INVALID_ARGUMENT", "dtype"),
        (PREDICT, {"inputs": [{"shape": [True]}]}, 400, "INVALID_ARGUMENT", "shape"),
        ("/neurona.v1.Prediction/Regress", ROW, 400, "FAILED_PRECONDITION", "regression"),
        ("/neurona.v1.Models/Load", {"model": "a"}, 400, "FAILED_PRECONDITION", "explicit"),
        ("/neurona.v1.Prediction/PredictStream", {}, 501, "UNIMPLEMENTED", "gRPC"),
        ("/neurona.v1.Prediction/Nothing", {}, 404, "NOT_FOUND", "unknown path"),
        ("/nothing", {}, 404, "NOT_FOUND", "unknown path '/nothing'"),
    ],
)
def test_a_wrong_request_gets_a_clear_error(caller, path, value, status, code, words):
    assert caller.post_json(path, value)[0] == status
    answer = caller.post_json(path, value)[1]
    assert code in answer["code"]
    assert words in answer["message"]
    assert len(answer["message"]) < 2500


def test_the_bytes_of_a_wrong_message_get_a_clear_error(caller):
    status, _, content = caller.send(PREDICT, b"\xff\xff", Content_Type=PROTOBUF)
    assert status == 400
    assert b"neurona.v1.PredictRequest" in content


def test_methods_and_types_of_content_are_checked(caller):
    status, headers, _ = caller.send(PREDICT, method="GET")
    assert (status, headers["Allow"]) == (405, "POST")
    assert caller.send("/healthz", b"", method="POST")[0] == 405
    status, headers, content = caller.send(PREDICT, b"x", Content_Type="text/html")
    assert status == 415
    assert b"expected application/json" in content
    assert JSON in headers["Accept-Post"]


def test_an_error_has_a_request_id_and_the_caller_s_own_comes_back(caller):
    _, headers, _ = caller.send("/nothing")
    assert len(headers["x-request-id"]) == 32
    for path in ("/nothing", "/healthz"):
        assert caller.send(path, x_request_id="mine 1")[1]["x-request-id"] == "mine 1"
    assert caller.send("/healthz", x_request_id="\x7f")[1]["x-request-id"] != "\x7f"


def test_bodies_may_be_compressed(caller):
    body = json.dumps({**ROW, "top_k": 3}).encode()
    raw = zlib.compressobj(wbits=-15)
    for encoding, content in [
        ("gzip", gzip.compress(body)),
        ("deflate", zlib.compress(body)),
        ("deflate", raw.compress(body) + raw.flush()),
        ("identity", body),
    ]:
        assert caller.post_json(PREDICT, content, Content_Encoding=encoding)[0] == 200
    for encoding, content, expected in [
        ("br", body, 415),
        ("gzip", body, 400),
        ("gzip", gzip.compress(body)[:-9], 400),
        ("gzip", gzip.compress(body) + b"x", 400),
        ("gzip", gzip.compress(bytes(2 << 20)), 413),
        ("gzip", gzip.compress(bytes(32 << 20)), 413),
    ]:
        status, answer = caller.post_json(PREDICT, content, Content_Encoding=encoding)
        assert status == expected, answer


def test_responses_are_compressed_if_accepted(caller):
    path = "/neurona.v1.Models/List"
    plain = caller.send(path, b"{}", Content_Type=JSON)[2]
    for encoding, decompress in (("gzip", gzip.decompress), ("deflate", zlib.decompress)):
        _, headers, content = caller.send(path, b"{}", Content_Type=JSON, Accept_Encoding=encoding)
        assert headers["Content-Encoding"] == encoding
        assert decompress(content) == plain
    _, headers, content = caller.send(path, b"{}", Content_Type=JSON, Accept_Encoding="br")
    assert headers["Content-Encoding"] is None


def test_a_body_has_a_maximum_size(caller):
    status, answer = caller.post_json(PREDICT, b" " * ((1 << 20) + 1))
    assert status == 413
    assert "expected at most 1048576" in answer["message"]
    body = (b"10000\r\n" + b" " * 65536 + b"\r\n") * 20
    raw = b"POST %s HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n" % (
        PREDICT.encode()
    )
    answer = caller.send_raw(raw + b"Transfer-Encoding: chunked\r\n\r\n" + body)
    assert answer.startswith(b"HTTP/1.1 413 ")


def test_large_predictions_are_answered(caller):
    status, _, content = caller.predict(rows=4096)
    assert status == 200
    assert len(PredictResponse.FromString(content).classification.rows) == 4096
