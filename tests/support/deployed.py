"""A server as a manifest starts it, in the test's own process: all of it but the signals."""

import contextlib
import gc
import socket
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import grpc

from neurona_server.app import App
from neurona_server.config import sources


@dataclass(frozen=True)
class Deployed:
    """Where gRPC and metrics are."""

    channel: grpc.Channel
    address: str
    metrics_address: str
    app: App

    def count(self, name: str, **labels: str) -> float:
        """The sum of a metric's samples that have these labels."""
        return sum(
            sample.value
            for family in self.app.registry.collect()
            for sample in family.samples
            if sample.name == name and labels.items() <= sample.labels.items()
        )


@contextlib.contextmanager
def served(arguments: Sequence[str], environment: Mapping[str, str]) -> Iterator[Deployed]:
    """With its options, but on free ports of loopback, and leaving without a delay."""
    with socket.socket() as one, socket.socket() as other:
        one.bind(("127.0.0.1", 0))
        other.bind(("127.0.0.1", 0))
        transport, metrics = (f"127.0.0.1:{s.getsockname()[1]}" for s in (one, other))
    config = sources.load(arguments, environment)
    app = App(replace(config, address=transport, metrics_address=metrics, drain_delay_ms=0))
    app.start()
    try:
        with grpc.insecure_channel(transport) as channel:
            yield Deployed(channel, transport, metrics, app)
    finally:
        app.stop()
        gc.unfreeze()
