"""Every option of the server, declared once: as a field of Config.

A value comes from a flag, else from the environment (NEURONA_ and the name in capitals),
else from neurona.toml, else it is the default. A misspelt option is an error.
"""

import argparse
import difflib
import logging
import os
import re
import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from neurona_server.errors import ConfigError
from neurona_server.models.settings import VersionPolicy
from neurona_server.option_texts import provider_names, seconds, yes_or_no

PREFIX = "NEURONA_"
DEFAULT_FILE = "neurona.toml"
OTHERS = {"NEURONA_CONFIG", "NEURONA_DATA", "NEURONA_SHARED"}  # for others, or read elsewhere

# What Kubernetes sets for a service called neurona, or neurona-something.
_KUBERNETES = re.compile(r"_SERVICE_(HOST|PORT)|_PORT(_\d|$)")

log = logging.getLogger(__name__)


def _option(default: Any, parse: Callable[[str], Any], text: str, *, many: bool = False) -> Any:
    return field(default=default, metadata={"parse": parse, "help": text, "many": many})


def _whole(least: int, most: int = 2**31 - 1) -> Callable[[str], int]:
    def parse(text: str) -> int:
        value = int(text)
        if not least <= value <= most:
            raise ValueError(f"expected {least} to {most}")
        return value

    return parse


def _milliseconds(text: str) -> float:
    value = float(text)
    if not 0 <= value <= 1e8:
        raise ValueError("expected 0 to 100000000")
    return value


def _one_of(*words: str) -> Callable[[str], str]:
    def parse(text: str) -> str:
        if text not in words:
            raise ValueError(f"expected {', '.join(words[:-1])} or {words[-1]}")
        return text

    return parse


def _boolean(text: str) -> bool:
    if text.lower() not in ("true", "false"):
        raise ValueError("expected true or false")
    return text.lower() == "true"


def _versions(text: str) -> str:
    VersionPolicy.parse(text)
    return text


def _address(text: str) -> str:
    host, colon, port = text.rpartition(":")
    if not colon or not host or not port.isdecimal() or int(port) > 65535:
        raise ValueError("expected HOST:PORT")
    return text


def _level(text: str) -> str:
    if text.upper() not in ("DEBUG", "INFO", "WARNING", "ERROR"):
        raise ValueError("expected debug, info, warning or error")
    return text.upper()


@dataclass(frozen=True)
class Config:
    repository: tuple[Path, ...] = _option(
        (),
        Path,
        "folder with models as <name>/<version>/model.onnx; may be given more than once",
        many=True,
    )
    address: str = _option("127.0.0.1:8001", _address, "where to listen for gRPC")
    metrics_address: str = _option("127.0.0.1:8002", _address, "where Prometheus finds /metrics")
    versions: str = _option(
        "latest 1",
        _versions,
        'which versions of a model are served: all, latest or "latest N"; model.toml may say other',
    )
    model_control: str = _option(
        "poll",
        _one_of("poll", "none", "explicit"),
        "poll: follow what the repository has; none: load once; explicit: load by call only",
    )
    poll_ms: int = _option(1000, _whole(1, 10**8), "how often the repository is looked at")
    load_model: tuple[str, ...] = _option(
        (),
        str,
        "a model to load at start where model_control is explicit; may be given more than once",
        many=True,
    )
    load_threads: int = _option(
        0, _whole(0, 64), "models loaded at the same time; 0: as many as CPUs, up to 4"
    )
    strict: bool = _option(False, _boolean, "do not start if any model cannot be served")
    instances: int = _option(1, _whole(1, 64), "sessions of each model that run side by side")
    threads: int = _option(
        0, _whole(0, 1024), "CPU threads of one run; 0: as many as the process has CPUs"
    )
    max_batch_rows: int = _option(64, _whole(1), "rows in one run at the most")
    max_queue_rows: int = _option(
        4096, _whole(1), "rows that may wait for a model; what exceeds it is refused at once"
    )
    max_queue_bytes: int = _option(
        256 << 20, _whole(1, 2**50), "bytes of input that may wait for a model, likewise"
    )
    max_delay_ms: float = _option(
        0.0, _milliseconds, "how long an idle instance waits for a batch to fill"
    )
    latency_objective_ms: float = _option(
        0.0,
        _milliseconds,
        "from admission to answer; 0: none. Batches and queues are kept so small that what is "
        "admitted meets it",
    )
    inline: str = _option(
        "auto",
        _one_of("auto", "always", "never"),
        "auto, always or never: run in the thread that reads requests",
    )
    max_message_bytes: int = _option(64 << 20, _whole(1), "size of a request at the most")
    shared_memory: bool = _option(
        False,
        _boolean,
        "let callers of the Open Inference Protocol name POSIX shared memory that the server may "
        "read and write (true or false)",
    )
    drain_delay_ms: int = _option(
        0,
        _whole(0, 10**8),
        "after SIGTERM: go on serving this long as NOT_SERVING, so that balancers notice",
    )
    drain_timeout_ms: int = _option(
        30_000, _whole(0, 10**8), "after SIGTERM: then wait this long for what is under way"
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
        0, _whole(0, 2**50), "GPU memory of each session at the most; 0: no limit"
    )
    cpu_memory_bytes: int = _option(
        0,
        _whole(0, 2**50),
        "memory that all runs take together on the CPU, weights not counted; one that needs more "
        "fails; 0: no limit",
    )
    arena: bool = _option(True, yes_or_no, "keep memory between runs: quicker, and takes more")
    shrink_seconds: float = _option(
        60.0, seconds, "how often a run gives back what the arena has too much of; 0: never"
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
    log_level: str = _option("INFO", _level, "debug, info, warning or error")


def load(arguments: Sequence[str], environment: Mapping[str, str]) -> Config:
    """Raises ConfigError; exits as argparse does for --help and for an unknown flag."""
    flags = vars(_parser().parse_args(arguments))
    config_file = flags.pop("config") or environment.get(PREFIX + "CONFIG")
    values = _from_file(config_file) | _from_environment(environment)
    values |= {name: value for name, value in flags.items() if value is not None}
    parsed = {name: _parse(name, value) for name, value in values.items()}
    config = Config(**parsed)
    if not config.repository:
        raise ConfigError("no repository: say where the models are, with --repository DIR")
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
        default = "" if option.default == () else f" (default: {value})"
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
