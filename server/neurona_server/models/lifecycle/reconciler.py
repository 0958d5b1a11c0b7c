"""Keeps the loaded versions equal to what the repository and its settings ask for.

A new version is loaded and warmed up in a thread of a separate pool, while the current one keeps
serving; then it is published in one step, and the version that it replaces is drained and freed.
The repository is polled, since file events do not work on every volume that a container may be
given (NFS, ConfigMaps, object stores).
"""

import logging
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Protocol

from neurona_server.errors import (
    LoadError,
    NotFoundError,
    NotLoadedError,
    UnavailableError,
    printable,
    quoted,
)
from neurona_server.models.lifecycle.registry import ModelEntry, Registry
from neurona_server.models.lifecycle.versions import VersionSet
from neurona_server.models.model import Model
from neurona_server.models.repository.scanner import ModelFolder, ModelSource, Repository
from neurona_server.models.repository.settings import VersionPolicy
from neurona_server.telemetry.metrics import Metrics

log = logging.getLogger(__name__)

NOT_EXPLICIT = (
    "models cannot be loaded and unloaded by calls: this server loads the models of its "
    'repository (expected the option model_control = "explicit")'
)

LoadModel = Callable[[ModelSource], Model]
"""Makes a model that serves. Raises LoadError."""

FindRejection = Callable[[ModelSource], str]
"""Returns why a version must not be loaded, or ""; called in the threads that load."""


class Control(Protocol):
    """Loads and unloads models by name; both methods block until they are finished."""

    def load(self, name: str) -> None:
        """Load a model.

        Raises:
            NotFoundError: The repository has no such model.
            NotLoadedError: A version cannot be loaded.
            UnavailableError: The server is shutting down.
        """

    def unload(self, name: str) -> None:
        """Unload a model.

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

    explicit: bool = False
    """Load only the models that `load` is called for."""


class DrainPool:
    """Drains and frees models, each in a thread of its own; any thread may call it."""

    def __init__(self, timeout: float) -> None:
        self.timeout = timeout
        """Seconds in which a model may finish the requests that it has admitted."""

        self._threads: list[threading.Thread] = []
        self._lock = threading.Lock()

    def start_drains(self, models: Sequence[Model]) -> list[threading.Thread]:
        """Start draining, and return threads that end when all admitted requests are answered."""
        return [self._start_thread(f"drain {model}", self._drain, model) for model in models]

    def running_threads(self) -> list[threading.Thread]:
        with self._lock:
            return [thread for thread in self._threads if thread.is_alive()]

    def _drain(self, model: Model) -> None:
        if model.drain(self.timeout):
            self._close(model)
        else:
            log.warning(
                "%s: a run is still in flight after the drain; unloading once it has ended",
                model,
                extra=model.log_fields,
            )
            self._start_thread(f"late {model}", self._close, model)

    @staticmethod
    def _close(model: Model) -> None:
        model.wait()
        model.close()
        log.info("%s: unloaded", model, extra=model.log_fields)

    def _start_thread(
        self, name: str, target: Callable[[Model], None], model: Model
    ) -> threading.Thread:
        thread = threading.Thread(target=target, args=(model,), name=name, daemon=True)
        with self._lock:
            thread.start()
            self._threads = [other for other in self._threads if other.is_alive()] + [thread]
        return thread


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
        self._drains = DrainPool(self._options.drain_timeout)
        self._changed = threading.Condition()
        self._polling = threading.Lock()
        self._stopping = threading.Event()
        self._pool = ThreadPoolExecutor(self._options.threads, "load")
        self._poller: threading.Thread | None = None

    @property
    def requested(self) -> list[str]:
        """Names of the models that are loaded because `start` or `load` was called for them."""
        with self._changed:
            return sorted(self._requested)

    def start(self, requested: Sequence[str] = (), *, ignore_unknown: bool = False) -> list[str]:
        """Load the repository's models in parallel, and block until all loads have ended.

        Args:
            requested: Names of the models to load if models are loaded explicitly only.
            ignore_unknown: Do not fail if the repository has no such model.

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
            raise LoadError(f"there is no model {unknown[0]!r} in the repository")
        with self._changed:
            for name, folder in folders.items():
                self._observe(name, folder, eager=True)
            self._changed.wait_for(lambda: not any(v.loading for v in self._models.values()))
            return [
                f"{name}: {problem}"
                for name, versions in self._models.items()
                for problem in versions.problems()
            ]

    def start_polling(self, seconds: float) -> None:
        """Poll the repository from now on, in a thread of its own."""

        def poll() -> None:
            while not self._stopping.wait(seconds):
                self.poll_once()

        self._poller = threading.Thread(target=poll, name="poll", daemon=True)
        self._poller.start()

    def poll_once(self) -> None:
        """Scan the repository and start the loads that it asks for, without waiting for them.

        A model whose folder is missing in two polls in a row is unloaded.
        """
        with self._polling:
            folders = self._repository.scan_or_keep()
            if folders is None:
                return
            with self._changed:
                missing = self._models.keys() - folders.keys()
                for name in missing & self._missing:
                    self._observe(name, None)
                self._missing = set(missing)
                for name, folder in folders.items():
                    try:
                        self._observe(name, folder)
                    except Exception:  # one model must not keep the others from being updated
                        log.exception("%s: cannot be updated", name, extra={"model": name})

    def load(self, name: str) -> None:
        """Scan the model's folder and block until the versions that it asks for are loaded.

        Raises:
            NotFoundError: The repository has no such model.
            NotLoadedError: A version cannot be loaded; the versions loaded before keep serving.
            UnavailableError: The server is shutting down.
        """
        folder = self._repository.scan_model(name)
        with self._changed:
            self._requested.add(name)
            self._observe(name, folder, eager=True)
            versions = self._models[name]
            self._changed.wait_for(lambda: not versions.loading or self._stopping.is_set())
            problems = versions.problems()
            unloaded = name not in self._requested
        if self._stopping.is_set():
            raise UnavailableError("the server is shutting down")
        if unloaded:
            raise NotLoadedError(f"model {quoted(name)} was unloaded while it was loading")
        if problems:
            raise NotLoadedError(f"model {quoted(name)} cannot be loaded: {'; '.join(problems)}")

    def unload(self, name: str) -> None:
        """Unpublish the model and block until all requests that it has admitted are answered.

        Raises:
            NotFoundError: The model is not loaded.
        """
        with self._changed:
            versions = self._models.get(name)
            if versions is None or name not in self._requested:
                raise NotFoundError(f"model {quoted(name)} is not loaded")
            self._requested.discard(name)
            versions.observe(versions.folder, serve=False)
            drains = self._publish(name)
        for drain in drains:
            drain.join()

    def stop_loading(self) -> None:
        """Start no more loads and end the calls that wait for one; loaded models keep serving."""
        with self._changed:
            self._stopping.set()
            self._pool.shutdown(wait=False, cancel_futures=True)
            self._changed.notify_all()

    def stop(self, timeout: float) -> bool:
        """Drain all models.

        Returns:
            False if that took longer than `timeout` (seconds), or a load is still in progress.
        """
        end = time.monotonic() + timeout
        self.stop_loading()
        with self._changed:
            loading = any(versions.loading for versions in self._models.values())
        drained = not loading
        for model in self._registry.models():
            drained = model.drain(max(0.0, end - time.monotonic())) and drained
        for drain in self._drains.running_threads():
            drain.join(max(0.0, end - time.monotonic()))
        return drained and not self._drains.running_threads()

    def _observe(self, name: str, folder: ModelFolder | None, *, eager: bool = False) -> None:
        """Pass a model's folder to its versions, and start and publish what they decide."""
        if name not in self._models:
            if folder is None or not (folder.versions or folder.problem):
                return
            self._models[name] = VersionSet(name, self._options.policy)
        serve = not self._options.explicit or name in self._requested
        self._start_loads(name, self._models[name].observe(folder, serve=serve, eager=eager))
        problems = self._models[name].blocking_problems()
        for problem in problems:
            if problem not in self._logged_problems.get(name, ()):
                log.error("%s: %s", name, problem, extra={"model": name})
        self._logged_problems[name] = problems
        self._publish(name)

    def _start_loads(self, name: str, sources: Sequence[ModelSource]) -> None:
        if not self._stopping.is_set():
            for source in sources:
                self._metrics.loading.start_load(name, source.version)
                self._pool.submit(self._load_version, name, source)

    def _load_version(self, name: str, source: ModelSource) -> None:
        log.info("%s: loading", source, extra=source.log_fields)
        started = time.monotonic()
        model, reason = None, ""
        try:
            for find_rejection in self._find_rejections:
                if rejection := find_rejection(source):
                    raise LoadError(rejection)
            model = self._load_model(source)
        except LoadError as error:
            reason = printable(str(error))
            log.error("%s: failed to load: %s", source, reason, extra=source.log_fields)
        except Exception:  # one file must not keep the others from being served
            reason = "internal error; see the server's log"
            log.exception("%s: failed to load", source, extra=source.log_fields)
        seconds = time.monotonic() - started
        self._metrics.record_load(name, seconds, ok=model is not None)
        with self._changed:
            self._metrics.loading.finish_load(name, source.version)
            versions = self._models[name]
            if model is None:
                self._start_loads(name, versions.record_failure(source.version, reason))
            else:
                log.info(
                    "%s: ready on %s after %.2f s",
                    model,
                    model.provider,
                    seconds,
                    extra=source.log_fields,
                )
                self._start_loads(name, versions.record_loaded(source.version, model))
            self._publish(name)
            self._changed.notify_all()

    def _publish(self, name: str) -> list[threading.Thread]:
        """Publish the decisions of the model's versions, and return the drains that this starts."""
        versions = self._models[name]
        entry, surplus = versions.commit()
        if versions.is_removed:
            del self._models[name], self._published[name], self._logged_problems[name]
            self._registry.publish(name, None)
            self._metrics.forget_model(name)
        elif entry == self._published.get(name) and not surplus:
            return []
        else:
            self._published[name] = entry
            self._registry.publish(name, entry)
        self._on_change()
        return self._drains.start_drains(surplus)
