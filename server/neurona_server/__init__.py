"""neurona_server: serves ONNX models over gRPC with dynamic batching.

Its packages and modules, in the order in which they import each other:

    cli         the command neurona-serve
    simulation  the command neurona-simulate: the batching under a load, in virtual time
    in_process  `serve`: a server inside a notebook, a test or another program
    doctor      what stands between this machine and a server, a GPU included
    processes   several worker processes on one port, their supervisor, merged metrics
    app         composition root: puts the parts together, starts and stops the server
    config      options: declaration, parsing, sources
    rpc         transports, security, and the services of both protocols
    models      signatures, sessions, repositories on disk, versions and their lifecycle
    batching    how requests become batches: queue, admission, cost model, batcher
    telemetry   metrics, logs, traces
    web         the metrics port: /metrics, /healthz and the status page
    errors      error classes, each with its gRPC status
    resources   CPUs and memory that the process may use
    address     addresses to listen on

The path of a request through them: server/README.md, "The life of a request".
"""

import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from neurona_server.in_process import EmbeddedServer, serve

__all__ = ["EmbeddedServer", "serve"]

# ONNX Runtime (1.31, on Linux too) sends events about the process and its models to Microsoft, and
# keeps a file for that in the home folder. Only this variable prevents it, and only if it is set
# before the library is loaded: disable_telemetry_events() is called too late for that. A value
# that is already set is kept.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")


def __getattr__(name: str) -> Any:
    # On demand: the command and its processes start without what this imports.
    if name in __all__:
        from neurona_server import in_process

        return getattr(in_process, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
