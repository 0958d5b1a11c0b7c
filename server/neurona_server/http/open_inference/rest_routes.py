"""The routes of the Open Inference Protocol v2 over REST.

Each makes the message of a gRPC method, calls its function and makes JSON of the response: what the
protocol says over gRPC holds here too, with the same rights.
"""

from collections.abc import Callable, Mapping
from functools import partial
from http import HTTPStatus
from typing import Any

import msgspec
from google.protobuf.message import Message

from neurona_protos import open_inference_pb2 as pb
from neurona_server.errors import InvalidArgumentError, quoted
from neurona_server.http.error_responses import JSON, ErrorReply
from neurona_server.http.open_inference import plain_messages, rest_schemas
from neurona_server.http.open_inference.infer_requests import (
    HEADER_LENGTH,
    InferRequest,
    InferRequestReader,
)
from neurona_server.http.open_inference.infer_responses import InferBody, ResponseForm
from neurona_server.http.open_inference.plain_messages import plain_message, plain_settings
from neurona_server.http.open_inference.raw_tensors import read_raw_tensor
from neurona_server.http.operation import Operation
from neurona_server.http.routing import ApiRequest, Handler, Route
from neurona_server.models.lifecycle.registry import Registry
from neurona_server.rpc.call import Methods, Unary
from neurona_server.rpc.limits import Limits
from neurona_server.rpc.open_inference.messages import resolve_model
from neurona_server.rpc.open_inference.service import SERVICE
from neurona_server.rpc.security.access import visible_models
from neurona_server.web.messages import HttpResponse

BINARY = "application/octet-stream"

SLOW_JSON, SLOW_BINARY = 16 << 10, 1 << 20
"""Bytes of JSON, and of binary data, whose conversion takes longer than a millisecond."""

MAX_PLAIN_BODY = 64 << 10
"""Bytes of the body of a request without tensors."""

TAG = "Open Inference Protocol v2"

_MODEL, _VERSION = "/v2/models/{model}", "/v2/models/{model}/versions/{version}"

_HEADER_NAME = "Inference-Header-Content-Length"

MakeMessage = Callable[[ApiRequest, bytes], Message]
MakeJson = Callable[[ApiRequest, Any], Any]


def write_rest_error(error: ErrorReply) -> HttpResponse:
    """Write {"error": "..."}."""
    content = msgspec.json.encode({"error": error.message})
    return HttpResponse(error.status, content, JSON, error.headers)


def open_inference_routes(methods: Methods, registry: Registry, limits: Limits) -> list[Route]:
    """Return the routes of the protocol.

    Args:
        methods: The functions of all services.
        registry: The models that are served.
        limits: The limits of requests.
    """
    return _Routes(methods, registry, limits).routes()


class _Routes:
    """Makes the routes."""

    def __init__(self, methods: Methods, registry: Registry, limits: Limits) -> None:
        self._methods = methods
        self._registry = registry
        self._reader = InferRequestReader(limits.max_message_bytes, limits.max_tensors)

    def routes(self) -> list[Route]:
        return [
            *self._server_routes(),
            *self._model_routes(_MODEL),
            *self._model_routes(_VERSION),
            *self._repository_routes(),
            *self._memory_routes("system", pb.SystemSharedMemoryStatusResponse),
            *self._memory_routes("cuda", pb.CudaSharedMemoryStatusResponse),
            *self._settings_routes(),
        ]

    def _server_routes(self) -> list[Route]:
        return [
            self._plain(
                "GET",
                "/v2",
                "ServerMetadata",
                pb.ServerMetadataResponse,
                lambda _, __: pb.ServerMetadataRequest(),
                summary="The server's name, version and extensions",
            ),
            self._health(
                "/v2/health/live",
                "ServerLive",
                pb.ServerLiveResponse,
                lambda _: pb.ServerLiveRequest(),
                lambda _, response: {"live": response.live},
                Operation("Whether the server answers", TAG, response=rest_schemas.LiveResponse),
            ),
            self._health(
                "/v2/health/ready",
                "ServerReady",
                pb.ServerReadyResponse,
                lambda _: pb.ServerReadyRequest(),
                lambda _, response: {"ready": response.ready},
                Operation(
                    "Whether every model that is to be served is ready",
                    TAG,
                    response=rest_schemas.ReadyResponse,
                    statuses=((503, "It is not ready."),),
                ),
            ),
            self._plain(
                "GET",
                "/v2/models",
                "RepositoryIndex",
                pb.RepositoryIndexResponse,
                lambda _, __: pb.RepositoryIndexRequest(ready=True),
                lambda _, response: {"models": sorted({one.name for one in response.models})},
                summary="The names of the models that are ready",
                schema=rest_schemas.ModelsResponse,
            ),
            self._plain(
                "GET",
                "/v2/models/stats",
                "ModelStatistics",
                pb.ModelStatisticsResponse,
                lambda _, __: pb.ModelStatisticsRequest(),
                summary="Statistics of all models",
            ),
        ]

    def _model_routes(self, prefix: str) -> list[Route]:
        of_version = " of a version" if prefix == _VERSION else ""
        return [
            Route(
                "POST",
                prefix + "/infer",
                self._infer,
                self._unary("ModelInfer").right,
                write_rest_error,
                operation=Operation(
                    f"Run a model{of_version}",
                    TAG,
                    rest_schemas.INFER_REQUEST,
                    rest_schemas.InferResponse,
                    description=(
                        "Binary data of inputs follow the JSON, whose length is then in the "
                        f"header {_HEADER_NAME}; so do those of outputs. With the length 0 the "
                        "body is the data of the model's only input."
                    ),
                    takes_binary=True,
                    error=rest_schemas.RestError,
                ),
            ),
            self._plain(
                "GET",
                prefix,
                "ModelMetadata",
                pb.ModelMetadataResponse,
                lambda request, _: pb.ModelMetadataRequest(**_named(request)),
                summary=f"The inputs and outputs of a model{of_version}",
            ),
            self._health(
                prefix + "/ready",
                "ModelReady",
                pb.ModelReadyResponse,
                lambda request: pb.ModelReadyRequest(**_named(request)),
                lambda request, response: {
                    "name": request.params["model"],
                    "ready": response.ready,
                },
                Operation(
                    f"Whether a model{of_version} is ready",
                    TAG,
                    response=rest_schemas.ModelReadyResponse,
                    statuses=((503, "It is not ready, or there is none."),),
                ),
            ),
            self._plain(
                "GET",
                prefix + "/config",
                "ModelConfig",
                pb.ModelConfigResponse,
                lambda request, _: pb.ModelConfigRequest(**_named(request)),
                lambda _, response: plain_message(response.config),
                summary=f"The configuration of a model{of_version}",
                schema=pb.ModelConfigResponse.DESCRIPTOR.fields_by_name["config"].message_type,
            ),
            self._plain(
                "GET",
                prefix + "/stats",
                "ModelStatistics",
                pb.ModelStatisticsResponse,
                lambda request, _: pb.ModelStatisticsRequest(**_named(request)),
                summary=f"Statistics of a model{of_version}",
            ),
        ]

    def _repository_routes(self) -> list[Route]:
        def index(_: ApiRequest, body: bytes) -> Message:
            parsed = plain_messages.parse_body(plain_messages.IndexBody, body)
            return pb.RepositoryIndexRequest(ready=parsed.ready)

        return [
            self._plain(
                "POST",
                "/v2/repository/index",
                "RepositoryIndex",
                pb.RepositoryIndexResponse,
                index,
                lambda _, response: [plain_message(one) for one in response.models],
                summary="The models of the repository",
                body=plain_messages.IndexBody,
                schema=rest_schemas.list_of(pb.RepositoryIndexResponse),
            ),
            self._plain(
                "POST",
                "/v2/repository/models/{model}/load",
                "RepositoryModelLoad",
                pb.RepositoryModelLoadResponse,
                lambda request, body: plain_messages.load_request(request.params["model"], body),
                lambda _, __: {},
                summary="Load a model",
                body=plain_messages.LoadBody,
                schema={"type": "object"},
                max_body=None,
            ),
            self._plain(
                "POST",
                "/v2/repository/models/{model}/unload",
                "RepositoryModelUnload",
                pb.RepositoryModelUnloadResponse,
                lambda request, body: plain_messages.unload_request(request.params["model"], body),
                lambda _, __: {},
                summary="Unload a model",
                body=plain_messages.UnloadBody,
                schema={"type": "object"},
            ),
        ]

    def _memory_routes(self, kind: str, status: type[Message]) -> list[Route]:
        title = kind.capitalize()
        prefix = f"/v2/{kind}sharedmemory"
        response_types = {
            action: getattr(pb, f"{title}SharedMemory{action}Response")
            for action in ("Register", "Unregister")
        }
        request_types = {
            action: getattr(pb, f"{title}SharedMemory{action}Request")
            for action in ("Status", "Unregister")
        }
        register, body = {
            "system": (plain_messages.system_region_request, plain_messages.SystemRegionBody),
            "cuda": (plain_messages.cuda_region_request, plain_messages.CudaRegionBody),
        }[kind]

        def list_regions(_: ApiRequest, response: Any) -> list[Any]:
            return [plain_message(response.regions[name]) for name in sorted(response.regions)]

        def named(action: str) -> MakeMessage:
            make: Callable[..., Message] = request_types[action]
            return lambda request, _: make(name=request.params.get("region", ""))

        region = prefix + "/region/{region}"
        routes = [
            self._plain(
                "POST",
                region + "/register",
                f"{title}SharedMemoryRegister",
                response_types["Register"],
                lambda request, content: register(request.params["region"], content),
                lambda _, __: {},
                summary=f"Register a region of {kind} shared memory",
                body=body,
                schema={"type": "object"},
            )
        ]
        for start, words in ((prefix, f"all regions of {kind}"), (region, f"a region of {kind}")):
            routes += [
                self._plain(
                    "GET",
                    start + "/status",
                    f"{title}SharedMemoryStatus",
                    status,
                    named("Status"),
                    list_regions,
                    summary=f"The status of {words} shared memory",
                    schema=rest_schemas.list_of(status),
                ),
                self._plain(
                    "POST",
                    start + "/unregister",
                    f"{title}SharedMemoryUnregister",
                    response_types["Unregister"],
                    named("Unregister"),
                    lambda _, __: {},
                    summary=f"Unregister {words} shared memory",
                    schema={"type": "object"},
                ),
            ]
        return routes

    def _settings_routes(self) -> list[Route]:
        return [
            route
            for method in ("GET", "POST")
            for route in (
                self._trace_route(method, "/v2/trace/setting"),
                self._trace_route(method, _MODEL + "/trace/setting"),
                self._log_route(method),
            )
        ]

    def _trace_route(self, method: str, path: str) -> Route:
        def make(request: ApiRequest, body: bytes) -> Message:
            return plain_messages.trace_request(request.params.get("model", ""), body)

        return self._plain(
            method,
            path,
            "TraceSetting",
            pb.TraceSettingResponse,
            make,
            lambda _, response: plain_settings(response.settings),
            summary="Change settings of traces" if method == "POST" else "The settings of traces",
            body=rest_schemas.TRACE_SETTINGS if method == "POST" else None,
            schema=rest_schemas.TRACE_SETTINGS,
        )

    def _log_route(self, method: str) -> Route:
        return self._plain(
            method,
            "/v2/logging",
            "LogSettings",
            pb.LogSettingsResponse,
            lambda _, body: plain_messages.log_request(body),
            lambda _, response: plain_settings(response.settings),
            summary="Change settings of logs" if method == "POST" else "The settings of logs",
            body=rest_schemas.LOG_SETTINGS if method == "POST" else None,
            schema=rest_schemas.LOG_SETTINGS,
        )

    def _plain(
        self,
        method: str,
        pattern: str,
        name: str,
        response_type: type[Message],
        make_message: MakeMessage,
        make_json: MakeJson = lambda _, response: plain_message(response),
        *,
        summary: str,
        body: Any = None,
        schema: Any = None,
        max_body: int | None = MAX_PLAIN_BODY,
    ) -> Route:
        """Return the route of a method without tensors."""

        async def answer(request: ApiRequest) -> HttpResponse:
            content = b"" if request.method in ("GET", "HEAD") else await request.body(max_body)
            make = partial(make_message, request, content)
            message = await request.work(make, len(content)) if len(content) > SLOW_JSON else make()
            response = await request.call(f"/{SERVICE}/{name}", message.SerializeToString())
            plain = make_json(request, response_type.FromString(response))
            # tritonclient.http.aio accepts compressed responses, but does not decompress these.
            request.may_compress = False
            return HttpResponse(HTTPStatus.OK, msgspec.json.encode(plain), JSON)

        operation = Operation(
            summary,
            TAG,
            body,
            response_type.DESCRIPTOR if schema is None else schema,
            error=rest_schemas.RestError,
        )
        return self._route(method, pattern, name, answer, operation)

    def _health(
        self,
        pattern: str,
        name: str,
        response_type: type[Message],
        make_message: Callable[[ApiRequest], Message],
        make_json: Callable[[ApiRequest, Any], Mapping[str, Any]],
        operation: Operation,
    ) -> Route:
        """Return a route whose status says whether something is ready."""

        async def answer(request: ApiRequest) -> HttpResponse:
            message = make_message(request).SerializeToString()
            response = await request.call(f"/{SERVICE}/{name}", message)
            plain = make_json(request, response_type.FromString(response))
            is_well = plain.get("ready", True) and plain.get("live", True)
            status = HTTPStatus.OK if is_well else HTTPStatus.SERVICE_UNAVAILABLE
            return HttpResponse(status, msgspec.json.encode(plain), JSON)

        return self._route("GET", pattern, name, answer, operation)

    def _route(
        self, method: str, pattern: str, name: str, handler: Handler, operation: Operation
    ) -> Route:
        right = self._unary(name).right
        return Route(
            method,
            pattern,
            handler,
            right,
            write_rest_error,
            any_host=right is None,  # that of health, which load balancers ask for
            operation=operation,
        )

    def _unary(self, name: str) -> Unary:
        method = self._methods[f"/{SERVICE}/{name}"]
        assert isinstance(method, Unary)  # noqa: S101  for the type checker
        return method

    async def _infer(self, request: ApiRequest) -> HttpResponse:
        body = await request.body()
        length = request.headers.get(HEADER_LENGTH)
        json_bytes = len(body) if length is None else _read_length(length, len(body))
        infer = await self._read(request, body, json_bytes)
        del body  # its data are in the message now
        form = infer.form
        response = await request.call(_INFER, infer.message)
        answer = form.write_like_earlier(response) if len(response) < SLOW_BINARY else None
        if answer is None:
            answer = await _write(request, form, response)
        if answer.json_bytes is None:
            return HttpResponse(HTTPStatus.OK, answer.content, JSON)
        # Tensors are hardly worth it: only for callers that ask for one encoding, as nobody does
        # who accepts what its library can read.
        request.may_compress = "," not in request.headers.get("accept-encoding", "")
        return HttpResponse(
            HTTPStatus.OK, answer.content, BINARY, {_HEADER_NAME: str(answer.json_bytes)}
        )

    async def _read(self, request: ApiRequest, body: bytes, json_bytes: int) -> InferRequest:
        params = request.params
        model, version = params["model"], params.get("version", "")
        if not json_bytes and HEADER_LENGTH in request.headers:
            visible = visible_models(self._registry, request.grant)
            message = read_raw_tensor(resolve_model(visible, model, version), version, body)
            accepts_json = request.headers.get("accept", "").startswith(JSON)
            return InferRequest(message, ResponseForm(is_binary=not accepts_json))
        if len(body) < SLOW_BINARY:
            infer = self._reader.read_like_earlier(model, version, body, json_bytes)
            if infer is not None:
                return infer
        read = partial(self._reader.read, model, version, body, json_bytes)
        is_slow = json_bytes > SLOW_JSON or len(body) >= SLOW_BINARY
        return await request.work(read, len(body)) if is_slow else read()


_INFER = f"/{SERVICE}/ModelInfer"


async def _write(request: ApiRequest, form: ResponseForm, response: bytes) -> InferBody:
    write = partial(form.write, response)
    return await request.work(write, len(response)) if len(response) > SLOW_JSON else write()


def _named(request: ApiRequest) -> dict[str, str]:
    """Return the fields of a message that name a model."""
    return {"name": request.params["model"], "version": request.params.get("version", "")}


def _read_length(text: str, size: int) -> int:
    """Return the bytes of JSON at the start of a body. Raises InvalidArgumentError."""
    if text.isascii() and text.isdecimal() and len(text) < 20 and int(text) <= size:
        return int(text)
    raise InvalidArgumentError(
        f"{_HEADER_NAME} is {quoted(text)} (expected the bytes of JSON, 0 to {size}, the size of "
        "the body)"
    )
