"""The page of metrics, over HTTP."""

from collections.abc import Callable

from prometheus_client import CollectorRegistry, start_http_server

from neurona_server.errors import ConfigError


def serve_metrics(address: str, registry: CollectorRegistry) -> tuple[int, Callable[[], None]]:
    """The port, and what closes it. Raises ConfigError when it is taken."""
    host, _, port = address.rpartition(":")
    host = host.strip("[]")
    try:
        server, thread = start_http_server(int(port), addr=host, registry=registry)
    except OSError as error:
        raise ConfigError(f"cannot serve metrics on {host}:{port}: {error.strerror}") from error

    def close() -> None:
        server.shutdown()
        server.server_close()
        thread.join()

    return server.server_port, close
