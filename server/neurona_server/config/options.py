"""Every option of the server, declared once as a field of Config.

A field has a type with bounds, a help text and a default. The help texts become `neurona-serve
--help` and the reference table of all options. `sources` says where values come from.
It is one file so that all options are found in one place.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, get_args, get_origin, get_type_hints

import msgspec
from msgspec import Meta

from neurona_server.config.parsers import (
    Addresses,
    CollectorUrl,
    DeviceNames,
    HostName,
    LogLevel,
    NamedFolder,
    OptionalWebAddress,
    ProviderNames,
    ProviderOptionTexts,
    VersionPolicyText,
)

MAX_INT = 2**31 - 1
MAX_BYTES = 2**50
MAX_MS = 10**8
MAX_SECONDS = 1e6


POSITIONAL = "files"
"""The option whose values are the arguments without a flag."""

GROUPS = {
    "files": "what is served",
    "address": "where it is served",
    "versions": "loading models",
    "instances": "batches and queues",
    "max_message_bytes": "messages and protocols",
    "drain_delay_ms": "stopping",
    "providers": "devices and memory",
    "tls_certificate": "security",
    "transport": "connections and processes",
    "max_metadata_bytes": "limits of requests and sessions",
    "log_level": "logs and traces",
}
"""Title of each group of options, by the first of them in their order here."""


@dataclass(frozen=True)
class Help:
    """The help text of an option."""

    text: str


class Config(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The options of a server. An option of a tuple type may be given several times."""

    files: Annotated[
        tuple[Path, ...],
        Help(
            "ONNX file to serve as it is, named after the file, or a folder: of a model, of models "
            "or of ONNX files. On the command line without a flag. Without any option that names "
            "models: the folder models, if it is there."
        ),
    ] = ()
    repository: Annotated[
        tuple[Path, ...],
        Help(
            "Folder of models, laid out as <name>/<version>/model.onnx. May be given several times."
        ),
    ] = ()
    model: Annotated[
        tuple[NamedFolder, ...],
        Help(
            "NAME=DIR: serve the folder DIR, with model.onnx or <version>/model.onnx in it, as the "
            "model NAME. May be given several times."
        ),
    ] = ()
    address: Annotated[
        Addresses,
        Help(
            "Addresses to serve gRPC on: HOST:PORT, [IPV6]:PORT or unix:PATH, several separated "
            "by commas. Port 0: any free port."
        ),
    ] = Addresses("127.0.0.1:8001")
    metrics_address: Annotated[
        OptionalWebAddress,
        Help(
            "HOST:PORT to serve the status page, /metrics and /healthz on, over HTTP; off: no port."
        ),
    ] = OptionalWebAddress("127.0.0.1:8002")
    metrics_hosts: Annotated[
        tuple[HostName, ...],
        Help(
            "Name under which the metrics port is reached. IP addresses, names without dots and "
            "those of private domains (.local, .internal, .svc) need not be named; requests for "
            "other names are rejected, since any web page could send them. *: every name. May be "
            "given several times."
        ),
    ] = ()
    http_address: Annotated[
        OptionalWebAddress,
        Help(
            "HOST:PORT to serve predictions on over HTTP/1.1, with the tokens, certificates and "
            "limits of gRPC. off: gRPC only."
        ),
    ] = OptionalWebAddress("127.0.0.1:8000")
    http_hosts: Annotated[
        tuple[HostName, ...],
        Help(
            "Name under which http_address is reached. As with metrics_hosts, IP addresses, names "
            "without dots and those of private domains need not be named; requests for other names "
            "are rejected. Without tokens, pages of these names may call the server too. *: every "
            "name. May be given several times."
        ),
    ] = ()
    playground: Annotated[
        bool,
        Help(
            "Serve the playground, a page to try the models on, at the root of http_address. Its "
            "calls need tokens as those of other callers do."
        ),
    ] = True
    versions: Annotated[
        VersionPolicyText,
        Help(
            'Versions of each model to serve: all, latest or "latest N". A model.toml may override '
            "it."
        ),
    ] = VersionPolicyText("latest 1")
    model_control: Annotated[
        Literal["poll", "none", "explicit"],
        Help(
            "When models are loaded. poll: follow the repository's changes; none: load once at "
            "start; explicit: load and unload only by call."
        ),
    ] = "poll"
    poll_ms: Annotated[
        int, Meta(ge=1, le=MAX_MS), Help("Milliseconds between two polls of the repository.")
    ] = 1000
    load_model: Annotated[
        tuple[str, ...],
        Help("Model to load at start if model_control is explicit. May be given several times."),
    ] = ()
    load_threads: Annotated[
        int,
        Meta(ge=0, le=64),
        Help("Models loaded at the same time. 0: one for each CPU, up to 4."),
    ] = 0
    load_timeout_s: Annotated[
        float,
        Meta(ge=0, le=MAX_SECONDS),
        Help(
            "Seconds that a step of loading a model may take, such as reading and optimizing its "
            "file or one of its first runs; else it fails to load. The start waits no longer for "
            "it. While tensorrt compiles a model, it may take an hour. 0: no limit."
        ),
    ] = 60.0
    load_check: Annotated[
        bool,
        Help(
            "Load each new model file in a process of its own first, so that one which crashes or "
            "never ends only fails to load. A file that has passed is remembered in the cache."
        ),
    ] = True
    strict: Annotated[
        bool,
        Help(
            "true: do not start unless everything in the repositories that is meant to be a model "
            "can be served; false: serve the others."
        ),
    ] = False
    strict_readiness: Annotated[
        bool,
        Help(
            "true: the server is not ready (ServerReady, and the health of the empty name) while a "
            "model has failed to load and no version of it serves, as Triton has it by default; "
            "false: it is ready, since the other models serve."
        ),
    ] = False
    instances: Annotated[
        int,
        Meta(ge=1, le=64),
        Help(
            "Sessions of each model that can run at the same time. More use more memory, and fewer "
            "CPU threads each if threads is 0."
        ),
    ] = 1
    threads: Annotated[
        int,
        Meta(ge=0, le=1024),
        Help(
            "CPU threads of one run. 0: the CPUs of the process, divided by instances; on a GPU 1."
        ),
    ] = 0
    max_batch_rows: Annotated[
        int,
        Meta(ge=1, le=MAX_INT),
        Help("Maximum rows in a batch. Larger batches raise throughput and the latency of a run."),
    ] = 64
    max_queue_rows: Annotated[
        int,
        Meta(ge=1, le=MAX_INT),
        Help("Rows that may wait in a model's queue; requests beyond that are rejected."),
    ] = 4096
    max_queue_bytes: Annotated[
        int,
        Meta(ge=1, le=MAX_BYTES),
        Help("Bytes of input that may wait in a model's queue; requests beyond that are rejected."),
    ] = 256 << 20
    max_delay_ms: Annotated[
        float,
        Meta(ge=0, le=MAX_MS),
        Help(
            "Milliseconds that an idle model waits for a batch to fill. 0: it runs the waiting "
            "requests. "
            "Longer delays make larger batches, at the cost of latency."
        ),
    ] = 0.0
    latency_objective_ms: Annotated[
        float,
        Meta(ge=0, le=MAX_MS),
        Help(
            "Milliseconds from arrival to response that an admitted request takes at most: "
            "batches are kept small enough, and requests that would probably take longer are "
            "rejected. docs/objectives.md says how to choose it. 0: no objective."
        ),
    ] = 0.0
    inline: Annotated[
        Literal["auto", "always", "never"],
        Help(
            "Run models on the thread that reads requests, without handing them to another thread: "
            "less latency, but other requests wait meanwhile. auto: while runs are short."
        ),
    ] = "auto"
    sequence_batching: Annotated[
        Literal["auto", "cellular", "ragged", "equal-lengths"],
        Help(
            "How requests of different lengths share the runs of a recurrent model. cellular: runs "
            "have a few steps, and sequences join and leave between them. ragged: sequences of "
            "similar lengths run together, and are padded. equal-lengths: only equal lengths run "
            "together. auto: cellular or ragged, by what runs take. A model.toml may override it."
        ),
    ] = "auto"
    max_run_seconds: Annotated[
        float,
        Meta(ge=0, le=MAX_SECONDS),
        Help(
            "Seconds after which a run of a model is terminated, and its requests fail. 0: no "
            "limit. A model.toml may override it."
        ),
    ] = 600.0
    max_message_bytes: Annotated[
        int, Meta(ge=1, le=MAX_INT), Help("Maximum bytes of a request or response message.")
    ] = 64 << 20
    max_buffered_bytes: Annotated[
        int,
        Meta(ge=0, le=MAX_BYTES),
        Help(
            "Bytes of messages that may be received, wait or be sent at the same time, over all "
            "connections and processes; calls beyond that are rejected. At least four times "
            "max_message_bytes for each process. 0: a quarter of the memory, up to 2 GiB for each "
            "process."
        ),
    ] = 0
    shared_memory: Annotated[
        bool,
        Help(
            "Let callers of the Open Inference Protocol register POSIX shared memory and memory of "
            "GPUs (CUDA IPC), which the server then reads and writes. Only for trusted callers."
        ),
    ] = False
    triton_metrics: Annotated[
        bool,
        Help("Export Triton's nv_inference_* and nv_gpu_* metrics beside the server's own."),
    ] = False
    typed_responses: Annotated[
        bool,
        Help(
            "Answer requests of the Open Inference Protocol that have typed contents with typed "
            "contents, not raw ones, if no output is FP16 or BF16."
        ),
    ] = False
    drain_delay_ms: Annotated[
        int,
        Meta(ge=0, le=MAX_MS),
        Help(
            "Milliseconds after SIGTERM during which the server keeps serving with health "
            "NOT_SERVING, so that load balancers stop sending requests."
        ),
    ] = 0
    drain_timeout_ms: Annotated[
        int,
        Meta(ge=0, le=MAX_MS),
        Help("Milliseconds after drain_delay_ms to wait for the requests in flight."),
    ] = 30_000
    providers: Annotated[
        ProviderNames,
        Help(
            "ONNX Runtime providers to run models on, in order of preference, separated by commas. "
            "Empty: cuda,cpu, where a missing GPU is not reported as degraded."
        ),
    ] = ProviderNames()
    provider_options: Annotated[
        ProviderOptionTexts,
        Help(
            "Options of ONNX Runtime's providers: PROVIDER.KEY=VALUE, several separated by commas, "
            "as cuda.use_tf32=0,cuda.prefer_nhwc=1; in the file a table [provider_options.cuda]. "
            "A model.toml may override them."
        ),
    ] = ProviderOptionTexts()
    require_gpu: Annotated[
        bool, Help("true: neither start nor load a model if no GPU can be used.")
    ] = False
    devices: Annotated[
        DeviceNames,
        Help(
            "GPUs to load each model on: all, or numbers or UUIDs separated by commas, as CUDA "
            "lists them in this process. Each batch runs on the least loaded one. A model.toml may "
            "override it."
        ),
    ] = DeviceNames("0")
    split_devices: Annotated[
        bool,
        Help(
            "Divide the devices among the processes, so that a GPU has the models of one process "
            "only. MIG slices need it, since CUDA gives a process only one."
        ),
    ] = False
    gpu_memory_bytes: Annotated[
        int,
        Meta(ge=0, le=MAX_BYTES),
        Help("Maximum bytes of GPU memory of each session. 0: no limit."),
    ] = 0
    cpu_memory_bytes: Annotated[
        int,
        Meta(ge=0, le=MAX_BYTES),
        Help(
            "Maximum bytes of CPU memory that all runs may use together, weights excluded; a run "
            "that needs more fails. 0: no limit."
        ),
    ] = 0
    arena: Annotated[
        bool, Help("Keep the memory of runs for later runs: faster, but uses more memory.")
    ] = True
    shrink_seconds: Annotated[
        float,
        Meta(ge=0, le=MAX_SECONDS),
        Help(
            "Seconds in which a model that has run returns the unused memory of its arenas to the "
            "system once, also when it is idle since. 0: never."
        ),
    ] = 60.0
    spinning: Annotated[
        bool,
        Help("Let CPU threads spin between runs: lower latency, but they use CPU time when idle."),
    ] = False
    run_method: Annotated[
        Literal["auto", "bound", "plain"],
        Help(
            "How batches may run on a GPU. auto: the fastest way that has the same answers, as "
            "measured while a model loads, CUDA graphs among these; bound: without CUDA graphs; "
            "plain: the ordinary way, without memory that stays and without ranking on the device."
        ),
    ] = "auto"
    cache: Annotated[
        str,
        Help(
            "Folder to cache optimized graphs and TensorRT engines in, for faster starts. auto: "
            "neurona in $XDG_CACHE_HOME or ~/.cache; off or empty: no cache."
        ),
    ] = "auto"
    tls_certificate: Annotated[
        str,
        Help(
            "PEM file with the server's certificate and its chain; enables TLS. Renewed files are "
            "reloaded. Empty: no TLS."
        ),
    ] = ""
    tls_key: Annotated[str, Help("PEM file with the private key of tls_certificate.")] = ""
    tls_client_ca: Annotated[
        str,
        Help(
            "PEM file with certificate authorities; callers must present a certificate signed by "
            "one of them. Empty: client certificates are not requested."
        ),
    ] = ""
    tokens_file: Annotated[
        str,
        Help(
            "TOML file with hashed bearer tokens and their permissions; calls without a valid "
            "token are rejected. neurona-serve --hash-token reads a token and prints its hash. "
            "Empty: no tokens are needed."
        ),
    ] = ""
    transport: Annotated[
        Literal["auto", "cygrpc", "aio"],
        Help(
            "gRPC transport. cygrpc: on grpcio's completion queue, several times faster; aio: on "
            "the public grpc.aio; auto: cygrpc if it passes its self-test with the installed "
            "grpcio, else aio."
        ),
    ] = "auto"
    max_connection_age_s: Annotated[
        float,
        Meta(ge=0, le=MAX_SECONDS),
        Help(
            "Seconds after which a connection is closed gracefully (GOAWAY), so that callers "
            "connect to new replicas. 0: never."
        ),
    ] = 300.0
    max_connection_age_grace_s: Annotated[
        float,
        Meta(ge=1, le=MAX_SECONDS),
        Help(
            "Seconds that the calls of a connection may take after max_connection_age_s; streams "
            "are ended before."
        ),
    ] = 300.0
    keepalive_s: Annotated[
        float,
        Meta(ge=0, le=MAX_SECONDS),
        Help(
            "Seconds without traffic after which a connection gets an HTTP/2 keepalive ping, so "
            "that load balancers keep it open. 0: never."
        ),
    ] = 30.0
    compress_responses: Annotated[
        bool,
        Help(
            "Compress responses with gzip, up to 256 KiB each, for callers that accept it: less "
            "traffic, more CPU."
        ),
    ] = False
    processes: Annotated[
        int,
        Meta(ge=1, le=1024),
        Help(
            "Worker processes that serve on one port, each with all models, for more CPUs than one "
            "Python process can use. They share the CPUs; each needs the memory of all models. "
            "SIGHUP replaces them one after the other."
        ),
    ] = 1
    supervise: Annotated[
        bool,
        Help(
            "Run the server below a supervisor, also with processes = 1: a process that crashes or "
            "hangs is restarted, and a model that ran at two crashes is quarantined. SIGHUP "
            "replaces the process."
        ),
    ] = False
    reuse_port: Annotated[
        bool, Help("Let other servers share the port and its connections (SO_REUSEPORT).")
    ] = False
    max_streams: Annotated[
        int, Meta(ge=1, le=MAX_INT), Help("Maximum concurrent calls on one connection.")
    ] = 4096
    max_connections: Annotated[
        int,
        Meta(ge=0, le=MAX_INT),
        Help(
            "Connections of each address of each process that may be open; further ones are "
            "closed. 0: as many as file descriptors allow, up to 16384."
        ),
    ] = 0
    max_connections_per_address: Annotated[
        int,
        Meta(ge=0, le=MAX_INT),
        Help(
            "Connections of one caller's address that may be open in each process; further ones "
            "are closed. All callers behind a proxy share its address. 0: no limit."
        ),
    ] = 0
    max_metadata_bytes: Annotated[
        int, Meta(ge=1024, le=MAX_INT), Help("Maximum bytes of a call's metadata.")
    ] = 16 << 10
    max_request_tensors: Annotated[
        int, Meta(ge=1, le=MAX_INT), Help("Maximum tensors in a request.")
    ] = 256
    max_request_rows: Annotated[
        int,
        Meta(ge=0, le=MAX_INT),
        Help("Maximum rows in a request. 0: as many as the queue of the model may hold."),
    ] = 0
    max_image_pixels: Annotated[
        int,
        Meta(ge=1, le=178_956_970),  # Pillow itself refuses more
        Help(
            "Maximum width x height of an encoded image (PNG or JPEG) in a request. Decoding takes "
            "up to 12 bytes for each pixel, and of most images 8."
        ),
    ] = 50_000_000
    max_sessions: Annotated[
        int,
        Meta(ge=1, le=MAX_INT),
        Help(
            "Sessions of recurrent models that may be open in each process, each with the state of "
            "a sequence; one with several rows counts as that many. For a further one the one idle "
            "longest ends, of the token that has most; if all are in use, it is rejected."
        ),
    ] = 16384
    session_idle_timeout_s: Annotated[
        float,
        Meta(ge=0, le=MAX_SECONDS),
        Help("Seconds without a step after which a session ends. 0: never."),
    ] = 300.0
    session_drain_seconds: Annotated[
        float,
        Meta(ge=0, le=MAX_SECONDS),
        Help(
            "Seconds for which a version that is replaced or unloaded waits for its sessions to "
            "end; then they are ended."
        ),
    ] = 60.0
    log_level: Annotated[
        LogLevel, Help("Least severe level to log: debug, info, warning or error.")
    ] = LogLevel("INFO")
    log_format: Annotated[
        Literal["human", "json"],
        Help("human: readable text; json: one JSON object per line."),
    ] = "human"
    traces_endpoint: Annotated[
        CollectorUrl,
        Help(
            "OpenTelemetry collector to send traces to, as OTLP over gRPC: http://HOST:PORT or "
            "https://HOST:PORT. Empty: no tracing."
        ),
    ] = CollectorUrl("")
    traces_ratio: Annotated[
        float,
        Meta(ge=0, le=1),
        Help(
            "Share of calls to trace, 0 to 1. For a call with a traceparent, its caller has "
            "decided."
        ),
    ] = 0.01


class Option(NamedTuple):
    """An option as `sources` and the documents need it."""

    name: str
    help: str
    default: Any
    value_type: type
    """Type of its value, of one of its values if repeatable."""
    repeatable: bool
    """It may be given several times."""
    group: str
    """Title of the options that it is listed with."""


def list_options() -> list[Option]:
    """List all options, in the order of their declaration."""
    kinds = get_type_hints(Config, include_extras=True)
    options = []
    group = ""
    for field in msgspec.structs.fields(Config):
        kind, *annotations = get_args(kinds[field.name])
        (text,) = [one.text for one in annotations if isinstance(one, Help)]
        repeatable = get_origin(kind) is tuple
        value_type = get_args(kind)[0] if repeatable else kind
        group = GROUPS.get(field.name, group)
        options.append(Option(field.name, text, field.default, value_type, repeatable, group))
    return options
