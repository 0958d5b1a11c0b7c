"""The methods that describe the server and its models, and report whether they are ready."""

import importlib.metadata
from collections.abc import Callable, Iterable, MutableSequence, Sequence
from typing import TypeVar

from neurona_protos import open_inference_pb2 as pb
from neurona_protos.model_config_pb2 import (
    ModelConfig,
    ModelDynamicBatching,
    ModelInput,
    ModelInstanceGroup,
    ModelOutput,
    ModelSequenceBatching,
    ModelVersionPolicy,
)
from neurona_protos.prediction_pb2 import State, Task
from neurona_server.batching.policy import BatchPolicy
from neurona_server.errors import NotFoundError
from neurona_server.models.lifecycle.registry import Registry
from neurona_server.models.model import Model
from neurona_server.models.repository.settings import VersionPolicy
from neurona_server.models.repository.unusable import MODEL_FILE
from neurona_server.models.signature import TensorSpec
from neurona_server.rpc.call import Methods
from neurona_server.rpc.open_inference.inputs import hidden_inputs
from neurona_server.rpc.open_inference.messages import (
    DATATYPE_NAMES,
    config_datatype,
    resolve_model,
    unary_method,
)
from neurona_server.rpc.security.access import Grant, Right, visible_models
from neurona_server.rpc.sessions import SessionLimits

NAME = "neurona"
PLATFORM = "onnxruntime_onnx"
BACKEND = "onnxruntime"
EXTENSIONS = (
    "classification",
    "model_repository",
    "schedule_policy",
    "model_configuration",
    "binary_tensor_data",
    "parameters",
    "statistics",
    "logging",
    "sequence",
)
PRIORITY_LEVELS = 3
DEFAULT_PRIORITY_LEVEL = 2

Tensor = TypeVar("Tensor", ModelInput, ModelOutput)
TensorMetadata = pb.ModelMetadataResponse.TensorMetadata


def _version() -> str:
    try:
        return importlib.metadata.version(NAME)
    except importlib.metadata.PackageNotFoundError:  # run from its sources
        return "unknown"


_VERSION = _version()


class MetadataService:
    """The methods that describe the server and its models."""

    def __init__(
        self,
        registry: Registry,
        ready: Callable[[], bool],
        versions: VersionPolicy,
        sessions: SessionLimits,
        *,
        shared_memory: bool,
        cuda_shared_memory: bool,
    ) -> None:
        """Create the service.

        Args:
            registry: The loaded models.
            ready: Returns whether the server as a whole is ready.
            versions: The policy of models that have none of their own.
            sessions: The limits of sequences.
            shared_memory: Whether that extension is on.
            cuda_shared_memory: Whether that extension is on, and a GPU is there.
        """
        self._registry = registry
        self._ready = ready
        self._versions = versions
        self._sessions = sessions
        self._extensions = [*EXTENSIONS]
        self._extensions += ["system_shared_memory"] if shared_memory else []
        self._extensions += ["cuda_shared_memory"] if cuda_shared_memory else []

    def methods(self, prefix: str) -> Methods:
        return {
            prefix + "ServerLive": unary_method(
                None, pb.ServerLiveRequest, lambda _, __: pb.ServerLiveResponse(live=True)
            ),
            prefix + "ServerReady": unary_method(
                None,
                pb.ServerReadyRequest,
                lambda _, __: pb.ServerReadyResponse(ready=self._ready()),
            ),
            prefix + "ServerMetadata": unary_method(
                Right.DESCRIBE, pb.ServerMetadataRequest, self._server_metadata
            ),
            prefix + "ModelReady": unary_method(
                Right.DESCRIBE, pb.ModelReadyRequest, self._model_ready
            ),
            prefix + "ModelMetadata": unary_method(
                Right.DESCRIBE, pb.ModelMetadataRequest, self._model_metadata
            ),
            prefix + "ModelConfig": unary_method(
                Right.DESCRIBE, pb.ModelConfigRequest, self._model_config
            ),
        }

    def _server_metadata(self, _: pb.ServerMetadataRequest, __: Grant) -> pb.ServerMetadataResponse:
        return pb.ServerMetadataResponse(name=NAME, version=_VERSION, extensions=self._extensions)

    def _model_ready(self, message: pb.ModelReadyRequest, grant: Grant) -> pb.ModelReadyResponse:
        try:
            model = resolve_model(
                visible_models(self._registry, grant), message.name, message.version
            )
        except NotFoundError:  # an unknown model is not ready, and no error in this protocol
            return pb.ModelReadyResponse(ready=False)
        return pb.ModelReadyResponse(ready=model.state == State.STATE_READY)

    def _model_metadata(
        self, message: pb.ModelMetadataRequest, grant: Grant
    ) -> pb.ModelMetadataResponse:
        model = resolve_model(visible_models(self._registry, grant), message.name, message.version)
        versions = self._registry.entry(model.name).versions
        signature = model.signature
        return pb.ModelMetadataResponse(
            name=model.name,
            versions=[
                str(number)
                for number, version in versions.items()
                if version.state == State.STATE_READY
            ],
            platform=PLATFORM,
            inputs=[
                _tensor_metadata(spec)
                for spec in _callers_inputs(model, (*signature.inputs, *signature.optional))
            ],
            outputs=[_tensor_metadata(spec) for spec in _callers_outputs(model)],
            properties=_properties(model),
        )

    def _model_config(self, message: pb.ModelConfigRequest, grant: Grant) -> pb.ModelConfigResponse:
        model = resolve_model(visible_models(self._registry, grant), message.name, message.version)
        return pb.ModelConfigResponse(config=model_config(model, self._versions, self._sessions))


def model_config(
    model: Model, versions: VersionPolicy, sessions: SessionLimits | None = None
) -> ModelConfig:
    """Return the configuration of a loaded model: what its config.pbtxt says, completed.

    Args:
        model: The model.
        versions: The policy of a model that has none of its own.
        sessions: The limits of its sequences; None: the defaults.
    """
    signature = model.signature
    config = ModelConfig.FromString(model.settings.triton_config)
    config.name = model.name
    config.platform = config.platform or PLATFORM
    config.backend = config.backend or BACKEND
    if not config.HasField("version_policy"):
        config.version_policy.CopyFrom(_version_policy(model.settings.versions or versions))
    if signature.batched:
        config.max_batch_size = model.batcher.cost_model.batch_sizes[-1]
    rows = config.max_batch_size
    inputs = _callers_inputs(model, signature.inputs)
    optional = _callers_inputs(model, signature.optional)
    _complete_tensors(config.input, [_input(spec, rows) for spec in inputs])
    _complete_tensors(config.input, [_input(spec, 0, optional=True) for spec in optional])
    _complete_tensors(config.output, [_output(spec, rows) for spec in _callers_outputs(model)])
    _complete_instances(config, model)
    config.default_model_filename = model.settings.model_file or MODEL_FILE
    config.model_transaction_policy.decoupled = False
    if config.HasField("sequence_batching") or model.state_codec is not None:
        _complete_sequences(
            config.sequence_batching, model.batcher.policy, sessions or SessionLimits()
        )
    elif signature.batched:
        _complete_batching(config.dynamic_batching, model.batcher.policy)
    return config


def _callers_inputs(model: Model, specs: Iterable[TensorSpec]) -> list[TensorSpec]:
    """Return those inputs that callers send."""
    hidden = hidden_inputs(model)
    return [spec for spec in specs if spec.name not in hidden]


def _callers_outputs(model: Model) -> list[TensorSpec]:
    """Return the outputs that callers get."""
    declared = model.settings.sequences
    hidden = frozenset() if declared is None else declared.hidden_outputs
    return [spec for spec in model.signature.outputs if spec.name not in hidden]


def _complete_tensors(declared: MutableSequence[Tensor], from_model: Sequence[Tensor]) -> None:
    """Complete the declared inputs or outputs, and append those that the file leaves out."""
    by_name = {tensor.name: tensor for tensor in declared}
    for tensor in from_model:
        own = by_name.get(tensor.name)
        if own is None:
            declared.append(tensor)
            continue
        own.data_type = own.data_type or tensor.data_type
        if not own.dims:
            own.dims.extend(tensor.dims)
        if isinstance(own, ModelInput) and isinstance(tensor, ModelInput):
            own.optional = own.optional or tensor.optional


def _complete_instances(config: ModelConfig, model: Model) -> None:
    gpus = [device.number for device in model.devices if device.kind == "cuda"]
    on_gpu = bool(gpus) or not model.provider.startswith("CPU")
    kind = ModelInstanceGroup.KIND_GPU if on_gpu else ModelInstanceGroup.KIND_CPU
    if not config.instance_group:
        config.instance_group.add(name=model.name, kind=kind, count=model.instances)
    for index, group in enumerate(config.instance_group):
        group.name = group.name or f"{model.name}_{index}"
        group.count = max(1, group.count)
        if group.kind == ModelInstanceGroup.KIND_AUTO:
            group.kind = kind
        if group.kind == ModelInstanceGroup.KIND_GPU and not group.gpus:
            group.gpus.extend(gpus)


def _complete_batching(batching: ModelDynamicBatching, policy: BatchPolicy) -> None:
    batching.max_queue_delay_microseconds = round(policy.max_delay * 1e6)
    if not batching.priority_levels:
        batching.priority_levels = PRIORITY_LEVELS
        batching.default_priority_level = DEFAULT_PRIORITY_LEVEL
    if not batching.HasField("default_queue_policy"):
        batching.default_queue_policy.allow_timeout_override = True
    # Without a limit in requests there is one in rows. A request has at least one row, so the queue
    # never holds more requests than it says.
    queue_policy = batching.default_queue_policy
    queue_policy.max_queue_size = queue_policy.max_queue_size or policy.max_queue_rows


def _complete_sequences(
    batching: ModelSequenceBatching, policy: BatchPolicy, sessions: SessionLimits
) -> None:
    if not batching.max_sequence_idle_microseconds:
        batching.max_sequence_idle_microseconds = round(sessions.idle_timeout * 1e6)
    if batching.WhichOneof("strategy_choice") is None:  # any sequences share a batch
        batching.oldest.max_candidate_sequences = sessions.max_sessions
        batching.oldest.max_queue_delay_microseconds = round(policy.max_delay * 1e6)


def _version_policy(policy: VersionPolicy) -> ModelVersionPolicy:
    if policy.all_versions:
        return ModelVersionPolicy(all=ModelVersionPolicy.All())
    if policy.listed:
        return ModelVersionPolicy(specific=ModelVersionPolicy.Specific(versions=policy.listed))
    return ModelVersionPolicy(latest=ModelVersionPolicy.Latest(num_versions=policy.latest))


def _input(spec: TensorSpec, rows: int, *, optional: bool = False) -> ModelInput:
    return ModelInput(
        name=spec.name,
        data_type=config_datatype(spec.dtype),
        dims=_dimensions(spec, rows),
        optional=optional,
    )


def _output(spec: TensorSpec, rows: int) -> ModelOutput:
    return ModelOutput(
        name=spec.name, data_type=config_datatype(spec.dtype), dims=_dimensions(spec, rows)
    )


def _dimensions(spec: TensorSpec, rows: int) -> list[int]:
    """Return the shape without the batch axis, which a model with batches (`rows`) has."""
    shape = spec.shape[1:] if rows else spec.shape
    return [size if isinstance(size, int) else -1 for size in shape]


def _properties(model: Model) -> dict[str, str]:
    """Return what is known of the model besides its tensors.

    That is its description, origin and measured quality, with its task. None of a model that has
    nothing of these: MLServer's messages have another type in this field, and its clients cannot
    parse the response.
    """
    metadata = model.metadata
    properties = {**metadata.provenance}
    properties |= {name: f"{figure:g}" for name, figure in metadata.figures.items()}
    if metadata.description:
        properties["description"] = metadata.description
    if properties and metadata.task != Task.TASK_TENSORS:
        properties["task"] = Task.Name(metadata.task).removeprefix("TASK_").lower()
        properties["answer"] = metadata.answer
    return properties


def _tensor_metadata(spec: TensorSpec) -> TensorMetadata:
    shape = [size if isinstance(size, int) else -1 for size in spec.shape]
    return TensorMetadata(name=spec.name, datatype=DATATYPE_NAMES[spec.dtype], shape=shape)
