"""neurona.v1.Models: what is served, and what each model takes and gives."""

from google.protobuf.message import DecodeError

from neurona_protos.prediction_pb2 import (
    Batching,
    DescribeModelRequest,
    DescribeModelResponse,
    ListModelsRequest,
    ListModelsResponse,
    ModelSummary,
    RunCost,
    Task,
    TensorDescription,
    VersionState,
)
from neurona_server.errors import InvalidError, NeuronaError
from neurona_server.models.model import Model
from neurona_server.models.registry import Registry
from neurona_server.models.signature import TensorSpec
from neurona_server.rpc.call import Call, Methods, Unary


class Models:
    def __init__(self, registry: Registry) -> None:
        self._registry = registry

    def methods(self) -> Methods:
        path = "/neurona.v1.Models/"
        return {path + "List": Unary(self._list), path + "Describe": Unary(self._describe)}

    def _list(self, call: Call) -> None:
        try:
            ListModelsRequest.FromString(call.request)
        except DecodeError:
            call.fail(InvalidError("the bytes are not a neurona.v1.ListModelsRequest"))
            return
        models = [self._summary(name) for name in self._registry.names()]
        call.reply(ListModelsResponse(models=models).SerializeToString())

    def _describe(self, call: Call) -> None:
        try:
            message = DescribeModelRequest.FromString(call.request)
            model = self._registry.resolve(message.model, message.version, message.label)
        except DecodeError:
            call.fail(InvalidError("the bytes are not a neurona.v1.DescribeModelRequest"))
        except NeuronaError as error:
            call.fail(error)
        else:
            call.reply(self._description(model).SerializeToString())

    def _summary(self, name: str) -> ModelSummary:
        versions = self._registry.versions(name)
        loaded = [version.model for version in versions.values() if version.model]
        return ModelSummary(
            model=name,
            task=loaded[-1].metadata.task if loaded else Task.TASK_TENSORS,
            versions=[self._version_state(name, number) for number in versions],
        )

    def _version_state(self, name: str, number: int) -> VersionState:
        version = self._registry.versions(name)[number]
        labels = self._registry.labels(name)
        return VersionState(
            version=number,
            state=version.state,
            reason=version.reason,
            labels=[label for label, target in labels.items() if target == number],
            provider=version.model.provider if version.model else "",
        )

    def _description(self, model: Model) -> DescribeModelResponse:
        return DescribeModelResponse(
            model=model.name,
            version=self._version_state(model.name, model.version),
            inputs=[
                *[_description(spec) for spec in model.signature.inputs],
                *[_description(spec, optional=True) for spec in model.signature.optional],
            ],
            outputs=[_description(spec) for spec in model.signature.outputs],
            batched=model.signature.batched,
            metadata=model.metadata,
            batching=_batching(model),
        )


def _batching(model: Model) -> Batching:
    batcher = model.batcher
    padded = batcher.padding.padded
    return Batching(
        max_rows=batcher.curve.rungs[-1],
        limit_rows=batcher.queue.limit,
        latency_objective_seconds=batcher.policy.latency_objective or 0.0,
        instances=len(model.instances),
        inline=batcher.inline,
        costs=[
            RunCost(rows=rows, seconds=seconds, padded=rows in padded)
            for rows, seconds in batcher.curve.seconds.items()
        ],
    )


def _description(spec: TensorSpec, *, optional: bool = False) -> TensorDescription:
    return TensorDescription(
        name=spec.name,
        dtype=spec.dtype,
        shape=[size if isinstance(size, int) else -1 for size in spec.shape],
        axes=_axes(spec),
        optional=optional,
    )


def _axes(spec: TensorSpec) -> list[str]:
    """By the model's settings, else by the graph."""
    said = spec.axes or [""] * len(spec.shape)
    own = [size if isinstance(size, str) else "" for size in spec.shape]
    return [name or size for name, size in zip(said, own, strict=True)]
