"""Models in memory: which version answers to a name."""

import threading
from collections.abc import Mapping
from dataclasses import dataclass

from neurona_protos.prediction_pb2 import State
from neurona_server.errors import NotFoundError, quoted
from neurona_server.models.model import Model

LATEST = "latest"  # the label that always points at the highest version that is ready
_NAMES_SHOWN = 20


@dataclass(frozen=True)
class Version:
    """A version that is known: loaded, or not and why."""

    model: Model | None
    reason: str = ""

    @property
    def state(self) -> State:
        return State.STATE_FAILED if self.model is None else self.model.state


class Registry:
    """Readers need no lock: a change puts a new mapping in the place of the old one."""

    def __init__(self) -> None:
        self._versions: Mapping[str, Mapping[int, Version]] = {}
        self._changing = threading.Lock()

    def publish(self, model: Model) -> None:
        self._put(model.name, model.version, Version(model))

    def publish_failure(self, name: str, version: int, reason: str) -> None:
        self._put(name, version, Version(None, reason))

    def models(self) -> list[Model]:
        """All that are loaded, by name and version."""
        known = [version.model for name in self.names() for version in self.versions(name).values()]
        return [model for model in known if model is not None]

    def names(self) -> list[str]:
        return sorted(self._versions)

    def versions(self, name: str) -> Mapping[int, Version]:
        """Every known version by number, in order. Raises NotFoundError."""
        try:
            return self._versions[name]
        except KeyError:
            raise NotFoundError(f"there is no model {quoted(name)}; {self._names()}") from None

    def labels(self, name: str) -> dict[str, int]:
        """The version that each label points at. Raises NotFoundError."""
        ready = [n for n, v in self.versions(name).items() if v.state == State.STATE_READY]
        return {LATEST: ready[-1]} if ready else {}

    def resolve(self, name: str, version: int = 0, label: str = "") -> Model:
        """The model that answers; the latest when neither version nor label is given.

        Raises NotFoundError, with the names that exist.
        """
        if not version:
            labels = self.labels(name)
            if label and label not in labels:
                known = ", ".join(labels) or "none"
                raise NotFoundError(
                    f"model {quoted(name)} has no label {quoted(label)}; its labels: {known}"
                )
            if not labels:
                raise NotFoundError(f"model {quoted(name)} has no version that is ready")
            version = labels[label or LATEST]
        entry = self.versions(name).get(version)
        if entry is None or entry.model is None:
            ready = ", ".join(str(n) for n, v in self.versions(name).items() if v.model) or "none"
            state = "no version" if entry is None else "failed to load version"
            raise NotFoundError(f"model {quoted(name)}: {state} {version}; served: {ready}")
        return entry.model

    def _names(self) -> str:
        names = [n for n in self.names() if any(v.model for v in self.versions(n).values())]
        more = f" and {len(names) - _NAMES_SHOWN} more" if len(names) > _NAMES_SHOWN else ""
        return f"served: {', '.join(names[:_NAMES_SHOWN]) or 'none'}{more}"

    def _put(self, name: str, number: int, version: Version) -> None:
        with self._changing:
            versions = dict(self._versions.get(name, {}))
            versions[number] = version
            self._versions = {**self._versions, name: dict(sorted(versions.items()))}
