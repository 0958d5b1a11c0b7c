"""The registry of the models in memory, which resolves a name, version or label to a model."""

import math
import random
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field

from neurona_protos.prediction_pb2 import State
from neurona_server.errors import NotFoundError, quoted
from neurona_server.models.model import Model
from neurona_server.telemetry.collectors import VersionInfo

_MAX_NAMES_SHOWN = 20


@dataclass(frozen=True)
class ModelVersion:
    """A version on disk or in memory: its model, or why there is none."""

    model: Model | None = None
    reason: str = ""
    state_without_model: State = State.STATE_FAILED

    share: float = 0.0
    """Percentage of the requests that name neither a version nor a label."""

    shadow: bool = False

    has_served: bool = False
    """Whether it was loaded at some time."""

    @property
    def state(self) -> State:
        return self.state_without_model if self.model is None else self.model.state

    @property
    def serves(self) -> bool:
        """Whether it is loaded, on a device that works."""
        return self.model is not None and not self.model.lost_reason


@dataclass(frozen=True)
class ModelEntry:
    """Everything that a model's name resolves to, at one moment."""

    versions: Mapping[int, ModelVersion] = field(default_factory=dict)
    """By number, in ascending order."""

    labels: Mapping[str, int] = field(default_factory=dict)
    """Each label's version, which is loaded."""

    default: Model | None = None
    """Serves requests that name neither a version nor a label and that no share takes."""

    shares: tuple[tuple[float, Model], ...] = ()
    """Ascending bounds from 0 to 1: the first one above a random number takes the request."""

    unusable: Mapping[str, str] = field(default_factory=dict)
    """Why something in the repository is not served that is meant to be, by the name of its file
    or folder; "" is the model's own folder."""

    @property
    def has_failed(self) -> bool:
        """Whether no version of it serves or is loading, because there is none that can."""
        versions = self.versions.values()
        states = {version.state for version in versions}
        if any(version.serves for version in versions) or State.STATE_LOADING in states:
            return False
        return State.STATE_FAILED in states or bool(self.unusable)


class Registry:
    """The published models. Reads need no lock, since a change replaces the whole mapping."""

    def __init__(self) -> None:
        self._entries: Mapping[str, ModelEntry] = {}
        self._lock = threading.Lock()
        self._random = random.Random()  # noqa: S311  predicting it has no use

    def publish(self, name: str, entry: ModelEntry | None) -> None:
        """Replace the entry of a name in one step; None removes the name."""
        with self._lock:
            entries = {**self._entries}
            if entry is None:
                entries.pop(name, None)
            else:
                entries[name] = entry
            self._entries = entries

    def models(self) -> list[Model]:
        """Return all loaded models, by name and version."""
        entries = self._entries
        models = [v.model for name in sorted(entries) for v in entries[name].versions.values()]
        return [model for model in models if model is not None]

    def longest_objective(self) -> float:
        """Return the most seconds in which a loaded version has to answer, inf if one has no limit.

        A version whose objective cannot be met takes up to two of its largest batches.
        """
        longest = 0.0
        for model in (models := self.models()):
            batcher = model.batcher
            if (objective := batcher.policy.latency_objective) is None:
                return math.inf
            full = batcher.cost_model.predict(batcher.queue.max_batch_rows)
            longest = max(longest, objective, 2 * full)
        return longest if models else math.inf

    def names(self) -> list[str]:
        return sorted(self._entries)

    def entries(self) -> dict[str, ModelEntry]:
        """Return all entries by name, as of one moment."""
        return dict(sorted(self._entries.items()))

    def failed_names(self) -> list[str]:
        """Return the names of models that failed to load and of which no version serves."""
        return [name for name, entry in sorted(self._entries.items()) if entry.has_failed]

    def entry(self, name: str) -> ModelEntry:
        """Return the entry of a name. Raises NotFoundError."""
        try:
            return self._entries[name]
        except KeyError:
            raise NotFoundError(
                f"there is no model {quoted(name)}; served: {self._served_names()}"
            ) from None

    def version_infos(self) -> list[VersionInfo]:
        """Return every version of every model, for the metrics."""
        entries = sorted(self._entries.items())
        versions = [
            VersionInfo(
                name,
                number,
                State.Name(version.state).removeprefix("STATE_").lower(),
                [label for label, target in entry.labels.items() if target == number],
                bool(version.reason),
                version.share / 100 if version.model else None,
            )
            for name, entry in entries
            for number, version in entry.versions.items()
        ]
        return versions + [
            VersionInfo(name, folder, "failed", problem=True)
            for name, entry in entries
            for folder in entry.unusable
        ]

    def resolve(self, name: str, version: int = 0, label: str = "") -> Model:
        """Return the model for a request, the default if it names neither version nor label.

        Raises:
            NotFoundError: There is no such model, version or label, or it is not loaded; the
                message lists those that are.
        """
        entry = self.entry(name)
        if not version and not label:
            return self._choose_default(name, entry)
        if label:
            if label not in entry.labels:
                labels = ", ".join(entry.labels) or "none"
                raise NotFoundError(
                    f"model {quoted(name)} has no label {quoted(label)}; its labels: {labels}"
                )
            version = entry.labels[label]
        target = entry.versions.get(version)
        if target is None or target.model is None:
            served = ", ".join(str(n) for n, v in entry.versions.items() if v.model) or "none"
            raise NotFoundError(
                f"model {quoted(name)}: version {version} "
                f"{_why_missing(target, unusable=str(version) in entry.unusable)}; served: {served}"
            )
        return target.model

    def _choose_default(self, name: str, entry: ModelEntry) -> Model:
        if entry.shares:
            drawn = self._random.random()
            for bound, model in entry.shares:
                if drawn < bound:
                    return model
        if entry.default is None:
            raise NotFoundError(f"model {quoted(name)} has no version that is ready")
        return entry.default

    def _served_names(self) -> str:
        names = [
            name
            for name, entry in sorted(self._entries.items())
            if any(version.model for version in entry.versions.values())
        ]
        hidden = len(names) - _MAX_NAMES_SHOWN
        more = f" and {hidden} more" if hidden > 0 else ""
        return f"{', '.join(names[:_MAX_NAMES_SHOWN]) or 'none'}{more}"


def _why_missing(version: ModelVersion | None, *, unusable: bool) -> str:
    if version is None:
        return "cannot be loaded" if unusable else "does not exist"
    return {
        State.STATE_LOADING: "is still loading",
        State.STATE_UNLOADED: "is not loaded",
    }.get(version.state, "failed to load")
