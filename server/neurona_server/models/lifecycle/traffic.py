"""Traffic between the versions of a model: labels, shares, and shadows that get copies."""

import logging
import random
from collections.abc import Hashable, Mapping
from dataclasses import dataclass, field, replace

import numpy as np

from neurona_protos.prediction_pb2 import Task
from neurona_server.batching.batch import RowSlice
from neurona_server.batching.policy import Priority
from neurona_server.batching.ranking import ranked_rows
from neurona_server.batching.request import Array, Inputs, Outputs, Request
from neurona_server.errors import NeuronaError
from neurona_server.models.lifecycle.registry import ModelEntry, ModelVersion
from neurona_server.models.model import Model
from neurona_server.models.repository.settings import (
    LATEST,
    ModelSettings,
    Traffic,
    VersionOrLabel,
)

log = logging.getLogger(__name__)

TOLERANCE = 1e-3
"""Difference up to which numbers count as equal, relative to the largest value."""


@dataclass(frozen=True)
class Routing:
    """The settings for traffic, as far as the loaded versions allow.

    A label moves to its new version once that is loaded; until then it keeps the old one.
    """

    labels: Mapping[str, int] = field(default_factory=dict)
    traffic: Traffic = field(default_factory=Traffic)

    def update(self, settings: ModelSettings, loaded: set[int]) -> "Routing":
        """Return the routing for new settings or other loaded versions."""
        labels = {}
        for label, number in settings.version_labels.items():
            if number in loaded:
                labels[label] = number
            elif self.labels.get(label) in loaded:
                labels[label] = self.labels[label]
        return Routing(labels, settings.traffic)

    def required_versions(self, settings: ModelSettings) -> set[int]:
        """Return the versions that must be loaded to route as the settings say."""
        target = replace(self, labels=settings.version_labels, traffic=settings.traffic)
        return target.versions_in_use

    @property
    def versions_in_use(self) -> set[int]:
        traffic = self.traffic
        targets = [traffic.default, traffic.shadow, *traffic.shares]
        numbers = {self._number(target) for target in targets}
        return {n for n in {*numbers, *self.labels.values()} if n is not None}

    def build_entry(self, versions: Mapping[int, ModelVersion]) -> ModelEntry:
        """Return the entry to publish, with each version's part of the traffic."""
        models = _loaded_models(versions)
        shares = self._loaded_shares(models)
        shadow = self._loaded_number(self.traffic.shadow, models)
        default = self._choose_default(models, {*shares, shadow})
        remaining = 100.0 - sum(shares.values())
        routed = {
            n: replace(
                version,
                share=shares.get(n, 0.0) + (remaining if n == default else 0.0),
                shadow=n == shadow,
            )
            for n, version in versions.items()
        }
        labels = {LATEST: max(models), **self.labels} if models else {}
        bounds, total = [], 0.0
        for number, share in shares.items():
            total += share / 100
            bounds.append((total, models[number]))
        return ModelEntry(
            routed, labels, models[default] if default is not None else None, tuple(bounds)
        )

    def attach_shadow(self, versions: Mapping[int, ModelVersion]) -> None:
        """Make each model copy its requests to the shadow, or to none."""
        models = _loaded_models(versions)
        number = self._loaded_number(self.traffic.shadow, models)
        target = None if number is None else models[number]
        percent = self.traffic.shadow_share
        for model in models.values():
            if target is None or model is target:
                model.on_answer = None
                continue
            current = model.on_answer
            if isinstance(current, Shadow) and current.sends_to(target, percent):
                continue
            model.on_answer = Shadow(model, target, percent)

    def _loaded_shares(self, models: Mapping[int, Model]) -> dict[int, float]:
        """Return shares by version; the default keeps those of versions that are not loaded."""
        shares: dict[int, float] = {}
        for target, share in self.traffic.shares.items():
            number = self._loaded_number(target, models)
            if number is not None and share:
                shares[number] = shares.get(number, 0.0) + share
        return shares

    def _choose_default(self, models: Mapping[int, Model], special: set[int | None]) -> int | None:
        """Return the set default, else the highest version without a share, else the highest."""
        default = self._loaded_number(self.traffic.default, models)
        if default is None and models:
            default = max(models.keys() - special, default=max(models))
        return default

    def _loaded_number(self, target: VersionOrLabel, models: Mapping[int, Model]) -> int | None:
        number = max(models, default=None) if target == LATEST else self._number(target)
        return number if number in models else None

    def _number(self, target: VersionOrLabel) -> int | None:
        if isinstance(target, int):
            return target
        return self.labels.get(target)


def _loaded_models(versions: Mapping[int, ModelVersion]) -> dict[int, Model]:
    return {n: version.model for n, version in versions.items() if version.model}


class Shadow:
    """Copies requests that `primary` has answered to `target`, and compares the outputs.

    A copy is submitted after the response, with the lowest priority, and only if it fits into
    the target's queue: so callers neither see it nor wait for it.
    """

    def __init__(self, primary: Model, target: Model, percent: float) -> None:
        self._primary = primary
        self._target = target
        self._percent = percent
        self._compatible = _describe_inputs(primary) == _describe_inputs(target)
        if not self._compatible:
            log.warning(
                "%s cannot shadow %s: their inputs differ",
                target,
                primary,
                extra=target.log_fields,
            )

    def sends_to(self, target: Model, percent: float) -> bool:
        return self._target is target and self._percent == percent

    def __call__(self, request: Request, outputs: Outputs) -> None:
        """Copy an answered request, with the shadow's probability. Does not block or raise."""
        if random.random() * 100 >= self._percent:  # noqa: S311  predicting it has no use
            return
        if not self._compatible:
            self._record("incompatible")
            return
        if any(ranked_rows(output) is not None for output in outputs):
            return  # its run began before there was a shadow
        expected = _detach_rows(outputs)
        tensor_types = {
            spec.name: (spec.dtype, request.inputs[spec.name].shape)
            for spec in self._target.signature.inputs
        }
        inputs = {name: request.inputs[name] for name in tensor_types}
        try:
            group = self._target.signature.group(tensor_types)
        except NeuronaError:  # a recurrent model whose sequences have a step at least
            self._record("rejected")
            return
        # The outputs are kept in the queue, too, and may be much larger than the inputs.
        size = request.nbytes + sum([array.nbytes for array in expected])
        copy = _ShadowRequest(self, expected, inputs, request.rows, group, size)
        self._target.copies.add(copy)
        try:
            self._target.batcher.submit(copy)
        except NeuronaError as error:
            copy.fail(error)

    def finish_copy(
        self, copy: Request, expected: Outputs, outputs: Outputs | None, error: NeuronaError | None
    ) -> None:
        """Compare the copy's outputs with the expected ones, and record the outcome."""
        self._target.copies.discard(copy)
        if outputs is None:
            rejected = error is not None and error.outcome == "rejected"
            self._record("rejected" if rejected else "failed")
        else:
            self._record(self._compare(expected, outputs))

    def _compare(self, expected: Outputs, outputs: Outputs) -> str:
        expected_by_name = _outputs_by_name(self._primary, expected)
        by_name = _outputs_by_name(self._target, outputs)
        if expected_by_name.keys() == by_name.keys() and all(
            _is_close(expected_by_name[name], by_name[name]) for name in by_name
        ):
            return "equal"
        classes = _best_classes(self._primary, expected)
        same_class = classes and classes == _best_classes(self._target, outputs)
        return "same_class" if same_class else "different"

    def _record(self, outcome: str) -> None:
        self._target.metrics.record_shadow(outcome)


class _ShadowRequest(Request):
    """A request that a shadow runs; `expected` are the outputs that its caller got."""

    __slots__ = ("_expected", "_shadow")

    def __init__(
        self,
        shadow: Shadow,
        expected: Outputs,
        inputs: Inputs,
        rows: int,
        group: Hashable,
        nbytes: int,
    ) -> None:
        super().__init__(inputs, rows, group, priority=Priority.LOW, nbytes=nbytes)
        self._shadow = shadow
        self._expected = expected

    def finish(self, outputs: Outputs | None, error: NeuronaError | None) -> None:
        self._shadow.finish_copy(self, self._expected, outputs, error)


def _detach_rows(outputs: Outputs) -> Outputs:
    """Copy rows of a larger batch, whose outputs would all be kept in memory otherwise."""
    if not isinstance(outputs, RowSlice):
        return outputs
    return [
        rows if len(rows) == len(batch) else rows.copy()
        for rows, batch in zip(outputs, outputs.batch.outputs, strict=True)
    ]


def _describe_inputs(model: Model) -> set[tuple[object, ...]]:
    """Return names, dtypes and fixed sizes; another export may name the free sizes differently."""
    return {
        (
            spec.name,
            spec.dtype,
            tuple(size if isinstance(size, int) else None for size in spec.shape),
        )
        for spec in model.signature.inputs
    }


def _best_classes(model: Model, outputs: Outputs) -> list[str]:
    """Return the best class of each row of a classification, else nothing."""
    if model.metadata.task != Task.TASK_CLASSIFICATION:
        return []
    labels = model.metadata.labels
    best = np.argmax(outputs[model.answer], axis=1).tolist()
    return [labels[index] if index < len(labels) else str(index) for index in best]


def _outputs_by_name(model: Model, outputs: Outputs) -> dict[str, Array]:
    return dict(zip([spec.name for spec in model.signature.outputs], outputs, strict=True))


def _is_close(expected: Array, output: Array) -> bool:
    if expected.shape != output.shape or expected.dtype.kind != output.dtype.kind:
        return False
    if expected.dtype.kind != "f":
        return bool(np.array_equal(expected, output))
    largest = float(np.nanmax(np.abs(expected), initial=0.0))
    return bool(np.allclose(expected, output, TOLERANCE, TOLERANCE * largest, equal_nan=True))
