"""A server as a manifest starts it, in the test's own process: all of it but the signals."""

import contextlib
import gc
import socket
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

import grpc

from neurona_server import sources
from neurona_server.app import App


@contextlib.contextmanager
def served(
    arguments: Sequence[str], environment: Mapping[str, str]
) -> Iterator[tuple[grpc.Channel, str]]:
    """With its options, but on free ports of loopback: a channel, and where its metrics are."""
    with socket.socket() as one, socket.socket() as other:
        one.bind(("127.0.0.1", 0))
        other.bind(("127.0.0.1", 0))
        door, metrics = (f"127.0.0.1:{s.getsockname()[1]}" for s in (one, other))
    config = sources.load(arguments, environment)
    app = App(replace(config, address=door, metrics_address=metrics, drain_delay_ms=0))
    app.start()
    try:
        with grpc.insecure_channel(door) as channel:
            yield channel, metrics
    finally:
        app.stop()
        gc.unfreeze()
