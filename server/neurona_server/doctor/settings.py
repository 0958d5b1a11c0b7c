"""The options that decide what the doctor looks at: addresses, cache, GPU, transport.

They are read as neurona-serve reads them, from the environment and neurona.toml. The file is alone
because every kind of check needs them, also where the packages that read options are missing.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass, field

from neurona_server.doctor.findings import Finding, Mark, shorten

DEFAULT_ADDRESSES = {
    "address": "127.0.0.1:8001",
    "http_address": "127.0.0.1:8000",
    "metrics_address": "127.0.0.1:8002",
}
"""Those of the options, where these cannot be read; a test compares them."""


@dataclass(frozen=True)
class DoctorSettings:
    """What is checked."""

    addresses: dict[str, str] = field(default_factory=lambda: dict(DEFAULT_ADDRESSES))
    """By option; several in one are separated by commas, "" is none."""
    cache: str = "auto"
    require_gpu: bool = False
    transport: str = "auto"


def read_settings(arguments: Sequence[str]) -> tuple[DoctorSettings, Finding]:
    """Read the options of the server.

    Args:
        arguments: As for neurona-serve, such as --config FILE.

    Returns:
        The settings, the defaults if options cannot be read, and what was wrong with them.
    """
    try:
        from neurona_server.config import sources
        from neurona_server.errors import ConfigError
    except ImportError as error:
        text = f"not read: package {error.name} cannot be imported"
        return DoctorSettings(), Finding("options", Mark.NOTE, text)
    try:
        # The doctor needs no models.
        config = sources.load([*arguments, "--repository", "."], os.environ)
    except ConfigError as error:
        return DoctorSettings(), Finding("options", Mark.FAULT, shorten(str(error)))
    except Exception as error:  # a bug: the other checks still say something
        reason = shorten(f"{type(error).__name__}: {error}")
        return DoctorSettings(), Finding("options", Mark.NOTE, f"cannot be read: {reason}")
    settings = DoctorSettings(
        {name: getattr(config, name) for name in DEFAULT_ADDRESSES},
        config.cache,
        config.require_gpu,
        config.transport,
    )
    places = [name for name in os.environ if name.startswith("NEURONA_")]
    text = "valid" + (f", with {', '.join(sorted(places))} of the environment" if places else "")
    return settings, Finding("options", Mark.OK, text)
