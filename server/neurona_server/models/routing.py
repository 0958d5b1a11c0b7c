"""Which version of a model answers whom: labels, the default, shares and a shadow."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from neurona_server.models.model import Model
from neurona_server.models.registry import Entry, Version
from neurona_server.models.settings import LATEST, ModelSettings, Traffic, Which
from neurona_server.models.shadow import Shadow


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

    def entry(self, known: Mapping[int, Version]) -> Entry:
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
        return Entry(
            versions, labels, models[default] if default is not None else None, tuple(bounds)
        )

    def cast_shadow(self, known: Mapping[int, Version]) -> None:
        """Has each model send its copies to where they go now."""
        models = {n: version.model for n, version in known.items() if version.model}
        number = self._loaded(self.traffic.shadow, models)
        target = None if number is None else models[number]
        percent = self.traffic.shadow_share
        for model in models.values():
            if target is None or model is target:
                model.shadow = None
            elif model.shadow is None or (model.shadow.to, model.shadow.percent) != (
                target,
                percent,
            ):
                model.shadow = Shadow(model, target, percent)

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

    def _loaded(self, which: Which, models: Mapping[int, Model]) -> int | None:
        number = max(models, default=None) if which == LATEST else self._number(which)
        return number if number in models else None

    def _number(self, which: Which) -> int | None:
        if isinstance(which, int):
            return which
        return self.labels.get(which)
