"""Keeps what is loaded equal to what the repository asks for, without a lost request.

A new version is loaded and warmed up in a thread of its own kind, beside what serves; then it
is published in one step, and what it replaces is drained and freed. The repository is polled:
unlike file events, that works on every volume a container may be given (NFS, ConfigMaps,
object stores).
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
from neurona_server.models.repository.scanner import Looks, ModelFolder, ModelSource, Repository
from neurona_server.models.repository.settings import VersionPolicy
from neurona_server.telemetry.metrics import Metrics

NOT_EXPLICIT = (
    'the server loads what its repository has; expected the option model_control = "explicit"'
)


log = logging.getLogger(__name__)


class Control(Protocol):
    """Loads and unloads models; both wait until it is done."""

    def load(self, name: str) -> None:
        """Raises NotFoundError, NotLoadedError, UnavailableError."""

    def unload(self, name: str) -> None:
        """Raises NotFoundError."""


@dataclass(frozen=True)
class ReconcilerOptions:
    policy: VersionPolicy = field(default_factory=VersionPolicy)
    """Of models whose settings name none."""

    threads: int = 2
    """Models that are loaded at the same time."""

    drain_timeout: float = 30.0
    """Seconds that a version which is replaced has for what it admitted."""

    explicit: bool = False
    """Only what `load` was called for is loaded."""


class DrainPool:
    """Each in a thread of its own; any thread may begin one."""

    def __init__(self, timeout: float) -> None:
        self.timeout = timeout
        """Seconds that a model has for what it admitted."""

        self._threads: list[threading.Thread] = []
        self._changing = threading.Lock()

    def begin(self, models: Sequence[Model]) -> list[threading.Thread]:
        """Threads that end when what the model admitted is answered."""
        return [self._start(f"drain {model}", self._drain, model) for model in models]

    def running(self) -> list[threading.Thread]:
        with self._changing:
            return [thread for thread in self._threads if thread.is_alive()]

    def _drain(self, model: Model) -> None:
        if model.drain(self.timeout):
            self._close(model)
        else:
            log.warning(
                "%s: a run of it goes on; it is unloaded when that ends",
                model,
                extra=model.log_fields,
            )
            self._start(f"late {model}", self._close, model)

    @staticmethod
    def _close(model: Model) -> None:
        model.wait()
        model.close()
        log.info("%s is unloaded", model, extra=model.log_fields)

    def _start(self, name: str, target: Callable[[Model], None], model: Model) -> threading.Thread:
        thread = threading.Thread(target=target, args=(model,), name=name, daemon=True)
        with self._changing:
            thread.start()
            self._threads = [one for one in self._threads if one.is_alive()] + [thread]
        return thread


Load = Callable[[ModelSource], Model]


class Reconciler:
    """`load` makes a model from its file: it raises LoadError, and is called in other threads."""

    def __init__(
        self,
        repository: Repository,
        registry: Registry,
        load: Load,
        metrics: Metrics,
        options: ReconcilerOptions | None = None,
        changed: Callable[[], None] = lambda: None,
    ) -> None:
        self._repository = repository
        self._registry = registry
        self._load = load
        self._metrics = metrics
        self._options = options or ReconcilerOptions()
        self._tell = changed
        self._models: dict[str, VersionSet] = {}
        self._published: dict[str, ModelEntry] = {}
        self._asked: set[str] = set()  # when explicit
        self._missing: set[str] = set()  # by the last look
        self._refused: dict[str, list[str]] = {}  # what the log has been told
        self._drains = DrainPool(self._options.drain_timeout)
        self._looks = Looks(repository)
        self._changed = threading.Condition()
        self._scanning = threading.Lock()
        self._stopping = threading.Event()
        self._pool = ThreadPoolExecutor(self._options.threads, "load")
        self._poller: threading.Thread | None = None

    def start(self, asked: Sequence[str] = ()) -> list[str]:
        """Loads what is there, in parallel, and waits for it; what was wrong, a line each.

        `asked` are the models to load when only those are loaded that somebody asks for.
        Raises LoadError when the repository cannot be read, or does not have one of `asked`.
        """
        folders = self._repository.scan()
        self._asked = set(asked)
        if unknown := sorted(self._asked - {n for n, folder in folders.items() if folder.versions}):
            raise LoadError(f"there is no model {unknown[0]!r} in the repository")
        with self._changed:
            for name, folder in folders.items():
                self._see(name, folder, eager=True)
            self._changed.wait_for(lambda: not any(v.loading for v in self._models.values()))
            return [
                f"{name}: {problem}"
                for name, versions in self._models.items()
                for problem in versions.problems()
            ]

    def start_polling(self, seconds: float) -> None:
        """Looks at the repository so often from now on, in a thread of its own."""

        def look() -> None:
            while not self._stopping.wait(seconds):
                self.poll_once()

        self._poller = threading.Thread(target=look, name="poll", daemon=True)
        self._poller.start()

    def poll_once(self) -> None:
        """One look at the repository; loads begin, and are not waited for."""
        with self._scanning:
            folders = self._looks.at_all()
            if folders is None:
                return
            with self._changed:
                missing = self._models.keys() - folders.keys()
                for name in missing & self._missing:
                    self._see(name, None)
                self._missing = set(missing)
                for name, folder in folders.items():
                    try:
                        self._see(name, folder)
                    except Exception:  # whatever one model does, the others are followed
                        log.exception("%s cannot be followed", name, extra={"model": name})

    def load(self, name: str) -> None:
        """Reads the model's folder and waits until all that it asks for is loaded.

        Raises NotFoundError when the repository has no such model, NotLoadedError when
        something cannot be loaded: what was loaded before serves on then.
        """
        folder = self._looks.at(name)
        with self._changed:
            self._asked.add(name)
            self._see(name, folder, eager=True)
            versions = self._models[name]
            self._changed.wait_for(lambda: not versions.loading or self._stopping.is_set())
            problems = versions.problems()
            unloaded = name not in self._asked
        if self._stopping.is_set():
            raise UnavailableError("the server is stopping")
        if unloaded:
            raise NotLoadedError(f"model {quoted(name)} was unloaded while it was loaded")
        if problems:
            raise NotLoadedError(f"model {quoted(name)} cannot be loaded: {'; '.join(problems)}")

    def unload(self, name: str) -> None:
        """Takes the model out, waits until what it admitted is answered. Raises NotFoundError."""
        with self._changed:
            versions = self._models.get(name)
            if versions is None or name not in self._asked:
                raise NotFoundError(f"model {quoted(name)} is not loaded")
            self._asked.discard(name)
            versions.see(versions.folder, serve=False)
            drains = self._publish(name)
        for drain in drains:
            drain.join()

    def stop_loading(self) -> None:
        """No load begins any more, and who waits for one is told so; what serves serves on."""
        with self._changed:
            self._stopping.set()
            self._pool.shutdown(wait=False, cancel_futures=True)
            self._changed.notify_all()

    def stop(self, timeout: float) -> bool:
        """Drains everything; False when it took longer than `timeout` (seconds), or a load is
        still under way."""
        end = time.monotonic() + timeout
        self.stop_loading()
        with self._changed:
            loading = any(versions.loading for versions in self._models.values())
        drained = not loading
        for model in self._registry.models():
            drained = model.drain(max(0.0, end - time.monotonic())) and drained
        for drain in self._drains.running():
            drain.join(max(0.0, end - time.monotonic()))
        return drained and not self._drains.running()

    def _see(self, name: str, folder: ModelFolder | None, *, eager: bool = False) -> None:
        if name not in self._models:
            if folder is None or not (folder.versions or folder.problem):
                return
            self._models[name] = VersionSet(name, self._options.policy)
        serve = not self._options.explicit or name in self._asked
        self._begin(name, self._models[name].see(folder, serve=serve, eager=eager))
        refused = self._models[name].refused()
        for problem in refused:
            if problem not in self._refused.get(name, ()):
                log.error("%s: %s", name, problem, extra={"model": name})
        self._refused[name] = refused
        self._publish(name)

    def _begin(self, name: str, found: Sequence[ModelSource]) -> None:
        if not self._stopping.is_set():
            for one in found:
                self._metrics.loading.start_load(name, one.version)
                self._pool.submit(self._load_one, name, one)

    def _load_one(self, name: str, found: ModelSource) -> None:
        log.info("loading %s", found, extra=found.log_fields)
        started = time.monotonic()
        model, reason = None, ""
        try:
            model = self._load(found)
        except LoadError as error:
            reason = printable(str(error))
            log.error("%s is not served: %s", found, reason, extra=found.log_fields)
        except Exception:  # whatever one file does, the others are served
            reason = "an internal error; the server's log says why"
            log.exception("%s is not served", found, extra=found.log_fields)
        seconds = time.monotonic() - started
        self._metrics.record_load(name, seconds, ok=model is not None)
        with self._changed:
            self._metrics.loading.finish_load(name, found.version)
            versions = self._models[name]
            if model is None:
                self._begin(name, versions.failed(found.version, reason))
            else:
                said = model, model.provider, seconds
                log.info("%s is ready on %s after %.2f s", *said, extra=found.log_fields)
                self._begin(name, versions.loaded(found.version, model))
            self._publish(name)
            self._changed.notify_all()

    def _publish(self, name: str) -> list[threading.Thread]:
        versions = self._models[name]
        entry, surplus = versions.settle()
        if versions.gone:
            del self._models[name], self._published[name], self._refused[name]
            self._registry.publish(name, None)
            self._metrics.forget_model(name)
        elif entry == self._published.get(name) and not surplus:
            return []
        else:
            self._published[name] = entry
            self._registry.publish(name, entry)
        self._tell()
        return self._drains.begin(surplus)
