"""The composition root of neurona-serve, which makes, starts and stops its parts in order.

It is one file since nothing else may know all of the parts.
"""

import gc
import importlib.metadata
import logging
import os
import platform
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry

from neurona_server.address import UNIX, is_local
from neurona_server.batching.device_scheduler import DeviceScheduler
from neurona_server.batching.policy import BatchPolicy
from neurona_server.batching.watchdog import RunWatchdog
from neurona_server.config.options import Config
from neurona_server.config.sources import installed_version
from neurona_server.errors import ConfigError, LoadError
from neurona_server.models.arena_maintenance import ArenaMaintenance
from neurona_server.models.lifecycle.lost_devices import LostDevices
from neurona_server.models.lifecycle.reconciler import Reconciler, ReconcilerOptions
from neurona_server.models.lifecycle.registry import Registry
from neurona_server.models.load_cancellation import LoadCancellation
from neurona_server.models.load_check.checked_files import CheckedFiles
from neurona_server.models.load_check.checker import LoadChecker
from neurona_server.models.load_check.load_marks import LoadMarks, withdraw_marks
from neurona_server.models.model import Model
from neurona_server.models.model_options import INLINE_MODES, ModelOptions
from neurona_server.models.onnx.device_shares import DeviceShare, claim_slice
from neurona_server.models.onnx.devices import CPU_DEVICE, CUDA_SLOTS, FIRST
from neurona_server.models.onnx.gpu_facts import runtime_packages
from neurona_server.models.onnx.graph_cache import default_cache_folder, make_private_folder
from neurona_server.models.onnx.provider_options import check_server_options
from neurona_server.models.onnx.runtime import (
    CPU,
    DEFAULT_PROVIDERS,
    THREADS_PER_CPU,
    RuntimeOptions,
    check_options,
    report_gpu,
    runtime_version,
)
from neurona_server.models.onnx.session import has_abandoned_sessions
from neurona_server.models.repository.file_versions import FileVersions
from neurona_server.models.repository.scanner import ModelSource, Repository
from neurona_server.models.repository.settings import VersionPolicy
from neurona_server.models.repository.single_files import check_given
from neurona_server.resources import available_cpus
from neurona_server.rpc.call import Methods
from neurona_server.rpc.control_calls import ControlCalls
from neurona_server.rpc.health import SERVING, Health
from neurona_server.rpc.image_workers import ImageWorkers
from neurona_server.rpc.limits import Limits
from neurona_server.rpc.open_inference.service import SERVICE as OPEN_INFERENCE
from neurona_server.rpc.open_inference.service import OpenInference
from neurona_server.rpc.reflection import Reflection
from neurona_server.rpc.security.tls import Certificates
from neurona_server.rpc.security.tokens import Access
from neurona_server.rpc.sessions import SessionLimits, SessionStore
from neurona_server.rpc.transports.auto import open_transport
from neurona_server.rpc.transports.heartbeat import Heartbeat
from neurona_server.rpc.transports.listener import (
    ListenerOptions,
    buffer_limit,
    connection_limits,
)
from neurona_server.rpc.v1.models import Models
from neurona_server.rpc.v1.prediction import Prediction
from neurona_server.rpc.v1.sessions import Sessions
from neurona_server.rpc.worker_pool import WorkerPool
from neurona_server.start_text import ServedAddresses, write_start_text
from neurona_server.telemetry import logs
from neurona_server.telemetry.device_metrics import DeviceInfo
from neurona_server.telemetry.metrics import Metrics
from neurona_server.telemetry.run_journal import JournalEntry, ModelKey, RunJournal, files_digest
from neurona_server.telemetry.span_exporter import Tracing, set_up_tracing
from neurona_server.web import endpoints
from neurona_server.web.metrics_server import MetricsServer

if TYPE_CHECKING:  # imported once they are needed: some servers have no HTTP, and start sooner
    from neurona_server.http.playground.pages import ServerFacts
    from neurona_server.http.transport import HttpTransport

log = logging.getLogger(__name__)

PREDICTION = "neurona.v1.Prediction"
"""The service whose health is that of the whole server, whatever becomes of its models."""

CHECK_STOP_SECONDS = 5.0
"""Time for the models to be unloaded that were loaded to be checked."""

SPAN_FLUSH_SECONDS = 2.0
"""Time at the stop for the last spans to reach their collector."""


@dataclass(frozen=True)
class Supervision:
    """What a server has from the supervisor that started it."""

    process: int | None
    """Number of this process, if it is one of several."""
    journal: RunJournal
    quarantine: Mapping[ModelKey, str]
    """Models not to load, and why."""
    requested_models: Sequence[str] | None = None
    """The models that calls had loaded in the process before this one, if there was one."""
    served_versions: Sequence[tuple[str, int]] | None = None
    """All that it served, by model and number. The start waits for these alone: a file that has
    come since, and whose load may never end, must not keep them from being served again."""
    file_versions: FileVersions | None = None
    """Numbers the versions of single files for all processes."""
    request_replacement: Callable[[], object] = lambda: None
    """Requests a new process in place of this one, which cannot use any GPU any more."""


class App:
    """The parts of a server, which it starts and stops.

    `start` sets up metrics, loads and warms up the models, listens, and sets health to SERVING.
    `stop` sets it to NOT_SERVING, drains, closes, and stops the metrics last.
    """

    def __init__(self, config: Config, supervision: Supervision | None = None) -> None:
        """Make the parts without starting them.

        Args:
            config: The options.
            supervision: What its supervisor has passed to it, if it has one.

        Raises:
            ConfigError: An option does not suit this machine, or a file that it names is invalid.
        """
        self._config = config
        self._supervision = supervision
        # With auto_describe the registry knows the names of each collector, so that reading some
        # metrics does not collect all.
        self.registry = CollectorRegistry(auto_describe=True)
        self._metrics = Metrics(self.registry)
        self._registry = Registry()
        self._metrics.watch_versions(self._registry.version_infos)
        self._metrics.watch_devices(self._list_devices)
        self._metrics.watch_process(triton_metrics=config.triton_metrics)
        self._metrics.build.labels(*_installed_versions()).set(1)
        self._health = Health()
        self._metrics.serving.set_function(self._is_serving)
        process = supervision.process if supervision else None
        self._tracing = _make_tracing(config, self._metrics, process)
        self._watchdog = RunWatchdog()
        self._metrics.watch_stalls(self._watchdog.stalls.rates)
        self._serving = threading.Event()
        self._reconciler = self._make_reconciler()
        limits = Limits(
            config.max_request_tensors, config.max_request_rows, config.max_message_bytes
        )
        explicit = config.model_control == "explicit"
        control = ControlCalls(self._reconciler) if explicit else None
        options = _listener_options(config, self._metrics, self._tracing)
        self._workers = workers = WorkerPool(ImageWorkers(config.max_image_pixels))
        self._sessions = SessionStore(
            SessionLimits(config.max_sessions, config.session_idle_timeout_s)
        )
        methods = {
            **Prediction(self._registry, self._metrics, limits, workers).methods(),
            **Sessions(self._registry, self._metrics, self._sessions, limits, workers).methods(),
            **Models(self._registry, control, options.progress).methods(),
            **OpenInference(
                self._registry,
                self._metrics,
                self._is_ready,
                control=control,
                versions=VersionPolicy.parse(config.versions),
                shared_memory=config.shared_memory,
                typed_responses=config.typed_responses,
                limits=limits,
                workers=workers,
                sessions=self._sessions,
            ).methods(),
            **self._health.methods(),
        }
        methods |= Reflection(methods).methods()
        if supervision is not None:
            options = replace(options, reuse_port=True)
        self._listener = open_transport(config.transport, methods, options)
        self._make_http = partial(self._make_http_transport, methods, workers, limits, options)
        self._http: HttpTransport | None = None
        self._maintenance = ArenaMaintenance(self._registry.models, config.shrink_seconds)
        self._metrics.watch_connections(self._listener.guard)
        self._heartbeat = Heartbeat(self._have_turned, self._set_hung)
        self._hung_reason, self._hung_since = "", 0.0
        self._close_metrics: Callable[[], None] = lambda: None
        self._metrics_address: str = config.metrics_address
        self._stopping = False
        self.grpc_port = 0
        """The port of the first address, once it has started."""
        self.http_port = 0
        """That of HTTP, 0 without one."""
        self.metrics_port = 0
        """That of the metrics, 0 without one."""

    def start(self, *, owns_process: bool = True) -> None:
        """Load the models and serve.

        Args:
            owns_process: Whether the process does nothing else: its garbage collector is tuned.

        Raises:
            LoadError: There is no model to serve, or strict is true and one cannot be served.
            ConfigError: An address is in use.
        """
        if self._supervision is None:  # else the supervisor serves the metrics of all
            self._serve_metrics()
        if len(packages := runtime_packages()) > 1:
            log.warning(
                "%s are installed over each other (expected one: uninstall all, then install one)",
                " and ".join(packages),
            )
        if self._supervision is None or self._supervision.served_versions is None:
            check_given(self._config.files)
        self._watchdog.start()
        self._load_models()
        self._metrics.transport.labels(self._listener.name).set(1)
        if owns_process:
            # What exists now lives until the end: garbage collections need not visit it again.
            gc.collect()
            gc.freeze()
        if self._config.http_address:
            self._http = self._make_http()
        self.grpc_port = self._listener.start(self._config.address)
        if self._http is not None:
            self._http.start()
            self.http_port = self._http.port
        self._heartbeat.start()
        self._maintenance.start()
        self._serving.set()
        self._update_health()
        if self._config.model_control != "none":
            self._reconciler.start_polling(self._config.poll_ms / 1000)
        log.info("serving gRPC on %s (port %d)", self._config.address, self.grpc_port)
        if self._http is not None:
            scheme = "https" if self._config.tls_certificate else "http"
            host = self._config.http_address.rpartition(":")[0]
            log.info("serving HTTP on %s://%s:%d/", scheme, host, self._http.port)

    def stop(self) -> bool:
        """Drain and stop.

        Returns:
            False if a run or the transport did not end within drain_timeout_ms.
        """
        self._stopping = True
        self._serving.clear()
        self._health.stop()
        log.info("shutting down: health set to NOT_SERVING")
        if self._http is not None:
            self._http.announce_stop()
        time.sleep(self._config.drain_delay_ms / 1000)
        deadline = time.monotonic() + self._config.drain_timeout_ms / 1000
        withdraw_marks()
        self._heartbeat.stop()
        self._maintenance.stop()
        self._reconciler.stop_loading()  # or a call waiting for a load would delay the transport
        # The transport stops before the models, so that accepted requests still get responses.
        drained = self._stop_transports(deadline)
        self._sessions.stop()
        drained = self._reconciler.stop(max(0.0, deadline - time.monotonic())) and drained
        if drained:  # else a run that ends later may still have a task for them
            self._workers.close()
        if self._tracing is not None:
            self._tracing.close(SPAN_FLUSH_SECONDS)
        self._watchdog.stop()
        self._close_metrics()
        log.info("stopped")
        return drained

    def _stop_transports(self, deadline: float) -> bool:
        """Stop both transports at the same time; return False if one is hung."""

        def stop(stop_one: Callable[[float], bool]) -> bool:
            return stop_one(max(0.0, deadline - time.monotonic()))

        if self._http is None:
            return stop(self._listener.stop)
        http, http_stopped = self._http, threading.Event()

        def stop_http() -> None:
            if stop(http.stop):
                http_stopped.set()

        thread = threading.Thread(target=stop_http, name="stopping", daemon=True)
        try:
            thread.start()
        except RuntimeError:  # the interpreter is about to end, and starts no threads
            return stop(self._listener.stop) and stop(http.stop)
        grpc_stopped = stop(self._listener.stop)
        thread.join()
        return http_stopped.is_set() and grpc_stopped

    def _have_turned(self) -> bool:
        """Return whether the threads of both transports have turned since the last call."""
        http_turned = self._http is None or self._http.has_turned()
        return self._listener.has_turned() and http_turned

    def _make_http_transport(
        self, methods: Methods, workers: WorkerPool, limits: Limits, options: ListenerOptions
    ) -> "HttpTransport":
        from neurona_server.http.neurona_api import neurona_routes
        from neurona_server.http.open_inference.rest_routes import open_inference_routes
        from neurona_server.http.openapi import openapi_route
        from neurona_server.http.playground.pages import disabled_routes, playground_routes
        from neurona_server.http.transport import HttpOptions, HttpTransport

        config = self._config
        http_options = HttpOptions(
            config.http_address,
            config.http_hosts,
            max_message_bytes=config.max_message_bytes,
            access=options.access,
            make_tls_context=options.certificates.http_context if options.certificates else None,
            on_reject=self._metrics.record_rejection,
            reuse_port=options.reuse_port,
            tracer=options.tracer,
        )
        api = [
            *neurona_routes(methods, self.state),
            *open_inference_routes(methods, self._registry, limits),
        ]
        pages = playground_routes(self._page_facts()) if config.playground else disabled_routes()
        routes = [*api, openapi_route(api), *pages]
        return HttpTransport(methods, routes, self._listener.budget, workers, http_options)

    def _page_facts(self) -> "ServerFacts":
        """Return what the playground says of this server to everybody who opens it."""
        from neurona_server.http.openapi import PATH as OPENAPI_PATH
        from neurona_server.http.playground.pages import ServerFacts, server_port

        config = self._config
        has_tls = bool(config.tls_certificate)
        tcp = [one for one in config.address.split(",") if not one.startswith(UNIX)]
        return ServerFacts(
            grpc=server_port(tcp[0], self.grpc_port, tls=has_tls) if tcp else None,
            metrics=server_port(self._metrics_address, self.metrics_port),
            tokens=bool(config.tokens_file),
            version="" if config.tokens_file else installed_version(),
            openapi=OPENAPI_PATH,
        )

    def start_text(self) -> str:
        """Return what a person wants to know of the server once it has started."""
        config = self._config
        http = ""
        if self._http is not None:
            http = f"{config.http_address.rpartition(':')[0]}:{self._http.port}"
        grpc_address = config.address.partition(",")[0]
        if not grpc_address.startswith(UNIX):
            grpc_address = f"{grpc_address.rpartition(':')[0]}:{self.grpc_port}"
        addresses = ServedAddresses(
            grpc_address,
            http,
            # Of port 0, only the supervisor knows which port it has.
            "" if self._metrics_address.endswith(":0") else self._metrics_address,
            certificate=config.tls_certificate,
            has_tokens=bool(config.tokens_file),
            has_playground=config.playground,
        )
        return write_start_text(self._registry, addresses)

    def check_models(self) -> tuple[list[Model], list[str]]:
        """Load all models without serving them, and unload them again.

        Returns:
            The models that can be served, and a line for each fault.

        Raises:
            LoadError: A repository cannot be read, or what was named cannot be served.
        """
        check_given(self._config.files)
        self._watchdog.start()
        try:
            problems = self._reconciler.start_all()
            models = [*self._registry.models()]
            faults = [f"{model}: degraded: {model.degraded}" for model in models if model.degraded]
            return models, [*problems, *faults]
        finally:
            self._reconciler.stop(CHECK_STOP_SECONDS)
            self._watchdog.stop()

    def state(self) -> str:
        """Return STARTING, SERVING or NOT_SERVING, which a reason may follow."""
        if self._is_serving():
            return endpoints.SERVING
        if self._hung_reason:
            return f"{endpoints.NOT_SERVING}: {self._hung_reason}"
        return endpoints.NOT_SERVING if self._stopping else endpoints.STARTING

    def requested_models(self) -> Sequence[str]:
        """Return the models that calls have loaded; none if models are not loaded explicitly."""
        return self._reconciler.requested if self._config.model_control == "explicit" else ()

    def served_versions(self) -> Sequence[tuple[str, int]]:
        """Return the versions that are loaded, by model and number."""
        return sorted((model.name, model.version) for model in self._registry.models())

    def stalled_seconds(self) -> float:
        """Return the seconds since the transport counts as hung, 0.0 if it does not."""
        return time.monotonic() - self._hung_since if self._hung_reason else 0.0

    def _is_serving(self) -> bool:
        return self._health.state(PREDICTION) == SERVING

    def _is_ready(self) -> bool:
        return self._health.state("") == SERVING

    def _are_models_ready(self) -> bool:
        """Return whether the models let the server be ready, by the option strict_readiness."""
        if not self._config.strict_readiness:
            return True
        failed = set(self._registry.failed_names())
        if self._config.model_control == "explicit":  # the others are not to be loaded
            failed &= set(self._reconciler.requested)
        return not failed

    def _set_hung(self, reason: str) -> None:
        """Note that the transport is hung or, without a reason, that it turns again."""
        self._hung_since = time.monotonic()
        self._hung_reason = reason
        self._health.set_hung(hung=bool(reason))

    def _serve_metrics(self) -> None:
        address = self._config.metrics_address
        if not address:
            return
        server = MetricsServer(
            address,
            self.registry,
            self.state,
            self.registry.restricted_registry,
            hosts=self._config.metrics_hosts,
        )
        self._close_metrics = server.close
        self.metrics_port = server.port
        self._metrics_address = f"{address.rpartition(':')[0]}:{server.port}"
        log.info("metrics on http://%s:%d/", address.rpartition(":")[0], server.port)

    def _load_models(self) -> None:
        requested = self._supervision.requested_models if self._supervision else None
        if requested is None:
            problems = self._reconciler.start(self._config.load_model)
        else:
            awaited = self._supervision.served_versions if self._supervision else None
            problems = self._reconciler.start(requested, ignore_unknown=True, awaited=awaited)
        if self._supervision and self._supervision.quarantine:
            return  # it has started before: what can be served is better than nothing
        if self._config.strict and problems:
            raise LoadError(f"strict is true and a model cannot be served: {_first_of(problems)}")
        if self._registry.models() or self._config.model_control == "explicit":
            return
        if problems and self._reconciler.has_candidates:
            raise LoadError(f"none of the models can be served: {_first_of(problems)}")
        single_models = [f"{name}={folder}" for name, folder in self._config.model]
        named = [*self._config.files, *self._config.repository]
        searched = ", ".join([*map(str, named), *single_models])
        layout = "model.onnx" if single_models else "<name>/<version>/model.onnx"
        detail = f": {_first_of(problems)}" if problems else ""
        raise LoadError(f"no model in {searched} (expected {layout}){detail}")

    def _make_reconciler(self) -> Reconciler:
        config = self._config
        process = (self._supervision and self._supervision.process) or 0
        share = DeviceShare(process, config.processes) if config.split_devices else DeviceShare()
        options = _model_options(config, self._tracing, share)
        # Two concurrent runs keep a device busy; on the CPU more if each takes only some of them.
        cpu_slots = max(2, _cpus_per_process(config) // options.runtime.threads)
        scheduler = DeviceScheduler(CUDA_SLOTS, {CPU_DEVICE.label: cpu_slots})
        on_last = self._supervision.request_replacement if self._supervision else lambda: None
        self._lost_devices = LostDevices(scheduler, self._registry, self._metrics, on_last, share)
        self._scheduler = scheduler

        folder = _open_load_folder(options.runtime.cache)
        marks = LoadMarks(folder) if folder else None
        checker = None
        if config.load_check and os.name == "posix":
            checker = LoadChecker(config.load_timeout_s, CheckedFiles(folder) if folder else None)

        def load(source: ModelSource, cancellation: LoadCancellation) -> Model:
            def start(entry: JournalEntry | None) -> Model:
                model = Model(
                    source, options, self._metrics, scheduler, self._watchdog, cancellation, entry
                )
                try:
                    model.start()
                except BaseException:  # no thread may keep running
                    model.close()
                    raise
                return model

            if checker is not None:
                checker.check(source, options, cancellation)
            with marks.mark(source, cancellation) if marks else nullcontext():
                if self._supervision is None:
                    return start(None)
                return self._supervision.journal.load(_model_key(source), start)

        reconciler = Reconciler(
            Repository(
                config.repository,
                config.model,
                config.files,
                self._supervision.file_versions if self._supervision else None,
            ),
            self._registry,
            load,
            self._metrics,
            _reconciler_options(config),
            self._update_health,
            find_rejections=[self._find_quarantine, *([marks.find_rejection] if marks else [])],
        )
        self._lost_devices.start(reconciler)
        return reconciler

    def _list_devices(self) -> list[DeviceInfo]:
        """List the GPUs that models are loaded on."""
        loaded = {device for model in self._registry.models() for device in model.devices}
        infos = []
        for device in sorted(loaded - {CPU_DEVICE}, key=lambda device: device.label):
            use = self._scheduler.use(device.label)
            in_progress = use.slots - use.free_slots
            infos.append(DeviceInfo(device.label, device.name, device.uuid, in_progress))
        return infos

    def _find_quarantine(self, source: ModelSource) -> str:
        if self._supervision is None or not self._supervision.quarantine:
            return ""
        return self._supervision.quarantine.get(_model_key(source), "")

    def _update_health(self) -> None:
        """Set the health of each service name: the server, its services, models and versions."""
        if not self._serving.is_set():
            return
        self._lost_devices.recheck()
        names = {"": self._are_models_ready(), PREDICTION: True, "neurona.v1.Models": True}
        names[OPEN_INFERENCE] = True
        for name in self._registry.names():
            versions = self._registry.entry(name).versions
            names |= {f"{name}/{n}": version.serves for n, version in versions.items()}
            names[name] = any(version.serves for version in versions.values())
        models = self._registry.models()
        if self._lost_devices.any:
            names["gpu"] = False
        elif any(model.degraded or model.provider != CPU for model in models):  # a GPU is in play
            names["gpu"] = not any(model.degraded for model in models)
        self._health.replace(names)
        if not self._serving.is_set():  # `stop` was called meanwhile
            self._health.stop()


def exit_status(drained: bool) -> int:
    """Return the exit status of a process whose App has stopped, which is 0.

    Ends the process immediately if the App is not `drained`, or a device was lost.
    """
    if not drained or has_abandoned_sessions():
        withdraw_marks()  # of loads that went on after the stop
        # A thread may be inside ONNX Runtime: unloading the library would crash it.
        logs.flush()
        os._exit(0)
    return 0


def _model_key(source: ModelSource) -> ModelKey:
    return ModelKey(source.name, source.version, files_digest(source.fingerprint))


def _cpus_per_process(config: Config) -> int:
    return max(1, available_cpus() // config.processes)


def _installed_versions() -> tuple[str, str, str, str]:
    """Return the versions of the server, of Python, of ONNX Runtime and of grpcio."""
    grpcio = importlib.metadata.version("grpcio")
    return installed_version(), platform.python_version(), runtime_version(), grpcio


def _make_tracing(config: Config, metrics: Metrics, process: int | None) -> Tracing | None:
    if not config.traces_endpoint:
        return None
    return set_up_tracing(config.traces_endpoint, config.traces_ratio, metrics, process)


def _listener_options(config: Config, metrics: Metrics, tracing: Tracing | None) -> ListenerOptions:
    certificates = None
    if config.tls_certificate and config.tls_key:
        client_ca = Path(config.tls_client_ca) if config.tls_client_ca else None
        files = Path(config.tls_certificate), Path(config.tls_key)
        certificates = Certificates(*files, client_ca)
    elif config.tls_certificate or config.tls_key or config.tls_client_ca:
        raise ConfigError("incomplete TLS options (expected tls_certificate and tls_key)")
    else:
        addresses = [*config.address.split(","), *filter(None, [config.http_address])]
        if remote := [address for address in addresses if not is_local(address)]:
            text = ",".join(remote)
            log.warning("no TLS: %s accepts unencrypted calls from other machines", text)
    access = Access(Path(config.tokens_file)) if config.tokens_file else None
    return ListenerOptions(
        max_message_bytes=config.max_message_bytes,
        certificates=certificates,
        access=access,
        max_connection_age=config.max_connection_age_s,
        max_connection_age_grace=config.max_connection_age_grace_s,
        keepalive=config.keepalive_s,
        max_streams=config.max_streams,
        max_buffered_bytes=buffer_limit(
            config.max_buffered_bytes, config.max_message_bytes, config.processes
        ),
        connection_limits=connection_limits(
            config.max_connections,
            config.max_connections_per_address,
            config.address.count(",") + 1,
        ),
        on_close=metrics.record_closed_connection,
        max_metadata_bytes=config.max_metadata_bytes,
        compress_responses=config.compress_responses,
        on_reject=metrics.record_rejection,
        reuse_port=config.reuse_port,
        tracer=None if tracing is None else tracing.calls,
    )


def _first_of(problems: Sequence[str]) -> str:
    others = len(problems) - 1
    return f"{problems[0]}{f' (and {others} more, see the log)' if others else ''}"


def _reconciler_options(config: Config) -> ReconcilerOptions:
    return ReconcilerOptions(
        policy=VersionPolicy.parse(config.versions),
        threads=config.load_threads or min(4, _cpus_per_process(config)),
        drain_timeout=config.drain_timeout_ms / 1000,
        load_timeout=config.load_timeout_s,
        session_drain=config.session_drain_seconds,
        explicit=config.model_control == "explicit",
    )


def _model_options(config: Config, tracing: Tracing | None, share: DeviceShare) -> ModelOptions:
    policy = BatchPolicy(
        max_rows=config.max_batch_rows,
        max_queue_rows=config.max_queue_rows,
        max_queue_bytes=config.max_queue_bytes,
        max_delay=config.max_delay_ms / 1000,
        latency_objective=config.latency_objective_ms / 1000 or None,
        inline=INLINE_MODES[config.inline],
        max_run_seconds=config.max_run_seconds,
    )
    threads = config.threads or max(1, _cpus_per_process(config) // config.instances)
    runtime = RuntimeOptions(
        threads,
        gpu_threads=config.threads or 1,
        pool_threads=0 if config.threads else THREADS_PER_CPU * _cpus_per_process(config),
        spinning=config.spinning,
        providers=config.providers or DEFAULT_PROVIDERS,
        gpu_expected=bool(config.providers) or config.devices != FIRST,
        provider_options=check_server_options(config.provider_options.by_provider()),
        require_gpu=config.require_gpu,
        devices=claim_slice(config.devices, share, os.environ),
        device_share=share,
        gpu_memory_bytes=config.gpu_memory_bytes,
        cpu_memory_bytes=-(-config.cpu_memory_bytes // config.processes),
        arena=config.arena,
        shrink_seconds=config.shrink_seconds,
        run_method=config.run_method,
        cache=_cache_folder(config.cache),
    )
    check_options(runtime)
    report_gpu(runtime)
    tracer = None if tracing is None else tracing.batches
    return ModelOptions(
        policy,
        runtime,
        config.instances,
        tracer,
        sequence_batching=config.sequence_batching,
    )


def _open_load_folder(cache: Path | None) -> Path | None:
    """Return the folder that keeps what is known about loads, None if there cannot be one."""
    if cache is None or os.name != "posix":
        return None
    try:
        make_private_folder(cache)
        make_private_folder(cache / "loads")
    except OSError as error:
        log.info("loads are not recorded in %s: %s", cache, error.strerror or error)
        return None
    return cache / "loads"


def _cache_folder(option: str) -> Path | None:
    if option == "auto":
        return default_cache_folder()
    return None if option in ("", "off") else Path(option).expanduser()
