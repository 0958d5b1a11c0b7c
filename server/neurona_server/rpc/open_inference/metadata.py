"""What the server is, which models it has and what they take and give."""

import importlib.metadata
from collections.abc import Callable

from neurona_protos import open_inference_pb2 as pb
from neurona_protos.model_config_pb2 import (
    ModelConfig,
    ModelDynamicBatching,
    ModelInput,
    ModelInstanceGroup,
    ModelOutput,
    ModelQueuePolicy,
    ModelTransactionPolicy,
    ModelVersionPolicy,
)
from neurona_protos.prediction_pb2 import State
from neurona_server.errors import NotFoundError
from neurona_server.models.lifecycle.registry import Registry
from neurona_server.models.model import Model
from neurona_server.models.repository.scanner import MODEL_FILE
from neurona_server.models.repository.settings import VersionPolicy
from neurona_server.models.signature import TensorSpec
from neurona_server.rpc.call import Methods
from neurona_server.rpc.open_inference.messages import NAMES, config_type, resolve, unary_method
from neurona_server.rpc.security.access import Grant, Right, seen

PLATFORM = "onnxruntime_onnx"
BACKEND = "onnxruntime"
PRIORITY_LEVELS = 3
DEFAULT_LEVEL = 2


def model_config(model: Model, versions: VersionPolicy) -> ModelConfig:
    """What is so now; `versions` holds for a model that does not say which it serves.

    The queue's limit is in rows here, in requests there: a request has one row at least, so
    never more requests wait than it says.
    """
    signature, policy = model.signature, model.batcher.policy
    rows = model.batcher.curve.rungs[-1] if signature.batched else 0
    on_gpu = not model.provider.startswith("CPU")
    config = ModelConfig(
        name=model.name,
        platform=PLATFORM,
        backend=BACKEND,
        version_policy=_version_policy(model.settings.versions or versions),
        max_batch_size=rows,
        input=[
            *[_input(spec, rows, optional=False) for spec in signature.inputs],
            *[_input(spec, 0, optional=True) for spec in signature.optional],
        ],
        output=[
            ModelOutput(
                name=spec.name, data_type=config_type(spec.dtype), dims=_dimensions(spec, rows)
            )
            for spec in signature.outputs
        ],
        instance_group=[
            ModelInstanceGroup(
                name=model.name,
                kind=ModelInstanceGroup.KIND_GPU if on_gpu else ModelInstanceGroup.KIND_CPU,
                count=model.batcher.instances,
            )
        ],
        default_model_filename=model.settings.model_file or MODEL_FILE,
        model_transaction_policy=ModelTransactionPolicy(decoupled=False),
    )
    if rows:
        config.dynamic_batching.CopyFrom(
            ModelDynamicBatching(
                max_queue_delay_microseconds=round(policy.max_delay * 1e6),
                priority_levels=PRIORITY_LEVELS,
                default_priority_level=DEFAULT_LEVEL,
                default_queue_policy=ModelQueuePolicy(
                    timeout_action=ModelQueuePolicy.REJECT,
                    allow_timeout_override=True,
                    max_queue_size=policy.max_queue_rows,
                ),
            )
        )
    return config


def _version_policy(policy: VersionPolicy) -> ModelVersionPolicy:
    if policy.every:
        return ModelVersionPolicy(all=ModelVersionPolicy.All())
    if policy.listed:
        return ModelVersionPolicy(specific=ModelVersionPolicy.Specific(versions=policy.listed))
    return ModelVersionPolicy(latest=ModelVersionPolicy.Latest(num_versions=policy.latest))


def _input(spec: TensorSpec, rows: int, *, optional: bool) -> ModelInput:
    return ModelInput(
        name=spec.name,
        data_type=config_type(spec.dtype),
        dims=_dimensions(spec, rows),
        optional=optional,
    )


def _dimensions(spec: TensorSpec, rows: int) -> list[int]:
    """Without the batch axis where the model has one."""
    shape = spec.shape[1:] if rows else spec.shape
    return [size if isinstance(size, int) else -1 for size in shape]


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
            path + "ServerLive": unary_method(
                None, pb.ServerLiveRequest, lambda _, __: pb.ServerLiveResponse(live=True)
            ),
            path + "ServerReady": unary_method(
                None,
                pb.ServerReadyRequest,
                lambda _, __: pb.ServerReadyResponse(ready=self._ready()),
            ),
            path + "ServerMetadata": unary_method(
                Right.DESCRIBE, pb.ServerMetadataRequest, self._server
            ),
            path + "ModelReady": unary_method(
                Right.DESCRIBE, pb.ModelReadyRequest, self._model_ready
            ),
            path + "ModelMetadata": unary_method(
                Right.DESCRIBE, pb.ModelMetadataRequest, self._metadata
            ),
            path + "ModelConfig": unary_method(Right.DESCRIBE, pb.ModelConfigRequest, self._config),
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
