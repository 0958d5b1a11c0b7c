"""How a model is served, in the words of Triton's ModelConfig."""

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
from neurona_server.models.model import Model
from neurona_server.models.repository import MODEL_FILE
from neurona_server.models.settings import VersionPolicy
from neurona_server.models.signature import TensorSpec
from neurona_server.rpc.open_inference.datatypes import config_type

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
                count=len(model.instances),
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
