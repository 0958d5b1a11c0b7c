"""Every option of the server, declared once: as a field of Config.

Where their values come from, `sources` says.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from neurona_server.config.parsers import (
    addresses,
    collector,
    level,
    milliseconds,
    named_folder,
    one_of,
    provider_names,
    ratio,
    seconds,
    version_policy,
    web_address,
    whole,
    yes_or_no,
)


def _option(default: Any, parse: Callable[[str], Any], text: str, *, many: bool = False) -> Any:
    return field(default=default, metadata={"parse": parse, "help": text, "many": many})


@dataclass(frozen=True)
class Config:
    repository: tuple[Path, ...] = _option(
        (),
        Path,
        "folder with models as <name>/<version>/model.onnx; may be given more than once",
        many=True,
    )
    model: tuple[tuple[str, Path], ...] = _option(
        (),
        named_folder,
        "NAME=DIR, a folder that is one model: model.onnx or <version>/model.onnx stand in it; "
        "may be given more than once",
        many=True,
    )
    address: str = _option(
        "127.0.0.1:8001",
        addresses,
        "where to listen for gRPC: HOST:PORT, unix:PATH, or several, parted by commas",
    )
    metrics_address: str = _option("127.0.0.1:8002", web_address, "where Prometheus finds /metrics")
    versions: str = _option(
        "latest 1",
        version_policy,
        'which versions of a model are served: all, latest or "latest N"; model.toml may say other',
    )
    model_control: str = _option(
        "poll",
        one_of("poll", "none", "explicit"),
        "poll: follow what the repository has; none: load once; explicit: load by call only",
    )
    poll_ms: int = _option(1000, whole(1, 10**8), "how often the repository is looked at")
    load_model: tuple[str, ...] = _option(
        (),
        str,
        "a model to load at start where model_control is explicit; may be given more than once",
        many=True,
    )
    load_threads: int = _option(
        0, whole(0, 64), "models loaded at the same time; 0: as many as CPUs, up to 4"
    )
    strict: bool = _option(False, yes_or_no, "do not start if any model cannot be served")
    instances: int = _option(1, whole(1, 64), "sessions of each model that run side by side")
    threads: int = _option(
        0, whole(0, 1024), "CPU threads of one run; 0: as many as the process has CPUs"
    )
    max_batch_rows: int = _option(64, whole(1), "rows in one run at the most")
    max_queue_rows: int = _option(
        4096, whole(1), "rows that may wait for a model; what exceeds it is refused at once"
    )
    max_queue_bytes: int = _option(
        256 << 20, whole(1, 2**50), "bytes of input that may wait for a model, likewise"
    )
    max_delay_ms: float = _option(
        0.0, milliseconds, "how long an idle instance waits for a batch to fill"
    )
    latency_objective_ms: float = _option(
        0.0,
        milliseconds,
        "from admission to answer; 0: none. Batches and queues are kept so small that what is "
        "admitted meets it",
    )
    inline: str = _option(
        "auto",
        one_of("auto", "always", "never"),
        "auto, always or never: run in the thread that reads requests",
    )
    max_message_bytes: int = _option(
        64 << 20, whole(1), "size of a request or an answer at the most"
    )
    shared_memory: bool = _option(
        False,
        yes_or_no,
        "let callers of the Open Inference Protocol name POSIX shared memory that the server may "
        "read and write (true or false)",
    )
    drain_delay_ms: int = _option(
        0,
        whole(0, 10**8),
        "after SIGTERM: go on serving this long as NOT_SERVING, so that balancers notice",
    )
    drain_timeout_ms: int = _option(
        30_000, whole(0, 10**8), "after SIGTERM: then wait this long for what is under way"
    )
    providers: tuple[str, ...] = _option(
        (),
        provider_names,
        "what runs models, best first, with commas between; empty: cuda,cpu, and a machine without "
        "a GPU is no fault",
    )
    require_gpu: bool = _option(
        False, yes_or_no, "true: neither start nor load a model where no GPU can be used"
    )
    gpu_memory_bytes: int = _option(
        0, whole(0, 2**50), "GPU memory of each session at the most; 0: no limit"
    )
    cpu_memory_bytes: int = _option(
        0,
        whole(0, 2**50),
        "memory that all runs take together on the CPU, weights not counted; one that needs more "
        "fails; 0: no limit",
    )
    arena: bool = _option(True, yes_or_no, "keep memory between runs: quicker, and takes more")
    shrink_seconds: float = _option(
        60.0, seconds(0), "how often a run gives back what the arena has too much of; 0: never"
    )
    spinning: bool = _option(
        False, yes_or_no, "true: threads burn CPU between runs, to be quicker at the next one"
    )
    cache: str = _option(
        "auto",
        str,
        "folder for optimised graphs, so that starts are quicker; off: none; auto: neurona in "
        "$XDG_CACHE_HOME or ~/.cache",
    )
    tls_certificate: str = _option(
        "",
        str,
        "PEM file of the server's certificate and its chain: TLS is on. Renewed files "
        "are read again",
    )
    tls_key: str = _option("", str, "PEM file of the certificate's key")
    tls_client_ca: str = _option(
        "", str, "PEM file of authorities: callers must show a certificate that one signed"
    )
    tokens_file: str = _option(
        "",
        str,
        "TOML file of hashed bearer tokens and their rights: calls without one are refused. "
        "neurona-serve --hash-token reads a token and prints its hash",
    )
    transport: str = _option(
        "auto",
        one_of("auto", "cygrpc", "aio"),
        "how gRPC is served; cygrpc: on grpcio's completion queue, several times faster; aio: on "
        "the public grpc.aio; auto: cygrpc where it passes its self-test with the installed grpcio",
    )
    max_connection_age_s: float = _option(
        300.0,
        seconds(0),
        "then a connection is told to go, so that callers find new replicas; its calls are "
        "answered first; 0: never",
    )
    max_connection_age_grace_s: float = _option(
        300.0, seconds(1), "how long its calls may take after that; streams are ended before"
    )
    keepalive_s: float = _option(
        30.0,
        seconds(0),
        "silence after which a connection is pinged, for load balancers; 0: never",
    )
    compress_responses: bool = _option(
        False, yes_or_no, "with gzip, for callers who understand it; costs CPU time"
    )
    processes: int = _option(
        1,
        whole(1, 1024),
        "that serve on one port, each with all models, for machines with more CPUs than one "
        "Python can use; they share the CPUs. SIGHUP replaces them one after the other",
    )
    reuse_port: bool = _option(
        False, yes_or_no, "several processes share a port (SO_REUSEPORT) and its connections"
    )
    max_streams: int = _option(4096, whole(1), "calls at a time over one connection")
    max_metadata_bytes: int = _option(16 << 10, whole(1024), "of a call, at the most")
    max_request_tensors: int = _option(256, whole(1), "tensors in one request at the most")
    max_request_rows: int = _option(
        0, whole(0), "rows in one request at the most; 0: as many as may wait"
    )
    log_level: str = _option("INFO", level, "debug, info, warning or error")
    log_format: str = _option(
        "human", one_of("human", "json"), "human: lines for people; json: one JSON object a line"
    )
    traces_endpoint: str = _option(
        "",
        collector,
        "where an OpenTelemetry collector takes OTLP over gRPC: http://HOST:PORT, or https://; "
        "empty: nothing is traced",
    )
    traces_ratio: float = _option(
        0.01,
        ratio,
        "share, 0 to 1, of the calls that are traced; for one that brings a traceparent its "
        "caller has decided",
    )
