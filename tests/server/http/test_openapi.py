import json
import re
import urllib.request

import pytest
from support import onnx_models
from support.in_process_server import run_app
from support.server_process import free_addresses

from neurona_protos import prediction_pb2
from neurona_server.http.openapi import build_document, openapi_route
from neurona_server.http.routing import Route


@pytest.fixture(scope="module")
def document_and_routes(tmp_path_factory):
    root = tmp_path_factory.mktemp("openapi")
    onnx_models.save_sum(root / "sum" / "1" / "model.onnx")
    (address,) = free_addresses(1)
    routes = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            "neurona_server.http.openapi.openapi_route", lambda some: _route_and_note(some, routes)
        )
        with (
            run_app(["--repository", str(root)], {}, http_address=address),
            urllib.request.urlopen(f"http://{address}/openapi.json", timeout=30) as response,
        ):
            return json.loads(response.read()), routes


def _route_and_note(some, routes):
    route = openapi_route(some)
    routes += [*some, route]
    return route


def references(value):
    if isinstance(value, dict):
        if "$ref" in value:
            yield value["$ref"]
        for one in value.values():
            yield from references(one)
    elif isinstance(value, list):
        for one in value:
            yield from references(one)


def test_every_route_is_in_the_document(document_and_routes):
    document, routes = document_and_routes
    described = {
        (method.upper(), path) for path, methods in document["paths"].items() for method in methods
    }
    assert described == {(route.method, route.pattern) for route in routes}
    assert ("POST", "/v2/models/{model}/infer") in described
    assert ("POST", "/neurona.v1.Prediction/Predict") in described


def test_the_document_is_whole(document_and_routes):
    document, _ = document_and_routes
    assert document["openapi"] == "3.1.0"
    schemas = document["components"]["schemas"]
    for reference in references(document):
        assert reference.removeprefix("#/components/schemas/") in schemas
    identifiers = [
        operation["operationId"]
        for methods in document["paths"].values()
        for operation in methods.values()
    ]
    assert len(set(identifiers)) == len(identifiers)
    for path, methods in document["paths"].items():
        for operation in methods.values():
            names = {one["name"] for one in operation.get("parameters", ()) if one["in"] == "path"}
            assert names == set(re.findall(r"\{(\w+)\}", path))
            assert operation["summary"]
            assert "200" in operation["responses"]


def test_rights_are_in_the_document(document_and_routes):
    paths = document_and_routes[0]["paths"]
    assert paths["/v2/health/live"]["get"]["security"] == []
    assert "security" not in paths["/v2/models/{model}/infer"]["post"]


def test_messages_of_protobuf_are_described_by_their_fields(document_and_routes):
    schemas = document_and_routes[0]["components"]["schemas"]
    request = schemas["neurona.v1.PredictRequest"]["properties"]
    assert set(request) == {one.name for one in prediction_pb2.PredictRequest.DESCRIPTOR.fields}
    tensor = schemas["neurona.v1.Tensor"]["properties"]
    assert tensor["data"] == {"type": "string", "contentEncoding": "base64"}
    assert "DATA_TYPE_FLOAT" in tensor["dtype"]["enum"]
    body = schemas["RequestBody"]
    assert body["required"] == ["inputs"]
    assert schemas["TensorBody"]["properties"]["shape"]["items"] == {"type": "integer"}


def test_a_route_without_a_description_is_listed():
    async def page(_):
        raise NotImplementedError

    document = build_document([Route("GET", "/page", page)], "1")
    assert document["paths"]["/page"]["get"]["summary"] == "GET /page"
