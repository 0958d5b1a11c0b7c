"""The service neurona.v1.Models: lists, describes, loads and unloads models."""

from collections.abc import Sequence

import numpy as np
from google.protobuf.message import DecodeError

from neurona_protos.prediction_pb2 import (
    Batching,
    CostQuantile,
    DescribeModelRequest,
    DescribeModelResponse,
    ListModelsRequest,
    ListModelsResponse,
    LoadModelRequest,
    LoadModelResponse,
    ModelSummary,
    RunCost,
    SequenceServing,
    Stall,
    State,
    Task,
    TensorDescription,
    UnloadModelRequest,
    UnloadModelResponse,
    VersionState,
)
from neurona_protos.prediction_pb2 import Device as DeviceMessage
from neurona_server.batching.cost_distribution import BatchTimes
from neurona_server.errors import InvalidArgumentError, NeuronaError, NotAllowedError
from neurona_server.models.lifecycle.reconciler import NOT_EXPLICIT
from neurona_server.models.lifecycle.registry import ModelEntry, ModelVersion, Registry
from neurona_server.models.model import Model
from neurona_server.models.onnx.devices import Device
from neurona_server.models.repository.unusable import is_version_name
from neurona_server.models.signature import TensorSpec
from neurona_server.rpc.call import Call, Methods, Unary
from neurona_server.rpc.control_calls import ControlCalls
from neurona_server.rpc.security.access import Right
from neurona_server.rpc.transports.read_progress import ReadProgress


class Models:
    """Serves List, Describe, Load and Unload; the last two need `control`."""

    def __init__(
        self,
        registry: Registry,
        control: ControlCalls | None = None,
        progress: ReadProgress | None = None,
    ) -> None:
        self._registry = registry
        self._control = control
        self._progress = progress or ReadProgress()

    def methods(self) -> Methods:
        path = "/neurona.v1.Models/"
        return {
            path + "List": Unary(self._list, Right.DESCRIBE),
            path + "Describe": Unary(self._describe, Right.DESCRIBE),
            path + "Load": Unary(self._load, Right.CONTROL),
            path + "Unload": Unary(self._unload, Right.CONTROL),
        }

    def _list(self, call: Call) -> None:
        try:
            ListModelsRequest.FromString(call.request)
        except DecodeError:
            call.fail(InvalidArgumentError("message is not a neurona.v1.ListModelsRequest"))
            return
        models = [
            _summary(name, entry)
            for name, entry in self._registry.entries().items()
            if call.grant.allows_model(name)
        ]
        call.reply(ListModelsResponse(models=models).SerializeToString())

    def _load(self, call: Call) -> None:
        try:
            name = LoadModelRequest.FromString(call.request).model
        except DecodeError:
            call.fail(InvalidArgumentError("message is not a neurona.v1.LoadModelRequest"))
            return

        def make_response() -> bytes:
            summary = _summary(name, self._registry.entry(name))
            return LoadModelResponse(model=summary).SerializeToString()

        if (control := self._check_control(call, name)) is not None:
            control.load(name, call, make_response)

    def _unload(self, call: Call) -> None:
        try:
            name = UnloadModelRequest.FromString(call.request).model
        except DecodeError:
            call.fail(InvalidArgumentError("message is not a neurona.v1.UnloadModelRequest"))
            return
        if (control := self._check_control(call, name)) is not None:
            control.unload(name, call, UnloadModelResponse().SerializeToString)

    def _check_control(self, call: Call, name: str) -> ControlCalls | None:
        """Return what loads and unloads, or fail the call if it must not do that."""
        if self._control is None:
            call.fail(NotAllowedError(NOT_EXPLICIT))
            return None
        try:
            call.grant.check_model(name, (name,))
        except NeuronaError as error:
            call.fail(error)
            return None
        return self._control

    def _describe(self, call: Call) -> None:
        try:
            message = DescribeModelRequest.FromString(call.request)
            call.grant.check_model(message.model, self._registry.names())
            model = self._registry.resolve(message.model, message.version, message.label)
            entry = self._registry.entry(message.model)
        except DecodeError:
            call.fail(InvalidArgumentError("message is not a neurona.v1.DescribeModelRequest"))
        except NeuronaError as error:
            call.fail(error)
        else:
            description = _model_description(model, entry)
            description.batching.request_seconds = self._progress.request_seconds
            call.reply(description.SerializeToString())


# A description is made from one entry: the registry may replace it meanwhile.


def _summary(name: str, entry: ModelEntry) -> ModelSummary:
    loaded = [version.model for version in entry.versions.values() if version.model]
    return ModelSummary(
        model=name,
        task=loaded[-1].metadata.task if loaded else Task.TASK_TENSORS,
        versions=[
            *(_version_state(entry, number) for number in entry.versions),
            *(_unusable_state(name, reason) for name, reason in entry.unusable.items()),
        ],
    )


def _unusable_state(name: str, reason: str) -> VersionState:
    """Return the state of what is no version: without a number unless its name is one."""
    number = int(name) if is_version_name(name) else 0
    return VersionState(version=number, state=State.STATE_FAILED, reason=reason)


def _version_state(entry: ModelEntry, number: int) -> VersionState:
    version = entry.versions.get(number, ModelVersion())
    return VersionState(
        version=number,
        state=version.state,
        reason=version.reason,
        labels=[label for label, target in entry.labels.items() if target == number],
        provider=version.model.provider if version.model else "",
        nodes=version.model.placement if version.model else {},
        degraded=version.model.degraded if version.model else "",
        share=version.share,
        shadow=version.shadow,
        devices=[_device(one) for one in version.model.devices] if version.model else [],
        run_method=version.model.run_method if version.model else "",
    )


def _device(device: Device) -> DeviceMessage:
    return DeviceMessage(
        label=device.label, name=device.name, uuid=device.uuid, memory_bytes=device.memory_bytes
    )


def _model_description(model: Model, entry: ModelEntry) -> DescribeModelResponse:
    return DescribeModelResponse(
        model=model.name,
        version=_version_state(entry, model.version),
        inputs=[
            *[_description(spec) for spec in model.signature.inputs],
            *[_description(spec, optional=True) for spec in model.signature.optional],
        ],
        outputs=[_description(spec) for spec in model.signature.outputs],
        batched=model.signature.batched,
        metadata=model.metadata,
        batching=_batching(model),
        sequences=_sequence_serving(model),
    )


def _sequence_serving(model: Model) -> SequenceServing | None:
    """Return how a recurrent model serves sequences; None for another one."""
    form = model.sequences
    if form is None:
        return None
    return SequenceServing(
        method=model.sequence_method,
        reason=model.sequence_reason or form.ragged_reason,
        chunk_steps=model.chunk_steps,
        state_bytes=form.state_size * np.dtype(np.float32).itemsize,
        stateless_reason=form.stateless_reason,
        open_sessions=len(model.open_sessions),
        time_axes=form.time_axes,
    )


def _batching(model: Model) -> Batching:
    batcher = model.batcher
    padded = batcher.padding.padded_sizes
    return Batching(
        max_rows=batcher.cost_model.batch_sizes[-1],
        limit_rows=batcher.queue.max_batch_rows,
        latency_objective_seconds=batcher.policy.latency_objective or 0.0,
        instances=batcher.instances,
        inline=batcher.inline,
        costs=[
            RunCost(
                rows=rows,
                seconds=seconds,
                padded=rows in padded,
                quantiles=_cost_quantiles(batcher.cost_distribution.quantiles(rows)),
            )
            for rows, seconds in batcher.cost_model.seconds.items()
        ],
        stalls=[
            Stall(seconds=seconds, per_second=per_second) for seconds, per_second in batcher.stalls
        ],
    )


def _cost_quantiles(quantiles: Sequence[tuple[float, BatchTimes]]) -> list[CostQuantile]:
    return [
        CostQuantile(
            level=level,
            join_seconds=times.join,
            run_seconds=times.run,
            answer_seconds=times.answer,
            cycle_seconds=times.cycle,
        )
        for level, times in quantiles
    ]


def _description(spec: TensorSpec, *, optional: bool = False) -> TensorDescription:
    return TensorDescription(
        name=spec.name,
        dtype=spec.dtype,
        shape=[size if isinstance(size, int) else -1 for size in spec.shape],
        axes=_axes(spec),
        optional=optional,
        any_shape=spec.any_shape,
    )


def _axes(spec: TensorSpec) -> list[str]:
    """Return the names of the axes in the model's settings, else in the graph."""
    configured = spec.axes or [""] * len(spec.shape)
    from_graph = [size if isinstance(size, str) else "" for size in spec.shape]
    return [name or size for name, size in zip(configured, from_graph, strict=True)]
