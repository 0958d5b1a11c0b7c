"""A version that gets copies of requests: its answers are compared and thrown away."""

import logging
import random
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np

from neurona_protos.prediction_pb2 import Task
from neurona_server.batching.batch import RowSlice
from neurona_server.batching.policy import Priority
from neurona_server.batching.request import Array, Outputs, Request
from neurona_server.errors import NeuronaError
from neurona_server.models.lifecycle.registry import ModelEntry, ModelVersion
from neurona_server.models.model import Model
from neurona_server.models.repository.settings import LATEST, ModelSettings, Traffic, VersionOrLabel

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Routing:
    """What the settings say, as far as the versions that are loaded allow.

    A label moves when its new version is loaded, and stays where it is until then.
    """

    labels: Mapping[str, int] = field(default_factory=dict)
    traffic: Traffic = field(default_factory=Traffic)

    def follow(self, settings: ModelSettings, loaded: set[int]) -> "Routing":
        labels = {}
        for label, number in settings.version_labels.items():
            if number in loaded:
                labels[label] = number
            elif self.labels.get(label) in loaded:
                labels[label] = self.labels[label]
        return Routing(labels, settings.traffic)

    def asked(self, settings: ModelSettings) -> set[int]:
        """The versions that must be loaded for what the settings say."""
        ahead = replace(self, labels=settings.version_labels, traffic=settings.traffic)
        return ahead.in_use

    @property
    def in_use(self) -> set[int]:
        traffic = self.traffic
        named = [traffic.default, traffic.shadow, *traffic.shares]
        numbers = {self._number(which) for which in named}
        return {n for n in {*numbers, *self.labels.values()} if n is not None}

    def entry(self, known: Mapping[int, ModelVersion]) -> ModelEntry:
        """Of the versions that are known, each with its part in the traffic."""
        models = {n: version.model for n, version in known.items() if version.model}
        shares = self._shares(models)
        shadow = self._loaded(self.traffic.shadow, models)
        default = self._default(models, {*shares, shadow})
        left = 100.0 - sum(shares.values())
        versions = {
            n: replace(
                version,
                share=shares.get(n, 0.0) + (left if n == default else 0.0),
                shadow=n == shadow,
            )
            for n, version in known.items()
        }
        labels = {LATEST: max(models), **self.labels} if models else {}
        bounds, total = [], 0.0
        for number, share in shares.items():
            total += share / 100
            bounds.append((total, models[number]))
        return ModelEntry(
            versions, labels, models[default] if default is not None else None, tuple(bounds)
        )

    def cast_shadow(self, known: Mapping[int, ModelVersion]) -> None:
        """Has each model send its copies to where they go now."""
        models = {n: version.model for n, version in known.items() if version.model}
        number = self._loaded(self.traffic.shadow, models)
        target = None if number is None else models[number]
        percent = self.traffic.shadow_share
        for model in models.values():
            if target is None or model is target:
                model.on_answer = None
                continue
            shadow = model.on_answer
            if isinstance(shadow, Shadow) and (shadow.to, shadow.percent) == (target, percent):
                continue
            model.on_answer = Shadow(model, target, percent)

    def _shares(self, models: Mapping[int, Model]) -> dict[int, float]:
        """By version; the share of one that is not loaded stays with the default."""
        shares: dict[int, float] = {}
        for which, share in self.traffic.shares.items():
            number = self._loaded(which, models)
            if number is not None and share:
                shares[number] = shares.get(number, 0.0) + share
        return shares

    def _default(self, models: Mapping[int, Model], special: set[int | None]) -> int | None:
        """As the settings say; else the highest without a part of its own; else the highest."""
        chosen = self._loaded(self.traffic.default, models)
        if chosen is None and models:
            chosen = max(models.keys() - special, default=max(models))
        return chosen

    def _loaded(self, which: VersionOrLabel, models: Mapping[int, Model]) -> int | None:
        number = max(models, default=None) if which == LATEST else self._number(which)
        return number if number in models else None

    def _number(self, which: VersionOrLabel) -> int | None:
        if isinstance(which, int):
            return which
        return self.labels.get(which)


TOLERANCE = 1e-3
"""Of the largest value: so much apart, numbers still count as equal."""


class Shadow:
    """Copies of what `of` answers go to `to`: after the answer, with the lowest priority, and
    never more than fit into its queue. So a caller neither sees it nor waits for it."""

    def __init__(self, of: Model, to: Model, percent: float) -> None:
        self.to = to
        self.percent = percent
        self._of = of
        self._share = percent / 100
        self._fits = _inputs(of) == _inputs(to)
        if not self._fits:
            log.warning("%s cannot shadow %s: it takes other inputs", to, of, extra=to.log_fields)

    def __call__(self, request: Request, outputs: Outputs) -> None:
        """Never waits, raises nothing."""
        if random.random() >= self._share:  # noqa: S311  nobody gains by foreseeing it
            return
        if not self._fits:
            self._count("incompatible")
            return
        kept = _own(outputs)

        def done(copy: Request, shadowed: Outputs | None, error: NeuronaError | None) -> None:
            self.to.copies.discard(copy)
            if shadowed is None:
                self._count("refused" if error and error.outcome == "rejected" else "failed")
            else:
                self._count(self._compare(kept, shadowed))

        described = {
            spec.name: (spec.dtype, request.inputs[spec.name].shape)
            for spec in self.to.signature.inputs
        }
        inputs = {name: request.inputs[name] for name in described}
        group = self.to.signature.group(described)
        # The answer waits with it, and may be much larger than what was asked.
        size = request.nbytes + sum([array.nbytes for array in kept])
        copy = Request(inputs, request.rows, group, done, priority=Priority.LOW, nbytes=size)
        self.to.copies.add(copy)
        try:
            self.to.batcher.submit(copy)
        except NeuronaError as error:
            copy.fail(error)

    def _compare(self, outputs: Outputs, shadowed: Outputs) -> str:
        mine = _by_name(self._of, outputs)
        other = _by_name(self.to, shadowed)
        if mine.keys() == other.keys() and all(_close(mine[name], other[name]) for name in mine):
            return "equal"
        mine_best, other_best = _best(self._of, outputs), _best(self.to, shadowed)
        return "same_class" if mine_best and mine_best == other_best else "different"

    def _count(self, outcome: str) -> None:
        self.to.metrics.record_shadow(outcome)


def _own(outputs: Outputs) -> Outputs:
    """Copied, if they are part of a batch's: those would all be kept as long as they wait."""
    if not isinstance(outputs, RowSlice):
        return outputs
    return [
        own if len(own) == len(whole) else own.copy()
        for own, whole in zip(outputs, outputs.batch.outputs, strict=True)
    ]


def _inputs(model: Model) -> set[tuple[object, ...]]:
    """Without what free sizes are called: another export may have other names for them."""
    return {
        (
            spec.name,
            spec.dtype,
            tuple(size if isinstance(size, int) else None for size in spec.shape),
        )
        for spec in model.signature.inputs
    }


def _best(model: Model, outputs: Outputs) -> list[str]:
    """Of a classification, the best class of each row."""
    if model.metadata.task != Task.TASK_CLASSIFICATION:
        return []
    labels = model.metadata.labels
    best = np.argmax(outputs[model.answer], axis=1).tolist()
    return [labels[index] if index < len(labels) else str(index) for index in best]


def _by_name(model: Model, outputs: Outputs) -> dict[str, Array]:
    return dict(zip([spec.name for spec in model.signature.outputs], outputs, strict=True))


def _close(mine: Array, other: Array) -> bool:
    if mine.shape != other.shape or mine.dtype.kind != other.dtype.kind:
        return False
    if mine.dtype.kind != "f":
        return bool(np.array_equal(mine, other))
    largest = float(np.nanmax(np.abs(mine), initial=0.0))
    return bool(np.allclose(mine, other, TOLERANCE, TOLERANCE * largest, equal_nan=True))
