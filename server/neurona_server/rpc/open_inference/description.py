"""What the server is, which models it has and what they take and give."""

import importlib.metadata
from collections.abc import Callable

from neurona_protos import open_inference_pb2 as pb
from neurona_protos.prediction_pb2 import State
from neurona_server.errors import NotFoundError
from neurona_server.models.registry import Registry
from neurona_server.models.settings import VersionPolicy
from neurona_server.models.signature import TensorSpec
from neurona_server.rpc.call import Methods
from neurona_server.rpc.open_inference.config import PLATFORM, model_config
from neurona_server.rpc.open_inference.datatypes import NAMES
from neurona_server.rpc.open_inference.immediate import immediate
from neurona_server.rpc.open_inference.which import resolve
from neurona_server.rpc.rights import Grant, Right
from neurona_server.rpc.seen import seen

NAME = "neurona"
EXTENSIONS = (
    "classification",
    "model_repository",
    "schedule_policy",
    "model_configuration",
    "binary_tensor_data",
    "parameters",
    "statistics",
    "logging",
)
TensorMetadata = pb.ModelMetadataResponse.TensorMetadata


def _version() -> str:
    try:
        return importlib.metadata.version(NAME)
    except importlib.metadata.PackageNotFoundError:  # run from its sources
        return "unknown"


_VERSION = _version()


class Description:
    """`ready` says whether the server as a whole is; `versions`, which of a model are served
    unless it says so itself; `shared_memory`, whether that is on."""

    def __init__(
        self,
        registry: Registry,
        ready: Callable[[], bool],
        versions: VersionPolicy,
        *,
        shared_memory: bool,
    ) -> None:
        self._registry = registry
        self._ready = ready
        self._policy = versions
        self._extensions = EXTENSIONS + (("system_shared_memory",) if shared_memory else ())

    def methods(self, path: str) -> Methods:
        return {
            path + "ServerLive": immediate(
                None, pb.ServerLiveRequest, lambda _, __: pb.ServerLiveResponse(live=True)
            ),
            path + "ServerReady": immediate(
                None,
                pb.ServerReadyRequest,
                lambda _, __: pb.ServerReadyResponse(ready=self._ready()),
            ),
            path + "ServerMetadata": immediate(
                Right.DESCRIBE, pb.ServerMetadataRequest, self._server
            ),
            path + "ModelReady": immediate(Right.DESCRIBE, pb.ModelReadyRequest, self._model_ready),
            path + "ModelMetadata": immediate(
                Right.DESCRIBE, pb.ModelMetadataRequest, self._metadata
            ),
            path + "ModelConfig": immediate(Right.DESCRIBE, pb.ModelConfigRequest, self._config),
        }

    def _server(self, _: pb.ServerMetadataRequest, __: Grant) -> pb.ServerMetadataResponse:
        return pb.ServerMetadataResponse(name=NAME, version=_VERSION, extensions=self._extensions)

    def _model_ready(self, message: pb.ModelReadyRequest, grant: Grant) -> pb.ModelReadyResponse:
        try:
            model = resolve(seen(self._registry, grant), message.name, message.version)
        except NotFoundError:  # what is not there is not ready: no error in this protocol
            return pb.ModelReadyResponse(ready=False)
        return pb.ModelReadyResponse(ready=model.state == State.STATE_READY)

    def _metadata(self, message: pb.ModelMetadataRequest, grant: Grant) -> pb.ModelMetadataResponse:
        model = resolve(seen(self._registry, grant), message.name, message.version)
        versions = self._registry.entry(model.name).versions
        signature = model.signature
        return pb.ModelMetadataResponse(
            name=model.name,
            versions=[str(n) for n, one in versions.items() if one.state == State.STATE_READY],
            platform=PLATFORM,
            inputs=[_tensor(spec) for spec in (*signature.inputs, *signature.optional)],
            outputs=[_tensor(spec) for spec in signature.outputs],
        )

    def _config(self, message: pb.ModelConfigRequest, grant: Grant) -> pb.ModelConfigResponse:
        model = resolve(seen(self._registry, grant), message.name, message.version)
        return pb.ModelConfigResponse(config=model_config(model, self._policy))


def _tensor(spec: TensorSpec) -> TensorMetadata:
    shape = [size if isinstance(size, int) else -1 for size in spec.shape]
    return TensorMetadata(name=spec.name, datatype=NAMES[spec.dtype], shape=shape)
