"""From options, as a person types them, to what the rooms of the server take."""

import importlib.metadata
import logging
import platform
from collections.abc import Callable
from pathlib import Path

from neurona_server.address import is_local
from neurona_server.batching.policy import BatchPolicy
from neurona_server.config import Config
from neurona_server.errors import ConfigError
from neurona_server.metrics import Metrics
from neurona_server.models.cpus import THREADS_A_CPU, available_cpus
from neurona_server.models.graph_cache import default_folder
from neurona_server.models.options import INLINE, ModelOptions, ReconcilerOptions
from neurona_server.models.runtime import (
    DEFAULT_PROVIDERS,
    RuntimeOptions,
    check_options,
    runtime_version,
)
from neurona_server.models.settings import VersionPolicy
from neurona_server.rpc.certificates import Certificates
from neurona_server.rpc.limits import Limits
from neurona_server.rpc.listening import ListenerOptions
from neurona_server.rpc.tokens import Access
from neurona_server.tracing.opening import Tracing, open_tracing

log = logging.getLogger(__name__)


def cpus_of_one(config: Config) -> int:
    """Of several processes: CPUs are shared fairly among them."""
    return max(1, available_cpus() // config.processes)


def tracing(config: Config, metrics: Metrics, process: int | None) -> Tracing | None:
    """None where it is off. Raises ConfigError."""
    if not config.traces_endpoint:
        return None
    return open_tracing(config.traces_endpoint, config.traces_ratio, metrics, process)


def limits(config: Config) -> Limits:
    return Limits(config.max_request_tensors, config.max_request_rows, config.max_message_bytes)


def versions() -> tuple[str, str, str, str]:
    """Of the server, of Python, of ONNX Runtime and of grpcio."""
    try:
        own = importlib.metadata.version("neurona")
    except importlib.metadata.PackageNotFoundError:  # run from its sources
        own = "unknown"
    grpcio = importlib.metadata.version("grpcio")
    return own, platform.python_version(), runtime_version(), grpcio


def listener_options(
    config: Config, refused: Callable[[Exception], None], tracing: Tracing | None = None
) -> ListenerOptions:
    """`refused` is told of calls that doors refuse. Raises ConfigError when a file that an
    option names cannot be used."""
    certificates = None
    if config.tls_certificate and config.tls_key:
        client_ca = Path(config.tls_client_ca) if config.tls_client_ca else None
        files = Path(config.tls_certificate), Path(config.tls_key)
        certificates = Certificates(*files, client_ca)
    elif config.tls_certificate or config.tls_key or config.tls_client_ca:
        raise ConfigError("TLS takes both tls_certificate and tls_key")
    elif not all(map(is_local, config.address.split(","))):
        log.warning("%s is reached from other machines, in plain text: no TLS", config.address)
    access = Access(Path(config.tokens_file)) if config.tokens_file else None
    return ListenerOptions(
        max_message_bytes=config.max_message_bytes,
        certificates=certificates,
        access=access,
        max_connection_age=config.max_connection_age_s,
        max_connection_age_grace=config.max_connection_age_grace_s,
        keepalive=config.keepalive_s,
        max_streams=config.max_streams,
        max_metadata_bytes=config.max_metadata_bytes,
        compress_answers=config.compress_answers,
        refused=refused,
        reuse_port=config.reuse_port or config.processes > 1,
        tracer=None if tracing is None else tracing.calls,
    )


def reconciler_options(config: Config) -> ReconcilerOptions:
    return ReconcilerOptions(
        policy=VersionPolicy.parse(config.versions),
        threads=config.load_threads or min(4, cpus_of_one(config)),
        drain_timeout=config.drain_timeout_ms / 1000,
        explicit=config.model_control == "explicit",
    )


def model_options(config: Config, tracing: Tracing | None = None) -> ModelOptions:
    """Raises ConfigError when this machine cannot do what they say."""
    policy = BatchPolicy(
        max_rows=config.max_batch_rows,
        max_queue_rows=config.max_queue_rows,
        max_queue_bytes=config.max_queue_bytes,
        max_delay=config.max_delay_ms / 1000,
        latency_objective=config.latency_objective_ms / 1000 or None,
        inline=INLINE[config.inline],
    )
    threads = config.threads or max(1, cpus_of_one(config) // config.instances)
    runtime = RuntimeOptions(
        threads,
        pool_threads=0 if config.threads else THREADS_A_CPU * cpus_of_one(config),
        spinning=config.spinning,
        providers=config.providers or DEFAULT_PROVIDERS,
        gpu_expected=bool(config.providers),
        require_gpu=config.require_gpu,
        gpu_memory_bytes=config.gpu_memory_bytes,
        cpu_memory_bytes=-(-config.cpu_memory_bytes // config.processes),
        arena=config.arena,
        shrink_seconds=config.shrink_seconds,
        cache=_cache_folder(config.cache),
    )
    check_options(runtime)
    tracer = None if tracing is None else tracing.batches
    return ModelOptions(policy, runtime, config.instances, tracer)


def _cache_folder(option: str) -> Path | None:
    if option == "auto":
        return default_folder()
    return None if option in ("", "off") else Path(option).expanduser()
