"""gRPC channels as a client wants them: credentials, limits, and how they find servers."""

import json
from pathlib import Path
from typing import Any

import grpc

from neurona_client.names import PREFIX, Place
from neurona_client.options import Options, Tls

_KEEPALIVE_MS = 30_000
_KEEPALIVE_TIMEOUT_MS = 10_000
_FIRST_RECONNECT_MS = 100
_LONGEST_RECONNECT_MS = 2_000


def open_channel(place: Place, options: Options) -> grpc.Channel:
    """Raises OSError for a file of `tls` that cannot be read."""
    arguments = [
        ("grpc.max_send_message_length", options.max_message_bytes),
        ("grpc.max_receive_message_length", options.max_message_bytes),
        ("grpc.service_config", json.dumps(_service_config(place.target))),
        # Notices servers that are gone without a word, while calls are under way.
        ("grpc.keepalive_time_ms", _KEEPALIVE_MS),
        ("grpc.keepalive_timeout_ms", _KEEPALIVE_TIMEOUT_MS),
        ("grpc.initial_reconnect_backoff_ms", _FIRST_RECONNECT_MS),
        ("grpc.min_reconnect_backoff_ms", _FIRST_RECONNECT_MS),
        ("grpc.max_reconnect_backoff_ms", _LONGEST_RECONNECT_MS),
        # Each client has connections of its own, so that closing one disturbs no other.
        ("grpc.use_local_subchannel_pool", 1),
    ]
    if place.authority:
        arguments.append(("grpc.default_authority", place.authority))
    compression = grpc.Compression.Gzip if options.compression else None
    if options.tls is None:
        return grpc.insecure_channel(place.target, arguments, compression)
    if name := options.tls.name or place.authority:
        arguments.append(("grpc.ssl_target_name_override", name))
    return grpc.secure_channel(place.target, _credentials(options.tls), arguments, compression)


def _service_config(target: str) -> dict[str, Any]:
    # round_robin with one address as well: unlike pick_first, it connects again by itself.
    config: dict[str, Any] = {"loadBalancingConfig": [{"round_robin": {}}]}
    if target.startswith(PREFIX):  # of several servers, those that serve
        config["healthCheckConfig"] = {"serviceName": ""}
    return config


def _credentials(tls: Tls) -> grpc.ChannelCredentials:
    return grpc.ssl_channel_credentials(
        _content(tls.authority), _content(tls.key), _content(tls.certificate)
    )


def _content(file: Path | str | None) -> bytes | None:
    return None if file is None else Path(file).read_bytes()
