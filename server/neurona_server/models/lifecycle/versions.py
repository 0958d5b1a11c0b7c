"""The versions of one model: on disk, wanted and loaded.

`VersionSet` decides and has no side effects: the reconciler passes it the state of the disk and the
result of each load, and carries out its decisions. The rules:

- A version is loaded while the current one serves, and replaces it only when it is warmed up.
- A version that fails to load is not tried again until its files change; the loaded versions
  keep serving.
- Files that may still be being written are loaded once two polls in a row have found them equal;
  what is no version, too, is reported once two polls have found it equal.
- The last loaded version of a model stays while its folder exists, even without its files.
"""

from collections.abc import Container
from dataclasses import dataclass, field, replace

from neurona_protos.prediction_pb2 import State
from neurona_server.models.lifecycle.registry import ModelEntry, ModelVersion
from neurona_server.models.lifecycle.traffic import Routing
from neurona_server.models.model import Model
from neurona_server.models.repository.listing import Fingerprint
from neurona_server.models.repository.scanner import ModelFolder, ModelSource, VersionFiles
from neurona_server.models.repository.settings import ModelSettings, Traffic, VersionPolicy
from neurona_server.models.repository.unusable import (
    WHOLE_FOLDER,
    Unusable,
    is_version_name,
)

FILES_REMOVED = "its files are missing in the repository; the loaded version keeps serving"
FILE_REPLACED = "its file was replaced; it serves until the next version does"

Identity = tuple[Fingerprint, ModelSettings]
"""What a model is loaded from: its files and settings, except the settings for routing."""


@dataclass
class _VersionRecord:
    """State of one version."""

    model: Model | None = None
    loaded_identity: Identity | None = None
    """What `model` was loaded from."""

    failed_identity: Identity | None = None
    """What could not be loaded, for `reason`."""

    reason: str = ""
    loading_identity: Identity | None = None
    """What is being loaded."""

    has_served: bool = False

    last_identity: Identity | None = None
    """What the last poll found."""

    stable_identity: Identity | None = None
    """What two polls in a row found, or one that need not wait for a second."""

    def clear_failure(self) -> None:
        self.failed_identity, self.reason = None, ""


@dataclass
class VersionSet:
    """The versions of one model. Not thread-safe: the reconciler's lock guards it."""

    name: str
    policy: VersionPolicy
    """Policy if the model's settings have none."""

    _records: dict[int, _VersionRecord] = field(default_factory=dict)
    _folder: ModelFolder | None = None
    _settings: ModelSettings = field(default_factory=ModelSettings)
    _serve: bool = False
    _wanted: set[int] = field(default_factory=set)
    _last_unusable: dict[str, Unusable] = field(default_factory=dict)
    _unusable: dict[str, str] = field(default_factory=dict)  # reasons to report, by entry
    _replaced: list[Model] = field(default_factory=list)
    _routing: Routing = field(default_factory=Routing)

    def observe(
        self, folder: ModelFolder | None, *, serve: bool = True, eager: bool = False
    ) -> list[ModelSource]:
        """Record the state of the disk, and return the versions to load now.

        Args:
            folder: The model's folder, None if it does not exist any more.
            serve: False if the model is not requested.
            eager: Load files without waiting for a second poll, and retry failed versions.
        """
        unusable = dict(folder.unusable) if folder else {}
        self._unusable = {
            name: entry.reason
            for name, entry in unusable.items()
            if eager or name in self._unusable or self._last_unusable.get(name) == entry
        }
        self._last_unusable = unusable
        return self._decide(folder, serve=serve, eager=eager, polled=True)

    def record_loaded(self, number: int, model: Model) -> list[ModelSource]:
        """Return the versions to load next: files may have changed while they were loaded."""
        record = self._records[number]
        if record.model is not None:
            self._replaced.append(record.model)
        record.model, record.loaded_identity = model, record.loading_identity
        record.has_served = True
        record.loading_identity = None
        record.clear_failure()
        return self._decide(self._folder, serve=self._serve)

    def record_failure(self, number: int, reason: str) -> list[ModelSource]:
        """Return the version to load instead, which the policy chooses next."""
        record = self._records[number]
        record.failed_identity, record.reason = record.loading_identity, reason
        record.loading_identity = None
        return self._decide(self._folder, serve=self._serve)

    def reload(self, number: int, model: Model) -> list[ModelSource]:
        """Return the versions to load now since the device of a loaded model is lost."""
        record = self._records.get(number)
        if record is None or record.model is not model or record.loaded_identity is None:
            return []
        record.loaded_identity = None
        record.clear_failure()
        return self._decide(self._folder, serve=self._serve)

    def record_cancelled(self, number: int) -> list[ModelSource]:
        """Forget the load of a version, and return the versions to load instead."""
        self._records[number].loading_identity = None
        return self._decide(self._folder, serve=self._serve)

    def unwanted_loads(self) -> list[int]:
        """Return the versions whose load has become useless: their files changed or are gone."""
        if self._folder is not None and self._folder.problem and self._serve:
            return []
        on_disk = self._folder.versions if self._folder is not None and self._serve else {}
        return [
            number
            for number, record in self._records.items()
            if record.loading_identity
            and (
                number not in on_disk
                or record.stable_identity == record.last_identity != record.loading_identity
            )
        ]

    @property
    def folder(self) -> ModelFolder | None:
        return self._folder

    @property
    def loading(self) -> bool:
        return bool(self.loading_numbers)

    @property
    def loading_numbers(self) -> set[int]:
        return {n for n, record in self._records.items() if record.loading_identity}

    @property
    def has_models(self) -> bool:
        return any(record.model for record in self._records.values())

    @property
    def is_removed(self) -> bool:
        """Whether the model is neither on disk nor in memory."""
        return self._folder is None and not self._records

    def commit(self) -> tuple[ModelEntry, list[Model]]:
        """Return the entry to publish, and the models to drain once it is published."""
        models = {n: record.model for n, record in self._records.items() if record.model}
        self._routing = self._routing.update(self._settings, set(models))
        surplus, self._replaced = self._replaced, []
        for number in self._surplus(set(models)):
            surplus.append(models.pop(number))
            self._records[number].model = None
            self._records[number].loaded_identity = None
        self._routing = self._routing.update(self._settings, set(models))
        on_disk = self._folder.versions if self._folder else {}
        for number in self._records.keys() - on_disk.keys():
            record = self._records[number]
            if not (record.model or record.loading_identity):
                del self._records[number]
        versions = {n: self._version(n) for n in sorted({*on_disk, *self._records})}
        self._routing.attach_shadow(versions)
        entry = self._routing.build_entry(versions)
        return replace(entry, unusable=self._unusable_beside(versions)), surplus

    def problems(self, *, misnamed: bool = True) -> list[str]:
        """Return one line for each version that cannot be served, or one about the folder.

        Args:
            misnamed: Whether to include what has not the name of a version.
        """
        if self._folder is not None and self._folder.problem:
            return [self._folder.problem]
        failed = [(n, one) for n, one in sorted(self._records.items()) if one.failed_identity]
        unusable = self._unusable_beside(self._records)
        return [
            *(f"version {number}: {record.reason}" for number, record in failed),
            *(
                _unusable_line(name, reason)
                for name, reason in unusable.items()
                if misnamed or is_version_name(name) or not self.has_models
            ),
        ]

    def warnings(self) -> list[str]:
        """Return one line, for the log, for each thing that its owner may have meant otherwise."""
        notes = self._folder.notes if self._folder else ()
        unusable = self._unusable_beside(self._records)
        return [
            *(f"{self.name}{name and f'/{name}'}: {one}" for name, one in unusable.items()),
            *(f"{self.name}: {note}" for note in notes),
        ]

    def blocking_problems(self) -> list[str]:
        """Return one line for each wanted version that cannot even be tried."""
        if self._folder is None:
            return []
        if self._folder.problem:
            return [self._folder.problem]
        on_disk, settings = self._folder.versions, self._folder.settings
        listed = settings.versions.listed if settings.versions else ()
        missing = {*listed, *self._routing.required_versions(settings)} - on_disk.keys()
        return [
            *(f"version {n}: {files.problem}" for n, files in on_disk.items() if files.problem),
            *(f"its settings name version {n}, which does not exist" for n in sorted(missing)),
        ]

    def _decide(
        self,
        folder: ModelFolder | None,
        *,
        serve: bool,
        eager: bool = False,
        polled: bool = False,
    ) -> list[ModelSource]:
        """Decide which versions are wanted and loaded; `polled` if `folder` is a new scan."""
        self._folder = folder
        self._serve = serve and folder is not None
        self._wanted = set()
        if eager or not self._serve:
            for record in self._records.values():
                record.clear_failure()
        if folder is None or not serve:
            return []
        if folder.problem:  # the loaded versions stay until the settings can be read
            self._wanted = {n for n, record in self._records.items() if record.model}
            return []
        self._settings = folder.settings
        identities = {n: _identity(files, folder.settings) for n, files in folder.versions.items()}
        for number, identity in identities.items():
            record = self._records.setdefault(number, _VersionRecord())
            if identity == record.loaded_identity:  # the files that failed were replaced
                record.clear_failure()
            problem = folder.versions[number].problem
            if problem and record.failed_identity != identity:
                record.failed_identity, record.reason = identity, problem
        self._wanted = self._choose(identities)
        for number, identity in identities.items():
            record = self._records[number]
            if polled and (eager or record.last_identity == identity):
                record.stable_identity = identity
            record.last_identity = identity
        due = [n for n in sorted(self._wanted) if self._is_due(n, identities[n])]
        for number in due:
            self._records[number].loading_identity = identities[number]
        return [folder.source(number) for number in due]

    def _choose(self, identities: dict[int, Identity]) -> set[int]:
        """Return the versions that policy and routing ask for, of those that may be usable."""
        usable = {
            n
            for n, identity in identities.items()
            if self._records[n].model or self._records[n].failed_identity != identity
        }
        policy = self._settings.versions or self.policy
        return policy.choose(usable) | (self._routing.required_versions(self._settings) & usable)

    def _is_due(self, number: int, identity: Identity) -> bool:
        record = self._records[number]
        tried = identity in (record.loaded_identity, record.failed_identity)
        return not tried and record.loading_identity is None and record.stable_identity == identity

    def _surplus(self, loaded: set[int]) -> set[int]:
        """Return the loaded versions that can be unloaded."""
        if not self._serve:
            return loaded
        if any(self._records[n].model is None for n in self._wanted):
            return set()  # their replacements are not loaded yet
        surplus = loaded - self._wanted - self._routing.versions_in_use
        return surplus - {max(loaded)} if surplus == loaded and loaded else surplus

    def _unusable_beside(self, versions: Container[int]) -> dict[str, str]:
        """Return what is no version and why, except what the versions' own reasons say."""
        if self._folder is not None and self._folder.problem:
            return {WHOLE_FOLDER: self._folder.problem} if not self._folder.versions else {}
        return {
            name: reason
            for name, reason in self._unusable.items()
            if not (is_version_name(name) and int(name) in versions)
            and not (name == WHOLE_FOLDER and self.has_models)
        }

    def _version(self, number: int) -> ModelVersion:
        record = self._records.get(number, _VersionRecord())
        on_disk = self._folder is not None and number in self._folder.versions
        problem = self._folder.problem if self._folder else ""
        if record.model:
            replaced = (
                self._folder is not None
                and self._folder.single_file
                and bool(self._folder.versions)
            )
            missing = FILE_REPLACED if replaced else FILES_REMOVED
            reason = (
                record.reason or problem or record.model.lost_reason or ("" if on_disk else missing)
            )
            return ModelVersion(record.model, reason)
        if record.loading_identity:
            return ModelVersion(None, "", State.STATE_LOADING)
        if record.failed_identity or problem:
            return ModelVersion(None, record.reason or problem, State.STATE_FAILED)
        return ModelVersion(None, "", State.STATE_UNLOADED, has_served=record.has_served)


def _unusable_line(name: str, reason: str) -> str:
    return f"version {name}: {reason}" if is_version_name(name) else reason


def _identity(files: VersionFiles, settings: ModelSettings) -> Identity:
    unrouted = replace(settings, versions=None, version_labels={}, traffic=Traffic(), ignored=())
    return files.fingerprint, unrouted
