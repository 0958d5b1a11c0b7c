"""Servers in the test's own process.

`InProcessServer` is put together from its parts, for tests that look inside; `run_app` runs the
App that a command line and an environment configure.
"""

import contextlib
import gc
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import grpc
import msgspec
from prometheus_client import CollectorRegistry

from neurona_protos.open_inference_pb2_grpc import GRPCInferenceServiceStub
from neurona_protos.prediction_pb2 import State
from neurona_protos.prediction_pb2_grpc import ModelsStub, PredictionStub
from neurona_server.app import App
from neurona_server.batching.policy import BatchPolicy
from neurona_server.batching.watchdog import RunWatchdog
from neurona_server.config import sources
from neurona_server.models.lifecycle.reconciler import (
    Control,
    FindRejection,
    Reconciler,
    ReconcilerOptions,
)
from neurona_server.models.lifecycle.registry import Registry
from neurona_server.models.load_cancellation import LoadCancellation
from neurona_server.models.model import Model
from neurona_server.models.model_options import ModelOptions
from neurona_server.models.repository.scanner import ModelSource, Repository
from neurona_server.models.repository.settings import VersionPolicy
from neurona_server.rpc.control_calls import ControlCalls
from neurona_server.rpc.health import Health
from neurona_server.rpc.limits import Limits
from neurona_server.rpc.open_inference.service import OpenInference
from neurona_server.rpc.reflection import Reflection
from neurona_server.rpc.sessions import SessionStore
from neurona_server.rpc.transports.auto import open_transport
from neurona_server.rpc.transports.listener import ListenerOptions
from neurona_server.rpc.v1.models import Models
from neurona_server.rpc.v1.prediction import Prediction
from neurona_server.rpc.v1.sessions import Sessions
from neurona_server.rpc.worker_pool import WorkerPool
from neurona_server.telemetry.metrics import Metrics
from neurona_server.telemetry.span_exporter import Tracing
from support.server_process import free_addresses

TRANSPORT = "auto"
"""The transport of every server; tests of transports set it to each in turn."""

LIMITS = Limits(max_message_bytes=1 << 20)
OPTIONS = ListenerOptions(max_message_bytes=1 << 20)


class InProcessServer:
    """A server at a free port, whose repository is polled when the test polls it.

    Without `start_models`, a model runs nothing until the test starts it. With `every`, all
    versions are served.
    """

    def __init__(
        self,
        root: Path,
        policy: BatchPolicy | None = None,
        *,
        start_models: bool = True,
        every: bool = True,
        explicit: bool = False,
        load_model: Sequence[str] = (),
        control: Control | None = None,
        shared_memory: bool = False,
        typed_responses: bool = False,
        limits: Limits = LIMITS,
        options: ListenerOptions = OPTIONS,
        address: str = "127.0.0.1:0",
        tracing: Tracing | None = None,
        find_rejections: Sequence[FindRejection] = (),
        load_timeout: float = 60.0,
        sessions: SessionStore | None = None,
        session_drain: float = 60.0,
    ) -> None:
        policy = policy or BatchPolicy()
        if not start_models:
            policy = replace(policy, inline=False)
        model_options = ModelOptions(policy)
        if tracing is not None:
            model_options = replace(model_options, tracer=tracing.batches)
            options = replace(options, tracer=tracing.calls)
        self.metrics = Metrics(CollectorRegistry())
        self.registry = Registry()
        self.metrics.watch_versions(self.registry.version_infos)
        self.health = Health()

        self.watchdog = RunWatchdog()
        self.watchdog.start()

        def load(source: ModelSource, cancellation: LoadCancellation) -> Model:
            model = Model(
                source,
                model_options,
                self.metrics,
                watchdog=self.watchdog,
                cancellation=cancellation,
            )
            if start_models:
                model.start()
            else:
                model.metrics.watch_batching(model.batcher.queue, model.batcher.cost_model)
            return model

        self.reconciler = Reconciler(
            Repository([root]),
            self.registry,
            load,
            self.metrics,
            ReconcilerOptions(
                VersionPolicy(all_versions=every),
                explicit=explicit,
                load_timeout=load_timeout,
                session_drain=session_drain,
            ),
            find_rejections=find_rejections,
        )
        self.reconciler.start(load_model)
        control = control or (self.reconciler if explicit else None)
        self.control_calls = None if control is None else ControlCalls(control)
        self.workers = WorkerPool()
        self.sessions = SessionStore() if sessions is None else sessions
        self.open_inference = OpenInference(
            self.registry,
            self.metrics,
            lambda: all(m.state == State.STATE_READY for m in self.registry.models()),
            control=self.control_calls,
            versions=VersionPolicy(all_versions=every),
            shared_memory=shared_memory,
            typed_responses=typed_responses,
            limits=limits,
            workers=self.workers,
            sessions=self.sessions,
        )
        methods = {
            **Prediction(self.registry, self.metrics, limits, self.workers).methods(),
            **Sessions(self.registry, self.metrics, self.sessions, limits, self.workers).methods(),
            **Models(self.registry, self.control_calls, options.progress).methods(),
            **self.open_inference.methods(),
            **self.health.methods(),
        }
        methods |= Reflection(methods).methods()
        self.methods = methods
        self.listener = open_transport(TRANSPORT, methods, options)
        self.port = self.listener.start(address)
        self.channel = grpc.insecure_channel(f"127.0.0.1:{self.port}")
        self.prediction = PredictionStub(self.channel)
        self.models = ModelsStub(self.channel)
        self.triton = GRPCInferenceServiceStub(self.channel)

    def count(self, name: str, **labels: str) -> float:
        """Return the value of the metric `neurona_<name>` with exactly these labels, or 0."""
        return self.metrics.registry.get_sample_value(f"neurona_{name}", labels) or 0.0

    def stop(self) -> None:
        self.channel.close()
        self.listener.stop(5.0)
        self.reconciler.stop(5.0)
        self.sessions.stop()
        self.watchdog.stop()


@dataclass(frozen=True)
class RunningApp:
    """An App that serves, and the tests' channel to it."""

    channel: grpc.Channel
    address: str
    metrics_address: str
    app: App

    def count(self, name: str, **labels: str) -> float:
        """Return the sum of a metric's samples that have these labels, and maybe others."""
        return sum(
            sample.value
            for family in self.app.registry.collect()
            for sample in family.samples
            if sample.name == name and labels.items() <= sample.labels.items()
        )


@contextlib.contextmanager
def run_app(
    arguments: Sequence[str], environment: Mapping[str, str], *, http_address: str = ""
) -> Iterator[RunningApp]:
    """Run a server with these options, but at free ports of loopback and without a drain delay.

    It serves HTTP if there is an `http_address`.

    Everything but the signals is as in a separate process, except that model files are not checked
    in another process unless the arguments say so.
    """
    address, metrics_address = free_addresses(2)
    config = sources.load(["--load-check", "false", *arguments], environment)
    config = msgspec.structs.replace(
        config,
        address=address,
        metrics_address=metrics_address,
        http_address=http_address,
        drain_delay_ms=0,
    )
    app = App(config)
    app.start()
    try:
        with grpc.insecure_channel(address) as channel:
            yield RunningApp(channel, address, metrics_address, app)
    finally:
        app.stop()
        gc.unfreeze()
