"""The versions of one model: what the disk has, what is wanted, what is loaded.

It decides and does nothing: the reconciler tells it what the disk has and how each load went,
and does what it says. The rules:

- A version is loaded beside what serves, and takes its place only when it is warm.
- What fails is left alone until its files change, and what served before serves on.
- Files that may still be on their way are loaded once two looks in a row have found them equal.
- The last version of a model stays while its folder is there, even if its files are gone.
"""

from dataclasses import dataclass, field, replace

from neurona_protos.prediction_pb2 import State
from neurona_server.models.lifecycle.registry import ModelEntry, ModelVersion
from neurona_server.models.lifecycle.traffic import Routing
from neurona_server.models.model import Model
from neurona_server.models.repository.scanner import (
    Fingerprint,
    ModelFolder,
    ModelSource,
    VersionFiles,
)
from neurona_server.models.repository.settings import ModelSettings, Traffic, VersionPolicy

GONE = "its files are gone from the repository; it serves on from memory"

Identity = tuple[Fingerprint, ModelSettings]
"""What a model was loaded from: the files and what was said of them, routing left out."""


@dataclass
class _VersionRecord:
    """What is known of one version."""

    model: Model | None = None
    identity: Identity | None = None
    """Of the model."""

    failed: Identity | None = None
    reason: str = ""
    loading: Identity | None = None
    seen: Identity | None = None
    """By the last look."""

    still: Identity | None = None
    """Found equal by two looks in a row, or believed at first sight."""


@dataclass
class VersionSet:
    """Of one model. Not thread-safe: the reconciler's lock guards it."""

    name: str
    policy: VersionPolicy
    """Unless the model's settings name one."""

    _held: dict[int, _VersionRecord] = field(default_factory=dict)
    _folder: ModelFolder | None = None
    _settings: ModelSettings = field(default_factory=ModelSettings)
    _serve: bool = False
    _wanted: set[int] = field(default_factory=set)
    _replaced: list[Model] = field(default_factory=list)
    _routing: Routing = field(default_factory=Routing)

    def see(
        self, folder: ModelFolder | None, *, serve: bool = True, eager: bool = False
    ) -> list[ModelSource]:
        """Takes in what the disk has now, and says what is to be loaded.

        `folder` is None when it is gone. `serve` is False when nobody asked for the model. When
        somebody is `eager`, files are believed to be complete at first sight, and what failed
        is tried again.
        """
        return self._see(folder, serve=serve, eager=eager)

    def _see(
        self, folder: ModelFolder | None, *, serve: bool, eager: bool = False, look: bool = True
    ) -> list[ModelSource]:
        """Without a `look`, what the last one found is gone through once more."""
        self._folder = folder
        self._serve = serve and folder is not None
        self._wanted = set()
        if eager or not self._serve:
            for held in self._held.values():
                held.failed, held.reason = None, ""
        if folder is None or not serve:
            return []
        if folder.problem:  # what serves stays as it is, until the settings can be read
            self._wanted = {n for n, held in self._held.items() if held.model}
            return []
        self._settings = folder.settings
        identities = {
            n: _identity(on_disk, folder.settings) for n, on_disk in folder.versions.items()
        }
        for number, identity in identities.items():
            held = self._held.setdefault(number, _VersionRecord())
            if identity == held.identity:  # what failed in its place is gone again
                held.failed, held.reason = None, ""
            if (problem := folder.versions[number].problem) and held.failed != identity:
                held.failed, held.reason = identity, problem
        self._wanted = self._choose(identities)
        for number, identity in identities.items():
            held = self._held[number]
            if look and (eager or held.seen == identity):
                held.still = identity
            held.seen = identity
        chosen = [n for n in sorted(self._wanted) if self._is_due(n, identities[n])]
        for number in chosen:
            self._held[number].loading = identities[number]
        return [folder.found(number) for number in chosen]

    def loaded(self, number: int, model: Model) -> list[ModelSource]:
        """What is to be loaded next: its files may have changed while they were loaded."""
        held = self._held[number]
        if held.model is not None:
            self._replaced.append(held.model)
        held.model, held.identity, held.loading = model, held.loading, None
        held.failed, held.reason = None, ""
        return self._see(self._folder, serve=self._serve, look=False)

    def failed(self, number: int, reason: str) -> list[ModelSource]:
        """What is to be loaded in its place: the next one that the policy chooses."""
        held = self._held[number]
        held.failed, held.loading, held.reason = held.loading, None, reason
        return self._see(self._folder, serve=self._serve, look=False)

    @property
    def folder(self) -> ModelFolder | None:
        return self._folder

    @property
    def loading(self) -> bool:
        return any(held.loading for held in self._held.values())

    @property
    def gone(self) -> bool:
        """Neither on disk nor in memory."""
        return self._folder is None and not self._held

    def settle(self) -> tuple[ModelEntry, list[Model]]:
        """What the name stands for from now on, and the models that it does not stand for any
        more: to be drained once the entry is published."""
        models = {n: held.model for n, held in self._held.items() if held.model}
        self._routing = self._routing.follow(self._settings, set(models))
        surplus, self._replaced = self._replaced, []
        for number in self._superfluous(set(models)):
            surplus.append(models.pop(number))
            self._held[number].model = None
            self._held[number].identity = None
        self._routing = self._routing.follow(self._settings, set(models))
        on_disk = self._folder.versions if self._folder else {}
        for number in [n for n, held in self._held.items() if n not in on_disk]:
            if not (self._held[number].model or self._held[number].loading):
                del self._held[number]
        known = {n: self._version(n) for n in sorted({*on_disk, *self._held})}
        self._routing.cast_shadow(known)
        return self._routing.entry(known), surplus

    def problems(self) -> list[str]:
        """What a person should look at, a line each."""
        if self._folder is not None and self._folder.problem:
            return [self._folder.problem]
        held = [(n, one) for n, one in sorted(self._held.items()) if one.failed]
        return [f"version {number}: {one.reason}" for number, one in held]

    def refused(self) -> list[str]:
        """What keeps versions that somebody wants from being tried at all, a line each."""
        if self._folder is None:
            return []
        if self._folder.problem:
            return [self._folder.problem]
        on_disk, said = self._folder.versions, self._folder.settings
        listed = said.versions.listed if said.versions else ()
        named = {*listed, *self._routing.asked(said)} - on_disk.keys()
        return [
            *(f"version {n}: {one.problem}" for n, one in on_disk.items() if one.problem),
            *(f"its settings name version {n}, which is not there" for n in sorted(named)),
        ]

    def _choose(self, identities: dict[int, Identity]) -> set[int]:
        """What the policy and the routing ask for, of those that may work."""
        usable = {
            n
            for n, identity in identities.items()
            if self._held[n].model or self._held[n].failed != identity
        }
        policy = self._settings.versions or self.policy
        return policy.choose(usable) | (self._routing.asked(self._settings) & usable)

    def _is_due(self, number: int, identity: Identity) -> bool:
        held = self._held[number]
        known = identity in (held.identity, held.failed)
        return not known and held.loading is None and held.still == identity

    def _superfluous(self, loaded: set[int]) -> set[int]:
        if not self._serve:
            return loaded
        if any(self._held[n].model is None for n in self._wanted):
            return set()  # what is to take their place is not there yet
        surplus = loaded - self._wanted - self._routing.in_use
        return surplus - {max(loaded)} if surplus == loaded and loaded else surplus

    def _version(self, number: int) -> ModelVersion:
        held = self._held.get(number, _VersionRecord())
        on_disk = self._folder is not None and number in self._folder.versions
        problem = self._folder.problem if self._folder else ""
        if held.model:
            reason = held.reason or problem or ("" if on_disk else GONE)
            return ModelVersion(held.model, reason)
        if held.loading:
            return ModelVersion(None, "", State.STATE_LOADING)
        if held.failed or problem:
            return ModelVersion(None, held.reason or problem, State.STATE_FAILED)
        return ModelVersion(None, "", State.STATE_UNLOADED)


def _identity(on_disk: VersionFiles, settings: ModelSettings) -> Identity:
    unrouted = replace(settings, versions=None, version_labels={}, traffic=Traffic(), ignored=())
    return on_disk.fingerprint, unrouted
