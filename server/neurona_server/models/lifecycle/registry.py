"""Models in memory: which version answers to a name."""

import random
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field

from neurona_protos.prediction_pb2 import State
from neurona_server.errors import NotFoundError, quoted
from neurona_server.models.model import Model
from neurona_server.telemetry.collectors import VersionInfo

_NAMES_SHOWN = 20


@dataclass(frozen=True)
class ModelVersion:
    """A version that is known: loaded, or not and why."""

    model: Model | None = None
    reason: str = ""
    unloaded: State = State.STATE_FAILED
    """Its state without a model."""

    share: float = 0.0
    """Percent of the requests that name neither version nor label."""

    shadow: bool = False

    @property
    def state(self) -> State:
        return self.unloaded if self.model is None else self.model.state


@dataclass(frozen=True)
class ModelEntry:
    """All that a name stands for, at one moment."""

    versions: Mapping[int, ModelVersion] = field(default_factory=dict)
    """By number, in order."""

    labels: Mapping[str, int] = field(default_factory=dict)
    """Each points at a version that is loaded."""

    default: Model | None = None
    """Answers requests that name neither version nor label, save those that `shares` take."""

    shares: tuple[tuple[float, Model], ...] = ()
    """Bounds between 0 and 1, rising: the first one above a random number takes the request."""


class Registry:
    """Readers need no lock: a change puts a new mapping in the place of the old one."""

    def __init__(self) -> None:
        self._entries: Mapping[str, ModelEntry] = {}
        self._changing = threading.Lock()
        self._random = random.Random()  # noqa: S311  nobody gains by foreseeing it

    def publish(self, name: str, entry: ModelEntry | None) -> None:
        """In one step; None takes the name out."""
        with self._changing:
            entries = {**self._entries}
            if entry is None:
                entries.pop(name, None)
            else:
                entries[name] = entry
            self._entries = entries

    def models(self) -> list[Model]:
        """All that are loaded, by name and version."""
        entries = self._entries
        known = [v.model for name in sorted(entries) for v in entries[name].versions.values()]
        return [model for model in known if model is not None]

    def names(self) -> list[str]:
        return sorted(self._entries)

    def entries(self) -> dict[str, ModelEntry]:
        """By name, all of one moment."""
        return dict(sorted(self._entries.items()))

    def entry(self, name: str) -> ModelEntry:
        """Raises NotFoundError."""
        try:
            return self._entries[name]
        except KeyError:
            raise NotFoundError(f"there is no model {quoted(name)}; {self._names()}") from None

    def version_infos(self) -> list[VersionInfo]:
        """Every version, for the metrics."""
        return [
            VersionInfo(
                name,
                number,
                State.Name(version.state).removeprefix("STATE_").lower(),
                [label for label, target in entry.labels.items() if target == number],
                bool(version.reason),
                version.share / 100 if version.model else None,
            )
            for name, entry in sorted(self._entries.items())
            for number, version in entry.versions.items()
        ]

    def resolve(self, name: str, version: int = 0, label: str = "") -> Model:
        """The model that answers; the default when neither version nor label is given.

        Raises NotFoundError, with the names that exist.
        """
        entry = self.entry(name)
        if not version and not label:
            return self._default(name, entry)
        if label:
            if label not in entry.labels:
                known = ", ".join(entry.labels) or "none"
                raise NotFoundError(
                    f"model {quoted(name)} has no label {quoted(label)}; its labels: {known}"
                )
            version = entry.labels[label]
        known_version = entry.versions.get(version)
        if known_version is None or known_version.model is None:
            ready = ", ".join(str(n) for n, v in entry.versions.items() if v.model) or "none"
            what = _missing(known_version)
            raise NotFoundError(f"model {quoted(name)}: {what} {version}; served: {ready}")
        return known_version.model

    def _default(self, name: str, entry: ModelEntry) -> Model:
        if entry.shares:
            drawn = self._random.random()
            for bound, model in entry.shares:
                if drawn < bound:
                    return model
        if entry.default is None:
            raise NotFoundError(f"model {quoted(name)} has no version that is ready")
        return entry.default

    def _names(self) -> str:
        names = [
            name
            for name, entry in sorted(self._entries.items())
            if any(version.model for version in entry.versions.values())
        ]
        more = f" and {len(names) - _NAMES_SHOWN} more" if len(names) > _NAMES_SHOWN else ""
        return f"served: {', '.join(names[:_NAMES_SHOWN]) or 'none'}{more}"


def _missing(version: ModelVersion | None) -> str:
    if version is None:
        return "no version"
    return {
        State.STATE_LOADING: "still loading version",
        State.STATE_UNLOADED: "not loaded is version",
    }.get(version.state, "failed to load version")
