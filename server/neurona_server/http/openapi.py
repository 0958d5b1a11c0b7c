"""The OpenAPI document of the HTTP endpoints, made of the routes: it has all of them, always.

A route says what it is by its `Operation`. The routes of neurona.v1 need none: their schemas are
those of its protobuf messages in JSON.
"""

import importlib.metadata
import re
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from http import HTTPStatus
from typing import Any

import msgspec
from google.protobuf import descriptor_pool
from google.protobuf.descriptor import Descriptor, FieldDescriptor

from neurona_server.http.error_responses import JSON
from neurona_server.http.operation import Operation, Schema
from neurona_server.http.routing import ApiRequest, Route
from neurona_server.web.messages import HttpResponse

PATH = "/openapi.json"
VERSION = "3.1.0"
_REFERENCE = "#/components/schemas/"
_PARAMETER = re.compile(r"\{(\w+)\}")
_FLOATS = (FieldDescriptor.TYPE_DOUBLE, FieldDescriptor.TYPE_FLOAT)
_LONG_INTEGERS = (
    FieldDescriptor.TYPE_INT64,
    FieldDescriptor.TYPE_UINT64,
    FieldDescriptor.TYPE_SINT64,
    FieldDescriptor.TYPE_FIXED64,
    FieldDescriptor.TYPE_SFIXED64,
)

_ERROR = {
    "type": "object",
    "properties": {
        "code": {"type": "string", "description": "The name of the gRPC status."},
        "message": {"type": "string"},
    },
    "required": ["code", "message"],
}

_DEADLINE = {
    "name": "x-request-timeout-ms",
    "in": "header",
    "description": "The deadline: milliseconds after which the caller wants no response any more.",
    "schema": {"type": "number", "exclusiveMinimum": 0},
}


def openapi_route(routes: Sequence[Route]) -> Route:
    """Return the route of the document that describes these routes and itself."""

    @cache
    def make_document() -> bytes:  # when it is first asked for: most servers never are
        version = importlib.metadata.version("neurona")
        return msgspec.json.encode(build_document([*routes, route], version))

    async def answer(_: ApiRequest) -> HttpResponse:
        return HttpResponse(HTTPStatus.OK, make_document(), JSON)

    operation = Operation("This document", "OpenAPI", response={"type": "object"})
    route = Route("GET", PATH, answer, operation=operation)
    return route


def build_document(routes: Iterable[Route], version: str) -> dict[str, Any]:
    """Return the OpenAPI document of all routes.

    Args:
        routes: The routes.
        version: The version of the server.
    """
    schemas = _Schemas()
    paths: dict[str, dict[str, Any]] = {}
    for route in routes:
        operation = route.operation or _operation_of_method(route.pattern)
        operation = operation or Operation(f"{route.method} {route.pattern}", "other")
        described = _describe(route.method, route.pattern, operation, schemas)
        if route.right is None:
            described["security"] = []
        paths.setdefault(route.pattern, {})[route.method.lower()] = described
    return {
        "openapi": VERSION,
        "info": {
            "title": "Neurona",
            "version": version,
            "description": "Serves ONNX models: the Open Inference Protocol v2 over REST, and "
            "neurona.v1 as JSON or protobuf. The same models, queues and rights as over gRPC.",
        },
        "security": [{}, {"token": []}],
        "paths": dict(sorted(paths.items())),
        "components": {
            "schemas": dict(sorted(schemas.by_name.items())),
            "securitySchemes": {
                "token": {
                    "type": "http",
                    "scheme": "bearer",
                    "description": "A token of the option tokens; none where the server has none.",
                }
            },
        },
    }


def _describe(
    method: str, pattern: str, operation: Operation, schemas: "_Schemas"
) -> dict[str, Any]:
    names = _PARAMETER.findall(pattern)
    parameters: list[dict[str, Any]] = [
        {"name": name, "in": "path", "required": True, "schema": {"type": "string"}}
        for name in names
    ]
    described: dict[str, Any] = {
        "operationId": _identifier(method, pattern),
        "summary": operation.summary,
        "tags": [operation.tag],
        "responses": {
            "200": _response("OK", operation.response, operation, schemas),
            **{str(status): {"description": meaning} for status, meaning in operation.statuses},
            "default": {
                "description": "An error.",
                "content": {"application/json": {"schema": schemas.add(operation.error or _ERROR)}},
            },
        },
    }
    if operation.description:
        described["description"] = operation.description
    if operation.request is not None:
        described["requestBody"] = {
            "content": _content(operation.request, "application/json", operation, schemas)
        }
        parameters.append(_DEADLINE)
    if parameters:
        described["parameters"] = parameters
    return described


def _response(
    text: str, schema: Schema, operation: Operation, schemas: "_Schemas"
) -> dict[str, Any]:
    if schema is None:
        return {"description": text}
    return {
        "description": text,
        "content": _content(schema, operation.content_type, operation, schemas),
    }


def _content(
    schema: Schema, content_type: str, operation: Operation, schemas: "_Schemas"
) -> dict[str, Any]:
    content: dict[str, Any] = {content_type: {"schema": schemas.add(schema)}}
    if operation.takes_binary:
        content["application/octet-stream"] = {}
    elif isinstance(schema, Descriptor) and operation.tag.startswith("neurona."):
        content["application/x-protobuf"] = {}
    return content


def _identifier(method: str, pattern: str) -> str:
    words = re.findall(r"[A-Za-z0-9]+", pattern)
    return "_".join([method.lower(), *words])


def _operation_of_method(pattern: str) -> Operation | None:
    """Return the description of a route that is a method of a protobuf service."""
    service_name, _, method_name = pattern.strip("/").partition("/")
    try:
        service = descriptor_pool.Default().FindServiceByName(service_name)
        method = service.methods_by_name[method_name]
    except KeyError:
        return None
    return Operation(
        f"{service.name}.{method.name}",
        service.full_name,
        request=method.input_type,
        response=method.output_type,
    )


class _Schemas:
    """The schemas of a document, by their names."""

    def __init__(self) -> None:
        self.by_name: dict[str, Any] = {}

    def add(self, schema: Schema) -> dict[str, Any]:
        """Return a schema, or the reference to it if it has a name."""
        if isinstance(schema, Mapping):
            return dict(schema)
        if isinstance(schema, Descriptor):
            return self._add_message(schema)
        (reference,), components = msgspec.json.schema_components(
            [schema], ref_template=_REFERENCE + "{name}"
        )
        self.by_name.update(components)
        return dict(reference)

    def _add_message(self, message: Any) -> dict[str, Any]:
        name = message.full_name
        if name not in self.by_name:
            properties: dict[str, Any] = {}
            self.by_name[name] = {"type": "object", "properties": properties}
            for field in message.fields:
                properties[field.name] = self._field_schema(field)
        return {"$ref": _REFERENCE + name}

    def _field_schema(self, field: Any) -> dict[str, Any]:
        message = field.message_type
        if message is not None and message.GetOptions().map_entry:
            value = self._value_schema(message.fields_by_name["value"])
            return {"type": "object", "additionalProperties": value}
        schema = self._value_schema(field)
        return {"type": "array", "items": schema} if field.is_repeated else schema

    def _value_schema(self, field: Any) -> dict[str, Any]:
        if field.message_type is not None:
            return self._add_message(field.message_type)
        if field.enum_type is not None:
            return {"type": "string", "enum": [value.name for value in field.enum_type.values]}
        if field.type in _FLOATS:
            return {"type": ["number", "string"]}
        if field.type in _LONG_INTEGERS:
            return {"type": ["integer", "string"]}
        return {
            FieldDescriptor.TYPE_BOOL: {"type": "boolean"},
            FieldDescriptor.TYPE_STRING: {"type": "string"},
            FieldDescriptor.TYPE_BYTES: {"type": "string", "contentEncoding": "base64"},
        }.get(field.type, {"type": "integer"})
