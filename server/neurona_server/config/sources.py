"""Where the values of options come from.

From a flag, else from the environment (NEURONA_ and the name in capitals), else from
neurona.toml, else it is the default. A misspelt option is an error.
"""

import argparse
import difflib
import logging
import os
import re
import socket
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from neurona_server.address import UNIX
from neurona_server.config.options import Config
from neurona_server.errors import ConfigError

PREFIX = "NEURONA_"
DEFAULT_FILE = "neurona.toml"
OTHERS = {  # for others, or read elsewhere
    *("NEURONA_CONFIG", "NEURONA_DATA", "NEURONA_SHARED"),
    # The command line of the client.
    *("NEURONA_CA", "NEURONA_CLIENT_CERTIFICATE", "NEURONA_CLIENT_KEY", "NEURONA_SERVER_NAME"),
    *("NEURONA_TLS", "NEURONA_TOKEN", "NEURONA_TOKEN_FILE"),
}

# What Kubernetes sets for a service called neurona, or neurona-something.
_KUBERNETES = re.compile(r"_SERVICE_(HOST|PORT)|_PORT(_\d|$)")

log = logging.getLogger(__name__)


def load(arguments: Sequence[str], environment: Mapping[str, str]) -> Config:
    """Raises ConfigError; exits as argparse does for --help and for an unknown flag."""
    flags = vars(_parser().parse_args(arguments))
    # Empty is as good as not set, as for every other variable.
    config_file = flags.pop("config") or environment.get(PREFIX + "CONFIG") or None
    values = _from_file(config_file) | _from_environment(environment)
    values |= {name: value for name, value in flags.items() if value is not None}
    parsed = {name: _parse(name, value) for name, value in values.items()}
    config = Config(**parsed)
    if not config.repository and not config.model:
        raise ConfigError(
            "no repository: say where the models are, with --repository DIR or --model NAME=DIR"
        )
    return config


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="neurona-serve",
        description="Serve ONNX models over gRPC with dynamic batching.",
        epilog="Each option may also stand in neurona.toml (max_batch_rows = 32) or in the "
        "environment (NEURONA_MAX_BATCH_ROWS=32). A flag wins over the environment, the "
        "environment over the file.",
        allow_abbrev=False,
    )
    parser.add_argument(
        "--config", metavar="FILE", help=f"file of options (default: {DEFAULT_FILE}, if there)"
    )
    for option in fields(Config):
        value = str(option.default).lower() if option.default is False else option.default
        default = "" if value in ((), "") else f" (default: {value})"
        parser.add_argument(
            "--" + option.name.replace("_", "-"),
            action="append" if option.metadata["many"] else "store",
            metavar="DIR" if option.metadata["parse"] is Path else "VALUE",
            help=option.metadata["help"] + default,
        )
    return parser


def _from_file(name: str | None) -> dict[str, Any]:
    path = Path(name or DEFAULT_FILE)
    if name is None and not path.exists():
        return {}
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}") from error
    except ValueError as error:  # not TOML, or not UTF-8
        raise ConfigError(f"{path} is not TOML: {error}") from error
    for key in values:
        if key not in _names():
            raise ConfigError(f"{path} has an unknown option {key!r}{_suggestion(key)}")
    return values


def _from_environment(environment: Mapping[str, str]) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for variable, value in environment.items():
        if not variable.startswith(PREFIX) or not value or variable in OTHERS:
            continue
        name = variable.removeprefix(PREFIX).lower()
        if name in _names():
            many = next(o for o in fields(Config) if o.name == name).metadata["many"]
            values[name] = value.split(os.pathsep) if many else value
        # The environment belongs to others too, so only what looks like one of ours is taken
        # for a misspelt one.
        elif suggestion := _suggestion(name):
            raise ConfigError(f"unknown option {variable} in the environment{suggestion}")
        elif not _KUBERNETES.search(variable):
            log.warning("the environment has %s, which is no option", variable)
    return values


def _parse(name: str, value: Any) -> Any:
    option = next(option for option in fields(Config) if option.name == name)
    many = option.metadata["many"]
    if name == "providers" and isinstance(value, list):
        value = ",".join(map(str, value))
    items = value if many and isinstance(value, list) else [value]
    parsed = []
    for item in items:
        try:
            parsed.append(option.metadata["parse"](str(item)))
        except ValueError as error:
            raise ConfigError(f"option {name} is {item!r}: {error}") from error
    return tuple(parsed) if many else parsed[0]


def _names() -> list[str]:
    return [option.name for option in fields(Config)]


def _suggestion(name: str) -> str:
    close = difflib.get_close_matches(name, _names(), n=1, cutoff=0.8)
    return f"; did you mean {close[0]!r}?" if close else ""


def check_processes(config: Config) -> None:
    """Raises ConfigError for what several processes cannot do."""
    several = f"processes is {config.processes}"
    if not hasattr(socket, "SO_REUSEPORT"):
        raise ConfigError(f"{several}: this system does not let them share a port; expected 1")
    if UNIX in config.address:
        raise ConfigError(f"{several}: expected HOST:PORT as address: a unix socket has one owner")
    if config.model_control == "explicit":
        raise ConfigError(
            f"{several}: expected model_control poll or none: a call to load reaches one of them"
        )
    if config.shared_memory:
        raise ConfigError(
            f"{several}: expected shared_memory false: a call to register reaches one of them"
        )
