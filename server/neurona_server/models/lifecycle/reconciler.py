"""Keeps the loaded versions equal to what the repository and its settings ask for.

A new version is loaded and warmed up in a thread of a separate pool, while the current one keeps
serving; then it is published in one step, and the version that it replaces is drained and freed.
The repository is polled, since file events do not work on every volume that a container may be
given (NFS, ConfigMaps, object stores).

It is one file since polls, calls, loads that end and loads that are given up change the same state
under one lock.
"""

import logging
import threading
import time
from collections.abc import Callable, Collection, Sequence, Set
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Protocol

from neurona_server.errors import (
    LoadError,
    NeuronaError,
    NotFoundError,
    NotLoadedError,
    UnavailableError,
    printable,
    quoted,
)
from neurona_server.models.lifecycle.drains import DrainPool, combine
from neurona_server.models.lifecycle.load_threads import LoadThreads, VersionLoad
from neurona_server.models.lifecycle.registry import ModelEntry, Registry
from neurona_server.models.lifecycle.versions import VersionSet
from neurona_server.models.load_cancellation import LoadCancellation
from neurona_server.models.model import Model
from neurona_server.models.repository.override import ModelOverride, UploadedModel
from neurona_server.models.repository.scanner import ModelFolder, ModelSource, Repository
from neurona_server.models.repository.settings import VersionPolicy
from neurona_server.telemetry.metrics import Metrics

log = logging.getLogger(__name__)

NOT_EXPLICIT = (
    "models cannot be loaded and unloaded by calls: this server loads the models of its "
    'repository (expected the option model_control = "explicit")'
)

MIN_SWEEP_SECONDS = 10.0
"""Interval in which names are forgotten that only calls load and unload."""

RELOAD_SECONDS, RELOAD_INTERVAL, RELOAD_POLLS = 10.0, 0.25, 3
"""A process that replaces another one may find a file that is being replaced: its load fails then.
It polls until the model can be served, or until so many polls in a row have found nothing new."""

INTERRUPTION = 1.0
"""Seconds that loads have to end at the stop."""

LoadModel = Callable[[ModelSource, LoadCancellation], Model]
"""Makes a model that serves. Raises LoadError, for example when it is cancelled."""

FindRejection = Callable[[ModelSource], str]
"""Returns why a version must not be loaded, or ""; called in the threads that load."""


class Control(Protocol):
    """Loads and unloads models by name."""

    def load(self, name: str, override: ModelOverride | None = None) -> Future[None]:
        """Start to load a model, with an `override` in place of what the repository has.

        Returns:
            A future that ends with the load; its exception may be a NotLoadedError (a version
            cannot be loaded) or an UnavailableError (the server is shutting down).

        Raises:
            NotFoundError: The repository has no such model.
            NotLoadedError: The repository cannot be read.
        """

    def unload(self, name: str) -> Future[None]:
        """Unload a model.

        Returns:
            A future that ends when all requests that it has admitted are answered.

        Raises:
            NotFoundError: The model is not loaded.
        """


@dataclass(frozen=True)
class ReconcilerOptions:
    policy: VersionPolicy = field(default_factory=VersionPolicy)
    """Policy for models whose settings have none."""

    threads: int = 2
    """Number of models that are loaded at the same time."""

    drain_timeout: float = 30.0
    """Seconds in which a replaced version may finish the requests that it has admitted."""

    session_drain: float = 60.0
    """Seconds for which such a version waits for its sessions before that."""

    load_timeout: float = 60.0
    """Seconds without progress after which a load is given up; 0: never."""

    explicit: bool = False
    """Load only the models that `load` is called for."""


class Reconciler:
    """Loads, publishes, drains and unloads versions, following the repository.

    Args:
        repository: What is on disk.
        registry: Where the versions that serve are published.
        load_model: Makes a model from its source; called in several threads.
        metrics: Where loads are recorded.
        options: Policy, threads and timeouts.
        on_change: Called after each change of the registry.
        find_rejections: Consulted before each load: a version that one of them rejects fails, and
            is tried again when its files change or a call requests it.
    """

    def __init__(
        self,
        repository: Repository,
        registry: Registry,
        load_model: LoadModel,
        metrics: Metrics,
        options: ReconcilerOptions | None = None,
        on_change: Callable[[], None] = lambda: None,
        find_rejections: Sequence[FindRejection] = (),
    ) -> None:
        self._repository = repository
        self._registry = registry
        self._load_model = load_model
        self._metrics = metrics
        self._options = options or ReconcilerOptions()
        self._on_change = on_change
        self._find_rejections = tuple(find_rejections)
        self._models: dict[str, VersionSet] = {}
        self._published: dict[str, ModelEntry] = {}
        self._requested: set[str] = set()  # models that `load` was called for
        self._missing: set[str] = set()  # models without a folder in the last poll
        self._logged_problems: dict[str, list[str]] = {}
        self._logged_warnings: dict[str, list[str]] = {}
        self._drains = DrainPool(self._options.drain_timeout, self._options.session_drain)
        self._changed = threading.Condition()
        self._polling = threading.Lock()
        self._stopping = threading.Event()
        self._threads = LoadThreads(
            self._options.threads,
            self._options.load_timeout,
            self._run_load,
            self._handle_timeout,
        )
        self._loads: dict[tuple[str, int], VersionLoad] = {}  # those whose result is awaited
        self._abandoned: dict[tuple[str, int], VersionLoad] = {}  # others whose thread still runs
        self._waiters: dict[str, list[Future[None]]] = {}  # of the calls of `load`
        self._uploads: dict[str, UploadedModel] = {}
        self._poller: threading.Thread | None = None

    @property
    def requested(self) -> list[str]:
        """Names of the models that are loaded because `start` or `load` was called for them."""
        with self._changed:
            return sorted(self._requested)

    @property
    def has_candidates(self) -> bool:
        """Whether the repository has a version that may be loaded, or a model that is broken."""
        with self._changed:
            folders = [versions.folder for versions in self._models.values()]
        return any(folder and (folder.versions or folder.problem) for folder in folders)

    def start(
        self,
        requested: Sequence[str] = (),
        *,
        ignore_unknown: bool = False,
        awaited: Collection[tuple[str, int]] | None = None,
    ) -> list[str]:
        """Load the repository's models in parallel, and block until all loads have ended.

        That includes loads that were given up at their time limit.

        Args:
            requested: Names of the models to load if models are loaded explicitly only.
            ignore_unknown: Do not fail if the repository has no such model.
            awaited: Versions to wait for, by model and number, or, if the repository has others of
                the model now, for one of these; None: wait for all.

        Returns:
            One line for each version that cannot be loaded.

        Raises:
            LoadError: The repository cannot be read, or has no such model.
        """
        folders = self._repository.scan()
        self._requested = set(requested)
        available = {name for name, folder in folders.items() if folder.versions}
        unknown = sorted(self._requested - available)
        if unknown and ignore_unknown:
            self._requested &= available
        elif unknown:
            raise LoadError(_describe_unknown(unknown[0], folders.get(unknown[0])))
        with self._changed:
            for name, folder in folders.items():
                self._observe(name, folder, eager=True)
            self._changed.wait_for(lambda: not self._is_start_pending(awaited))
        if awaited is not None and not self._options.explicit:
            self._load_again(awaited)
        with self._changed:
            return [
                f"{name}: {problem}"
                for name, versions in self._models.items()
                for problem in versions.problems()
            ]

    def _load_again(self, awaited: Collection[tuple[str, int]]) -> None:
        """Load what was served before, and failed now since its files were being replaced."""
        idle_polls, end = 0, time.monotonic() + RELOAD_SECONDS
        while idle_polls < RELOAD_POLLS and time.monotonic() < end:
            if not self._failed_of(awaited) or self._stopping.wait(RELOAD_INTERVAL):
                return
            self.poll_once()
            with self._changed:
                is_loading = any(one.loading for one in self._failed_of(awaited))
                idle_polls = 0 if is_loading else idle_polls + 1
                self._changed.wait_for(lambda: not self._is_start_pending(awaited))

    def _failed_of(self, awaited: Collection[tuple[str, int]]) -> list[VersionSet]:
        """Return those of the awaited models of which nothing can be served."""
        with self._changed:
            versions = [self._models[name] for name, _ in awaited if name in self._models]
            return [one for one in versions if not one.has_models]

    def start_all(self) -> list[str]:
        """Load all models of the repository as `start` does, also those that calls load.

        Returns:
            One line for each version that cannot be loaded.

        Raises:
            LoadError: The repository cannot be read.
        """
        folders = self._repository.scan()
        return self.start([name for name, folder in folders.items() if folder.versions])

    def _is_start_pending(self, awaited: Collection[tuple[str, int]] | None) -> bool:
        loading = {name: one.loading_numbers for name, one in self._models.items() if one.loading}
        has_models = any(versions.has_models for versions in self._models.values())
        if awaited is None or not (has_models or self._options.explicit):
            return bool(loading)  # without any model the server would be useless
        return any(
            number in loading[name] or not self._models[name].has_models
            for name, number in awaited
            if name in loading
        )

    def start_polling(self, seconds: float) -> None:
        """Poll the repository from now on, in a thread of its own."""
        if self._options.explicit:  # only to forget models
            seconds = max(seconds, MIN_SWEEP_SECONDS)

        def poll() -> None:
            while not self._stopping.wait(seconds):
                self.poll_once()

        self._poller = threading.Thread(target=poll, name="poll", daemon=True)
        self._poller.start()

    def poll_once(self) -> None:
        """Scan the repository and start the loads that it asks for, without waiting for them.

        A model whose folder is missing in two polls in a row is unloaded. If models are loaded
        explicitly only, it is just forgotten, unless it is loaded.
        """
        with self._polling:
            folders = self._repository.scan_or_keep()
            if folders is None:
                return
            with self._changed:
                missing = self._models.keys() - folders.keys()
                if self._options.explicit:
                    idle = {name for name in missing if not self._models[name].loading}
                    # The files of an upload are elsewhere.
                    missing_twice = (missing & self._missing) - self._uploads.keys()
                    self._forget_missing(idle | missing_twice)
                    folders = {}
                else:
                    for name in missing & self._missing:
                        self._observe(name, None)
                self._missing = set(missing)
                for name, folder in folders.items():
                    try:
                        self._observe(name, folder)
                    except Exception:  # one model must not keep the others from being updated
                        log.exception("%s: cannot be updated", name, extra={"model": name})
        self._answer_waiters()

    def load(self, name: str, override: ModelOverride | None = None) -> Future[None]:
        """Scan the repository and start to load the versions that the model's folder asks for.

        An `override` counts until the next load of the model.

        Returns:
            A future that ends with the loads. Its exception may be:
            NotLoadedError: A version cannot be loaded; the versions loaded before keep serving.
            UnavailableError: The server is shutting down.

        Raises:
            NotFoundError: The repository has no such model.
            NotLoadedError: The repository cannot be read, or the files of the override not stored.
        """
        folders = self._repository.scan_for_caller()
        folder, upload = folders.get(name), None
        if override is not None and override.files:
            upload = UploadedModel(name, override)
            folder = upload.scan()
        elif override is not None:
            folder = self._repository.scan_with_config(name, override.config)
        waiter: Future[None] = Future()
        with self._changed:
            idle = {n for n in self._models.keys() - folders.keys() if not self._models[n].loading}
            self._forget_missing(idle)
            if folder is None or not (folder.versions or folder.problem or folder.unusable):
                raise NotFoundError(f"the repository has no model {quoted(name)}")
            self._requested.add(name)
            self._waiters.setdefault(name, []).append(waiter)
            self._observe(name, folder, eager=True)
            self._replace_upload(name, upload)
        self._answer_waiters()
        return waiter

    def _replace_upload(self, name: str, upload: UploadedModel | None) -> None:
        """Keep the files that were given for a model, and delete those of its load before."""
        if previous := self._uploads.pop(name, None):
            previous.close()
        if upload is not None:
            self._uploads[name] = upload

    def unload(self, name: str) -> Future[None]:
        """Unpublish the model.

        Returns:
            A future that ends when all requests that the model has admitted are answered.

        Raises:
            NotFoundError: The model is not loaded.
        """
        with self._changed:
            versions = self._models.get(name)
            if versions is None or name not in self._requested:
                raise NotFoundError(f"model {quoted(name)} is not loaded")
            self._requested.discard(name)
            versions.observe(versions.folder, serve=False)
            self._cancel_unwanted(name, "the model was unloaded while it was loading")
            drains = self._publish(name)
            self._replace_upload(name, None)
        self._answer_waiters()
        return combine(drains)

    def reload(self, model: Model) -> None:
        """Start to load a version again, which may take another device: its own ones are lost.

        It stays published meanwhile, and if that fails.
        """
        with self._changed:
            if (versions := self._models.get(model.name)) is None:
                return
            self._start_loads(model.name, versions.reload(model.version, model))
            self._publish(model.name)

    def announce_change(self) -> None:
        """Call `on_change` for a change of a model itself, in order with all other changes."""
        with self._changed:
            self._on_change()

    def stop_loading(self) -> None:
        """End all loads and the calls that wait for one; loaded models keep serving."""
        with self._changed:
            self._stopping.set()
            for load in [*self._loads.values()]:
                self._give_up(load, "the server is shutting down")
            self._changed.notify_all()
        self._answer_waiters()

    def stop(self, timeout: float) -> bool:
        """Drain all models.

        Returns:
            False if that took longer than `timeout` (seconds), or a load is still in progress.
        """
        end = time.monotonic() + timeout
        self.stop_loading()
        self._drains.end_sessions("session ended: the server stops")
        drained = True
        for model in self._registry.models():
            drained = model.drain(max(0.0, end - time.monotonic())) and drained
        for drain in self._drains.running_threads():
            drain.join(max(0.0, end - time.monotonic()))
        drained = (
            self._threads.join(min(INTERRUPTION, max(0.0, end - time.monotonic()))) and drained
        )
        for name in [*self._uploads]:
            self._replace_upload(name, None)
        return drained and not self._drains.running_threads()

    def _observe(self, name: str, folder: ModelFolder | None, *, eager: bool = False) -> None:
        """Pass a model's folder to its versions, and start and publish what they decide."""
        if name not in self._models:
            if folder is None or not (folder.versions or folder.problem or folder.unusable):
                return
            self._models[name] = VersionSet(name, self._options.policy)
        serve = not self._options.explicit or name in self._requested
        sources = self._models[name].observe(folder, serve=serve, eager=eager)
        self._start_loads(name, sources)
        self._cancel_unwanted(name, "its files were changed or removed while it was loading")
        problems = self._models[name].blocking_problems()
        for problem in problems:
            if problem not in self._logged_problems.get(name, ()):
                log.error("%s: %s", name, problem, extra={"model": name})
        self._logged_problems[name] = problems
        logged = {f"{name}: {problem}" for problem in problems}
        warnings = [one for one in self._models[name].warnings() if one not in logged]
        for warning in warnings:
            if warning not in self._logged_warnings.get(name, ()):
                log.warning("%s", warning, extra={"model": name})
        self._logged_warnings[name] = warnings
        self._publish(name)

    def _forget_missing(self, names: Set[str]) -> None:
        """Forget models without a folder; one that is loaded serves until a call unloads it."""
        for name in names:
            if not self._models[name].has_models:
                self._requested.discard(name)
                self._observe(name, None)
                self._replace_upload(name, None)

    def _start_loads(self, name: str, sources: Sequence[ModelSource]) -> None:
        if self._stopping.is_set():
            return
        for source in sources:
            load = VersionLoad(source, self._abandoned.get((name, source.version)))
            self._loads[load.key] = load
            self._metrics.loading.start_load(name, source.version)
            self._threads.submit(load)

    def _cancel_unwanted(self, name: str, reason: str) -> None:
        versions = self._models[name]
        for number in versions.unwanted_loads():
            load = self._loads[name, number]
            log.info("%s: load cancelled: %s", load.source, reason, extra=load.source.log_fields)
            self._give_up(load, reason)
            self._start_loads(name, versions.record_cancelled(number))

    def _give_up(self, load: VersionLoad, reason: str) -> None:
        """Interrupt a load and expect no result of it."""
        del self._loads[load.key]
        if not load.ended.is_set():
            self._abandoned.setdefault(load.key, load)
        load.cancellation.cancel(reason)
        self._threads.abandon(load)
        self._metrics.loading.finish_load(*load.key)

    def _handle_timeout(self, load: VersionLoad) -> None:
        seconds = self._options.load_timeout
        reason = f"load timed out: no progress for {seconds:g} s (the option load_timeout_s)"
        with self._changed:
            if self._loads.get(load.key) is not load:
                return  # it has ended meanwhile
            self._give_up(load, reason)
            self._record_failure(load, reason, time.monotonic() - load.started)
        self._answer_waiters()

    def _run_load(self, load: VersionLoad) -> None:
        source = load.source
        log.info("%s: loading", source, extra=source.log_fields)
        model, reason, unexpected = None, "", None
        try:
            load.wait_for_previous()
            for find_rejection in self._find_rejections:
                if rejection := find_rejection(source):
                    raise LoadError(rejection)
            model = self._load_model(source, load.cancellation)
        except LoadError as error:
            reason = printable(str(error))
        except Exception as error:  # one file must not keep the others from being served
            reason, unexpected = "internal error; see the server's log", error
        seconds = time.monotonic() - load.started
        with self._changed:
            if self._abandoned.get(load.key) is load:
                del self._abandoned[load.key]
            if self._loads.get(load.key) is not load:  # it was given up
                if model is not None:
                    self._drains.start_drains([model])
                return
            del self._loads[load.key]
            self._metrics.loading.finish_load(*load.key)
            if model is None:
                self._record_failure(load, reason, seconds, unexpected)
            else:
                self._record_loaded(load, model, seconds)
        self._answer_waiters()

    def _record_failure(
        self, load: VersionLoad, reason: str, seconds: float, error: Exception | None = None
    ) -> None:
        name, number = load.key
        fields = load.source.log_fields
        log.error("%s: failed to load: %s", load.source, reason, extra=fields, exc_info=error)
        self._metrics.record_load(name, seconds, ok=False)
        self._start_loads(name, self._models[name].record_failure(number, reason))
        self._publish(name)
        self._changed.notify_all()

    def _record_loaded(self, load: VersionLoad, model: Model, seconds: float) -> None:
        name, number = load.key
        fields = load.source.log_fields
        gpus = ", ".join([device.label for device in model.devices if device.kind == "cuda"])
        where = f"{model.provider} ({gpus})" if gpus else model.provider
        log.info("%s: ready on %s after %.2f s", model, where, seconds, extra=fields)
        self._metrics.record_load(name, seconds, ok=True)
        self._start_loads(name, self._models[name].record_loaded(number, model))
        self._publish(name)
        self._changed.notify_all()

    def _answer_waiters(self) -> None:
        """End the futures of `load` whose loads have ended. Call it without holding the lock."""
        answers: list[tuple[Future[None], NeuronaError | None]] = []
        with self._changed:
            for name in [*self._waiters]:
                versions = self._models.get(name)
                if versions is None or not versions.loading or self._stopping.is_set():
                    error = self._load_outcome(name, versions)
                    answers += [(waiter, error) for waiter in self._waiters.pop(name)]
        for waiter, error in answers:
            if error is None:
                waiter.set_result(None)
            else:
                waiter.set_exception(error)

    def _load_outcome(self, name: str, versions: VersionSet | None) -> NeuronaError | None:
        if self._stopping.is_set():
            return UnavailableError("the server is shutting down")
        if versions is None or name not in self._requested:
            return NotLoadedError(f"model {quoted(name)} was unloaded while it was loading")
        if problems := versions.problems(misnamed=False):
            return NotLoadedError(f"load failed for model {quoted(name)}: {'; '.join(problems)}")
        return None

    def _publish(self, name: str) -> list[Future[None]]:
        """Publish the decisions of the model's versions, and return the drains that this starts."""
        versions = self._models[name]
        entry, surplus = versions.commit()
        if versions.is_removed:
            del self._models[name], self._logged_problems[name], self._logged_warnings[name]
            self._published.pop(name, None)
            self._registry.publish(name, None)
            self._metrics.forget_model(name)
        elif entry == self._published.get(name, ModelEntry()) and not surplus:
            return []
        else:
            self._published[name] = entry
            self._registry.publish(name, entry)
        self._on_change()
        return self._drains.start_drains(surplus)


def _describe_unknown(name: str, folder: ModelFolder | None) -> str:
    """Say why a model cannot be loaded that was requested at the start."""
    if folder is None or not (reasons := [entry.reason for entry in folder.unusable.values()]):
        return f"there is no model {name!r} in the repository"
    return f"model {name!r} cannot be loaded: {reasons[0]}"
